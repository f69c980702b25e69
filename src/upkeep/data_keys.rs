//! Everything sealed anew with new data keys, record by record. A record says itself which key sealed it, so a change that
//! was cut off is simply gone through again.

use futures::future::join_all;

use super::{Guide, Pages, Progress, UPKEEP_WAIT, Upkeep, unavailable};
use crate::failure::{Code, Failure};
use crate::keys::{self, KeyError, OpenKeys, Targets};
use crate::store::{Record, StoreError, Table, Write};

/// How many records are sealed anew at once; they share one commit.
const BATCH: usize = 100;

/// How often everything is gone through, while other processes still seal with earlier keys.
const MAX_ROUNDS: u32 = 4;

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataKeysChanged {
    /// How many tenants have a new data key.
    pub tenants: u64,
    /// Whether a change that was cut off was taken up, in place of a new one.
    pub resumed: bool,
    /// How many records were sealed anew.
    pub resealed: u64,
    /// How many do not open, or belong to people that nothing names: they are left as they are.
    pub left: u64,
}

pub(super) async fn change(upkeep: &Upkeep, progress: Progress<'_>) -> Result<DataKeysChanged, Failure> {
    let keys = upkeep.keys.open().await?;
    let lease = upkeep.store.lease(&keys.targets_key(), UPKEEP_WAIT).await.map_err(unavailable)?;
    let _lease = lease.ok_or_else(|| {
        Failure::new(Code::VaultUnavailable, "another obo process is changing the data keys")
            .because("another obo process is changing this vault's data keys; wait for it, then try again")
    })?;
    let mut guide = upkeep.guide().await?;
    let under_way = keys.targets().await?;
    let resumed = under_way.is_some();
    let targets = match under_way {
        Some(targets) => targets,
        None => {
            // Tenants whose people have no connections may have data keys all the same.
            guide.ask_audit().await?;
            keys.begin_targets(guide.tenants()).await?
        }
    };

    let mut done = DataKeysChanged { tenants: targets.len() as u64, resumed, ..Default::default() };
    for _ in 0..MAX_ROUNDS {
        let (resealed, left) = round(&mut guide, &targets, &mut done.resealed, progress).await?;
        done.left = left;
        if resealed == 0 {
            break;
        }
    }
    keys.end_targets().await?;
    Ok(done)
}

/// Goes through everything once: how many records were sealed anew, and how many cannot be.
async fn round(
    guide: &mut Guide<'_>,
    targets: &Targets,
    total: &mut u64,
    progress: Progress<'_>,
) -> Result<(u64, u64), Failure> {
    let (mut resealed, mut left) = (0, 0);
    for table in Table::ALL.into_iter().filter(|table| *table != Table::DataKey) {
        let mut pages = Pages::of(table);
        while let Some(page) = pages.next(&*guide.upkeep.store).await? {
            for batch in page.chunks(BATCH) {
                let mut writes = Vec::new();
                for record in batch {
                    match anew(guide, targets, record).await? {
                        Anew::Current => {}
                        Anew::Left => left += 1,
                        Anew::Write(write) => writes.push(write),
                    }
                }
                // Handed over together, they are committed together; each is a write of its own, so that a record which
                // its owner has just changed holds up no other.
                let store = &guide.upkeep.store;
                for written in join_all(writes.into_iter().map(|write| store.apply(vec![write]))).await {
                    match written {
                        // Its owner has sealed it anew; which key that was with, the next round finds out.
                        Ok(()) | Err(StoreError::Conflict) => resealed += 1,
                        Err(error) => return Err(unavailable(error)),
                    }
                    *total += 1;
                    progress(*total);
                }
            }
        }
    }
    Ok((resealed, left))
}

enum Anew {
    /// The newest key has sealed it.
    Current,
    /// It cannot be sealed anew.
    Left,
    Write(Write),
}

async fn anew(guide: &mut Guide<'_>, targets: &Targets, record: &Record) -> Result<Anew, Failure> {
    if keys::is_key_record(record) {
        return Ok(Anew::Current);
    }
    let Some((tenant, context)) = guide.sealed_for(record).await? else { return Ok(Anew::Left) };
    // A tenant that came since has no earlier key.
    let target = targets.get(&tenant).copied().unwrap_or_default();
    if OpenKeys::sealed_with(&record.sealed).is_some_and(|number| number >= target) {
        return Ok(Anew::Current);
    }
    let sealed = match guide.keys.reseal(&tenant, &context, &record.sealed).await {
        Ok(sealed) => sealed,
        Err(KeyError::DoesNotOpen) => return Ok(Anew::Left),
        Err(error) => return Err(error.into()),
    };
    Ok(Anew::Write(Write::Reseal { table: record.table, key: record.key, before: record.sealed.clone(), sealed }))
}
