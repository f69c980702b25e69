//! Is the audit whole? Finds an edited, removed, inserted or reordered record, and a tail that was cut off.

use std::collections::BTreeMap;

use serde::Serialize;

use super::chain;
use super::record::Record;
use crate::keys::Keys;
use crate::store::Store;

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How many records were read.
    pub records: u64,
    /// How many chains they form.
    pub chains: u64,
    /// What is wrong, in the order of the records.
    pub problems: Vec<Problem>,
}

/// Something wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The chain.
    pub writer: String,
    /// The first record that does not fit.
    pub seq: u64,
    /// What is wrong, for the operator.
    pub what: String,
}

#[derive(Clone, Copy)]
struct Walk {
    seq: u64,
    hash: [u8; 32],
    broken: bool,
}

/// Reads the whole log and checks every chain against its sealed head.
pub(super) async fn verify(store: &dyn Store, keys: &Keys) -> Result<Report, String> {
    let keys = keys.open().await.map_err(|e| e.to_string())?;
    // Heads first: a record appended while the log is read is then beyond the head, never missing before it.
    let heads = chain::heads(store, &keys).await?;
    let mut report = Report::default();
    let mut walks: BTreeMap<String, Walk> = BTreeMap::new();
    let mut at_head: BTreeMap<String, [u8; 32]> = BTreeMap::new();

    let mut after = 0;
    loop {
        let page = store.log(after, 1000).await.map_err(|e| e.to_string())?;
        let Some((last, _)) = page.last() else { break };
        after = *last;
        for (_, entry) in page {
            report.records += 1;
            let walk = walks.entry(entry.writer.clone()).or_insert(Walk { seq: 0, hash: [0; 32], broken: false });
            if let Err(what) = step(walk, &entry.writer, entry.seq, &entry.body) {
                // One problem a chain is enough: after it, nothing can be said.
                if !walk.broken {
                    report.problems.push(Problem { writer: entry.writer.clone(), seq: entry.seq, what });
                }
                walk.broken = true;
            }
            if heads.iter().any(|head| head.writer == entry.writer && head.seq == entry.seq) {
                at_head.insert(entry.writer.clone(), walk.hash);
            }
        }
    }
    report.chains = walks.len() as u64;

    for head in &heads {
        let broken = walks.get(&head.writer).is_some_and(|walk| walk.broken);
        match at_head.get(&head.writer) {
            _ if broken || head.seq == 0 => {}
            Some(hash) if *hash == head.hash => {}
            Some(_) => report.problems.push(Problem {
                writer: head.writer.clone(),
                seq: head.seq,
                what: "the record does not match the sealed head of its chain".to_owned(),
            }),
            None => report.problems.push(Problem {
                writer: head.writer.clone(),
                seq: walks.get(&head.writer).map_or(0, |walk| walk.seq) + 1,
                what: format!("the chain ends early: its sealed head is record {}", head.seq),
            }),
        }
    }
    for writer in walks.keys().filter(|writer| !heads.iter().any(|head| &head.writer == *writer)) {
        report.problems.push(Problem {
            writer: writer.clone(),
            seq: 1,
            what: "the chain has no sealed head".to_owned(),
        });
    }
    Ok(report)
}

fn step(walk: &mut Walk, writer: &str, seq: u64, body: &str) -> Result<(), String> {
    let expected = walk.seq + 1;
    walk.seq = seq;
    let prev = walk.hash;
    let (hash, given) = Record::rehash(body, &prev).ok_or("the record does not read")?;
    walk.hash = hash;
    if seq != expected {
        return Err(format!("record {expected} should stand here"));
    }
    let record = Record::parse(body).ok_or("the record does not read")?;
    if record.writer != writer || record.seq != seq {
        return Err("the record was moved: it names another place".to_owned());
    }
    if record.prev != super::hex(&prev) || given != super::hex(&hash) {
        return Err("the record was changed, or one before it was".to_owned());
    }
    Ok(())
}
