//! Who has connections. Grants stand under hashes and open only for their own person, so whoever goes through all of
//! them (a check, new data keys, a restored backup) needs the names: they are kept sealed, beside the grants.

use std::collections::HashMap;

use super::safe::{Safe, unavailable};
use crate::failure::Failure;
use crate::id::{Person, TenantId};
use crate::keys::{Context, KeyError, OpenKeys};
use crate::store::{Record, RecordKey, Table, Write};

/// How many listings are read at once.
const PAGE: usize = 1000;

/// What a person's grants are listed by, and the key of their listing.
pub(super) fn owner(keys: &OpenKeys, person: &Person) -> RecordKey {
    keys.record_key(Table::Grant, &person.parts())
}

/// The write that lists a person. It goes with every write of a grant, so that there is no grant without it.
pub(super) async fn listing(keys: &OpenKeys, person: &Person) -> Result<Write, KeyError> {
    let key = owner(keys, person);
    let body = serde_json::to_vec(person).map_err(|error| KeyError::Unavailable(error.to_string()))?;
    // The tenant is not known before it is opened.
    let sealed = keys.seal(&TenantId::default_tenant(), &context(&key), &body).await?;
    Ok(Write::Put(Record { table: Table::Person, key, owner: key, generation: 0, expires_at: None, sealed }))
}

fn context(key: &RecordKey) -> Context {
    Context::of(Table::Person).with(key)
}

impl Safe {
    /// The write that takes a person off the list with their last grant; none where others stay.
    ///
    /// The listing is read before the grants. A grant that is made in between writes the listing too, and then this
    /// write is a conflict.
    pub(super) async fn unlisting(
        &self,
        keys: &OpenKeys,
        person: &Person,
        last: &RecordKey,
    ) -> Result<Option<Write>, Failure> {
        let key = owner(keys, person);
        let Some(listed) = self.store.get(Table::Person, &key).await.map_err(unavailable)? else { return Ok(None) };
        let grants = self.store.owned(Table::Grant, &key).await.map_err(unavailable)?;
        let others = grants.iter().any(|grant| grant.key != *last);
        Ok((!others).then_some(Write::Delete { table: Table::Person, key, generation: listed.generation }))
    }

    pub(super) async fn people(&self) -> Result<HashMap<RecordKey, Person>, Failure> {
        let keys = self.keys.open().await?;
        let mut people = HashMap::new();
        let mut after: Option<RecordKey> = None;
        loop {
            let page = self.store.scan(Table::Person, after.as_ref(), PAGE).await.map_err(unavailable)?;
            let Some(last) = page.last() else { return Ok(people) };
            after = Some(last.key);
            for record in page {
                let tenant = TenantId::default_tenant();
                let Ok(body) = keys.unseal(&tenant, &context(&record.key), &record.sealed).await else { continue };
                if let Ok(person) = serde_json::from_slice(body.expose()) {
                    people.insert(record.key, person);
                }
            }
        }
    }
}
