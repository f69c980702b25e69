//! `obo vault`.

use clap::Subcommand;

use super::{Exit, Global};

mod status;

#[derive(Subcommand)]
pub(super) enum Vault {
    /// Where the key is, what is in the vault, and whether it is sound
    Status(status::Status),
}

impl Vault {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        match self {
            Vault::Status(command) => command.run(global).await,
        }
    }
}
