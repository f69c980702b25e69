//! Who is this? A [`Credential`] goes in, a [`Subject`] comes out, or nobody does.

use std::fmt;

use crate::id::{Person, TenantId, UserId};
use crate::secret::Secret;

/// What a caller shows. Unverified: it says nothing about who they are until [`Identity::authenticate`] has agreed.
#[derive(Clone)]
pub enum Credential {
    /// The operating system's user, for stdio and the command line. The process itself is the proof.
    OsUser {
        /// The tenant to act in.
        tenant: TenantId,
        /// The user's name.
        user: UserId,
    },
    /// An `Authorization: Bearer` token (RFC 6750 §2.1), with the `Obo-User` header where one was sent.
    Bearer {
        /// The token.
        token: Secret,
        /// Whom a trusted application names.
        obo_user: Option<String>,
    },
}

/// How a subject came in: what the audit calls the actor's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// The operating system's user.
    OsUser,
    /// A token issued by obo.
    OboToken,
    /// An identity provider's token.
    Issuer(String),
    /// A trusted application that named the user.
    Application(String),
}

/// A person whose identity was proven for this request. Private fields: only this module builds one.
///
/// Invariant INV-4: there is no shared and no anonymous subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    person: Person,
    groups: Vec<String>,
    via: Via,
}

impl Subject {
    /// Who it is.
    pub fn person(&self) -> &Person {
        &self.person
    }

    /// The groups that the identity's source puts them in.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// How they were identified.
    pub fn via(&self) -> &Via {
        &self.via
    }
}

/// Why nobody was identified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityError {
    /// Nothing was shown, or something that is not a credential.
    Missing,
    /// It was shown and is not good: unknown, expired, for somebody else. `cause` is for the log only; the caller
    /// is told the same in every case.
    Invalid {
        /// For the operator. Never holds the credential.
        cause: String,
    },
    /// It could not be checked now: the issuer or the store does not answer. The caller may try again.
    Unavailable {
        /// For the operator.
        cause: String,
    },
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("no credential was shown"),
            Self::Invalid { cause } => write!(f, "the credential is not valid: {cause}"),
            Self::Unavailable { cause } => write!(f, "the credential could not be checked: {cause}"),
        }
    }
}

impl std::error::Error for IdentityError {}

/// Identifies callers. Cheap to clone.
#[derive(Clone)]
pub struct Identity {}

impl Identity {
    /// Says who shows a credential.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn authenticate(&self, _credential: &Credential) -> Result<Subject, IdentityError> {
        todo!()
    }
}
