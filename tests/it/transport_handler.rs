//! Another handler in the product's place: the layers in front of it are the same, and it learns who is calling.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use http::{Request, StatusCode};
use obo::transport::http::{Ready, Scopes, Setup, router_to};
use obo::transport::{Caller as _, Config, Handler};
use rmcp::model::{ListToolsResult, PaginatedRequestParams, ProtocolVersion, ServerCapabilities, ServerConfig, Tool};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::{Map, Value, json};
use tower::ServiceExt as _;

use crate::transport_fake::{Fake, Someone, initialize, modern};

/// Offers one tool, which is named after the caller.
#[derive(Clone)]
struct Mirror(ProtocolVersion);

impl Handler for Mirror {
    fn with_handshake_only(self) -> Self {
        Self(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }
}

impl ServerHandler for Mirror {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(ProtocolVersion::known_up_to(&self.0))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let parts = context.extensions.get::<http::request::Parts>();
        let caller = parts.and_then(|parts| parts.extensions.get::<Someone>());
        // A panic would be no answer at all.
        let caller = caller.ok_or_else(|| ErrorData::internal_error("no caller", None))?;
        let user = caller.person().user.to_string();
        Ok(ListToolsResult::with_all_items(vec![Tool::new(user, "The caller.", Map::new())]))
    }
}

struct Always;

#[async_trait::async_trait]
impl Ready for Always {
    async fn ready(&self) -> bool {
        true
    }
}

async fn ask(headers: &[(&str, &str)], message: &Value) -> (StatusCode, String) {
    let listen: SocketAddr = "127.0.0.1:8787".parse().unwrap();
    let app = router_to(
        Mirror(ProtocolVersion::LATEST),
        Setup {
            service: Fake::new(),
            config: Config { listen, ..Config::default() },
            listen,
            issuers: Vec::new(),
            scopes: Scopes::default(),
            sse_is_a_resource: false,
            mcp_sessions: None,
            ready: Arc::new(Always),
            further: axum::Router::new(),
            unhosted: axum::Router::new(),
        },
    );
    let mut request = Request::post("/mcp")
        .header("accept", "application/json, text/event-stream")
        .header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = app.router().oneshot(request.body(Body::from(message.to_string())).unwrap()).await.unwrap();
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

const HOST: (&str, &str) = ("host", "localhost:8787");
const ALICE: (&str, &str) = ("authorization", "Bearer alice");

#[tokio::test]
async fn another_handler_has_the_same_layers_in_front() {
    let list = modern(1, "tools/list", json!({}), json!({}));
    let revision = [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/list")];
    for (headers, expected) in [
        (&[HOST, ALICE][..], StatusCode::OK),
        (&[HOST], StatusCode::UNAUTHORIZED),
        (&[HOST, ("authorization", "Bearer bad")], StatusCode::UNAUTHORIZED),
        (&[("host", "evil.example"), ALICE], StatusCode::FORBIDDEN),
        (&[HOST, ("origin", "https://evil.example"), ALICE], StatusCode::FORBIDDEN),
    ] {
        let (status, body) = ask(&[headers, &revision].concat(), &list).await;
        assert_eq!(status, expected, "{headers:?}: {body}");
        assert_eq!(body.contains(r#""name":"alice""#), status == StatusCode::OK, "{body}");
    }
}

#[tokio::test]
async fn another_handler_has_sessions_too() {
    let (status, body) = ask(&[HOST, ALICE], &initialize("2025-11-25", json!({}))).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains(r#""protocolVersion":"2025-11-25""#), "{body}");
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    let (status, body) = ask(&[HOST, ALICE, ("mcp-session-id", "nobody's")], &list).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
}
