//! The vault as a whole, for the operator: what is in it, and whether every record opens.
//!
//! A record opens only for whom it was sealed, which only its own module knows. Here those answers are put together,
//! so that everything stored can be gone through.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::audit::Audit;
use crate::failure::{Code, Failure};
use crate::id::{Person, TenantId};
use crate::keys::{self, Context, KeyError, Keys, OpenKeys};
use crate::secret::SecretBytes;
use crate::store::{Record, RecordKey, Store, StoreError, Table};
use crate::vault::{self, GrantStatus, Vault};

mod copy;
mod data_keys;
mod restored;

pub use copy::Copied;
pub use data_keys::DataKeysChanged;
pub use restored::Restored;

/// How many records are read at once.
const PAGE: usize = 1000;

/// How long to wait for another process that is sealing everything anew.
const UPKEEP_WAIT: Duration = Duration::from_secs(1);

/// Goes through a vault.
pub struct Upkeep {
    store: Arc<dyn Store>,
    keys: Keys,
    vault: Vault,
    audit: Audit,
}

/// Connections, by what can be done with them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connections {
    /// They can be used.
    pub usable: u64,
    /// Their people must connect again.
    pub need_consent: u64,
    /// They do not open, or nothing says whose they are.
    pub unopened: u64,
}

/// What came of opening every record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many opened.
    pub opened: u64,
    /// How many did not, by table.
    pub failed: BTreeMap<&'static str, u64>,
    /// How many belong to people or tenants that nothing in the vault names: not tried.
    pub unnamed: BTreeMap<&'static str, u64>,
}

impl Verified {
    /// Whether every record opened.
    pub fn is_whole(&self) -> bool {
        self.failed.is_empty() && self.unnamed.is_empty()
    }
}

/// Hears how many records were gone through.
pub type Progress<'a> = &'a mut (dyn FnMut(u64) + Send);

impl Upkeep {
    /// Over the parts of one vault.
    pub fn new(store: Arc<dyn Store>, keys: Keys, vault: Vault, audit: Audit) -> Self {
        Self { store, keys, vault, audit }
    }

    /// The same vault as another store has it, which the same keys open.
    #[must_use]
    pub fn in_store(&self, store: Arc<dyn Store>) -> Self {
        Self { store, keys: self.keys.clone(), vault: self.vault.clone(), audit: self.audit.clone() }
    }

    /// Counts the connections.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn connections(&self) -> Result<Connections, Failure> {
        let mut guide = self.guide().await?;
        let mut found = Connections::default();
        let mut pages = Pages::of(Table::Grant);
        while let Some(page) = pages.next(&*self.store).await? {
            for record in page {
                match guide.open(&record).await? {
                    Opened::Yes(body) => match vault::status_of(&body) {
                        Some(GrantStatus::Active) => found.usable += 1,
                        Some(GrantStatus::NeedsConsent) => found.need_consent += 1,
                        None => found.unopened += 1,
                    },
                    Opened::No | Opened::Unnamed => found.unopened += 1,
                }
            }
        }
        Ok(found)
    }

    /// Opens every record.
    ///
    /// # Errors
    /// `vault_unavailable`. A record that does not open is none.
    pub async fn verify(&self, progress: Progress<'_>) -> Result<Verified, Failure> {
        let mut guide = self.guide().await?;
        let mut found = Verified::default();
        let mut seen = 0;
        // Data keys last: whose they are is known best when everything else was seen.
        let tables = Table::ALL.into_iter().filter(|table| *table != Table::DataKey);
        for table in tables {
            let mut pages = Pages::of(table);
            while let Some(page) = pages.next(&*self.store).await? {
                for record in page {
                    // Not sealed: the keys were opened with it.
                    if keys::is_key_record(&record) {
                        continue;
                    }
                    match guide.open(&record).await? {
                        Opened::Yes(body) if table != Table::Grant || vault::status_of(&body).is_some() => {
                            found.opened += 1;
                        }
                        Opened::Yes(_) | Opened::No => *found.failed.entry(table.words()).or_default() += 1,
                        Opened::Unnamed => *found.unnamed.entry(table.words()).or_default() += 1,
                    }
                    seen += 1;
                    progress(seen);
                }
            }
        }
        guide.data_keys(&mut found).await?;
        Ok(found)
    }

    /// Gives every tenant a new data key, and seals anew with it whatever the earlier ones sealed. Takes up a change that
    /// was cut off. Other processes may go on: earlier data keys stay, and open what they sealed.
    ///
    /// # Errors
    /// `vault_unavailable`; what was sealed anew until then stays so.
    ///
    /// # Cancellation
    /// As after an error.
    pub async fn change_data_keys(&self, progress: Progress<'_>) -> Result<DataKeysChanged, Failure> {
        data_keys::change(self, progress).await
    }

    /// Goes through a vault that came back with a backup, before anybody uses it: connections are marked, so that their
    /// providers are asked about them at their next use, and what is short-lived is removed.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn mark_restored(&self) -> Result<Restored, Failure> {
        restored::mark(self).await
    }

    /// Copies everything into another store that nobody uses, sealed as it is. What an earlier try has copied is gone on
    /// with, and what it has copied and is no longer here is removed there. Nobody may write here meanwhile.
    ///
    /// # Errors
    /// `vault_unavailable`; what was copied until then stays there.
    ///
    /// # Cancellation
    /// As after an error.
    pub async fn copy_to(&self, to: &Arc<dyn Store>, progress: Progress<'_>) -> Result<Copied, Failure> {
        copy::copy(self, to, progress).await
    }

    async fn guide(&self) -> Result<Guide<'_>, Failure> {
        let keys = self.keys.open().await?;
        let people = self.vault.people().await?;
        // A list of chains that does not open leaves every head without a context, which is then what is reported.
        let heads = self.audit.head_contexts().await.unwrap_or_default();
        Ok(Guide { upkeep: self, keys, people, heads, asked_audit: false })
    }
}

/// One table, a page at a time.
struct Pages {
    table: Table,
    after: Option<RecordKey>,
}

impl Pages {
    fn of(table: Table) -> Self {
        Self { table, after: None }
    }

    async fn next(&mut self, store: &dyn Store) -> Result<Option<Vec<Record>>, Failure> {
        let page = store.scan(self.table, self.after.as_ref(), PAGE).await.map_err(unavailable)?;
        self.after = page.last().map(|record| record.key);
        Ok((!page.is_empty()).then_some(page))
    }
}

/// What came of opening a record.
enum Opened {
    Yes(SecretBytes),
    No,
    /// Nothing says for whom it was sealed.
    Unnamed,
}

/// Knows for whom records were sealed.
struct Guide<'a> {
    upkeep: &'a Upkeep,
    keys: Arc<OpenKeys>,
    people: HashMap<RecordKey, Person>,
    heads: HashMap<RecordKey, Context>,
    asked_audit: bool,
}

impl Guide<'_> {
    async fn open(&mut self, record: &Record) -> Result<Opened, Failure> {
        let Some((tenant, context)) = self.sealed_for(record).await? else { return Ok(Opened::Unnamed) };
        match self.keys.unseal(&tenant, &context, &record.sealed).await {
            Ok(body) => Ok(Opened::Yes(body)),
            Err(KeyError::DoesNotOpen) => Ok(Opened::No),
            Err(error) => Err(error.into()),
        }
    }

    /// The tenant that a record belongs to, as [`crate::store::within`] names it; none: obo itself, or nobody who is named.
    async fn tenant_of(&mut self, record: &Record) -> Result<Option<RecordKey>, Failure> {
        let owner = match record.table {
            Table::Grant => record.owner,
            Table::Person => record.key,
            // Owned by its tenant.
            Table::DataKey => return Ok(Some(record.owner)),
            _ => return Ok(None),
        };
        if !self.people.contains_key(&owner) {
            self.ask_audit().await?;
        }
        Ok(self.people.get(&owner).map(|person| self.keys.owner_of_data_keys(&person.tenant)))
    }

    async fn sealed_for(&mut self, record: &Record) -> Result<Option<(TenantId, Context)>, Failure> {
        let default = TenantId::default_tenant;
        Ok(match record.table {
            Table::Grant => {
                if !self.people.contains_key(&record.owner) {
                    self.ask_audit().await?;
                }
                self.people
                    .get(&record.owner)
                    .map(|person| (person.tenant.clone(), vault::context(person, &record.key)))
            }
            Table::AuditHead => self.heads.get(&record.key).map(|context| (default(), context.clone())),
            // Wrapped by the root key, not sealed with a data key; and not sealed at all.
            Table::DataKey | Table::KeyringEntry => None,
            // Found by a key that stands for everything they are bound to, before it is known whose they are.
            Table::Meta
            | Table::Flow
            | Table::Session
            | Table::Token
            | Table::Application
            | Table::Login
            | Table::ApplicationUse
            | Table::AuthorizationCode
            | Table::ClientSession
            | Table::ClientToken
            | Table::Person
            | Table::Refreshing
            | Table::McpSession => Some((default(), Context::of(record.table).with(&record.key))),
        })
    }

    /// Grants of an obo that kept no list of people, or whose listing was damaged, are found by the names in the audit.
    async fn ask_audit(&mut self) -> Result<(), Failure> {
        if std::mem::replace(&mut self.asked_audit, true) {
            return Ok(());
        }
        for person in self.upkeep.audit.people().await.map_err(unreadable_audit)? {
            self.people.entry(vault::owner(&self.keys, &person)).or_insert(person);
        }
        Ok(())
    }

    /// Opens every data key.
    async fn data_keys(&mut self, found: &mut Verified) -> Result<(), Failure> {
        let mut owners: HashMap<RecordKey, u64> = HashMap::new();
        let mut pages = Pages::of(Table::DataKey);
        while let Some(page) = pages.next(&*self.upkeep.store).await? {
            page.iter().for_each(|record| *owners.entry(record.owner).or_default() += 1);
        }
        for round in 0..2 {
            if round == 1 && !owners.is_empty() {
                self.ask_audit().await?;
            }
            for tenant in self.tenants() {
                let Some(count) = owners.remove(&self.keys.owner_of_data_keys(&tenant)) else { continue };
                match self.keys.data_keys(&tenant).await {
                    Ok(opened) => found.opened += opened as u64,
                    Err(KeyError::DoesNotOpen) => *found.failed.entry(Table::DataKey.words()).or_default() += count,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let unnamed: u64 = owners.values().sum();
        if unnamed > 0 {
            *found.unnamed.entry(Table::DataKey.words()).or_default() += unnamed;
        }
        Ok(())
    }

    /// The tenants of everybody known, and the one that is always there.
    fn tenants(&self) -> BTreeSet<TenantId> {
        self.people.values().map(|person| person.tenant.clone()).chain([TenantId::default_tenant()]).collect()
    }
}

fn unavailable(error: StoreError) -> Failure {
    Failure::new(Code::VaultUnavailable, "obo cannot read or write its vault now; try again in a moment").because(error)
}

fn unreadable_audit(cause: String) -> Failure {
    Failure::new(Code::VaultUnavailable, "obo cannot read its audit now; try again in a moment").because(cause)
}
