//! Everything in a vault copied into another store, sealed as it is. A copy that was cut off is gone on with.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Guide, PAGE, Pages, Progress, Upkeep, unavailable};
use crate::failure::Failure;
use crate::store::{self, Record, RecordKey, Store, StoreError, Table, Write};

/// How many records or entries are written at once; they share one commit.
const BATCH: usize = 250;

/// What was copied, or was there already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Records.
    pub records: u64,
    /// Entries of the audit.
    pub entries: u64,
}

pub(super) async fn copy(upkeep: &Upkeep, to: &Arc<dyn Store>, progress: Progress<'_>) -> Result<Copied, Failure> {
    let mut guide = upkeep.guide().await?;
    let mut copied = Copied::default();
    for table in Table::ALL {
        let mut pages = Pages::of(table);
        while let Some(page) = pages.next(&*upkeep.store).await? {
            for batch in page.chunks(BATCH) {
                records(&mut guide, batch, to).await?;
                copied.records += batch.len() as u64;
                progress(copied.records + copied.entries);
            }
        }
        remove_others(upkeep, table, to).await?;
    }
    let mut after = 0;
    loop {
        let page = upkeep.store.log(after, PAGE).await.map_err(unavailable)?;
        let Some((last, _)) = page.last() else { return Ok(copied) };
        after = *last;
        for batch in page.chunks(BATCH) {
            let entries = batch.iter().map(|(_, entry)| Write::Append(entry.clone()));
            match to.apply(entries.clone().collect()).await {
                Ok(()) => {}
                // Some are there from an earlier try; in the same order, so the others come after them.
                Err(StoreError::Conflict) => {
                    for entry in entries {
                        match to.apply(vec![entry]).await {
                            Ok(()) | Err(StoreError::Conflict) => {}
                            Err(error) => return Err(unavailable(error)),
                        }
                    }
                }
                Err(error) => return Err(unavailable(error)),
            }
            copied.entries += batch.len() as u64;
            progress(copied.records + copied.entries);
        }
    }
}

async fn records(guide: &mut Guide<'_>, batch: &[Record], to: &Arc<dyn Store>) -> Result<(), Failure> {
    let mut by_tenant: BTreeMap<Option<RecordKey>, Vec<&Record>> = BTreeMap::new();
    for record in batch {
        by_tenant.entry(guide.tenant_of(record).await?).or_default().push(record);
    }
    for (tenant, records) in by_tenant {
        let to = match &tenant {
            Some(tenant) => store::within(to, tenant),
            None => Arc::clone(to),
        };
        match to.apply(records.iter().map(|record| Write::Insert((*record).clone())).collect()).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => {
                for record in records {
                    let there = to.get(record.table, &record.key).await.map_err(unavailable)?;
                    if there.is_none_or(|there| there.sealed != record.sealed) {
                        to.apply(vec![Write::Put(record.clone())]).await.map_err(unavailable)?;
                    }
                }
            }
            Err(error) => return Err(unavailable(error)),
        }
    }
    Ok(())
}

/// Removes what an earlier try has copied and is no longer in the vault.
async fn remove_others(upkeep: &Upkeep, table: Table, to: &Arc<dyn Store>) -> Result<(), Failure> {
    let mut pages = Pages::of(table);
    while let Some(page) = pages.next(&**to).await? {
        let keys: Vec<RecordKey> = page.iter().map(|record| record.key).collect();
        let kept = upkeep.store.generations(table, &keys).await.map_err(unavailable)?;
        let kept: std::collections::HashSet<RecordKey> = kept.into_iter().map(|(key, _)| key).collect();
        for record in page.iter().filter(|record| !kept.contains(&record.key)) {
            let delete = Write::Delete { table, key: record.key, generation: record.generation };
            to.apply(vec![delete]).await.map_err(unavailable)?;
        }
    }
    Ok(())
}
