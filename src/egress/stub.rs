//! A server for tests: one answer a connection, and a record of what was asked.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

/// A request as it came in.
#[derive(Clone)]
pub(crate) struct Asked {
    /// Request line and headers, in one text.
    pub(crate) head: String,
    /// The body.
    pub(crate) body: String,
}

impl Asked {
    /// The path with its query.
    pub(crate) fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    /// The body as form fields.
    pub(crate) fn form(&self) -> Vec<(String, String)> {
        url::form_urlencoded::parse(self.body.as_bytes()).into_owned().collect()
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// What the server does with a request.
pub(crate) enum Reply {
    /// Status line's number, content type, body.
    Whole(u16, &'static str, Vec<u8>),
    /// These bytes, then the connection is closed.
    Raw(Vec<u8>),
    /// Nothing, and the connection stays open.
    Silence,
}

impl Reply {
    /// A JSON answer.
    pub(crate) fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Reply::Whole(status, "application/json", body.into())
    }
}

/// The server. It ends with the test's runtime.
pub(crate) struct Stub {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Stub {
    /// Listens on a free loopback port and answers with `reply`.
    pub(crate) async fn start(reply: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stub = Self { address: listener.local_addr().unwrap(), connections: Arc::default(), asked: Arc::default() };
        let (connections, asked, reply) = (Arc::clone(&stub.connections), Arc::clone(&stub.asked), Arc::new(reply));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (asked, reply) = (Arc::clone(&asked), Arc::clone(&reply));
                tokio::spawn(async move { serve(stream, &asked, &*reply).await });
            }
        });
        stub
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL of it.
    pub(crate) fn url(&self, path: &str) -> Url {
        Url::parse(&format!("http://{}{path}", self.address)).unwrap()
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, asked: &Mutex<Vec<Asked>>, reply: &(dyn Fn(&Asked) -> Reply + Send + Sync)) {
    let mut bytes = Vec::new();
    let request = loop {
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(read) if read > 0 => bytes.extend_from_slice(&chunk[..read]),
            _ => return,
        }
        // A TLS handshake: this server has no key.
        if bytes[0] == 0x16 {
            return;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let request = Asked { head: head.to_owned(), body: body.to_owned() };
        let length: usize = request.header("content-length").map_or(0, |length| length.parse().unwrap());
        if body.len() >= length {
            break request;
        }
    };
    let answer = reply(&request);
    asked.lock().unwrap().push(request);
    match answer {
        Reply::Whole(status, content_type, body) => {
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            // The client may hang up in the middle; that is what some tests want.
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&body).await;
        }
        Reply::Raw(bytes) => {
            let _ = stream.write_all(&bytes).await;
        }
        Reply::Silence => std::future::pending().await,
    }
}
