//! A run whose answers are written down beforehand. Nothing leaves the process; everything else is what a real run does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{NoAnswer, Planned, Ran, Run, RunError, Wire};
use crate::catalog::{Api, Arguments};
use crate::egress::{Answer, EgressError, Limits};
use crate::failure::Failure;
use crate::id::{Person, Source, TenantId};
use crate::secret::{AccessToken, Secret, random_text};

/// Random bytes of the token: no answer can hold it by chance, which would be taken for a leak.
const TOKEN_BYTES: usize = 32;

/// What a rehearsed run did.
pub struct Rehearsed {
    /// The requests, in the order in which they were made.
    pub requests: Vec<Planned>,
    /// How it ended.
    pub result: Result<Ran, RunError>,
    /// Answers that nothing asked for.
    pub answers_left: usize,
    /// Whether there was a request without an answer.
    pub answers_lacking: bool,
}

/// Runs a tool on answers that are written down. It needs no permit, because it can reach nobody: its token is nobody's.
///
/// # Errors
/// The machine has no such person to run it for, which is a defect.
pub async fn rehearse(tool: &Arc<Api>, arguments: &Arguments, answers: Vec<Answer>) -> Result<Rehearsed, Failure> {
    let user = "nobody".parse().map_err(Failure::internal)?;
    let person = Person { tenant: TenantId::default_tenant(), source: Source::obo(), user };
    let token = AccessToken::bind(person, tool.provider.id.clone(), Secret::new(random_text::<TOKEN_BYTES>()));
    let canned = Canned(Mutex::new(Script { answers: answers.into(), ..Script::default() }));
    let result = Run::new(&canned, tool, arguments, &token).ran().await;
    let script = canned.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Rehearsed {
        requests: script.requests,
        result,
        answers_left: script.answers.len(),
        answers_lacking: script.lacking,
    })
}

struct Canned(Mutex<Script>);

#[derive(Default)]
struct Script {
    answers: VecDeque<Answer>,
    requests: Vec<Planned>,
    lacking: bool,
}

#[async_trait]
impl Wire for Canned {
    async fn exchange(&self, planned: &Planned, _: &AccessToken, _: Limits) -> Result<Answer, NoAnswer> {
        let mut script = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        script.requests.push(planned.clone());
        script.answers.pop_front().ok_or_else(|| {
            script.lacking = true;
            let host = planned.url.host_str().unwrap_or_default().to_owned();
            NoAnswer::Egress(EgressError::Unreachable(host))
        })
    }

    /// In the order in which they are written down.
    fn at_a_time(&self) -> usize {
        1
    }
}
