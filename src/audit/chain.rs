//! A chain of records: each names the hash of the one before, and the newest head is sealed beside them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::record::Record;
use crate::id::TenantId;
use crate::keys::{Context, Keys, OpenKeys};
use crate::store::{self, Lease, LogEntry, RecordKey, Store, StoreError, Table, Write};

/// How many processes may write at the same time, each in a chain of its own.
const MAX_WRITERS: u32 = 1024;

/// How often an append that meets something in its place is tried again.
const APPEND_TRIES: u32 = 64;

/// The newest place of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) writer: String,
    pub(super) seq: u64,
    pub(super) hash: [u8; 32],
}

/// A chain held for writing.
pub(super) struct Chain {
    store: Arc<dyn Store>,
    keys: Arc<OpenKeys>,
    head: Head,
    /// No other process writes this chain while it is held.
    _slot: Lease,
}

impl Chain {
    /// Takes the first chain that nobody holds, and goes on where it stopped.
    pub(super) async fn take(store: Arc<dyn Store>, keys: &Keys) -> Result<Self, String> {
        let keys = keys.open().await.map_err(|e| e.to_string())?;
        for number in 1..=MAX_WRITERS {
            let writer = format!("w{number}");
            let Some(slot) = store.lease(&slot_name(&writer), Duration::ZERO).await.map_err(|e| e.to_string())? else {
                continue;
            };
            let head = read_head(store.as_ref(), &keys, &writer).await?;
            let head = head.unwrap_or(Head { writer, seq: 0, hash: [0; 32] });
            return Ok(Self { store, keys, head, _slot: slot });
        }
        Err(format!("{MAX_WRITERS} processes already write the audit of this data folder"))
    }

    /// Appends records, durably, all or none.
    pub(super) async fn append(&mut self, records: Vec<Record>) -> Result<(), String> {
        for _ in 0..APPEND_TRIES {
            let mut head = self.head.clone();
            let mut writes = Vec::with_capacity(records.len() + 2);
            for record in &records {
                head.seq += 1;
                let (body, hash) = record.clone().chain(&head.writer, head.seq, &head.hash)?;
                head.hash = hash;
                writes.push(Write::Append(LogEntry { writer: head.writer.clone(), seq: head.seq, body }));
            }
            writes.push(Write::Put(seal_head(&self.keys, &head).await?));
            if self.head.seq == 0 {
                writes.push(list_with(self.store.as_ref(), &self.keys, &head.writer).await?);
            }
            match self.store.apply(writes).await {
                Ok(()) => {
                    self.head = head;
                    return Ok(());
                }
                // Something stands where this record belongs: an append of ours that seemed to have failed, or a forged
                // entry. Go on behind the sealed head, or behind the forgery; verification tells the two apart.
                Err(StoreError::Conflict) => self.step_aside().await?,
                Err(error) => return Err(error.to_string()),
            }
        }
        Err("the chain's place is taken again and again; run `obo audit verify`".to_owned())
    }

    /// Finds the chain's end anew after a conflict.
    async fn step_aside(&mut self) -> Result<(), String> {
        let stored = read_head(self.store.as_ref(), &self.keys, &self.head.writer).await?;
        if let Some(stored) = stored
            && stored != self.head
        {
            self.head = stored;
            return Ok(());
        }
        // The sealed head is ours, and yet its successor exists: it was not written by an obo. Skip what is there, so
        // that records can be kept; `seq` then jumps, which verification reports at the forged entry.
        let mut before = u64::MAX;
        let mut last = self.head.seq;
        loop {
            let page = self.store.newest(before, 1000).await.map_err(|e| e.to_string())?;
            let Some((position, _)) = page.last() else { break };
            before = *position;
            let own = page.iter().filter(|(_, entry)| entry.writer == self.head.writer);
            last = own.map(|(_, entry)| entry.seq).fold(last, u64::max);
        }
        if last == self.head.seq {
            // Nothing stands in the way: another process has added its chain to the list at the same moment.
            return Ok(());
        }
        tracing::error!(
            writer = self.head.writer,
            from = self.head.seq,
            to = last,
            "the audit log holds records that obo did not write"
        );
        self.head.seq = last;
        Ok(())
    }
}

fn slot_name(writer: &str) -> RecordKey {
    Sha256::digest(format!("obo audit writer {writer}").as_bytes()).into()
}

fn head_key(keys: &OpenKeys, writer: &str) -> RecordKey {
    keys.record_key(Table::AuditHead, &[writer.as_bytes()])
}

fn head_context(writer: &str) -> Context {
    Context::of(Table::AuditHead).with(writer.as_bytes())
}

async fn seal_head(keys: &OpenKeys, head: &Head) -> Result<store::Record, String> {
    let plain = serde_json::to_vec(head).map_err(|e| e.to_string())?;
    let sealed =
        keys.seal(&TenantId::default_tenant(), &head_context(&head.writer), &plain).await.map_err(|e| e.to_string())?;
    Ok(store::Record {
        table: Table::AuditHead,
        key: head_key(keys, &head.writer),
        owner: [0; 32],
        generation: 0,
        expires_at: None,
        sealed,
    })
}

async fn open_head(keys: &OpenKeys, writer: &str, record: &store::Record) -> Result<Head, String> {
    let plain = keys
        .unseal(&TenantId::default_tenant(), &head_context(writer), &record.sealed)
        .await
        .map_err(|e| format!("the head of audit chain {writer}: {e}"))?;
    serde_json::from_slice(plain.expose()).map_err(|e| format!("the head of audit chain {writer}: {e}"))
}

async fn read_head(store: &dyn Store, keys: &OpenKeys, writer: &str) -> Result<Option<Head>, String> {
    match store.get(Table::AuditHead, &head_key(keys, writer)).await.map_err(|e| e.to_string())? {
        Some(record) => open_head(keys, writer, &record).await.map(Some),
        None => Ok(None),
    }
}

/// The sealed list of all chains that ever wrote. A chain that is gone with its head is missed by it.
pub(super) async fn listed(store: &dyn Store, keys: &OpenKeys) -> Result<BTreeSet<String>, String> {
    let Some(record) = store.get(Table::AuditHead, &list_key(keys)).await.map_err(|e| e.to_string())? else {
        return Ok(BTreeSet::new());
    };
    open_list(keys, &record).await
}

async fn open_list(keys: &OpenKeys, record: &store::Record) -> Result<BTreeSet<String>, String> {
    let plain = keys
        .unseal(&TenantId::default_tenant(), &list_context(), &record.sealed)
        .await
        .map_err(|e| format!("the list of audit chains: {e}"))?;
    serde_json::from_slice(plain.expose()).map_err(|e| format!("the list of audit chains: {e}"))
}

/// The write that adds a chain to the list. It conflicts where another process adds one at the same time.
async fn list_with(store: &dyn Store, keys: &OpenKeys, writer: &str) -> Result<Write, String> {
    let earlier = store.get(Table::AuditHead, &list_key(keys)).await.map_err(|e| e.to_string())?;
    let mut chains = match &earlier {
        Some(record) => open_list(keys, record).await?,
        None => BTreeSet::new(),
    };
    chains.insert(writer.to_owned());
    let plain = serde_json::to_vec(&chains).map_err(|e| e.to_string())?;
    let sealed = keys.seal(&TenantId::default_tenant(), &list_context(), &plain).await.map_err(|e| e.to_string())?;
    let generation = earlier.as_ref().map_or(0, |record| record.generation);
    let record = store::Record {
        table: Table::AuditHead,
        key: list_key(keys),
        owner: [0; 32],
        generation,
        expires_at: None,
        sealed,
    };
    Ok(if earlier.is_some() { Write::Replace(record) } else { Write::Insert(record) })
}

fn list_key(keys: &OpenKeys) -> RecordKey {
    keys.record_key(Table::AuditHead, &[b"", b"chains"])
}

fn list_context() -> Context {
    Context::of(Table::AuditHead).with(b"").with(b"chains")
}

/// What the records of [`Table::AuditHead`] are sealed for, by their keys.
pub(super) async fn contexts(store: &dyn Store, keys: &OpenKeys) -> Result<HashMap<RecordKey, Context>, String> {
    let writers = listed(store, keys).await?;
    let heads = writers.iter().map(|writer| (head_key(keys, writer), head_context(writer)));
    Ok(heads.chain([(list_key(keys), list_context())]).collect())
}

/// The sealed heads of the listed chains. `None` for one that has lost its head.
pub(super) async fn heads(
    store: &dyn Store,
    keys: &OpenKeys,
    writers: &BTreeSet<String>,
) -> Result<BTreeMap<String, Option<Head>>, String> {
    let mut heads = BTreeMap::new();
    for writer in writers {
        heads.insert(writer.clone(), read_head(store, keys, writer).await?);
    }
    Ok(heads)
}
