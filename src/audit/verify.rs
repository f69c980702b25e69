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
    let before = chain::heads(store, &keys, &chain::listed(store, &keys).await?).await?;
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
            let head = before.get(&entry.writer).and_then(Option::as_ref);
            if head.is_some_and(|head| head.seq == entry.seq) {
                at_head.insert(entry.writer.clone(), walk.hash);
            }
        }
    }
    report.chains = walks.len() as u64;
    // Processes go on writing meanwhile, so what was read may reach further than the first heads; further than the heads
    // of now nothing genuine reaches.
    let now = chain::heads(store, &keys, &chain::listed(store, &keys).await?).await?;

    for (writer, head) in &before {
        let walk = walks.get(writer);
        let mut problem = |seq: u64, what: String| report.problems.push(Problem { writer: writer.clone(), seq, what });
        match (head, at_head.get(writer)) {
            _ if walk.is_some_and(|walk| walk.broken) => {}
            (None, _) => problem(1, "the chain has lost its sealed head".to_owned()),
            (Some(head), Some(hash)) if *hash == head.hash => {}
            (Some(head), Some(_)) => {
                problem(head.seq, "the record does not match the sealed head of its chain".to_owned())
            }
            (Some(head), None) => {
                let from = walk.map_or(0, |walk| walk.seq) + 1;
                problem(from, format!("the chain ends early: its sealed head is record {}", head.seq));
            }
        }
    }
    for (writer, walk) in walks.iter().filter(|(_, walk)| !walk.broken) {
        let end = now.get(writer).and_then(Option::as_ref).map(|head| head.seq);
        let what = match end {
            None if before.contains_key(writer) => continue,
            None => "the chain is not one that obo has begun".to_owned(),
            Some(end) if walk.seq > end => {
                "records stand beyond the sealed head of the chain: obo did not write them".to_owned()
            }
            Some(_) => continue,
        };
        let seq = end.map_or(1, |end| end + 1);
        report.problems.push(Problem { writer: writer.clone(), seq, what });
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
