//! The vault's passphrase, asked for on a terminal.

use std::io::IsTerminal as _;
use std::sync::Arc;

use super::Exit;
use crate::keys::{Ask, Prompt};
use crate::secret::Secret;

/// A prompt where a person sits: both stdin and stderr are a terminal. Where nobody does, nobody is waited for either.
pub(super) fn prompt() -> Option<Prompt> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return None;
    }
    Some(Arc::new(|ask| {
        let asked = dialoguer::Password::new();
        let text = match ask {
            Ask::RecoveryPassphrase => asked.with_prompt("Passphrase of the recovery copy").interact(),
            Ask::NewRecoveryPassphrase => asked
                .with_prompt("Choose a passphrase for the recovery copy")
                .with_confirmation("Once more", "The two differ")
                .interact(),
            Ask::Passphrase => asked.with_prompt("Passphrase of the vault").interact(),
            Ask::NewPassphrase => asked
                .with_prompt("Choose a passphrase for the new vault")
                .with_confirmation("Once more", "The two differ")
                .interact(),
            Ask::NextPassphrase => asked
                .with_prompt("Choose the new passphrase of the vault")
                .with_confirmation("Once more", "The two differ")
                .interact(),
        };
        text.ok().map(Secret::new)
    }))
}

/// The variable that holds the passphrase of a recovery copy where nobody can be asked.
const RECOVERY_ENV: &str = "OBO_VAULT_RECOVERY_PASSPHRASE";

/// The passphrase of a recovery copy: asked for, else read from the environment.
pub(super) fn of_recovery(ask: Ask) -> Result<Secret, Exit> {
    let asked = prompt().and_then(|prompt| prompt(ask));
    let given = asked.or_else(|| std::env::var(RECOVERY_ENV).ok().map(Secret::new));
    given.filter(|passphrase| !passphrase.expose().is_empty()).ok_or_else(|| {
        Exit::usage(format!(
            "a passphrase opens this recovery copy, and there is no terminal to ask for it; set {RECOVERY_ENV}"
        ))
    })
}
