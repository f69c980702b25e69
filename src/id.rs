//! Names of people, tools, providers and calls: parsed once, at the door, and trusted afterwards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name that cannot be accepted, and why, in words for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {rule}")]
pub struct InvalidName {
    what: &'static str,
    value: String,
    rule: &'static str,
}

/// Longest user id accepted, in bytes. Subject claims are at most 255 ASCII characters (OpenID Connect Core §2).
pub const MAX_USER_ID_BYTES: usize = 255;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                let valid: fn(&str) -> bool = $valid;
                if valid(value) {
                    Ok(Self(value.to_owned()))
                } else {
                    let value = value.chars().take(80).collect();
                    Err(InvalidName { what: $what, value, rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn within(value: &str, longest: usize, allowed: fn(u8) -> bool) -> bool {
    !value.is_empty() && value.len() <= longest && value.bytes().all(allowed)
}

name!(
    /// An organisation, the outermost wall between people. `default` where there is only one.
    TenantId,
    "tenant",
    "use 1 to 64 of a-z, 0-9, '.', '_' and '-'",
    |v| within(v, 64, |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
);

name!(
    /// Who vouches for a user id: `obo`, the name of an issuer, or `app:NAME`.
    Source,
    "source",
    "use 1 to 68 of a-z, 0-9, '.', '_' and '-', with 'app:' before it for an application",
    |v| within(v.strip_prefix("app:").unwrap_or(v), 64, |b| {
        matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-')
    })
);

name!(
    /// A user's id, as their source spells it. Never compared across sources.
    UserId,
    "user",
    "use 1 to 255 bytes without control characters or spaces at the ends",
    |v| {
        !v.is_empty()
            && v.len() <= MAX_USER_ID_BYTES
            && v.trim() == v
            && !v.chars().any(char::is_control)
    }
);

name!(
    /// A provider's id: the name of its folder in `tools/`.
    ProviderId,
    "provider",
    "use 1 to 32 of a-z, 0-9 and '-', beginning with a letter",
    |v| {
        v.starts_with(|c: char| c.is_ascii_lowercase())
            && within(v, 32, |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    }
);

name!(
    /// A tool's full name, `Toolkit.Verb`. At most 48 bytes, so that clients which prefix names keep it whole.
    ToolName,
    "tool name",
    "use Toolkit.Verb, each a letter followed by letters and digits, 48 characters at most in all",
    |v| {
        let part = |p: &str| {
            p.starts_with(|c: char| c.is_ascii_alphabetic()) && p.bytes().all(|b| b.is_ascii_alphanumeric())
        };
        v.len() <= 48 && v.split_once('.').is_some_and(|(kit, verb)| part(kit) && part(verb))
    }
);

impl TenantId {
    /// The tenant of everyone on a machine without organisations.
    pub fn default_tenant() -> Self {
        Self("default".to_owned())
    }
}

impl Source {
    /// People known to obo itself: the OS user, and holders of tokens that obo issued.
    pub fn obo() -> Self {
        Self("obo".to_owned())
    }

    /// People named by a trusted application.
    ///
    /// # Errors
    /// When the application's name is not a valid one.
    pub fn application(name: &str) -> Result<Self, InvalidName> {
        format!("app:{name}").parse()
    }
}

impl ToolName {
    /// The part before the dot.
    pub fn toolkit(&self) -> &str {
        self.0.split_once('.').map_or(self.0.as_str(), |(kit, _)| kit)
    }

    /// `Google_SendEmail`: the spelling that clients accept which refuse dots.
    pub fn underscored(&self) -> String {
        self.0.replace('.', "_")
    }
}

/// A person: the same id from two sources, or in two tenants, is two people.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Person {
    /// The organisation.
    pub tenant: TenantId,
    /// Who vouches for the id.
    pub source: Source,
    /// The id itself.
    pub user: UserId,
}

impl Person {
    /// The parts in their fixed order, for keys and associated data.
    pub fn parts(&self) -> [&[u8]; 3] {
        [self.tenant.as_str().as_bytes(), self.source.as_str().as_bytes(), self.user.as_str().as_bytes()]
    }
}

impl fmt::Display for Person {
    /// The id alone where it can only come from one place; else with its source and tenant.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.source == Source::obo() && self.tenant == TenantId::default_tenant() {
            return self.user.fmt(f);
        }
        write!(f, "{} ({}, {})", self.user, self.source, self.tenant)
    }
}

/// One tool call, in logs and in the audit. Ordered by time (UUID version 7, RFC 9562 §5.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CallId(uuid::Uuid);

impl CallId {
    /// A new id.
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7())
    }
}

impl Default for CallId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tool_names_have_a_toolkit_and_a_verb() {
        let name: ToolName = "Google.SendEmail".parse().unwrap();
        assert_eq!((name.toolkit(), name.underscored().as_str()), ("Google", "Google_SendEmail"));
        for bad in ["Google", "Google_SendEmail", "Google.Send.Email", ".X", "G.", "G.x-y", "1.x", "Ü.x"] {
            assert!(bad.parse::<ToolName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_source_is_obo_an_issuer_or_an_application() {
        assert_eq!(Source::application("shop").unwrap().as_str(), "app:shop");
        assert!(Source::application("a:b").is_err());
        assert!("".parse::<Source>().is_err());
        assert!("app:".parse::<Source>().is_err());
    }

    #[test]
    fn user_ids_are_bounded_and_printable() {
        assert!("alice@example.com".parse::<UserId>().is_ok());
        for bad in ["", " a", "a\n", &"x".repeat(256)] {
            assert!(bad.parse::<UserId>().is_err(), "{bad:?}");
        }
    }
}
