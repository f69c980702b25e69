//! A server of client metadata documents, which answers what it is told to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::oauth_client::CALLBACK;

/// A server of documents that obo may connect to. What it is told to answer, by path.
pub struct Documents {
    pub url: String,
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    answers: Mutex<BTreeMap<String, Document>>,
    asked: AtomicUsize,
}

/// What is answered at an address.
#[derive(Clone)]
pub struct Document {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// It never comes.
    pub never: bool,
}

impl Document {
    pub fn json(document: &Value) -> Self {
        Self::text(&document.to_string())
    }

    pub fn text(text: &str) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Self { status: 200, headers, body: text.as_bytes().to_vec(), never: false }
    }
}

impl Documents {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let app = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url: format!("http://127.0.0.1:{port}"), port, shared }
    }

    /// The key of obo.toml that opens it.
    pub fn allowed(&self) -> String {
        format!("[network]\nallow_private = [\"127.0.0.1:{}\"]\n", self.port)
    }

    /// Publishes an answer: its address.
    pub fn put(&self, path: &str, answer: Document) -> String {
        self.shared.answers.lock().unwrap().insert(path.to_owned(), answer);
        format!("{}{path}", self.url)
    }

    /// A document that is as it should be.
    pub fn good(&self, path: &str) -> Value {
        json!({ "client_id": format!("{}{path}", self.url), "client_name": "Paper", "redirect_uris": [CALLBACK] })
    }

    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    shared.asked.fetch_add(1, Ordering::SeqCst);
    let found = shared.answers.lock().unwrap().get(request.uri().path()).cloned();
    let Some(answer) = found else { return Response::builder().status(404).body(Body::empty()).unwrap() };
    if answer.never {
        std::future::pending::<()>().await;
    }
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response.body(Body::from(answer.body)).unwrap()
}
