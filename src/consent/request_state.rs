//! `requestState` (MCP 2026-07-28, multi-round-trip requests): sealed, so that a client can carry it and not change it.
//!
//! It opens only for the same person, tool and arguments, and only for ten minutes. It proves nothing about consent:
//! the vault does.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::standing::Want;
use super::{Consent, FLOW_TTL, FlowId, NoGrant};
use crate::clock::later;
use crate::failure::Failure;
use crate::keys::{Context, KeyError};
use crate::store::Table;

/// Longest state accepted, in bytes; ours are about 450.
const MAX_STATE_BYTES: usize = 2048;

#[derive(Serialize, Deserialize)]
struct Body {
    flow: FlowId,
    until: Timestamp,
}

impl Consent {
    pub(super) async fn seal_request_state(&self, want: &Want<'_>, flow: &FlowId) -> Result<String, Failure> {
        let body = Body { flow: flow.clone(), until: later(self.inner.clock.now(), FLOW_TTL) };
        let plain = serde_json::to_vec(&body).map_err(Failure::internal)?;
        let keys = self.inner.keys.open().await?;
        let sealed = keys.seal(&want.person.tenant, &context(want), &plain).await?;
        Ok(URL_SAFE_NO_PAD.encode(sealed))
    }

    /// The flow that a state belongs to.
    pub(super) async fn open_request_state(&self, want: &Want<'_>, state: &str) -> Result<FlowId, NoGrant> {
        if state.len() > MAX_STATE_BYTES {
            return Err(NoGrant::BadRequestState);
        }
        let sealed = URL_SAFE_NO_PAD.decode(state).map_err(|_| NoGrant::BadRequestState)?;
        let keys = self.inner.keys.open().await.map_err(Failure::from)?;
        let plain = match keys.unseal(&want.person.tenant, &context(want), &sealed).await {
            Ok(plain) => plain,
            Err(KeyError::DoesNotOpen) => return Err(NoGrant::BadRequestState),
            Err(error) => return Err(Failure::from(error).into()),
        };
        let body: Body = serde_json::from_slice(plain.expose()).map_err(|_| NoGrant::BadRequestState)?;
        if self.inner.clock.now() >= body.until { Err(NoGrant::BadRequestState) } else { Ok(body.flow) }
    }
}

fn context(want: &Want<'_>) -> Context {
    let mut context = Context::of(Table::Flow).with(b"request state");
    for part in want.person.parts() {
        context = context.with(part);
    }
    context.with(want.tool.name.as_str().as_bytes()).with(&want.arguments.digest())
}
