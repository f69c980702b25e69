//! A provider that does everything that providers do at their worst, and knows what came of it.
//!
//! Whether a connection was lost is judged by what it wrote down, never by what obo believes: for each family of tokens
//! whether it lives, and if not, why; which refresh token is the newest; how often each was presented.
//!
//! The proof program and the integration tests include this file by `#[path]`.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "this is a library to the programs that include it; each uses a part"
)]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};
use url::Url;

// With explicit paths it is found both beside this file and where that is included by `#[path]`.
#[path = "evil_provider/families.rs"]
pub mod families;

pub use families::{Death, Families, Family, Refreshed, Rotation, Which};

/// Largest request body read, in bytes.
const MAX_BODY_BYTES: usize = 64 << 10; // 64 KiB

/// How long after the last a piece of a dripping answer comes.
const DRIP: Duration = Duration::from_millis(20);

/// What a test says about the provider.
pub struct Settings {
    pub rotation: Rotation,
    /// How long an access token lives, in seconds, and what the answer says of it.
    pub lifetime: i64,
    /// How long a refresh takes.
    pub latency: Duration,
    /// The provider's clock, in milliseconds.
    pub now: Box<dyn Fn() -> i64 + Send + Sync>,
}

/// What goes wrong with one answer of the token endpoint. Where nothing else is said, the tokens were rotated before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection is cut, and nothing was done.
    CutBefore,
    /// The tokens are rotated, and the answer is dropped.
    CutAfter,
    /// This status in place of the answer; with `Retry-After` in seconds, where there is one.
    StatusAfter(u16, Option<u64>),
    /// The same, and nothing was done.
    StatusBefore(u16, Option<u64>),
    /// The answer comes whole, a few bytes at a time.
    Drip,
    /// The answer begins, and never ends.
    Stall,
    /// A page, with status 200.
    Html,
    /// The answer without `expires_in`, or with another one.
    Lifetime(Option<Value>),
    /// The answer, and 10 MB after it.
    Huge,
    /// 307 to another place, which would get the refresh token if it were followed.
    Redirect,
    /// 400 whose text repeats what was sent.
    Echo,
    /// An OAuth error (RFC 6749 §5.2), and nothing was done.
    Error(&'static str),
}

/// Where in an exchange something is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The request has arrived; nothing has been done.
    Before,
    /// The tokens are rotated; nothing has been answered.
    After,
    /// The answer has been handed over to the network.
    Answered,
}

/// An exchange that reached the point at which somebody waits for it.
#[derive(Debug, Clone, Copy)]
pub struct Reached {
    pub which: Which,
    pub point: Point,
}

struct Ambush {
    point: Point,
    tell: oneshot::Sender<Reached>,
    go: oneshot::Receiver<()>,
}

/// The running provider. It ends when it is dropped.
pub struct EvilProvider {
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    settings: Settings,
    origin: String,
    families: Mutex<Families>,
    state: Mutex<State>,
    /// What makes this run's tokens nobody else's.
    run: String,
}

#[derive(Default)]
struct State {
    faults: VecDeque<Fault>,
    /// Keyed by the client's secret: each process of a proof has its own.
    ambushes: HashMap<String, Ambush>,
    /// What was asked for at the place that a redirect leads to.
    followed: u32,
    skew: i64,
}

impl Drop for EvilProvider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The connection is cut without an answer.
#[derive(Debug, thiserror::Error)]
#[error("cut on purpose")]
struct Cut;

impl EvilProvider {
    pub async fn start(settings: Settings) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let origin = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared {
            settings,
            origin,
            families: Mutex::default(),
            state: Mutex::default(),
            run: uuid::Uuid::new_v4().simple().to_string(),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Ok(Self { shared, task })
    }

    pub fn origin(&self) -> &str {
        &self.shared.origin
    }

    /// The ground truth.
    pub fn families(&self) -> MutexGuard<'_, Families> {
        self.shared.families()
    }

    /// What goes wrong next, in this order.
    pub fn next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.state().faults.extend(faults);
    }

    /// How many planted faults nobody has met yet.
    pub fn planted(&self) -> usize {
        self.shared.state().faults.len()
    }

    /// How often somebody followed a redirect of the token endpoint.
    pub fn followed(&self) -> u32 {
        self.shared.state().followed
    }

    /// Sets the provider's clock off by so many milliseconds: its tokens end that much earlier than it says.
    pub fn skew(&self, by: i64) {
        self.shared.state().skew = by;
    }

    /// Notes that a client has died; see [`Families::died`].
    pub fn died(&self, client: &str) -> Vec<Which> {
        let now = self.shared.now();
        self.families().died(client, now)
    }

    /// The first tokens of a new family, as a code exchange would answer them.
    pub fn consent(&self, account: &str) -> Value {
        let which = self.families().begin(account, self.shared.access_end());
        self.shared.answer(which)
    }

    /// Waits for the next exchange of a client to reach a point. The exchange goes on once the sender is dropped.
    pub fn ambush(&self, client: &str, point: Point) -> (oneshot::Receiver<Reached>, oneshot::Sender<()>) {
        let (tell, told) = oneshot::channel();
        let (release, go) = oneshot::channel();
        self.shared.state().ambushes.insert(client.to_owned(), Ambush { point, tell, go });
        (told, release)
    }

    /// `provider.toml`.
    pub fn manifest(&self) -> String {
        let (refresh, grace) = match self.shared.settings.rotation {
            Rotation::Keeps => ("keeps", 0),
            Rotation::Graced(grace) => ("rotates", grace / 1000),
            Rotation::Strict => ("strict", 0),
        };
        let origin = &self.shared.origin;
        format!(
            r#"id = "evil"
name = "Evil"
[servers]
api = "{origin}/api"
[oauth]
authorize_url = "{origin}/authorize"
token_url = "{origin}/token"
revoke = {{ url = "{origin}/revoke" }}
refresh = "{refresh}"
refresh_grace_s = {grace}
[account]
url = "{origin}/api/me"
key = ".account"
label = ".account"
"#
        )
    }

    /// A tool that asks who somebody is. The account it answers is the provider's word.
    pub fn tool() -> &'static str {
        r#"name = "Evil.Who"
title = "Who am I"
description = "Says whose account the token is for."
scopes = ["who"]
effect = "read"
idempotent = true
[input]
type = "object"
additionalProperties = false
[request]
method = "GET"
url = "{api}/me"
[response]
value = '{account, generation}'
"#
    }
}

impl Shared {
    fn families(&self) -> MutexGuard<'_, Families> {
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> i64 {
        (self.settings.now)() + self.state().skew
    }

    /// When a token ends that is given out now. The skew comes on top when it is used.
    fn access_end(&self) -> i64 {
        (self.settings.now)() + self.settings.lifetime * 1000
    }

    fn token(&self, kind: char, Which { family, generation }: Which) -> String {
        format!("evil-{kind}.{family}.{generation}.{}", self.run)
    }

    fn read(&self, kind: char, token: &str) -> Option<Which> {
        let rest = token.strip_prefix("evil-")?.strip_prefix(kind)?.strip_prefix('.')?.strip_suffix(&self.run)?;
        let (family, generation) = rest.strip_suffix('.')?.split_once('.')?;
        let which = Which { family: family.parse().ok()?, generation: generation.parse().ok()? };
        self.families().knows(which).then_some(which)
    }

    fn answer(&self, which: Which) -> Value {
        let mut answer = json!({
            "access_token": self.token('a', which),
            "token_type": "Bearer",
            "expires_in": self.settings.lifetime,
            "scope": "who",
        });
        if self.settings.rotation != Rotation::Keeps || which.generation == 1 {
            answer["refresh_token"] = self.token('r', which).into();
        }
        answer
    }

    /// Lets whoever waits for this point know, and waits until they are done.
    async fn reach(&self, client: &str, point: Point, which: Which) {
        let ambush = {
            let mut state = self.state();
            match state.ambushes.get(client) {
                Some(ambush) if ambush.point == point => state.ambushes.remove(client),
                _ => None,
            }
        };
        let Some(Ambush { tell, go, .. }) = ambush else { return };
        if tell.send(Reached { which, point }).is_ok() {
            let _ = go.await;
        }
    }
}

/// Hyper rather than `axum::serve`, because a service of hyper's may fail, which cuts the connection.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
            Some(_) = connections.join_next() => continue,
        };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                // A task of its own: a client that dies does not keep the provider from doing what it was asked.
                let work = tokio::spawn(serve(Arc::clone(&shared), request));
                async move { work.await.unwrap_or(Err(Cut)) }
            });
            // An error here is a client that went away, or a cut.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn serve(shared: Arc<Shared>, request: Request<hyper::body::Incoming>) -> Result<Response<Body>, Cut> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(Body::new(body), MAX_BODY_BYTES).await.map_err(|_| Cut)?;
    match parts.uri.path() {
        "/authorize" => Ok(authorize(&shared, parts.uri.query().unwrap_or_default())),
        "/token" => token(&shared, &body).await,
        "/revoke" => {
            let token = form(&body).remove("token").unwrap_or_default();
            let known = shared.read('r', &token).or_else(|| shared.read('a', &token));
            if let Some(which) = known {
                shared.families().revoke(which.family);
            }
            Ok(json_answer(200, &json!({})))
        }
        "/api/me" => {
            let bearer = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
            let which =
                bearer.and_then(|value| value.strip_prefix("Bearer ")).and_then(|token| shared.read('a', token));
            let now = shared.now();
            let families = shared.families();
            Ok(match which.filter(|which| families.accepts(*which, now)) {
                Some(which) => {
                    json_answer(200, &json!({ "account": families.account(which), "generation": which.generation }))
                }
                None => json_answer(401, &json!({ "error": "invalid_token" })),
            })
        }
        "/elsewhere" => {
            shared.state().followed += 1;
            Ok(json_answer(400, &json!({ "error": "invalid_grant" })))
        }
        _ => Ok(json_answer(404, &json!({ "error": "not_found" }))),
    }
}

/// Agrees at once, for the account that `login_hint` names, and sends the browser back.
fn authorize(shared: &Shared, query: &str) -> Response<Body> {
    let asked = form(query.as_bytes());
    let code = uuid::Uuid::new_v4().simple().to_string();
    let account = asked.get("login_hint").cloned().unwrap_or_else(|| "somebody".to_owned());
    shared.families().keep_code(code.clone(), account);
    let Some(mut back) = asked.get("redirect_uri").and_then(|uri| Url::parse(uri).ok()) else {
        return json_answer(400, &json!({ "error": "invalid_request" }));
    };
    back.query_pairs_mut().append_pair("code", &code);
    if let Some(state) = asked.get("state") {
        back.query_pairs_mut().append_pair("state", state);
    }
    let mut answer = json_answer(302, &json!({}));
    if let Ok(location) = HeaderValue::from_str(back.as_str()) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    answer
}

async fn token(shared: &Arc<Shared>, body: &Bytes) -> Result<Response<Body>, Cut> {
    let asked = form(body);
    let text = |name: &str| asked.get(name).map(String::as_str).unwrap_or_default();
    let refused = || Ok(json_answer(400, &json!({ "error": "invalid_grant" })));
    if text("grant_type") == "authorization_code" {
        let account = shared.families().spend_code(text("code"));
        let Some(account) = account else { return refused() };
        let which = shared.families().begin(&account, shared.access_end());
        return Ok(json_answer(200, &shared.answer(which)));
    }
    let client = text("client_secret").to_owned();
    let Some(which) = shared.read('r', text("refresh_token")) else { return refused() };
    shared.families().arrived(which, &client);
    let _left = Left { shared, which, client: &client };

    let fault = shared.state().faults.pop_front();
    match &fault {
        Some(Fault::CutBefore) => return Err(Cut),
        Some(Fault::StatusBefore(status, retry_after)) => return Ok(status_answer(*status, *retry_after)),
        Some(Fault::Error(code)) => return Ok(json_answer(400, &json!({ "error": code }))),
        _ => {}
    }
    shared.reach(&client, Point::Before, which).await;
    tokio::time::sleep(shared.settings.latency / 2).await;
    let (now, ends) = (shared.now(), shared.access_end());
    let refreshed = shared.families().refresh(shared.settings.rotation, which, now, ends);
    tokio::time::sleep(shared.settings.latency / 2).await;
    shared.reach(&client, Point::After, which).await;
    let Refreshed::Tokens(newest) = refreshed else { return refused() };

    let answer = shared.answer(newest);
    let response = match fault {
        Some(Fault::CutAfter) => return Err(Cut),
        Some(Fault::StatusAfter(status, retry_after)) => status_answer(status, retry_after),
        Some(Fault::Drip) => with_body(200, "application/json", dripping(answer.to_string(), false)),
        Some(Fault::Stall) => with_body(200, "application/json", dripping(answer.to_string(), true)),
        Some(Fault::Html) => {
            with_body(200, "text/html", Body::from("<!doctype html><title>Sign in</title><h1>Sign in</h1>"))
        }
        Some(Fault::Lifetime(lifetime)) => {
            let mut answer = answer;
            match lifetime {
                Some(lifetime) => answer["expires_in"] = lifetime,
                None => drop(answer.as_object_mut().map(|fields| fields.remove("expires_in"))),
            }
            json_answer(200, &answer)
        }
        Some(Fault::Huge) => with_body(200, "application/json", Body::from(answer.to_string() + &" ".repeat(10 << 20))),
        Some(Fault::Redirect) => {
            let mut moved = json_answer(307, &json!({}));
            if let Ok(to) = HeaderValue::from_str(&format!("{}/elsewhere", shared.origin)) {
                moved.headers_mut().insert(header::LOCATION, to);
            }
            moved
        }
        Some(Fault::Echo) => {
            let sent = String::from_utf8_lossy(body).into_owned();
            json_answer(400, &json!({ "error": sent, "error_description": sent }))
        }
        _ => json_answer(200, &answer),
    };
    if shared.state().ambushes.get(&client).is_some_and(|ambush| ambush.point == Point::Answered) {
        // Once this function has returned, the answer goes out; whoever waits hears of it a moment before.
        let (shared, client) = (Arc::clone(shared), client.clone());
        tokio::spawn(async move { shared.reach(&client, Point::Answered, which).await });
    }
    Ok(response)
}

/// Notes the end of a request, however it ends.
struct Left<'a> {
    shared: &'a Shared,
    which: Which,
    client: &'a str,
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        let now = self.shared.now();
        self.shared.families().left(self.which, self.client, now);
    }
}

fn form(body: &[u8]) -> HashMap<String, String> {
    url::form_urlencoded::parse(body).into_owned().collect()
}

fn json_answer(status: u16, body: &Value) -> Response<Body> {
    with_body(status, "application/json", Body::from(body.to_string()))
}

fn status_answer(status: u16, retry_after: Option<u64>) -> Response<Body> {
    let mut answer = json_answer(status, &json!({ "error": "server_error" }));
    if let Some(seconds) = retry_after {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

fn with_body(status: u16, kind: &'static str, body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// The text a few bytes at a time; where it stalls, all but its end, and then nothing for ever.
fn dripping(text: String, stalls: bool) -> Body {
    let pieces: Vec<Bytes> = text.into_bytes().chunks(16).map(Bytes::copy_from_slice).collect();
    let last = if stalls { pieces.len() - 1 } else { pieces.len() };
    Body::from_stream(futures::stream::unfold((pieces, 0), move |(pieces, at)| async move {
        if at == last {
            if stalls {
                std::future::pending::<()>().await;
            }
            return None;
        }
        tokio::time::sleep(DRIP).await;
        let piece = Ok::<_, std::io::Error>(pieces[at].clone());
        Some((piece, (pieces, at + 1)))
    }))
}
