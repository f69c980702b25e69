//! The vault's passphrase, asked for on a terminal.

use std::io::IsTerminal as _;
use std::sync::Arc;

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
