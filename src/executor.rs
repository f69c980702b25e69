//! Calls the provider: the only client of provider APIs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream;
use serde_json::Value;
use tokio::time::Instant;

use crate::catalog::jq::RunError as JqError;
use crate::catalog::request::Step;
use crate::catalog::{Api, Arguments, Effect, encoded_length};
use crate::egress::{Answer, Egress, EgressError, Limits};
use crate::failure::{Code, Failure};
use crate::id::{Person, ProviderId};
use crate::policy::{ApiPermit, Recorded};
use crate::secret::AccessToken;
use crate::secret::echo::Guard;

mod canned;
mod judge;
mod request;

pub use canned::{Rehearsed, rehearse};
pub use judge::LEAK_BLOCKED;
pub use request::{Body, MAX_REQUEST_BYTES, Part, Planned, plan};

use judge::Circumstances;
use request::Inputs;

/// How long one request may take, from the first byte out to the last byte in.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// How long all requests of a run may take.
pub const RUN_LIMIT: Duration = Duration::from_secs(60);
/// The largest answer read, in bytes, after decompression.
pub const MAX_ANSWER_BYTES: usize = 10 * 1024 * 1024;
/// The largest value returned, in bytes of JSON: what a model can be given at all.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// How many requests of one step are under way at a time.
const MAX_CONCURRENT: usize = 5;
/// From this size on, in bytes, work on JSON leaves the threads that serve everybody.
const HEAVY_BYTES: usize = 64 * 1024;

/// What a run gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Ran {
    /// The tool's value.
    pub value: Value,
    /// The HTTP status of the last answer.
    pub status: u16,
}

/// Why a run gave no value.
#[derive(Debug, Clone)]
pub enum RunError {
    /// The provider does not accept the access token. `may_repeat` says that nothing was changed by then, so the call
    /// may be made again with a new token.
    TokenRejected {
        /// Whether the call may be repeated.
        may_repeat: bool,
    },
    /// The provider says that the token lacks a scope.
    ScopeMissing(Failure),
    /// Anything else.
    Failed(Failure),
}

impl From<Failure> for RunError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Calls provider APIs. Cheap to clone.
#[derive(Clone)]
pub struct Executor {
    wire: Arc<dyn Wire>,
}

/// Where requests go out.
#[async_trait]
trait Wire: Send + Sync {
    async fn exchange(&self, planned: &Planned, token: &AccessToken, limits: Limits) -> Result<Answer, NoAnswer>;

    /// How many requests of one step are under way at a time.
    fn at_a_time(&self) -> usize {
        MAX_CONCURRENT
    }
}

enum NoAnswer {
    Egress(EgressError),
    Unsendable(Failure),
}

#[async_trait]
impl Wire for Egress {
    async fn exchange(&self, planned: &Planned, token: &AccessToken, limits: Limits) -> Result<Answer, NoAnswer> {
        let builder = self.request(planned.method.clone(), planned.url.clone());
        let builder = request::dress(builder, planned, token).map_err(NoAnswer::Unsendable)?;
        self.send(builder, limits).await.map_err(NoAnswer::Egress)
    }
}

impl Executor {
    /// An executor whose requests go out through `egress`.
    pub fn new(egress: Egress) -> Self {
        Self { wire: Arc::new(egress) }
    }

    /// Makes the tool's requests as the token's person, and yields the value its manifest computes.
    ///
    /// Invariant INV-2: a token is used for its own person and provider only; otherwise the call would act as somebody
    /// else.
    ///
    /// # Errors
    /// See [`RunError`].
    ///
    /// # Cancellation
    /// Dropping the future drops the requests under way. The provider may have received them: whoever drops it must
    /// treat a write as one whose outcome is unknown.
    pub async fn run(&self, permit: &Recorded<ApiPermit>, token: &AccessToken) -> Result<Ran, RunError> {
        check_binding(permit.person(), &permit.work().provider.id, token)?;
        Run::new(self.wire.as_ref(), permit.work(), permit.arguments(), token).ran().await
    }
}

fn check_binding(person: &Person, provider: &ProviderId, token: &AccessToken) -> Result<(), Failure> {
    if token.person() == person && token.provider() == provider {
        Ok(())
    } else {
        Err(Failure::internal("an access token met a permit of another person or provider"))
    }
}

/// One run under way.
struct Run<'a> {
    wire: &'a dyn Wire,
    tool: Arc<Api>,
    /// An object.
    arguments: Arc<Value>,
    token: &'a AccessToken,
    guard: Arc<Guard>,
    /// The status of the last answer.
    status: AtomicU16,
    /// Whether some request of this run has changed something.
    changed: AtomicBool,
    /// Whether the arguments are so large that programs over them take long.
    heavy: bool,
    deadline: Instant,
}

impl<'a> Run<'a> {
    fn new(wire: &'a dyn Wire, tool: &Arc<Api>, arguments: &Arguments, token: &'a AccessToken) -> Self {
        Self {
            wire,
            tool: Arc::clone(tool),
            heavy: encoded_length(arguments.as_map()) > HEAVY_BYTES,
            arguments: Arc::new(Value::Object(arguments.as_map().clone())),
            token,
            guard: Arc::new(Guard::new(token.expose())),
            status: AtomicU16::new(0),
            changed: AtomicBool::new(false),
            deadline: Instant::now() + RUN_LIMIT,
        }
    }

    async fn ran(&self) -> Result<Ran, RunError> {
        let value = self.value().await?;
        Ok(Ran { value, status: self.status.load(Ordering::SeqCst) })
    }

    async fn value(&self) -> Result<Value, RunError> {
        let tool = &self.tool;
        let mut answers = Arc::new(Vec::new());
        let mut last = Value::Null;
        for index in 0..tool.steps().len() {
            let answer = self.step(index, &answers).await?;
            if tool.steps()[index].bind.is_some() {
                Arc::make_mut(&mut answers).push(answer.clone());
            }
            last = answer;
        }
        let heavy = self.heavy || answers.len() + tool.steps().len() > 1 || encoded_length(&last) > HEAVY_BYTES;
        let (tool, guard, at) = (Arc::clone(tool), Arc::clone(&self.guard), self.circumstances(false));
        let arguments = Arc::clone(&self.arguments);
        self.work(heavy, move || finish(&tool, at, &guard, &last, &answers, &arguments))
            .await?
            .map_err(RunError::Failed)
    }

    /// The answer of a step, or the array of its answers.
    async fn step(&self, index: usize, answers: &Arc<Vec<Value>>) -> Result<Value, RunError> {
        let elements = self
            .prepared(index, answers, |inputs, step| inputs.elements(step))
            .await
            .map_err(|failure| judge::after_changes(self.circumstances(false), failure))?;
        let Some(elements) = elements else { return self.exchange(index, answers, None).await };
        let mut requests = Vec::new();
        for element in elements {
            requests.push(self.exchange(index, answers, Some(element)));
        }
        let mut collected = Vec::new();
        if self.writes(&self.tool.steps()[index]) {
            // One after the other, so that it is known which were made when one of them fails.
            for request in requests {
                collected.push(request.await?);
            }
        } else {
            let mut answers = stream::iter(requests).buffered(self.wire.at_a_time());
            while let Some(answer) = answers.next().await {
                collected.push(answer?);
            }
        }
        Ok(Value::Array(collected))
    }

    async fn exchange(
        &self,
        index: usize,
        answers: &Arc<Vec<Value>>,
        element: Option<Value>,
    ) -> Result<Value, RunError> {
        let tool = &self.tool;
        let writes = self.writes(&tool.steps()[index]);
        let planned = self
            .prepared(index, answers, move |inputs, step| inputs.request(step, element.as_ref()))
            .await
            .map_err(|failure| judge::after_changes(self.circumstances(writes), failure))?;
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Nothing of this request was sent.
            let at = Circumstances { writes: false, ..self.circumstances(writes) };
            let host = planned.url.host_str().unwrap_or_default().to_owned();
            return Err(judge::judge_silence(tool, at, &EgressError::Timeout(host)).into());
        }
        let limits = Limits { total: REQUEST_LIMIT.min(left), body_bytes: MAX_ANSWER_BYTES };
        let answer = match self.wire.exchange(&planned, self.token, limits).await {
            Ok(answer) => answer,
            Err(NoAnswer::Egress(error)) => {
                return Err(judge::judge_silence(tool, self.circumstances(writes), &error).into());
            }
            Err(NoAnswer::Unsendable(failure)) => {
                return Err(judge::after_changes(self.circumstances(writes), failure).into());
            }
        };
        let (tool, guard, at) = (Arc::clone(tool), Arc::clone(&self.guard), self.circumstances(writes));
        self.status.store(answer.status.as_u16(), Ordering::SeqCst);
        let (heavy, kind) = (answer.body.len() > HEAVY_BYTES, tool.steps()[index].request.answer);
        let value = self.work(heavy, move || judge::judge(&tool, at, &guard, &answer, kind)).await??;
        if writes {
            self.changed.store(true, Ordering::SeqCst);
        }
        Ok(value)
    }

    /// Whether a request of a step may change something: not in a tool that reads, not with GET (RFC 9110 §9.2.1), and not
    /// where the manifest says that it only asks.
    fn writes(&self, step: &Step) -> bool {
        self.tool.effect != Effect::Read && step.request.method != http::Method::GET && !step.reads
    }

    fn circumstances(&self, writes: bool) -> Circumstances {
        Circumstances { writes, changed: self.changed.load(Ordering::SeqCst) }
    }

    /// Runs programs of a step over the arguments and the answers so far.
    async fn prepared<T: Send + 'static>(
        &self,
        index: usize,
        answers: &Arc<Vec<Value>>,
        prepare: impl FnOnce(&Inputs<'_>, &Step) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (tool, arguments, answers) = (Arc::clone(&self.tool), Arc::clone(&self.arguments), Arc::clone(answers));
        self.work(self.heavy || !answers.is_empty(), move || {
            let inputs = Inputs { tool: &tool, arguments: &arguments, answers: &answers };
            prepare(&inputs, &tool.steps()[index])
        })
        .await?
    }

    /// Heavy work gets a thread of its own kind: programs cannot be interrupted, only kept from doing too much.
    async fn work<T: Send + 'static>(
        &self,
        heavy: bool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        if heavy { tokio::task::spawn_blocking(work).await.map_err(Failure::internal) } else { Ok(work()) }
    }
}

/// Computes the value and looks at it once more before it goes back.
fn finish(
    tool: &Api,
    at: Circumstances,
    guard: &Guard,
    last: &Value,
    answers: &[Value],
    arguments: &Value,
) -> Result<Value, Failure> {
    let variables: Vec<&Value> = answers.iter().chain(tool.response_reads_input().then_some(arguments)).collect();
    let failed = |code: Code, message: String| judge::after_changes(at, Failure::new(code, message));
    let provider = &tool.provider.name;
    let value = tool.response().run(last, &variables).map_err(|error| match error {
        JqError::Refused(message) => failed(Code::ProviderError, message),
        JqError::TooMuch => {
            failed(Code::TooLarge, format!("the answer of {provider} is too large to work on; ask for less at once"))
        }
        error => {
            failed(Code::ProviderError, format!("{provider} answered in a shape that {} does not know", tool.name))
                .because(error)
        }
    })?;
    let text = serde_json::to_vec(&value).map_err(Failure::internal)?;
    if text.len() > MAX_VALUE_BYTES {
        let limit = MAX_VALUE_BYTES / (1024 * 1024);
        return Err(failed(Code::TooLarge, format!("the result is larger than {limit} MiB; ask for less at once")));
    }
    // A program may have put together what the raw answer had in pieces.
    if guard.finds_in(&text) { Err(judge::leak(tool)) } else { Ok(value) }
}

#[cfg(test)]
mod tests;
