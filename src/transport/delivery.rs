//! What a call returns, by the client's protocol revision and capabilities.
//!
//! | revision | client has URL elicitation | a call that needs consent returns |
//! |---|---|---|
//! | 2026-07-28 | yes | `input_required` with a URL elicitation and `requestState` |
//! | 2026-07-28 | no | a tool result with the link; with `consent_delivery = "elicit"` the error -32021 |
//! | 2025-11-25 | yes | the error -32042 |
//! | 2025-11-25 | no | a tool result with the link |
//! | older | – | a tool result with the link |
//!
//! A person who was given the link and refused it, or for whom the call waited in vain, gets the tool result in every
//! case: asking again in the same way would go round in circles.

use std::collections::BTreeMap;
use std::time::Duration;

use rmcp::ErrorData;
use rmcp::model::{
    CallToolResponse, CallToolResult, ClientCapabilities, ContentBlock, ElicitRequest, ElicitRequestParams,
    ElicitationCapability, ErrorCode, InputRequest, InputRequiredResult, MetaObject, ProtocolVersion,
    UrlElicitationCapability,
};
use serde_json::{Value, json};

use super::config::{ConsentDelivery, ToolNames};
use crate::call::Outcome;
use crate::catalog::OWN_TOOLKIT;
use crate::consent::Link;
use crate::failure::Failure;

/// `URLElicitationRequiredError` (2025-11-25 only; 2026-07-28 Basic §Error Codes forbids it there).
const URL_ELICITATION_REQUIRED: ErrorCode = ErrorCode(-32042);

/// Most characters of an unknown tool's name that are echoed.
const MAX_ECHOED_CHARS: usize = 128;

/// What an [`Outcome`] is delivered to.
#[derive(Debug, Clone)]
pub struct Recipient {
    /// The protocol revision of this request; none when the client has not said, which is treated as the oldest.
    pub revision: Option<ProtocolVersion>,
    /// Whether the client declared `elicitation.url`. An empty `elicitation` means forms only.
    pub url_elicitation: bool,
    /// The operator's setting.
    pub consent_delivery: ConsentDelivery,
    /// Whether this is the retry of a multi-round-trip request. Asking again and again would use up its rounds.
    pub retried: bool,
    /// Whether this is a retry that says that the person refused.
    pub refused: bool,
    /// The tool's name as the client spelled it.
    pub tool: String,
    /// How names are spelled in lists.
    pub tool_names: ToolNames,
}

impl Recipient {
    /// The tool that takes a code which a page shows.
    fn connect(&self) -> &'static str {
        match self.tool_names {
            ToolNames::Underscore => "Obo_Connect",
            ToolNames::Dotted => "Obo.Connect",
        }
    }

    fn has(&self, revision: &ProtocolVersion) -> bool {
        self.revision.as_ref().is_some_and(|spoken| spoken >= revision)
    }
}

/// Writes an outcome for its recipient.
///
/// # Errors
/// The JSON-RPC error that the recipient gets in place of a result.
pub fn deliver(outcome: Outcome, to: &Recipient) -> Result<CallToolResponse, ErrorData> {
    match outcome {
        Outcome::Value(value) => Ok(value_result(value, to).into()),
        Outcome::Authorization(link) => authorization(&link, to),
        Outcome::Failed(failure) => Ok(failure_result(&failure).into()),
        Outcome::UnknownTool => {
            // The name is whatever the client sent.
            let name: String = to.tool.chars().filter(|c| !c.is_control()).take(MAX_ECHOED_CHARS).collect();
            Err(ErrorData::invalid_params(format!("Unknown tool: {name}"), None))
        }
        Outcome::BadRequestState => Err(ErrorData::invalid_params(
            "requestState is not valid for this call; call the tool again without it",
            None,
        )),
    }
}

/// How a link reaches the person.
enum Form {
    /// Multi-round-trip request (2026-07-28, MRTR).
    InputRequired,
    /// The error -32042 (2025-11-25, Elicitation §URL Elicitation Required Error).
    UrlError,
    /// The error -32021 (2026-07-28, Basic §Per-request protocol fields).
    MissingCapability,
    /// A tool result.
    Text,
}

fn form(link: &Link, to: &Recipient) -> Form {
    let modern = to.has(&ProtocolVersion::V_2026_07_28);
    match to.consent_delivery {
        ConsentDelivery::Text => Form::Text,
        ConsentDelivery::Elicit if modern && !to.url_elicitation => Form::MissingCapability,
        _ if to.refused || (to.retried && link.waited) || !to.url_elicitation => Form::Text,
        _ if modern => Form::InputRequired,
        _ if to.has(&ProtocolVersion::V_2025_11_25) => Form::UrlError,
        _ => Form::Text,
    }
}

fn authorization(link: &Link, to: &Recipient) -> Result<CallToolResponse, ErrorData> {
    // A tool of obo's own asks for the connection itself.
    let own = to.tool.split(['.', '_']).next() == Some(OWN_TOOLKIT);
    let mut message = match own {
        true => format!("Connect {} for your agent", link.provider_name),
        false => format!("Connect {} so that {} can act for you", link.provider_name, to.tool),
    };
    if link.code_back {
        let connect = to.connect();
        message.push_str(&format!(". The page ends with a code: give it to your agent, which passes it to {connect}"));
    }
    match form(link, to) {
        Form::Text => Ok(link_result(link, to).into()),
        Form::InputRequired => {
            let elicitation = ElicitRequestParams::UrlElicitationParams {
                meta: None,
                message,
                url: link.url.to_string(),
                elicitation_id: link.flow.as_str().to_owned(),
            };
            let key = format!("{CONSENT_KEY_PREFIX}{}", link.provider);
            let requests = BTreeMap::from([(key, InputRequest::Elicitation(ElicitRequest::new(elicitation)))]);
            Ok(InputRequiredResult::new(Some(requests), Some(link.request_state.clone())).into())
        }
        Form::UrlError => Err(ErrorData::new(
            URL_ELICITATION_REQUIRED,
            // Hosts that show nothing but the message still show the link.
            format!("Authorization required: open {} to connect {}, then call again.", link.url, link.provider_name),
            Some(json!({"elicitations": [{
                "mode": "url",
                "elicitationId": link.flow.as_str(),
                "url": link.url.as_str(),
                "message": message,
            }]})),
        )),
        Form::MissingCapability => {
            let url = ElicitationCapability::new().with_url(UrlElicitationCapability::new());
            let mut required = ClientCapabilities::default();
            required.elicitation = Some(url);
            Err(ErrorData::missing_required_client_capability(required))
        }
    }
}

/// What the keys of obo's input requests begin with; the provider follows.
pub(super) const CONSENT_KEY_PREFIX: &str = "consent:";

fn link_result(link: &Link, to: &Recipient) -> CallToolResult {
    let Link { provider_name: provider, url, .. } = link;
    let tool = &to.tool;
    let expiry = in_words(link.expires_in);
    let mut text = if to.refused {
        format!(
            "{tool} was not run: the request to connect {provider} was declined in the client, and nothing was \
             changed. The link stays open for {expiry}, in case the user wants to connect {provider} after all: {url}"
        )
    } else if link.waited {
        format!(
            "{tool} was not run: the user has not given permission to use their {provider} account yet. They still can, \
             by opening this link in a browser within {expiry}: {url}\nOnce that is done, {tool} can be called again with the same arguments."
        )
    } else {
        format!(
            "{tool} was not run: it needs the user's permission to use their {provider} account. The user can give it \
             by opening this link in a browser within {expiry}: {url}\nOnce that is done, {tool} can be called again \
             with the same arguments."
        )
    };
    if link.code_back && !to.refused {
        text.push_str(&format!(
            "\nThe page ends with a code. The account is connected once the user has typed that code back: call {} with \
             it as `code`.",
            to.connect()
        ));
    }
    let object = json!({
        "status": "authorization_required",
        "provider": link.provider.as_str(),
        "authorization_url": url.as_str(),
        "scopes": link.scopes,
        "expires_in": link.expires_in.as_secs(),
    });
    let mut result = CallToolResult::error(vec![ContentBlock::text(text), ContentBlock::text(object.to_string())]);
    result.meta = Some(meta("obo/authorization", object));
    result
}

fn value_result(value: Value, to: &Recipient) -> CallToolResult {
    let mut result = CallToolResult::success(vec![ContentBlock::text(value.to_string())]);
    // 2025-06-18, Tools §Structured Content.
    if value.is_object() && to.has(&ProtocolVersion::V_2025_06_18) {
        result.structured_content = Some(value);
    }
    result
}

fn failure_result(failure: &Failure) -> CallToolResult {
    let mut error = json!({"code": failure.code.as_str(), "can_retry": failure.can_retry});
    if let Some(wait) = failure.retry_after {
        error["retry_after_ms"] = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).into();
    }
    if let Some(status) = failure.status {
        error["status"] = status.into();
    }
    let mut result = CallToolResult::error(vec![ContentBlock::text(failure.message.clone())]);
    result.meta = Some(meta("obo/error", error));
    result
}

fn meta(key: &str, value: Value) -> MetaObject {
    let mut meta = MetaObject::new();
    meta.insert(key.to_owned(), value);
    meta
}

/// A time as a person says it: `10 minutes`, `45 seconds`. Minutes are rounded: a fresh link has ten, not nine.
fn in_words(time: Duration) -> String {
    let seconds = time.as_secs();
    match (if seconds < 60 { 0 } else { (seconds + 30) / 60 }, seconds) {
        (0, 1) => "1 second".to_owned(),
        (0, n) => format!("{n} seconds"),
        (1, _) => "1 minute".to_owned(),
        (n, _) => format!("{n} minutes"),
    }
}

#[cfg(test)]
mod tests {
    use rmcp::model::{JsonRpcError, RequestId, ServerResult};

    use super::*;
    use crate::failure::Code;

    fn link(waited: bool) -> Link {
        Link {
            flow: "AbCdEfGhIjKlMnOpQrStUvWxYz012345".parse().unwrap(),
            url: "https://obo.example.com/connect/AbCdEfGhIjKlMnOpQrStUvWxYz012345".parse().unwrap(),
            provider: "google".parse().unwrap(),
            provider_name: "Google".to_owned(),
            tool: Some("Google.SendEmail".parse().unwrap()),
            scopes: vec!["https://www.googleapis.com/auth/gmail.send".to_owned()],
            expires_in: Duration::from_secs(600),
            request_state: "sealed".to_owned(),
            waited,
            code_back: false,
        }
    }

    const CAPABILITIES: [(&str, &str); 3] =
        [("none", "{}"), ("form", r#"{"elicitation":{}}"#), ("url", r#"{"elicitation":{"url":{}}}"#)];

    fn recipient(revision: &ProtocolVersion, capabilities: &str) -> Recipient {
        let capabilities: ClientCapabilities = serde_json::from_str(capabilities).unwrap();
        Recipient {
            revision: Some(revision.clone()),
            url_elicitation: super::super::mcp::has_url_elicitation(Some(&capabilities)),
            consent_delivery: ConsentDelivery::Auto,
            retried: false,
            refused: false,
            tool: "Google_SendEmail".to_owned(),
            tool_names: ToolNames::Underscore,
        }
    }

    fn wire(delivered: Result<CallToolResponse, ErrorData>) -> Value {
        match delivered {
            Ok(response) => json!({"result": ServerResult::from(response)}),
            Err(error) => serde_json::to_value(JsonRpcError::new(Some(RequestId::Number(1)), error)).unwrap(),
        }
    }

    /// The form that a delivery has, for tables.
    fn kind(wire: &Value) -> &'static str {
        match (wire["error"]["code"].as_i64(), wire["result"]["resultType"].as_str()) {
            (Some(-32042), _) => "-32042",
            (Some(-32021), _) => "-32021",
            (None, Some("input_required")) => "input_required",
            (None, _) if wire["result"]["isError"] == true => "text",
            _ => panic!("{wire}"),
        }
    }

    #[test]
    fn every_revision_and_capability_has_its_form() {
        for revision in ProtocolVersion::KNOWN_VERSIONS {
            for (name, capabilities) in CAPABILITIES {
                let to = recipient(revision, capabilities);
                let delivered = wire(deliver(Outcome::Authorization(link(false)), &to));
                insta::assert_json_snapshot!(format!("consent_{}_{name}", revision.as_str()), delivered);
            }
        }
    }

    #[test]
    fn the_table_holds_for_every_setting() {
        let mut rows = Vec::new();
        for setting in [ConsentDelivery::Auto, ConsentDelivery::Text, ConsentDelivery::Elicit] {
            for revision in ProtocolVersion::KNOWN_VERSIONS {
                for (name, capabilities) in CAPABILITIES {
                    let mut to = recipient(revision, capabilities);
                    to.consent_delivery = setting;
                    let first = wire(deliver(Outcome::Authorization(link(false)), &to));
                    let again = wire(deliver(Outcome::Authorization(link(true)), &to));
                    to.retried = true;
                    let waited = wire(deliver(Outcome::Authorization(link(true)), &to));
                    to.refused = true;
                    let refused = wire(deliver(Outcome::Authorization(link(false)), &to));
                    rows.push(format!(
                        "{setting:?} {} {name}: first {}, again {}, retry waited {}, retry refused {}",
                        revision.as_str(),
                        kind(&first),
                        kind(&again),
                        kind(&waited),
                        kind(&refused)
                    ));
                }
            }
        }
        insta::assert_snapshot!("consent_table", rows.join("\n"));
    }

    #[test]
    fn a_client_that_named_no_revision_gets_text() {
        let mut to = recipient(&ProtocolVersion::V_2024_11_05, CAPABILITIES[2].1);
        to.revision = None;
        assert_eq!(kind(&wire(deliver(Outcome::Authorization(link(false)), &to))), "text");
    }

    #[test]
    fn waiting_in_vain_and_refusing_name_the_link_again() {
        let mut to = recipient(&ProtocolVersion::V_2026_07_28, CAPABILITIES[2].1);
        to.retried = true;
        insta::assert_json_snapshot!("consent_waited", wire(deliver(Outcome::Authorization(link(true)), &to)));
        to.refused = true;
        insta::assert_json_snapshot!("consent_refused", wire(deliver(Outcome::Authorization(link(false)), &to)));
    }

    #[test]
    fn a_value_is_one_json_text_and_structured_where_that_exists() {
        for (revision, structured) in [
            (ProtocolVersion::V_2024_11_05, false),
            (ProtocolVersion::V_2025_03_26, false),
            (ProtocolVersion::V_2025_06_18, true),
            (ProtocolVersion::V_2025_11_25, true),
            (ProtocolVersion::V_2026_07_28, true),
        ] {
            let to = recipient(&revision, "{}");
            let object = json!({"id": "1", "n": 2});
            let wire_object = wire(deliver(Outcome::Value(object.clone()), &to));
            assert_eq!(wire_object["result"]["content"], json!([{"type": "text", "text": object.to_string()}]));
            assert_eq!(wire_object["result"].get("structuredContent"), structured.then_some(&object), "{revision}");
            let wire_list = wire(deliver(Outcome::Value(json!(["a"])), &to));
            assert_eq!(wire_list["result"]["content"][0]["text"], "[\"a\"]");
            assert_eq!(wire_list["result"].get("structuredContent"), None, "{revision}");
        }
    }

    #[test]
    fn failures_are_tool_results_with_a_code() {
        let to = recipient(&ProtocolVersion::V_2025_11_25, "{}");
        let failure = Failure::new(Code::RateLimited, "Google asks to wait; call again in 30 seconds")
            .with_status(429)
            .after(Some(Duration::from_secs(30)))
            .because("not for the caller");
        insta::assert_json_snapshot!("failure", wire(deliver(Outcome::Failed(failure), &to)));
    }

    #[test]
    fn unknown_tools_and_bad_states_are_protocol_errors() {
        let to = recipient(&ProtocolVersion::V_2026_07_28, "{}");
        let unknown = wire(deliver(Outcome::UnknownTool, &to));
        assert_eq!(unknown["error"], json!({"code": -32602, "message": "Unknown tool: Google_SendEmail"}));
        let state = wire(deliver(Outcome::BadRequestState, &to));
        assert_eq!(state["error"]["code"], -32602);
    }

    #[test]
    fn times_are_said_in_words() {
        for (seconds, words) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "1 minute"),
            (89, "1 minute"),
            (119, "2 minutes"),
            (599, "10 minutes"),
            (600, "10 minutes"),
        ] {
            assert_eq!(in_words(Duration::from_secs(seconds)), words);
        }
    }
}
