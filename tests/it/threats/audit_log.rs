//! T20: whoever can write the data folder, but has no key, cannot change the audit unseen.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use obo::audit::Audit;
use obo::audit::verify::Problem;
use obo::clock::SystemClock;
use obo::keys::{self, Keys, SourceName};
use obo::store::Store;
use obo::store::sqlite::SqliteStore;
use rusqlite::{Connection, params};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::support::program::Program;
use crate::support::{TestObo, mail};

/// A data folder whose audit has some records, and the key beside it.
struct Evidence {
    dir: tempfile::TempDir,
    records: u32,
}

impl Evidence {
    async fn gathered() -> Self {
        let obo = TestObo::start().await;
        obo.connect("alice", "alice@example.com", "Google_SendEmail", mail("bob@example.com", "x")).await;
        for number in 0..3 {
            obo.client("alice").await.call("Google_SendEmail", mail("bob@example.com", &number.to_string())).await;
        }
        obo.client("bob").await.call("GoogleCalendar_ListEvents", json!({})).await;
        let report = obo.app.audit.verify().await.unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(report.chains, 1);
        let dir = tempfile::tempdir().unwrap();
        copy(obo.dir.path(), dir.path());
        Self { dir, records: report.records.try_into().unwrap() }
    }

    /// A copy with something done to its database; what a check of it finds.
    async fn after(&self, tamper: impl FnOnce(&Connection)) -> Vec<Problem> {
        let dir = tempfile::tempdir().unwrap();
        copy(self.dir.path(), dir.path());
        {
            let connection = Connection::open(database(dir.path())).unwrap();
            // Whoever can write the file can take its triggers away.
            connection.execute_batch("DROP TRIGGER log_keeps_its_text; DROP TRIGGER log_keeps_its_entries;").unwrap();
            tamper(&connection);
        }
        verify(dir.path()).await
    }
}

fn database(folder: &Path) -> PathBuf {
    let data = folder.join("data");
    let mut found = std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
    found.find(|path| path.extension().is_some_and(|e| e == "db" || e == "sqlite")).expect("a database")
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            std::fs::create_dir(&to).unwrap();
            std::fs::set_permissions(&to, std::fs::metadata(&path).unwrap().permissions()).unwrap();
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}

async fn verify(folder: &Path) -> Vec<Problem> {
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&folder.join("data")).unwrap());
    let config = keys::Config { source: SourceName::File, path: Some(folder.join("vault.key")), env: None };
    let keys = Keys::new(Arc::clone(&store), config);
    let audit = Audit::new(store, keys, Arc::new(SystemClock), obo::audit::Config::default());
    audit.verify().await.unwrap().problems
}

fn places(problems: &[Problem]) -> Vec<(&str, u64)> {
    problems.iter().map(|problem| (problem.writer.as_str(), problem.seq)).collect()
}

fn body(connection: &Connection, seq: u32) -> String {
    connection.query_row("SELECT body FROM log WHERE seq = ?", [seq], |row| row.get(0)).unwrap()
}

/// A record in the form that the product writes, with hashes that fit: all of that is public.
fn forged(body: &str, seq: u32, prev: &str) -> (String, String) {
    let mut record: serde_json::Value = serde_json::from_str(body).unwrap();
    record["seq"] = json!(seq);
    record["prev"] = json!(prev);
    record.as_object_mut().unwrap().remove("hash");
    let mut typed = obo::audit::Record::parse(&record.to_string()).unwrap();
    typed.hash = String::new();
    let line = serde_json::to_string(&typed).unwrap();
    let prev: Vec<u8> = (0..32).map(|at| u8::from_str_radix(&prev[at * 2..at * 2 + 2], 16).unwrap()).collect();
    let mut sha = Sha256::new();
    sha.update([0]);
    sha.update(prev);
    sha.update(&line);
    let hash: String = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    (format!("{},\"hash\":\"{hash}\"}}", &line[..line.len() - 1]), hash)
}

/// Writes the chain anew from `seq` on, so that every hash fits again.
fn rechain(connection: &Connection, from: u32, to: u32, edit: impl Fn(&str) -> String) {
    let mut prev = if from == 1 {
        "0".repeat(64)
    } else {
        let before: serde_json::Value = serde_json::from_str(&body(connection, from - 1)).unwrap();
        before["hash"].as_str().unwrap().to_owned()
    };
    for seq in from..=to {
        let text = body(connection, seq);
        let text = if seq == from { edit(&text) } else { text };
        let (line, hash) = forged(&text, seq, &prev);
        connection.execute("UPDATE log SET body = ? WHERE seq = ?", params![line, seq]).unwrap();
        prev = hash;
    }
}

#[tokio::test]
async fn t20_every_record_edited_removed_moved_or_added_is_named() {
    let evidence = Evidence::gathered().await;
    let count = evidence.records;
    assert!(count >= 10, "{count}");
    assert_eq!(evidence.after(|_| {}).await, [], "a copy is whole");
    for seq in 1..=count {
        let named = |what: &str, problems: Vec<Problem>, expected: u32| {
            let first = problems.first().unwrap_or_else(|| panic!("record {seq} {what}: nothing was found"));
            assert_eq!(
                (first.writer.as_str(), first.seq),
                ("w1", u64::from(expected)),
                "record {seq} {what}: {problems:?}"
            );
        };
        let edited = |from: &'static str, to: &'static str| {
            move |c: &Connection| {
                let text = body(c, seq);
                assert_ne!(text.replacen(from, to, 1), text);
                c.execute("UPDATE log SET body = ? WHERE seq = ?", params![text.replacen(from, to, 1), seq]).unwrap();
            }
        };
        named("edited", evidence.after(edited("\"actor\":\"", "\"actor\":\"x")).await, seq);
        named("dated otherwise", evidence.after(edited("\"time\":\"2026", "\"time\":\"2027")).await, seq);
        named("made unreadable", evidence.after(edited("{", "[")).await, seq);
        // With every hash after it made to fit: only the sealed head is left to contradict.
        let rewritten = |c: &Connection| {
            rechain(c, seq, count, |text| text.replacen("\"actor\":\"", "\"actor\":\"x", 1));
        };
        named("rewritten", evidence.after(rewritten).await, count);
        let removed = |c: &Connection| assert_ne!(c.execute("DELETE FROM log WHERE seq = ?", [seq]).unwrap(), 0);
        let expected = if seq == count { count } else { seq + 1 };
        named("removed", evidence.after(removed).await, expected);
        let truncated = |c: &Connection| assert_ne!(c.execute("DELETE FROM log WHERE seq >= ?", [seq]).unwrap(), 0);
        named("cut off with all after it", evidence.after(truncated).await, seq);
        // Removed, and those after it moved up and rewritten.
        let closed_up = |c: &Connection| {
            c.execute("DELETE FROM log WHERE seq = ?", [seq]).unwrap();
            for next in seq + 1..=count {
                c.execute("UPDATE log SET seq = ? WHERE seq = ?", params![next - 1, next]).unwrap();
            }
            if seq < count {
                rechain(c, seq, count - 1, str::to_owned);
            }
        };
        named("removed, with the gap closed", evidence.after(closed_up).await, count);
        if seq < count {
            let swapped = |c: &Connection| {
                let (one, two) = (body(c, seq), body(c, seq + 1));
                c.execute("UPDATE log SET body = ? WHERE seq = ?", params![two, seq]).unwrap();
                c.execute("UPDATE log SET body = ? WHERE seq = ?", params![one, seq + 1]).unwrap();
            };
            named("swapped with the next", evidence.after(swapped).await, seq);
            let reordered = |c: &Connection| {
                c.execute_batch(&format!(
                    "UPDATE log SET position = -1 WHERE seq = {seq};
                     UPDATE log SET position = position - 1 WHERE seq = {seq} + 1;
                     UPDATE log SET position = (SELECT position FROM log WHERE seq = {seq} + 1) + 1 WHERE seq = {seq};"
                ))
                .unwrap();
            };
            named("put after the next", evidence.after(reordered).await, seq + 1);
        }
        // A record put in, those after it moved down, and every hash made to fit.
        let inserted = |c: &Connection| {
            let text = body(c, seq);
            for next in (seq..=count).rev() {
                c.execute("UPDATE log SET seq = ?, position = position + 1000 WHERE seq = ?", params![next + 1, next])
                    .unwrap();
            }
            c.execute("INSERT INTO log (position, writer, seq, body) VALUES (500, 'w1', ?, ?)", params![seq, text])
                .unwrap();
            c.execute_batch(&format!("UPDATE log SET position = position + 2000 WHERE seq >= {seq}; UPDATE log SET position = 2000 WHERE seq = {seq};")).unwrap();
            rechain(c, seq, count + 1, str::to_owned);
        };
        // Before the last one it is a copy of it, so the one that fits the head comes first.
        let expected = if seq == count { count + 1 } else { count };
        named("inserted before it", evidence.after(inserted).await, expected);
    }
}

#[tokio::test]
async fn t20_a_record_added_at_the_end_is_named() {
    let evidence = Evidence::gathered().await;
    let count = evidence.records;
    let added = |c: &Connection| {
        let last: serde_json::Value = serde_json::from_str(&body(c, count)).unwrap();
        let (line, _) = forged(&body(c, count), count + 1, last["hash"].as_str().unwrap());
        c.execute("INSERT INTO log (writer, seq, body) VALUES ('w1', ?, ?)", params![count + 1, line]).unwrap();
    };
    let problems = evidence.after(added).await;
    assert_eq!(places(&problems), [("w1", u64::from(count + 1))]);

    // A whole chain of a writer that there never was.
    let invented = |c: &Connection| {
        let (line, _) = forged(&body(c, 1).replace("\"w1\"", "\"w2\""), 1, &"0".repeat(64));
        c.execute("INSERT INTO log (writer, seq, body) VALUES ('w2', 1, ?)", [line]).unwrap();
    };
    let problems = evidence.after(invented).await;
    assert_eq!(places(&problems), [("w2", 1)]);

    // All of it gone, or its sealed head gone, or made to look older.
    let gone = evidence.after(|c| assert_ne!(c.execute("DELETE FROM log", []).unwrap(), 0)).await;
    assert_eq!(places(&gone), [("w1", 1)]);
    let headless =
        evidence.after(|c| assert_ne!(c.execute("DELETE FROM records WHERE kind = 9", []).unwrap(), 0)).await;
    assert_eq!(places(&headless), [("w1", 1)]);
}

#[tokio::test]
async fn t20_a_chain_that_is_gone_with_its_head_is_missed() {
    let evidence = Evidence::gathered().await;
    // Whoever writes the file does not know which head is which, and needs not: all but one record of their kind can go.
    let mut missed = 0;
    let heads: i64 = 2; // the chain's head, and the list of chains
    for kept in 0..heads {
        let problems = evidence
            .after(|c| {
                c.execute("DELETE FROM log", []).unwrap();
                let sql = "DELETE FROM records WHERE kind = 9 AND rowid NOT IN
                           (SELECT rowid FROM records WHERE kind = 9 ORDER BY rowid LIMIT 1 OFFSET ?)";
                assert_eq!(c.execute(sql, [kept]).unwrap(), 1);
            })
            .await;
        missed += problems.len();
    }
    assert_eq!(missed, 1, "the list misses its chain; a head without the list is a head of nothing");
}

#[tokio::test]
async fn t20_a_forged_record_does_not_stop_the_audit() {
    let (program, _provider) = Program::with_provider("").await;
    let issue = async |user: &str| program.run(&["token", "issue", "--user", user]).await;
    assert_eq!(issue("alice").await.code, 0);
    {
        let connection = Connection::open(database(program.dir.path())).unwrap();
        let first: serde_json::Value = serde_json::from_str(&body(&connection, 1)).unwrap();
        let (line, _) = forged(&body(&connection, 1), 2, first["hash"].as_str().unwrap());
        connection.execute("INSERT INTO log (writer, seq, body) VALUES ('w1', 2, ?)", [line]).unwrap();
    }
    // The next record goes behind it, and the check goes on naming it.
    let ran = issue("bob").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let found = program.run(&["audit", "verify"]).await;
    assert_eq!(found.code, 1, "{found:?}");
    assert!(found.stdout.starts_with("chain w1, record "), "{found:?}");
}

#[tokio::test]
async fn t20_the_log_refuses_changes_and_the_command_names_them() {
    let (program, _provider) = Program::with_provider("").await;
    for user in ["alice", "bob", "carol"] {
        let ran = program.run(&["token", "issue", "--user", user]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    let whole = program.run(&["audit", "verify"]).await;
    assert_eq!((whole.code, whole.stdout.trim()), (0, "records: 3, chains: 1, problems: 0"), "{whole:?}");
    {
        let connection = Connection::open(database(program.dir.path())).unwrap();
        for change in ["UPDATE log SET body = '' WHERE seq = 2", "DELETE FROM log WHERE seq = 2"] {
            let refused = connection.execute(change, []).unwrap_err().to_string();
            assert!(refused.contains("append-only"), "{refused}");
        }
        connection
            .execute_batch(
                "DROP TRIGGER log_keeps_its_text; UPDATE log SET body = replace(body, 'bob', 'eve') WHERE seq = 2;",
            )
            .unwrap();
    }
    let found = program.run(&["audit", "verify"]).await;
    assert_eq!(found.code, 1, "{found:?}");
    assert!(found.stdout.starts_with("chain w1, record 2: "), "{found:?}");
}
