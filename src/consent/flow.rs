//! A consent flow: one link, from the call that asked for it to the code that was exchanged.

use std::fmt;
use std::str::FromStr;

use crate::secret::random_text;

/// How many random bytes a flow id has. The link is a capability to see the page, so it must not be guessable.
const FLOW_ID_BYTES: usize = 24;

/// The id of a flow, as it stands in its link: 192 random bits, base64url.
#[derive(Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct FlowId(String);

impl FlowId {
    /// A new id.
    pub fn new() -> Self {
        Self(random_text::<FLOW_ID_BYTES>())
    }

    /// The id as text, for the link.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for FlowId {
    fn default() -> Self {
        Self::new()
    }
}

impl FromStr for FlowId {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let well_formed = text.len() == FLOW_ID_BYTES * 4 / 3
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if well_formed { Ok(Self(text.to_owned())) } else { Err(()) }
    }
}

impl fmt::Debug for FlowId {
    /// Only the beginning: a log must not be a list of working links.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlowId({}…)", &self.0[..6.min(self.0.len())])
    }
}
