//! Several replicas behind one address: every request goes to the next one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How many replicas every test runs with; none: one obo without a balancer. They need a store that replicas share.
pub fn wanted() -> Option<usize> {
    std::env::var("OBO_TEST_REPLICAS").ok().map(|count| count.parse().unwrap())
}

/// Passes requests on, each to the next of `to`.
pub fn balance(listener: TcpListener, to: Vec<SocketAddr>, stop: CancellationToken) {
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap();
    let turn = Arc::new(AtomicUsize::new(0));
    let pass = move |request: Request| {
        let (http, turn, to) = (http.clone(), Arc::clone(&turn), to.clone());
        async move {
            let next = to[turn.fetch_add(1, Ordering::Relaxed) % to.len()];
            let (head, body) = request.into_parts();
            // The host that the client named goes along with the other headers.
            let answer = http
                .request(head.method, format!("http://{next}{}", head.uri))
                .headers(head.headers)
                .body(reqwest::Body::wrap_stream(body.into_data_stream()))
                .send()
                .await
                .unwrap();
            let mut response = Response::new(Body::empty());
            *response.status_mut() = answer.status();
            *response.headers_mut() = answer.headers().clone();
            response.headers_mut().remove("transfer-encoding");
            *response.body_mut() = Body::from_stream(answer.bytes_stream());
            response
        }
    };
    let router = Router::new().fallback(pass);
    tokio::spawn(async move {
        axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await.unwrap();
    });
}
