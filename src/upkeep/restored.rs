//! What came back with a backup is older than the world: it is asked for again, or asked about, before it counts.

use futures::future::join_all;

use super::{Guide, Opened, Pages, Upkeep, unavailable};
use crate::failure::Failure;
use crate::store::{StoreError, Table, Write};

/// How many records are changed at once; they share one commit.
const BATCH: usize = 100;

/// What is over within minutes or hours, and is begun again more safely than gone on with.
const SHORT_LIVED: [Table; 7] = [
    Table::Flow,
    Table::Session,
    Table::Login,
    Table::AuthorizationCode,
    Table::ClientToken,
    Table::Refreshing,
    Table::McpSession,
];

/// What a backup brought back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restored {
    /// Connections, which the provider is asked about at their next use.
    pub connections: u64,
    /// Connections that do not open, or belong to people that nothing names.
    pub unopened: u64,
}

pub(super) async fn mark(upkeep: &Upkeep) -> Result<Restored, Failure> {
    let mut guide: Guide<'_> = upkeep.guide().await?;
    let mut found = Restored::default();
    for table in SHORT_LIVED {
        let mut pages = Pages::of(table);
        while let Some(page) = pages.next(&*upkeep.store).await? {
            let removed = page.iter().map(|record| {
                upkeep.store.apply(vec![Write::Delete { table, key: record.key, generation: record.generation }])
            });
            for result in join_all(removed).await {
                match result {
                    Ok(()) | Err(StoreError::Conflict) => {}
                    Err(error) => return Err(unavailable(error)),
                }
            }
        }
    }
    let mut pages = Pages::of(Table::Grant);
    while let Some(page) = pages.next(&*upkeep.store).await? {
        for batch in page.chunks(BATCH) {
            let mut marks = Vec::new();
            for record in batch {
                match (guide.open(record).await?, guide.people.get(&record.owner)) {
                    (Opened::Yes(_), Some(person)) => marks.push((person.clone(), record.key)),
                    _ => found.unopened += 1,
                }
            }
            for result in join_all(marks.iter().map(|(person, key)| upkeep.vault.restored(person, key))).await {
                result?;
                found.connections += 1;
            }
        }
    }
    Ok(found)
}
