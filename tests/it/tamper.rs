//! Somebody who can write the store but has no key: whatever they change, move or put back opens for nobody.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use obo::egress::Egress;
use obo::failure::Code;
use obo::id::{Person, Source, TenantId};
use obo::keys::{Context, Keys, OpenKeys};
use obo::oauth::{Account, Oauth, TokenAnswer};
use obo::secret::Secret;
use obo::store::{Lease, LogEntry, Record, RecordKey, Store, StoreError, Table, Write};
use obo::vault::{self, Grant, TokenError, Vault};

use crate::support::mcp::{link_of, value_of};
use crate::support::oauth_client::CALLBACK;
use crate::support::{OauthClient, TestObo, mail};

const SEND: &str = "Google_SendEmail";

/// Reads some records otherwise than they stand, as if they had been changed on the disk. Nothing is written, so that
/// tens of thousands of changes take seconds.
struct Lying {
    inner: Arc<dyn Store>,
    lies: Mutex<HashMap<(u8, RecordKey), Record>>,
}

impl Lying {
    fn tell(&self, lies: impl IntoIterator<Item = Record>) {
        let lies = lies.into_iter().map(|record| ((record.table as u8, record.key), record));
        *self.lies.lock().unwrap() = lies.collect();
    }

    fn read(&self, record: Record) -> Record {
        let lies = self.lies.lock().unwrap();
        lies.get(&(record.table as u8, record.key)).cloned().unwrap_or(record)
    }
}

#[async_trait::async_trait]
impl Store for Lying {
    async fn get(&self, table: Table, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        Ok(self.inner.get(table, key).await?.map(|record| self.read(record)))
    }
    async fn generations(&self, table: Table, keys: &[RecordKey]) -> Result<Vec<(RecordKey, u64)>, StoreError> {
        self.inner.generations(table, keys).await
    }
    async fn owned(&self, table: Table, owner: &RecordKey) -> Result<Vec<Record>, StoreError> {
        // A lie may be about whose a record is.
        let all = self.scan(table, None, 10_000).await?;
        Ok(all.into_iter().filter(|record| record.owner == *owner).collect())
    }
    async fn scan(&self, table: Table, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Record>, StoreError> {
        let page = self.inner.scan(table, after, limit).await?;
        Ok(page.into_iter().map(|record| self.read(record)).collect())
    }
    async fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.inner.apply(writes).await
    }
    async fn log(&self, after: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        self.inner.log(after, limit).await
    }
    async fn newest(&self, before: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        self.inner.newest(before, limit).await
    }
    async fn prune(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.inner.prune(now).await
    }
    async fn lease(&self, name: &RecordKey, wait: Duration) -> Result<Option<Lease>, StoreError> {
        self.inner.lease(name, wait).await
    }
}

fn person(tenant: &str, source: &str, user: &str) -> Person {
    Person { tenant: tenant.parse().unwrap(), source: source.parse().unwrap(), user: user.parse().unwrap() }
}

/// People who share a name, a tenant, an account or a provider with each other, and nothing else.
fn people() -> Vec<Person> {
    vec![
        person("default", "obo", "alice"),
        person("default", "obo", "bob"),
        person("default", "corp", "alice"),
        person("acme", "obo", "alice"),
        person("acme", "app:shop", "bob"),
    ]
}

/// A store of many, and another view of it that lies.
struct World {
    obo: TestObo,
    lying: Arc<Lying>,
    keys: Arc<OpenKeys>,
    vault: Vault,
    /// What each record is sealed for; all but the data keys and the key record.
    sealed_for: BTreeMap<(u8, RecordKey), (TenantId, Context)>,
    records: Vec<Record>,
}

impl World {
    async fn new() -> Self {
        let obo = TestObo::builder().config("[authorization_server]\nenabled = true").start().await;
        let lying = Arc::new(Lying { inner: Arc::clone(&obo.app.store), lies: Mutex::default() });
        let store = Arc::clone(&lying) as Arc<dyn Store>;
        let keys = Keys::new(Arc::clone(&store), obo.app.config.vault.key.clone());
        let oauth = Oauth::new(Egress::new(&Default::default(), &[]).unwrap());
        let vault = Vault::new(store, keys.clone(), oauth, obo.app.clock.clone());
        for person in people() {
            for provider in ["google", "slack"] {
                for account in ["1", "2"] {
                    let provider = obo.app.catalog.provider(provider).unwrap();
                    let answer = TokenAnswer {
                        access_token: Secret::new(format!("access of {person} {account} at {}", provider.id)),
                        refresh_token: Some(Secret::new("refresh")),
                        expires_in: Some(Duration::from_secs(3600)),
                        scopes: None,
                    };
                    let account = Account { key: account.to_owned(), label: format!("{account}@example.com") };
                    vault.deposit(&person, provider, account, answer, &BTreeSet::new()).await.unwrap();
                }
            }
        }
        // The rest of what is kept for people: through the front door.
        obo.app.obo.identity().applications().add("shop", "acme".parse().unwrap(), false).await.unwrap();
        for user in ["carol", "dave"] {
            let client = OauthClient::register(&obo.base, "An editor", CALLBACK).await;
            let mut browser = obo.browser_of(user).await;
            client.sign_in(&mut browser).await;
            let begun = client.begin();
            client.code(&mut browser, &begun).await;
            obo.browser_of(user).await;
            assert!(link_of(&obo.client(user).await.call(SEND, mail("x@example.com", "x")).await).is_some());
        }
        let keys = keys.open().await.unwrap();
        let heads = obo.app.audit.head_contexts().await.unwrap();
        let owners: HashMap<RecordKey, Person> = people().into_iter().map(|p| (vault::owner(&keys, &p), p)).collect();
        let (mut records, mut sealed_for) = (Vec::new(), BTreeMap::new());
        for table in Table::ALL {
            for record in obo.app.store.scan(table, None, 10_000).await.unwrap() {
                let context = match table {
                    Table::Meta | Table::DataKey => None,
                    Table::Grant => {
                        let person = &owners[&record.owner];
                        Some((person.tenant.clone(), vault::context(person, &record.key)))
                    }
                    Table::AuditHead => Some((TenantId::default_tenant(), heads[&record.key].clone())),
                    _ => Some((TenantId::default_tenant(), Context::of(table).with(&record.key))),
                };
                if let Some(context) = context {
                    sealed_for.insert((table as u8, record.key), context);
                }
                records.push(record);
            }
        }
        Self { obo, lying, keys, vault, sealed_for, records }
    }

    /// Whether a record opens as what its place says that it is.
    async fn opens(&self, record: &Record) -> bool {
        let (tenant, context) = &self.sealed_for[&(record.table as u8, record.key)];
        self.keys.unseal(tenant, context, &record.sealed).await.is_ok()
    }

    /// Those that are sealed with data keys.
    fn sealed(&self) -> Vec<&Record> {
        let is = |record: &&Record| self.sealed_for.contains_key(&(record.table as u8, record.key));
        self.records.iter().filter(is).collect()
    }

    fn of(&self, table: Table) -> Vec<&Record> {
        self.records.iter().filter(|record| record.table == table).collect()
    }

    async fn token(&self, grant: &Grant) -> Result<String, TokenError> {
        let provider = self.obo.app.catalog.provider(grant.provider.as_str()).unwrap();
        Ok(self.vault.token_for(grant, provider).await?.expose().to_owned())
    }

    /// Every person's tokens, by whatever their connections are found under.
    async fn all_tokens(&self) -> Vec<(Person, String)> {
        let mut all = Vec::new();
        for person in people() {
            for grant in self.vault.grants(&person).await.unwrap() {
                all.push((person.clone(), self.token(&grant).await.unwrap()));
            }
        }
        all
    }
}

#[tokio::test]
async fn no_bit_of_a_sealed_record_can_be_flipped() {
    let world = World::new().await;
    let tables: BTreeSet<u8> = world.sealed().iter().map(|record| record.table as u8).collect();
    assert!(tables.len() >= 10, "{tables:?}");
    let mut flipped = 0;
    // Every bit of one record of each table.
    for table in tables {
        let record = (*world.sealed().iter().find(|record| record.table as u8 == table).unwrap()).clone();
        assert!(world.opens(&record).await);
        for bit in 0..record.sealed.len() * 8 {
            let mut changed = record.clone();
            changed.sealed[bit / 8] ^= 1 << (bit % 8);
            assert!(!world.opens(&changed).await, "{:?}, bit {bit}", record.table);
            flipped += 1;
        }
    }
    assert!(flipped > 10 * 8 * 300, "{flipped}");
    println!("{flipped} flipped bits, 0 open");
}

/// Through the vault: its person's call fails with a text, and everything else of everybody is there.
#[tokio::test]
async fn whoever_s_connection_was_changed_is_told_and_nobody_else_notices() {
    let world = World::new().await;
    let before = world.all_tokens().await;
    assert_eq!(before.len(), people().len() * 4);
    let alice = &people()[0];
    let grants = world.vault.grants(alice).await.unwrap();
    let owner = vault::owner(&world.keys, alice);
    let records: Vec<&Record> = world.of(Table::Grant).into_iter().filter(|record| record.owner == owner).collect();
    assert_eq!((records.len(), grants.len()), (4, 4));
    for (at, record) in records.into_iter().enumerate() {
        // One bit of each part of the record: magic, algorithm, number of the key, nonce, ciphertext, tag.
        let length = record.sealed.len();
        for byte in [0, 4, 5, 8, 9, 32, 33, 200, length - 17, length - 16, length - 1] {
            let mut changed = record.clone();
            changed.sealed[byte] ^= 1 << (byte % 8);
            world.lying.tell([changed]);
            let mut failed = 0;
            for grant in &grants {
                match world.token(grant).await {
                    Ok(token) => assert!(before.contains(&(alice.clone(), token))),
                    Err(TokenError::Failed(failure)) => {
                        assert_eq!(failure.code, Code::VaultUnavailable);
                        assert!(failure.message.contains("finds the reason in its log"), "{}", failure.message);
                        assert!(failure.cause.unwrap().contains("a sealed record does not open"));
                        failed += 1;
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
            assert_eq!(failed, 1, "record {at}, byte {byte}");
            let left = world.all_tokens().await;
            assert_eq!(left.len(), before.len() - 1);
            assert!(left.iter().all(|token| before.contains(token)));
        }
    }
}

#[tokio::test]
async fn no_two_records_can_change_places() {
    let world = World::new().await;
    let sealed = world.sealed();
    let mut swapped = 0;
    // The body of each under the name of each other: also of another table, which is a body that was moved there.
    for place in &sealed {
        for body in sealed.iter().filter(|body| body != &place) {
            let moved = Record { sealed: body.sealed.clone(), ..(*place).clone() };
            assert!(!world.opens(&moved).await, "{:?} in the place of {:?}", body.table, place.table);
            swapped += 1;
        }
    }
    assert_eq!(swapped, sealed.len() * (sealed.len() - 1));
    assert!(sealed.len() > 40, "{}", sealed.len());
    println!("{swapped} moved bodies, 0 open");
}

/// Through the vault, rows whole and in parts: bodies, or whom they belong to. Nobody gets what is another's.
#[tokio::test]
async fn no_two_connections_can_change_places_or_people() {
    let world = World::new().await;
    let before = world.all_tokens().await;
    let grants = world.of(Table::Grant);
    let mut swapped = 0;
    for (at, one) in grants.iter().enumerate() {
        for other in &grants[at + 1..] {
            let with = |a: &Record, b: &Record, bodies: bool, owners: bool| Record {
                sealed: if bodies { b.sealed.clone() } else { a.sealed.clone() },
                owner: if owners { b.owner } else { a.owner },
                ..a.clone()
            };
            for (bodies, owners) in [(true, false), (false, true), (true, true)] {
                if owners && one.owner == other.owner {
                    continue;
                }
                world.lying.tell([with(one, other, bodies, owners), with(other, one, bodies, owners)]);
                let mut found = 0;
                for person in [0, 1, 2, 3, 4].map(|n| people()[n].clone()) {
                    let owner = vault::owner(&world.keys, &person);
                    if ![one.owner, other.owner].contains(&owner) {
                        continue;
                    }
                    let mine = world.vault.grants(&person).await.unwrap();
                    found += mine.len();
                    assert!(mine.iter().all(|grant| grant.person == person));
                }
                let whole = if one.owner == other.owner { 4 } else { 8 };
                assert_eq!(found, whole - 2, "bodies {bodies}, owners {owners}");
                swapped += 1;
            }
        }
    }
    assert!(swapped > 400, "{swapped}");
    world.lying.tell([]);
    assert_eq!(world.all_tokens().await, before);
    println!("{swapped} swaps of two connections, 0 open");
}

/// A tenant's data key opens as that tenant's and number's only: what another tenant's sealed does not open with it.
#[tokio::test]
async fn data_keys_open_in_their_own_place_only() {
    let world = World::new().await;
    world.obo.app.upkeep.change_data_keys(&mut |_| {}).await.unwrap();
    let data_keys = world.obo.app.store.scan(Table::DataKey, None, 100).await.unwrap();
    assert_eq!(data_keys.len(), 4, "two tenants, two keys each");
    // A process of its own each time: keys are kept once they are open.
    let opened = async || {
        let store = Arc::clone(&world.lying) as Arc<dyn Store>;
        let keys = Keys::new(store, world.obo.app.config.vault.key.clone()).open().await.unwrap();
        let mut opened = 0;
        for tenant in ["default", "acme"] {
            opened += keys.data_keys(&tenant.parse().unwrap()).await.unwrap_or(0);
        }
        opened
    };
    assert_eq!(opened().await, 4);
    for (at, one) in data_keys.iter().enumerate() {
        for other in &data_keys[at + 1..] {
            let with = |a: &Record, b: &Record| Record { sealed: b.sealed.clone(), owner: b.owner, ..a.clone() };
            let bodies = |a: &Record, b: &Record| Record { sealed: b.sealed.clone(), ..a.clone() };
            // Two of one tenant may stand in each other's row: each says inside which number it has.
            let same = one.owner == other.owner;
            world.lying.tell([bodies(one, other), bodies(other, one)]);
            assert_eq!(opened().await, if same { 4 } else { 0 });
            world.lying.tell([with(one, other), with(other, one)]);
            assert_eq!(opened().await, 4, "whole rows that changed their keys alone are the same rows");
        }
        for bit in (0..one.sealed.len() * 8).step_by(61) {
            let mut changed = one.clone();
            changed.sealed[bit / 8] ^= 1 << (bit % 8);
            world.lying.tell([changed]);
            assert_eq!(opened().await, 2, "the other tenant goes on");
        }
    }
}

/// An older state of a connection that is put back is its own person's at most, and is caught by the provider: the vault
/// cannot tell it from the newest, as it cannot tell a folder that was rolled back.
#[tokio::test]
async fn an_older_state_put_back_is_nobody_elses_and_ends_in_a_question() {
    let strict = crate::provider::RefreshMode::Strict { grace: Duration::ZERO };
    let obo = TestObo::builder().provider(move |settings| settings.google_refresh = strict).start().await;
    for user in ["alice", "bob"] {
        obo.connect(user, &format!("{user}@example.com"), SEND, mail("x@example.com", "x")).await;
    }
    let keys = obo.app.keys.open().await.unwrap();
    let owner = vault::owner(&keys, &Person { source: Source::obo(), ..people()[0].clone() });
    let older = obo.app.store.owned(Table::Grant, &owner).await.unwrap().remove(0);
    obo.clock.advance(Duration::from_secs(2 * 3600));
    value_of(&obo.client("alice").await.call(SEND, mail("x@example.com", "x")).await);
    obo.app.store.apply(vec![Write::Put(older)]).await.unwrap();
    let asked = obo.client("alice").await.call(SEND, mail("x@example.com", "x")).await;
    assert!(link_of(&asked).is_some(), "{asked}");
    value_of(&obo.client("bob").await.call(SEND, mail("x@example.com", "x")).await);
}

/// The front door: a call asks its person to connect again, and doing so mends it.
#[tokio::test]
async fn a_connection_that_does_not_open_is_mended_by_connecting_again() {
    let obo = TestObo::start().await;
    for user in ["alice", "bob"] {
        obo.connect(user, &format!("{user}@example.com"), SEND, mail("x@example.com", "x")).await;
    }
    let keys = obo.app.keys.open().await.unwrap();
    let owner = vault::owner(&keys, &people()[0]);
    let mut broken = obo.app.store.owned(Table::Grant, &owner).await.unwrap().remove(0);
    *broken.sealed.last_mut().unwrap() ^= 1;
    obo.app.store.apply(vec![Write::Put(broken)]).await.unwrap();
    value_of(&obo.client("bob").await.call(SEND, mail("x@example.com", "x")).await);
    obo.connect("alice", "alice@example.com", SEND, mail("x@example.com", "x")).await;
    value_of(&obo.client("alice").await.call(SEND, mail("x@example.com", "x")).await);
    let found = obo.app.upkeep.verify(&mut |_| {}).await.unwrap();
    assert!(found.is_whole(), "{found:?}");
}
