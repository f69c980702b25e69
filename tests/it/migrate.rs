//! The vault moves from the file into PostgreSQL and back, and its backups go either way.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::cli::connect;
use crate::provider::Provider;
use crate::support::postgres::{Database, database, sql};
use crate::support::program::{Program, Ran};
use crate::support::{mail, providers};

/// What obo.toml says of the vault.
enum In<'a> {
    File,
    Postgres(&'a Database),
}

struct Bench {
    program: Program,
    provider: Provider,
}

impl Bench {
    /// Two people, each with a connection, in a file.
    async fn new() -> Self {
        let (program, provider) = Program::with_provider("").await;
        for user in ["alice", "bob"] {
            let connected = connect(&program, &provider, &["--user", user, "--tenant", user], user).await;
            assert_eq!(connected.code, 0, "{connected:?}");
        }
        Self { program, provider }
    }

    fn vault_in(&self, place: In<'_>) {
        let vault = match place {
            In::File => String::new(),
            In::Postgres(database) => format!("[vault]\nstore = \"postgres\"\nurl = {:?}\n", database.url),
        };
        self.program.configure(&format!("{}{vault}", providers(&self.provider)));
    }

    async fn run(&self, database: &Database, arguments: &[&str]) -> Ran {
        let mut command = self.program.command(arguments);
        let output = command.env("DATABASE", &database.url).stdin(Stdio::null()).output().await.unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    async fn well(&self, database: &Database, arguments: &[&str]) -> Ran {
        let ran = self.run(database, arguments).await;
        assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
        ran
    }

    async fn refused(&self, database: &Database, arguments: &[&str], says: &str) {
        let ran = self.run(database, arguments).await;
        assert!(ran.code != 0 && ran.stdout.is_empty() && ran.stderr.contains(says), "{arguments:?}: {ran:?}");
    }

    /// Everything opens, the audit is whole, and both people act as themselves without being asked anything.
    async fn works(&self, database: &Database) {
        let status = self.well(database, &["vault", "status", "--json", "--verify"]).await;
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        assert_eq!(status["verified"]["failed"], json!({}), "{status}");
        assert_eq!(status["verified"]["unnamed"], json!({}), "{status}");
        assert_eq!(status["connections"]["usable"], 2, "{status}");
        let audit = self.well(database, &["audit", "verify"]).await;
        assert!(audit.stdout.contains("problems: 0"), "{audit:?}");
        for user in ["alice", "bob"] {
            let account = format!("{user}@example.com");
            let sent = self.provider.mailbox(&account).len();
            let input = mail("carol@example.com", "x").to_string();
            let call = ["call", "Google.SendEmail", "--user", user, "--tenant", user, "--input", &input];
            self.well(database, &call).await;
            assert_eq!(self.provider.mailbox(&account).len(), sent + 1);
        }
    }
}

#[tokio::test]
async fn there_and_back_nothing_is_lost_and_never_two_are_in_use() {
    let Some(database) = database("migrate") else { return };
    let bench = Bench::new().await;
    let there = ["vault", "migrate", "--to-postgres", "env:DATABASE"];

    // What cannot be moved says so, and nothing has changed.
    bench
        .refused(&database, &["vault", "migrate", "--to-postgres", &database.url], "write env:NAME or file:PATH")
        .await;
    bench.refused(&database, &["vault", "migrate", "--to-file"], "in a file already").await;
    let mut serving = bench.program.stdio("alice");
    assert!(serving.request("tools/list", json!({})).await["result"]["tools"].is_array());
    bench.refused(&database, &there, "another obo process uses").await;
    assert_eq!(serving.close().await.0, 0);
    bench.works(&database).await;

    let moved = bench.well(&database, &there).await;
    assert!(moved.stdout.contains("store = \"postgres\"\nurl = \"env:DATABASE\""), "{moved:?}");
    assert!(!format!("{moved:?}").contains("sesame"), "{moved:?}");
    // The one that was left behind opens no more, and says where the other is.
    bench.refused(&database, &["vault", "status"], "was moved to the database").await;
    bench.refused(&database, &["token", "issue", "--user", "alice"], "was moved to the database").await;
    bench.vault_in(In::Postgres(&database));
    bench.works(&database).await;
    let status = bench.well(&database, &["vault", "status"]).await.stdout;
    assert!(status.contains("in database ") && status.contains("(PostgreSQL "), "{status}");
    assert!(!status.contains("sesame"), "{status}");

    // Row security knows whose each connection is.
    let tenants = sql(&database, "SELECT count(DISTINCT tenant), count(*) FROM obo.record WHERE kind = 3");
    assert_eq!(tenants.trim(), "2|2");

    let mut serving = bench.program.stdio("alice");
    assert!(serving.request("tools/list", json!({})).await["result"]["tools"].is_array());
    bench.refused(&database, &["vault", "migrate", "--to-file"], "other obo processes use").await;
    assert_eq!(serving.close().await.0, 0);
    bench.works(&database).await;
    bench.well(&database, &["vault", "migrate", "--to-file"]).await;
    bench.refused(&database, &["vault", "status"], "was moved elsewhere").await;
    bench.vault_in(In::File);
    bench.works(&database).await;
    assert!(!bench.program.data().join("arriving").exists());
    let shown = bench.well(&database, &["audit", "show", "--json"]).await.stdout;
    assert_eq!(shown.lines().filter(|line| line.contains("\"vault.migrated\"")).count(), 4, "{shown}");
}

#[tokio::test]
async fn a_move_that_was_cut_off_is_taken_up() {
    let Some(database) = database("cut off") else { return };
    let bench = Bench::new().await;
    let there = ["vault", "migrate", "--to-postgres", "env:DATABASE"];
    bench.well(&database, &there).await;
    // As if it had ended in the middle of the copying: some is there, something else is there that was removed since.
    std::fs::remove_file(bench.program.data().join("moved")).unwrap();
    sql(
        &database,
        "UPDATE obo.vault SET state = 'being filled';
         ALTER TABLE obo.log DISABLE TRIGGER ALL;
         DELETE FROM obo.log WHERE position > 3;
         ALTER TABLE obo.log ENABLE TRIGGER ALL;
         DELETE FROM obo.record WHERE kind IN (2, 3);
         UPDATE obo.record SET sealed = 'x' WHERE kind = 15;
         INSERT INTO obo.record (kind, key, owner, generation, sealed)
           VALUES (3, decode(repeat('ab', 32), 'hex'), decode(repeat('ab', 32), 'hex'), 1, 'x')",
    );
    bench.vault_in(In::Postgres(&database));
    bench.refused(&database, &["vault", "status"], "being filled").await;
    bench.vault_in(In::File);
    bench.works(&database).await;
    bench.well(&database, &there).await;
    // As if it had ended between the note and the last step.
    sql(&database, "UPDATE obo.vault SET state = 'being filled'");
    bench.well(&database, &there).await;
    bench.vault_in(In::Postgres(&database));
    bench.works(&database).await;

    // The way back, cut off when the copy was in its place already.
    bench.well(&database, &["vault", "migrate", "--to-file"]).await;
    sql(&database, "UPDATE obo.vault SET state = 'being moved'");
    // The process that was killed counts as one that uses the database for a while; whatever is refused meanwhile, the
    // database is not used beside its copy.
    let killed = "INSERT INTO obo.replica VALUES (gen_random_uuid(), now() + interval '1 hour')";
    sql(&database, killed);
    bench.refused(&database, &["vault", "migrate", "--to-file"], "other obo processes use").await;
    assert_eq!(sql(&database, "SELECT state FROM obo.vault").trim(), "being moved");
    sql(&database, "DELETE FROM obo.replica");
    let elsewhere = bench.program.dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("obo.db"), "no vault").unwrap();
    bench.refused(&database, &["vault", "migrate", "--to-file", "--data-dir", elsewhere.to_str().unwrap()], "").await;
    assert_eq!(sql(&database, "SELECT state FROM obo.vault").trim(), "being moved");
    bench.well(&database, &["vault", "migrate", "--to-file"]).await;
    assert_eq!(sql(&database, "SELECT state FROM obo.vault").trim(), "moved");
    bench.vault_in(In::File);
    bench.works(&database).await;
}

#[tokio::test]
async fn a_database_with_a_vault_is_not_filled() {
    let Some(database) = database("taken") else { return };
    let (bench, other) = (Bench::new().await, Bench::new().await);
    bench.well(&database, &["vault", "migrate", "--to-postgres", "env:DATABASE"]).await;
    other.refused(&database, &["vault", "migrate", "--to-postgres", "env:DATABASE"], "has a vault already").await;
    other.works(&database).await;
    // Nor does a vault that was moved claim to be in another database.
    let Some(elsewhere) = crate::support::postgres::database("elsewhere") else { return };
    bench.refused(&elsewhere, &["vault", "migrate", "--to-postgres", "env:DATABASE"], "was moved to the").await;
    bench.vault_in(In::Postgres(&database));
    bench.works(&database).await;
    // Nor is what was left behind taken for the copy of what it has become since.
    std::fs::remove_file(bench.program.data().join("moved")).unwrap();
    bench.refused(&database, &["vault", "migrate", "--to-file"], "has a vault already").await;
    bench.works(&database).await;
    // Not even where a move was cut off: then neither is used before somebody has looked.
    sql(&database, "UPDATE obo.vault SET state = 'being moved'");
    bench.refused(&database, &["vault", "migrate", "--to-file"], "another copy of this vault").await;
    assert_eq!(sql(&database, "SELECT state FROM obo.vault").trim(), "being moved");
    std::fs::rename(bench.program.data().join("obo.db"), bench.program.dir.path().join("away.db")).unwrap();
    bench.well(&database, &["vault", "migrate", "--to-file"]).await;
    bench.vault_in(In::File);
    bench.works(&database).await;
}

#[tokio::test]
async fn a_backup_goes_from_either_into_either() {
    let (Some(database), Some(empty)) = (database("backed up"), crate::support::postgres::database("restored")) else {
        return;
    };
    let bench = Bench::new().await;
    bench.well(&database, &["vault", "migrate", "--to-postgres", "env:DATABASE"]).await;
    bench.vault_in(In::Postgres(&database));
    let file = bench.program.dir.path().join("obo.backup");
    let file = file.to_str().unwrap();
    // While a server has the vault open.
    let mut serving = bench.program.stdio("alice");
    assert!(serving.request("tools/list", json!({})).await["result"]["tools"].is_array());
    bench.well(&database, &["vault", "backup", file]).await;
    bench.refused(&database, &["vault", "backup", file], "exists already").await;
    assert_eq!(serving.close().await.0, 0);
    let bytes = std::fs::read(file).unwrap();
    for secret in bench.provider.secrets() {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "a secret is not sealed");
    }

    bench.refused(&database, &["vault", "restore", file], "has a vault already").await;
    bench.refused(&database, &["vault", "restore", "--replace", file], "is not replaced").await;
    bench.works(&database).await;
    bench.vault_in(In::Postgres(&empty));
    let asked = bench.provider.token_requests();
    let restored = bench.well(&empty, &["vault", "restore", file]).await;
    assert!(
        restored.stdout.contains("into the database") && restored.stdout.ends_with(": 2 connections.\n"),
        "{restored:?}"
    );
    bench.works(&empty).await;
    assert_eq!(bench.provider.token_requests(), asked + 2, "their providers were asked before they were believed");

    // And into a file.
    let other = Program::new(&providers(&bench.provider));
    let restored = other.run(&["vault", "restore", file]).await;
    assert_eq!(restored.code, 0, "{restored:?}");
    assert!(restored.stdout.ends_with(": 2 connections.\n"), "{restored:?}");
}
