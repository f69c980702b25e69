//! The tables: format 1.
//!
//! A role that owns tables is not held by their row security unless it is forced to be, and superusers never are: the
//! operator is told so.

use deadpool_postgres::Object;

use super::failed;
use crate::store::StoreError;

/// The format written and read, kept in `obo.vault`.
pub(super) const FORMAT: i32 = 1;

/// The oldest server accepted, as `server_version_num` gives it.
const MIN_SERVER: i32 = 130_000;

/// What everybody who makes or raises the tables holds, until the end of the transaction. "obo" and "tabl" in ASCII.
const MAKING: &str = "SELECT pg_advisory_xact_lock(7299695, 1952539244)";

/// Read by the transaction's own snapshot: the names that a session has cached may be those of before it waited.
const THERE: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace AS schema \
                     ON schema.oid = relnamespace WHERE schema.nspname = 'obo' AND relname = 'vault')";

/// A scope names the tenant whose records a transaction is for; without one it sees no record at all.
const TABLES: &str = "
CREATE SCHEMA IF NOT EXISTS obo;

CREATE TABLE obo.vault (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    format integer NOT NULL,
    state  text    NOT NULL CHECK (state IN ('in use', 'being filled', 'being moved', 'moved'))
);

CREATE TABLE obo.record (
    kind       smallint NOT NULL,
    key        bytea    NOT NULL CHECK (octet_length(key) = 32),
    owner      bytea    NOT NULL CHECK (octet_length(owner) = 32),
    tenant     bytea    CHECK (octet_length(tenant) = 32),    -- null: of obo itself
    generation bigint   NOT NULL CHECK (generation >= 1),
    expires_at bigint,                                        -- microseconds since 1970, UTC
    sealed     bytea    NOT NULL CHECK (octet_length(sealed) <= 1048576),
    PRIMARY KEY (kind, key)
);
ALTER TABLE obo.record ALTER COLUMN sealed SET STORAGE EXTERNAL;  -- what is sealed does not compress
CREATE INDEX record_by_owner  ON obo.record (kind, owner, key);
CREATE INDEX record_by_expiry ON obo.record (expires_at) WHERE expires_at IS NOT NULL;
ALTER TABLE obo.record ENABLE ROW LEVEL SECURITY;
ALTER TABLE obo.record FORCE ROW LEVEL SECURITY;
CREATE POLICY scope ON obo.record
    USING (current_setting('obo.scope', true) = 'all' OR encode(tenant, 'hex') = current_setting('obo.scope', true));

CREATE TABLE obo.log (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    writer   text   NOT NULL,
    seq      bigint NOT NULL CHECK (seq >= 1),
    body     text   NOT NULL CHECK (octet_length(body) <= 1048576),
    UNIQUE (writer, seq)
);
CREATE FUNCTION obo.log_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the log is append-only'; END $$;
CREATE TRIGGER log_keeps_its_entries BEFORE UPDATE OR DELETE OR TRUNCATE ON obo.log
    FOR EACH STATEMENT EXECUTE FUNCTION obo.log_is_append_only();

CREATE TABLE obo.lease (
    name   bytea PRIMARY KEY CHECK (octet_length(name) = 32),
    holder uuid        NOT NULL,
    until  timestamptz NOT NULL
);

-- Every process that has the vault open, for as long as it says so.
CREATE TABLE obo.replica (
    id    uuid PRIMARY KEY,
    until timestamptz NOT NULL
);
";

/// Makes the tables where there are none, and refuses those of a newer obo.
pub(super) async fn prepare(client: &Object) -> Result<Known, StoreError> {
    let unavailable = |error| failed("prepare", &error);
    let row = client
        .query_typed_one(
            "SELECT current_setting('server_version_num')::int, current_setting('server_version'), \
             (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user)",
            &[],
        )
        .await
        .map_err(unavailable)?;
    let (number, version, unbound): (i32, String, bool) = (row.get(0), row.get(1), row.get(2));
    if number < MIN_SERVER {
        return Err(StoreError::Unusable(format!(
            "the database is PostgreSQL {version}; obo needs version 13 or later"
        )));
    }
    let (format, state) = match read(client).await? {
        Some(found) => found,
        None => {
            create(client).await?;
            read(client).await?.ok_or_else(|| {
                StoreError::Unavailable("the tables that were just made were not found again".to_owned())
            })?
        }
    };
    if format != FORMAT {
        return Err(StoreError::Unusable(format!(
            "the vault in this database was written by another obo (format {format}; this one reads format {FORMAT}); \
             run that obo, or restore a backup made before it was upgraded"
        )));
    }
    Ok(Known { version, unbound, state })
}

/// What is known of a server and of the vault in it.
pub(super) struct Known {
    /// The server's version, as it gives it.
    pub(super) version: String,
    /// Row security does not hold this role.
    pub(super) unbound: bool,
    /// How the vault is used.
    pub(super) state: String,
}

async fn read(client: &Object) -> Result<Option<(i32, String)>, StoreError> {
    let there = client.query_typed_one(THERE, &[]).await.map_err(|error| failed("look into", &error))?;
    if !there.get::<_, bool>(0) {
        return Ok(None);
    }
    let found = client.query_typed_opt("SELECT format, state FROM obo.vault", &[]).await;
    Ok(found.map_err(|error| failed("look into", &error))?.map(|row| (row.get(0), row.get(1))))
}

/// One transaction, so that there are all tables or none; whoever comes second waits, and finds them.
async fn create(client: &Object) -> Result<(), StoreError> {
    let made = async {
        client.batch_execute(&format!("BEGIN; {MAKING}")).await?;
        let there = client.query_typed_one(THERE, &[]).await?;
        if !there.get::<_, bool>(0) {
            client.batch_execute(TABLES).await?;
            client.batch_execute(&format!("INSERT INTO obo.vault (format, state) VALUES ({FORMAT}, 'in use')")).await?;
        }
        client.batch_execute("COMMIT").await
    };
    let made = made.await;
    if made.is_err() {
        let _ = client.batch_execute("ROLLBACK").await;
    }
    made.map_err(|error| failed("make the tables in", &error))
}

/// How a vault is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// As a vault.
    InUse,
    /// Records are being copied into it.
    BeingFilled,
    /// Records are being copied elsewhere.
    BeingMoved,
    /// It was copied elsewhere, and is kept aside.
    Moved,
}

impl State {
    /// As it is stored.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::InUse => "in use",
            Self::BeingFilled => "being filled",
            Self::BeingMoved => "being moved",
            Self::Moved => "moved",
        }
    }
}
