//! A consent that came back in a browser which obo cannot ask whose it is.
//!
//! The provider's code is kept, sealed and unexchanged, for five minutes. Either the application confirms it, by the flow
//! id that only this browser was sent to its page with; or the person types a code that only this browser was shown.
//! Whoever started the flow and sent the link to somebody else sees neither (T1).

use std::fmt::Write as _;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;
use url::Url;

use super::Consent;
use super::callback::{Connected, Returned, TypeBack};
use super::flow::{self, Flow, FlowId, HELD_TTL, Held, HeldFor, Redeemable, Stage};
use super::visit::{Ticket, Visitor, shown_actor};
use crate::catalog::Provider;
use crate::clock::later;
use crate::failure::{Code, Failure};
use crate::id::Person;
use crate::identity::Application;
use crate::secret::{Secret, random};
use crate::store::StoreError;

/// Characters of a code: no vowels, so that it spells nothing, and no two that look alike (RFC 8628 §6.1).
const ALPHABET: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
/// How many characters a code has: about 34 bits.
const CODE_CHARS: usize = 8;
/// How often a code may be typed wrong.
const MAX_TRIES: u8 = 5;
/// How often a flow is read again that somebody else has just written.
const MAX_READS: usize = 8;

/// Who confirms that a browser is the person's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Confirmer {
    /// The application, at this address.
    Application(Url),
    /// The person, with a code.
    Code,
}

/// What came of an application's confirmation.
pub enum Confirmed {
    /// The account is connected.
    Connected(Box<Connected>),
    /// The browser is somebody else's: nothing was exchanged, and the flow is over.
    UserMismatch,
    /// There is no such flow of this application's, or it is over.
    Unknown,
    /// The provider did not give a token for it. The link may be opened again.
    Failed(Failure),
}

impl Consent {
    /// Keeps a code until it is confirmed whose browser brought it.
    pub(super) async fn keep_unconfirmed(
        &self,
        mut flow: Flow,
        provider: &Provider,
        redeemable: Redeemable,
        confirmer: Confirmer,
        visitor: &Visitor,
    ) -> Result<Returned, Failure> {
        let (by, returned) = match confirmer {
            Confirmer::Application(mut url) => {
                // Not the id in the link, which its maker knows: they would open the application's page with it.
                let ticket = Ticket::new(&flow);
                url.query_pairs_mut().append_pair("flow_id", ticket.text.expose());
                (HeldFor::Application { ticket: ticket.hash() }, Returned::AtApplication(url))
            }
            Confirmer::Code => {
                let code = new_code();
                let by = HeldFor::Code { code: hash(&flow.id, code.expose()), tries: MAX_TRIES };
                let type_back = TypeBack {
                    flow: flow.id.clone(),
                    code: grouped(&code),
                    person: flow.need.person.clone(),
                    actor: shown_actor(&flow.actor),
                    provider_name: provider.name.clone(),
                };
                (by, Returned::TypeBack(Box::new(type_back)))
            }
        };
        let until = later(self.inner.clock.now(), HELD_TTL);
        flow.stage = Stage::Held(Held { redeemable, browser: visitor.cookie.hash(), by, until });
        match self.inner.flows.save(&mut flow).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => return Ok(Returned::Used),
            Err(error) => return Err(flow::unavailable(error)),
        }
        self.note(&flow, None, "consent.unconfirmed", None).await;
        Ok(returned)
    }

    /// Takes the word of an application on whose browser a consent came back in.
    ///
    /// # Errors
    /// `vault_unavailable`, `audit_unavailable`: nothing was exchanged.
    pub async fn confirm_user(
        &self,
        application: &Application,
        flow_id: &str,
        user: &str,
    ) -> Result<Confirmed, Failure> {
        let Some((ticket, key)) = Ticket::parse(flow_id) else { return Ok(Confirmed::Unknown) };
        let Some(mut flow) = self.inner.flows.find_by_key(&key).await? else { return Ok(Confirmed::Unknown) };
        let person = &flow.need.person;
        if person.source != *application.source() || person.tenant != *application.tenant() {
            return Ok(Confirmed::Unknown);
        }
        let actor = application.source().as_str();
        let Stage::Held(Held { redeemable, by: HeldFor::Application { ticket: kept }, until, .. }) = flow.stage.clone()
        else {
            self.note_of(&flow, actor, "consent.used_flow_id", Some(Code::Denied)).await;
            return Ok(Confirmed::Unknown);
        };
        if !bool::from(ticket.hash().ct_eq(&kept)) || self.inner.clock.now() >= until {
            self.note_of(&flow, actor, "consent.used_flow_id", Some(Code::Denied)).await;
            return Ok(Confirmed::Unknown);
        }
        if person.user.as_str() != user {
            let ended = self.end_flow(&mut flow, Stage::Mismatch, actor, "consent.user_mismatch").await?;
            return Ok(if ended { Confirmed::UserMismatch } else { Confirmed::Unknown });
        }
        self.redeem(flow, redeemable, actor).await
    }

    /// Takes the code that a person typed back; `actor` is who passed it on.
    ///
    /// # Errors
    /// `invalid_arguments`: it is not a code, or not the one that was shown. `not_found`: no link of this person waits
    /// for one. What else an exchange may fail with.
    pub async fn confirm_code(
        &self,
        person: &Person,
        typed: &str,
        from: &Typed<'_>,
        actor: &str,
    ) -> Result<Box<Connected>, Failure> {
        let typed = parse_code(typed).ok_or_else(|| {
            let text = "a code has eight letters, such as BCDF-GHJK; type the one that the page shows";
            Failure::new(Code::InvalidArguments, text)
        })?;
        let (flow, redeemable) = self.try_code(person, &typed, from, actor).await?;
        match self.redeem(flow, redeemable, actor).await? {
            Confirmed::Connected(connected) => Ok(connected),
            Confirmed::Failed(failure) => Err(failure),
            Confirmed::UserMismatch | Confirmed::Unknown => Err(no_code_awaited()),
        }
    }

    /// The flow that a typed code belongs to. A wrong one counts at each that waits for one, before anybody else of this
    /// process may try: many at once are not more than one after the other.
    async fn try_code(
        &self,
        person: &Person,
        typed: &Secret,
        from: &Typed<'_>,
        actor: &str,
    ) -> Result<(Flow, Redeemable), Failure> {
        let keys = self.inner.keys.open().await?;
        let _alone = self.inner.flows.alone(&keys, person).await;
        // What one wrong code has cost already, where other links had to be read again.
        let mut paid: Vec<FlowId> = Vec::new();
        for _ in 0..MAX_READS {
            let now = self.inner.clock.now();
            let mut wrong = Vec::new();
            for flow in self.inner.flows.of_person(&keys, person).await? {
                let Stage::Held(Held { by: HeldFor::Code { code, tries }, until, redeemable, .. }) = &flow.stage else {
                    continue;
                };
                if now >= *until || *tries == 0 || !from.reaches(&flow) {
                    continue;
                }
                if bool::from(hash(&flow.id, typed.expose()).ct_eq(code)) {
                    let redeemable = redeemable.clone();
                    return Ok((flow, redeemable));
                }
                wrong.push(flow);
            }
            if wrong.is_empty() && paid.is_empty() {
                return Err(no_code_awaited());
            }
            let mut counted = true;
            wrong.retain(|flow| !paid.contains(&flow.id));
            for mut flow in wrong {
                // Another process was quicker: everything is read and compared again.
                if self.count_wrong(&mut flow, actor).await? {
                    paid.push(flow.id);
                } else {
                    counted = false;
                }
            }
            if counted {
                let text = "that is not the code; type the one that the page shows. After five wrong ones a link is \
                            void, and a new one is needed";
                return Err(Failure::new(Code::InvalidArguments, text));
            }
        }
        Err(Failure::internal("a consent flow kept changing while a code was tried"))
    }

    /// Counts a wrong code at a flow; the last one ends it. `false` when somebody else has just changed it.
    async fn count_wrong(&self, flow: &mut Flow, actor: &str) -> Result<bool, Failure> {
        let Stage::Held(Held { by: HeldFor::Code { tries, .. }, .. }) = &mut flow.stage else { return Ok(true) };
        *tries -= 1;
        let void = *tries == 0;
        if void {
            flow.stage = Stage::Mismatch;
        }
        match self.inner.flows.save(flow).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => return Ok(false),
            Err(error) => return Err(flow::unavailable(error)),
        }
        let what = if void { "consent.code_void" } else { "consent.code_wrong" };
        self.note_of(flow, actor, what, Some(Code::Denied)).await;
        if void {
            self.has_ended(&flow.id);
        }
        Ok(true)
    }

    /// Throws a consent away that waits to be confirmed: the browser that gave it says that it was not meant. `false` when
    /// it is not that browser's.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn disown(&self, id: &FlowId, visitor: &Visitor) -> Result<bool, Failure> {
        let Some(mut flow) = self.inner.flows.find(id).await? else { return Ok(false) };
        let Stage::Held(held) = &flow.stage else { return Ok(false) };
        if !bool::from(held.browser.ct_eq(&visitor.cookie.hash())) {
            return Ok(false);
        }
        tracing::warn!(flow = ?flow.id, person = %flow.need.person, actor = flow.actor, "a browser disowned a consent");
        self.end_flow(&mut flow, Stage::Declined, "browser", "consent.disowned").await
    }

    async fn redeem(&self, flow: Flow, redeemable: Redeemable, actor: &str) -> Result<Confirmed, Failure> {
        let Some(provider) = self.inner.catalog.now().provider(flow.need.provider.as_str()).cloned() else {
            return Ok(Confirmed::Unknown);
        };
        self.note_of(&flow, actor, "consent.confirmed", None).await;
        Ok(match self.exchange(flow, Arc::clone(&provider), redeemable).await? {
            Returned::Connected(connected) => Confirmed::Connected(connected),
            Returned::Failed { message, .. } => Confirmed::Failed(Failure {
                can_retry: true,
                ..Failure::new(Code::ProviderError, format!("{message}; nothing was kept, open the link again"))
            }),
            _ => Confirmed::Unknown,
        })
    }

    /// Ends a flow. `false` when somebody else has just changed it: it may be over, or being exchanged.
    async fn end_flow(&self, flow: &mut Flow, stage: Stage, actor: &str, what: &str) -> Result<bool, Failure> {
        flow.stage = stage;
        match self.inner.flows.save(flow).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => return Ok(false),
            Err(error) => return Err(flow::unavailable(error)),
        }
        self.note_of(flow, actor, what, Some(Code::Denied)).await;
        self.has_ended(&flow.id);
        Ok(true)
    }
}

/// Where a code was typed, and so which links it can be for.
#[derive(Debug, Clone, Copy)]
pub enum Typed<'a> {
    /// In the terminal that gave out this link: for this one only.
    InTerminal(&'a FlowId),
    /// In a client, about an account of this provider. Not for a terminal's links.
    InClient(&'a str),
    /// In an application. Not for a terminal's links.
    InApplication,
}

impl Typed<'_> {
    fn reaches(&self, flow: &Flow) -> bool {
        match self {
            Self::InTerminal(id) => flow.id == **id,
            Self::InClient(provider) => !flow.headless && flow.need.provider.as_str() == *provider,
            Self::InApplication => !flow.headless,
        }
    }
}

fn no_code_awaited() -> Failure {
    Failure::new(
        Code::NotFound,
        "no connect link of this person waits for a code; open the link again, and type the code within five minutes",
    )
}

/// Eight characters, each equally likely.
fn new_code() -> Secret {
    let mut text = String::with_capacity(CODE_CHARS);
    while text.len() < CODE_CHARS {
        for byte in random::<16>() {
            // 240 is the largest multiple of 20 in a byte: what is above would prefer the first letters.
            if byte < 240 && text.len() < CODE_CHARS {
                text.push(char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
            }
        }
    }
    Secret::new(text)
}

/// `BCDF-GHJK`.
fn grouped(code: &Secret) -> Secret {
    let (left, right) = code.expose().split_at(CODE_CHARS / 2);
    let mut text = String::with_capacity(CODE_CHARS + 1);
    // Writing to a text does not fail.
    let _ = write!(text, "{left}-{right}");
    Secret::new(text)
}

/// Reads a code as people type it: in any case, with spaces or dashes.
fn parse_code(typed: &str) -> Option<Secret> {
    if typed.len() > 64 {
        return None;
    }
    let letters: String = typed.chars().filter(|c| !matches!(c, ' ' | '-')).map(|c| c.to_ascii_uppercase()).collect();
    let well_formed = letters.len() == CODE_CHARS && letters.bytes().all(|b| ALPHABET.contains(&b));
    well_formed.then(|| Secret::new(letters))
}

fn hash(flow: &FlowId, code: &str) -> [u8; 32] {
    Sha256::digest([b"obo code ", flow.as_str().as_bytes(), b" ", code.as_bytes()].concat()).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_random_and_read_as_people_type_them() {
        let codes: BTreeSet<String> = (0..1000).map(|_| new_code().expose().to_owned()).collect();
        assert_eq!(codes.len(), 1000);
        for code in &codes {
            assert_eq!(parse_code(code).unwrap().expose(), code);
            let shown = grouped(&Secret::new(code.as_str()));
            assert_eq!(shown.expose().len(), 9);
            assert_eq!(parse_code(shown.expose()).unwrap().expose(), code);
            assert_eq!(parse_code(&format!(" {} ", code.to_ascii_lowercase())).unwrap().expose(), code);
        }
        let letters: BTreeSet<char> = codes.iter().flat_map(|code| code.chars()).collect();
        assert_eq!(letters.len(), ALPHABET.len());
        for bad in ["", "BCDF", "BCDFGHJKL", "ABCDEFGH", "BCDF_GHJK", "BCDFGHJÉ", &"-".repeat(100)] {
            assert!(parse_code(bad).is_none(), "{bad}");
        }
        assert_ne!(hash(&FlowId::new(), "BCDFGHJK"), hash(&FlowId::new(), "BCDFGHJK"));
    }
}
