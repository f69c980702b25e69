//! A chain of records: each names the hash of the one before, and the newest head is sealed beside them.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::record::Record;
use crate::id::TenantId;
use crate::keys::{Context, Keys, OpenKeys};
use crate::store::{self, Lease, LogEntry, RecordKey, Store, Table, Write};

/// How many processes may write at the same time, each in a chain of its own.
const MAX_WRITERS: u32 = 1024;

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
            let head = match store.get(Table::AuditHead, &head_key(&keys, &writer)).await.map_err(|e| e.to_string())? {
                None => Head { writer, seq: 0, hash: [0; 32] },
                Some(record) => open_head(&keys, &writer, &record).await?,
            };
            return Ok(Self { store, keys, head, _slot: slot });
        }
        Err(format!("{MAX_WRITERS} processes already write the audit of this data folder"))
    }

    /// Appends records, durably, all or none.
    pub(super) async fn append(&mut self, records: Vec<Record>) -> Result<(), String> {
        let mut head = self.head.clone();
        let mut writes = Vec::with_capacity(records.len() + 1);
        for record in records {
            head.seq += 1;
            let (body, hash) = record.chain(&head.writer, head.seq, &head.hash)?;
            head.hash = hash;
            writes.push(Write::Append(LogEntry { writer: head.writer.clone(), seq: head.seq, body }));
        }
        writes.push(Write::Put(seal_head(&self.keys, &head).await?));
        self.store.apply(writes).await.map_err(|e| e.to_string())?;
        self.head = head;
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

/// The sealed heads of all chains that ever wrote.
pub(super) async fn heads(store: &dyn Store, keys: &OpenKeys) -> Result<Vec<Head>, String> {
    let mut heads = Vec::new();
    // Chains are taken from the first free number on, so the first number without a head ends the list.
    for number in 1..=MAX_WRITERS {
        let writer = format!("w{number}");
        match store.get(Table::AuditHead, &head_key(keys, &writer)).await.map_err(|e| e.to_string())? {
            Some(record) => heads.push(open_head(keys, &writer, &record).await?),
            None => break,
        }
    }
    Ok(heads)
}
