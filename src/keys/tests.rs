use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::meta::Cost;
use super::*;
use crate::os_keyring::{Ring, RingError};
use crate::store::sqlite::SqliteStore;

/// A keyring whose moods a test chooses.
#[derive(Default)]
struct FakeRing {
    entries: Mutex<HashMap<String, Secret>>,
    sets: AtomicU32,
    locked: AtomicBool,
    forgets: AtomicBool,
    /// The process dies at one of its steps.
    fuse: Mutex<Option<Arc<Fuse>>>,
    /// Calls hang until the sender of this is dropped or sends.
    hang: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

impl FakeRing {
    fn enter(&self) -> Result<(), RingError> {
        if let Some(fuse) = self.fuse.lock().unwrap().as_ref() {
            fuse.step().map_err(|()| RingError("the process has died".to_owned()))?;
        }
        if let Some(hang) = self.hang.lock().unwrap().take() {
            let _ = hang.recv();
        }
        if self.locked.load(Ordering::SeqCst) { Err(RingError("it is locked".to_owned())) } else { Ok(()) }
    }
}

impl Ring for FakeRing {
    fn get(&self, user: &str) -> Result<Option<Secret>, RingError> {
        self.enter()?;
        Ok(self.entries.lock().unwrap().get(user).cloned())
    }

    fn set(&self, user: &str, text: &Secret) -> Result<(), RingError> {
        self.enter()?;
        self.sets.fetch_add(1, Ordering::SeqCst);
        if !self.forgets.load(Ordering::SeqCst) {
            self.entries.lock().unwrap().insert(user.to_owned(), text.clone());
        }
        self.leave()
    }

    fn delete(&self, user: &str) -> Result<(), RingError> {
        self.enter()?;
        self.entries.lock().unwrap().remove(user);
        self.leave()
    }
}

impl FakeRing {
    fn leave(&self) -> Result<(), RingError> {
        match self.fuse.lock().unwrap().as_ref() {
            Some(fuse) => fuse.step().map_err(|()| RingError("the process has died".to_owned())),
            None => Ok(()),
        }
    }
}

/// Lets a number of steps through; then the process is dead. Whoever does something has a step before and one after it,
/// so that it dies both with the thing undone and with it done but not known to be.
struct Fuse(std::sync::atomic::AtomicI64);

impl Fuse {
    fn step(&self) -> Result<(), ()> {
        if self.0.fetch_sub(1, Ordering::SeqCst) > 0 { Ok(()) } else { Err(()) }
    }

    fn burnt(&self) -> bool {
        self.0.load(Ordering::SeqCst) < 0
    }
}

/// A store of a process that dies.
struct Dying {
    inner: Arc<dyn Store>,
    fuse: Arc<Fuse>,
}

impl Dying {
    async fn step<T>(&self, act: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let dead = |()| StoreError::Unavailable("the process has died".to_owned());
        self.fuse.step().map_err(dead)?;
        let done = act.await?;
        self.fuse.step().map_err(dead)?;
        Ok(done)
    }
}

#[async_trait::async_trait]
impl Store for Dying {
    async fn get(&self, table: Table, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        self.step(self.inner.get(table, key)).await
    }
    async fn generations(&self, table: Table, keys: &[RecordKey]) -> Result<Vec<(RecordKey, u64)>, StoreError> {
        self.step(self.inner.generations(table, keys)).await
    }
    async fn owned(&self, table: Table, owner: &RecordKey) -> Result<Vec<Record>, StoreError> {
        self.step(self.inner.owned(table, owner)).await
    }
    async fn scan(&self, table: Table, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.step(self.inner.scan(table, after, limit)).await
    }
    async fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.step(self.inner.apply(writes)).await
    }
    async fn log(&self, after: u64, limit: usize) -> Result<Vec<(u64, crate::store::LogEntry)>, StoreError> {
        self.step(self.inner.log(after, limit)).await
    }
    async fn newest(&self, before: u64, limit: usize) -> Result<Vec<(u64, crate::store::LogEntry)>, StoreError> {
        self.step(self.inner.newest(before, limit)).await
    }
    async fn prune(&self, now: jiff::Timestamp) -> Result<usize, StoreError> {
        self.step(self.inner.prune(now)).await
    }
    async fn lease(&self, name: &RecordKey, wait: Duration) -> Result<Option<crate::store::Lease>, StoreError> {
        self.step(self.inner.lease(name, wait)).await
    }
}

/// A data folder with everything that is outside of it.
struct Bench {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
    ring: Arc<FakeRing>,
    env: Arc<Mutex<HashMap<String, String>>>,
}

/// Cheap enough for an unoptimised build.
const CHEAP: Cost = Cost { memory_kib: 64, passes: 1, lanes: 1 };

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&dir.path().join("data")).unwrap());
        Self { dir, store, ring: Arc::default(), env: Arc::default() }
    }

    fn keys(&self, source: SourceName) -> Keys {
        self.keys_with(Config { source, path: Some(self.dir.path().join("key")), env: None })
    }

    fn keys_with(&self, config: Config) -> Keys {
        let env = Arc::clone(&self.env);
        let outside = Outside::of(
            Arc::clone(&self.ring) as Arc<dyn Ring>,
            Arc::new(move |name: &str| env.lock().unwrap().get(name).cloned()),
            CHEAP,
        );
        Keys { outside, ..Keys::new(Arc::clone(&self.store), config) }
    }

    fn set_env(&self, name: &str, value: &str) {
        self.env.lock().unwrap().insert(name.to_owned(), value.to_owned());
    }

    fn write_key(&self, bytes: &[u8], mode: u32) {
        let path = self.dir.path().join("key");
        std::fs::write(&path, bytes).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        #[cfg(not(unix))]
        let _ = mode;
    }

    async fn meta(&self) -> Option<Record> {
        self.store.get(Table::Meta, &meta::KEY).await.unwrap()
    }

    async fn edit_meta(&self, edit: impl FnOnce(&mut serde_json::Value)) {
        let mut record = self.meta().await.unwrap();
        let mut json = serde_json::from_slice(&record.sealed).unwrap();
        edit(&mut json);
        record.sealed = serde_json::to_vec(&json).unwrap();
        self.store.apply(vec![Write::Put(record)]).await.unwrap();
    }
}

async fn fails(keys: &Keys) -> KeyError {
    keys.open().await.err().expect("the vault must not open")
}

fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

fn context() -> Context {
    Context::of(Table::Grant).with(b"x")
}

/// Opening again yields the same keys: what one sealed, the other opens.
async fn same_vault(one: &Keys, two: &Keys) {
    let (one, two) = (one.open().await.unwrap(), two.open().await.unwrap());
    let sealed = one.seal(&tenant("acme"), &context(), b"secret").await.unwrap();
    assert_eq!(two.unseal(&tenant("acme"), &context(), &sealed).await.unwrap().expose(), b"secret");
    assert_eq!(one.mac("test", &[b"a"]), two.mac("test", &[b"a"]));
    assert_eq!((one.vault_id(), one.key_id()), (two.vault_id(), two.key_id()));
}

#[tokio::test]
async fn a_keyring_vault_is_made_once_and_opens_again() {
    let bench = Bench::new();
    same_vault(&bench.keys(SourceName::Keyring), &bench.keys(SourceName::Keyring)).await;
    assert_eq!(bench.ring.sets.load(Ordering::SeqCst), 1);
    let vault = bench.keys(SourceName::Keyring).open().await.unwrap().vault_id();
    let entries = bench.ring.entries.lock().unwrap();
    assert_eq!(entries[&vault.to_string()].expose().len(), 44, "32 bytes as base64 text");
}

#[tokio::test]
async fn processes_that_start_at_once_make_one_key() {
    let bench = Bench::new();
    let starts = (0..8).map(|_| {
        let keys = bench.keys(SourceName::Keyring);
        async move { keys.open().await.unwrap().key_id().to_owned() }
    });
    let ids = futures::future::join_all(starts).await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(bench.ring.sets.load(Ordering::SeqCst), 1);
}

/// INV-5.
#[tokio::test]
async fn a_vault_that_exists_is_never_given_a_second_key() {
    let bench = Bench::new();
    bench.keys(SourceName::Keyring).open().await.unwrap();
    let before = bench.meta().await;
    let entries = std::mem::take(&mut *bench.ring.entries.lock().unwrap());

    let error = fails(&bench.keys(SourceName::Keyring)).await;
    assert!(error.to_string().contains("obo never makes a second key"), "{error}");
    assert_eq!(bench.ring.sets.load(Ordering::SeqCst), 1, "nothing was written to the keyring");
    assert_eq!(bench.meta().await, before);

    let keys = bench.keys(SourceName::Keyring);
    fails(&keys).await;
    *bench.ring.entries.lock().unwrap() = entries;
    keys.open().await.expect("an error is not remembered");
}

/// INV-5, with the key record itself gone.
#[tokio::test]
async fn records_without_a_key_record_are_not_given_a_new_key() {
    let bench = Bench::new();
    let keys = bench.keys(SourceName::Keyring).open().await.unwrap();
    keys.seal(&tenant("acme"), &context(), b"x").await.unwrap();
    let delete = Write::Delete { table: Table::Meta, key: meta::KEY, generation: 1 };
    bench.store.apply(vec![delete]).await.unwrap();
    let error = fails(&bench.keys(SourceName::Keyring)).await;
    assert!(error.to_string().contains("its key record is gone"), "{error}");
    assert_eq!(bench.ring.sets.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_keyring_that_forgets_makes_no_vault() {
    let bench = Bench::new();
    bench.ring.forgets.store(true, Ordering::SeqCst);
    assert!(matches!(fails(&bench.keys(SourceName::Keyring)).await, KeyError::Unavailable(_)));
    assert_eq!(bench.meta().await, None);
    bench.ring.forgets.store(false, Ordering::SeqCst);
    bench.keys(SourceName::Keyring).open().await.unwrap();
}

#[tokio::test]
async fn a_keyring_that_hangs_is_given_up_and_asked_again_later() {
    let bench = Bench::new();
    let (release, hang) = std::sync::mpsc::channel();
    *bench.ring.hang.lock().unwrap() = Some(hang);
    let mut keys = bench.keys(SourceName::Keyring);
    keys.outside.keyring.deadline = Duration::from_millis(10);
    let error = fails(&keys).await;
    assert!(matches!(&error, KeyError::Unavailable(text) if text.contains("does not answer")), "{error}");
    keys.outside.keyring.deadline = Duration::from_secs(60);
    fails(&keys).await; // At once: the thread is still held.
    release.send(()).unwrap();
    while keys.open().await.is_err() {
        tokio::task::yield_now().await;
    }
    // The call that hung came through in the end; it wrote an entry of a vault that was never made.
    assert_eq!(bench.ring.sets.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_probe_leaves_nothing_behind() {
    let bench = Bench::new();
    let keyring = Config::default();
    let outside = bench.keys(SourceName::Keyring).outside;
    outside.probe(&keyring).await.unwrap();
    assert_eq!(bench.ring.sets.load(Ordering::SeqCst), 1);
    assert!(bench.ring.entries.lock().unwrap().is_empty());
    bench.ring.forgets.store(true, Ordering::SeqCst);
    assert!(outside.probe(&keyring).await.is_err());
    bench.ring.locked.store(true, Ordering::SeqCst);
    assert!(outside.probe(&keyring).await.is_err());
    let file = Config { source: SourceName::File, path: Some(bench.dir.path().join("key")), env: None };
    assert!(outside.probe(&file).await.is_err());
    bench.write_key(&[1; 32], 0o600);
    outside.probe(&file).await.unwrap();
}

#[tokio::test]
async fn a_key_file_is_raw_or_base64_and_private() {
    use base64::Engine as _;
    let bench = Bench::new();
    // Bytes whose base64 differs between the alphabets.
    bench.write_key(&[0xfb; 32], 0o600);
    let first = bench.keys(SourceName::File);
    first.open().await.unwrap();
    for text in [
        base64::engine::general_purpose::STANDARD.encode([0xfb; 32]) + "\n",
        format!("  {}\r\n", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode([0xfb; 32])),
    ] {
        bench.write_key(text.as_bytes(), 0o400);
        same_vault(&first, &bench.keys(SourceName::File)).await;
    }
    for bad in [&b""[..], &[1; 31], &[1; 33], b"AAAA", &[b'A'; 400]] {
        bench.write_key(bad, 0o600);
        let error = fails(&bench.keys(SourceName::File)).await.to_string();
        assert!(error.contains("does not hold 32 raw bytes or their base64"), "{error}");
    }
    #[cfg(unix)]
    for mode in [0o640, 0o604, 0o644] {
        bench.write_key(&[0xfb; 32], mode);
        let error = fails(&bench.keys(SourceName::File)).await.to_string();
        assert!(error.contains("can be read by other users"), "{error}");
    }
}

#[tokio::test]
async fn a_passphrase_is_asked_for_before_the_environment_is_read() {
    let bench = Bench::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let with_prompt = |answer: Option<&'static str>| {
        let asked = Arc::clone(&asked);
        bench.keys(SourceName::Passphrase).with_prompt(Arc::new(move |ask| {
            asked.lock().unwrap().push(ask);
            answer.map(Secret::new)
        }))
    };
    assert!(fails(&with_prompt(Some("7 chars"))).await.to_string().contains("too short"));
    with_prompt(Some("correct horse")).open().await.unwrap();
    bench.set_env("OBO_VAULT_PASSPHRASE", "wrong horse");
    with_prompt(Some("correct horse")).open().await.unwrap();
    fails(&with_prompt(None)).await;
    fails(&bench.keys(SourceName::Passphrase)).await;
    bench.set_env("OBO_VAULT_PASSPHRASE", "correct horse");
    same_vault(&with_prompt(None), &bench.keys(SourceName::Passphrase)).await;
    assert_eq!(asked.lock().unwrap()[..3], [Ask::NewPassphrase, Ask::NewPassphrase, Ask::Passphrase]);

    // What the record asks for is bounded: an edited one must not exhaust the machine.
    bench.edit_meta(|meta| meta["cost"]["memory_kib"] = u32::MAX.into()).await;
    assert!(matches!(fails(&bench.keys(SourceName::Passphrase)).await, KeyError::DoesNotOpen));
}

#[tokio::test]
async fn an_edited_key_record_opens_nothing() {
    let bench = Bench::new();
    bench.set_env("OBO_VAULT_KEY", &"A".repeat(43));
    bench.keys(SourceName::Env).open().await.unwrap();
    let good = bench.meta().await.unwrap();
    type Edit = fn(&mut serde_json::Value);
    let edits: [(Edit, &str); 6] = [
        (|meta| meta["format"] = 2.into(), "written by a newer obo"),
        (|meta| meta["format"] = 0.into(), "damaged"),
        (|meta| meta["extra"] = 1.into(), "damaged"),
        (|meta| meta["vault"] = uuid::Uuid::nil().to_string().into(), "does not open"),
        (|meta| meta["root"] = "T0JPMQ==".into(), "does not open"),
        (|meta| meta["key_id"] = "0000000000000000".into(), "does not hold the key of this vault"),
    ];
    for (edit, expected) in edits {
        bench.store.apply(vec![Write::Put(good.clone())]).await.unwrap();
        bench.edit_meta(edit).await;
        let error = fails(&bench.keys(SourceName::Env)).await.to_string();
        assert!(error.contains(expected), "{error}");
    }
    bench.store.apply(vec![Write::Put(Record { sealed: b"{".to_vec(), ..good.clone() })]).await.unwrap();
    assert!(fails(&bench.keys(SourceName::Env)).await.to_string().contains("damaged"));
    bench.store.apply(vec![Write::Put(good)]).await.unwrap();
    bench.keys(SourceName::Env).open().await.unwrap();
}

#[tokio::test]
async fn tenants_have_keys_of_their_own() {
    let bench = Bench::new();
    let keys = bench.keys(SourceName::Keyring).open().await.unwrap();
    let (acme, other) = (tenant("acme"), tenant("other"));
    let sealed = keys.seal(&acme, &context(), b"secret").await.unwrap();
    let refused = |result: Result<SecretBytes, KeyError>| assert!(matches!(result.err(), Some(KeyError::DoesNotOpen)));
    refused(keys.unseal(&other, &context(), &sealed).await);
    keys.seal(&other, &context(), b"x").await.unwrap();
    refused(keys.unseal(&other, &context(), &sealed).await);
    refused(keys.unseal(&acme, &Context::of(Table::Grant).with(b"y"), &sealed).await);
    refused(keys.unseal(&acme, &context(), &[]).await);

    // One tenant's wrapped key under another's name: refused as well.
    let mut records = bench.store.scan(Table::DataKey, None, 10).await.unwrap();
    assert_eq!(records.len(), 2);
    let swapped = records[0].sealed.clone();
    records[0].sealed = std::mem::replace(&mut records[1].sealed, swapped);
    bench.store.apply(records.into_iter().map(Write::Replace).collect()).await.unwrap();
    let fresh = bench.keys(SourceName::Keyring).open().await.unwrap();
    refused(fresh.unseal(&acme, &context(), &sealed).await);
}

#[tokio::test]
async fn a_tenants_first_key_is_made_once() {
    let bench = Bench::new();
    let sealing = (0..8).map(|_| {
        let keys = bench.keys(SourceName::Keyring);
        async move { keys.open().await.unwrap().seal(&tenant("acme"), &context(), b"x").await.unwrap() }
    });
    let all = futures::future::join_all(sealing).await;
    assert_eq!(bench.store.scan(Table::DataKey, None, 10).await.unwrap().len(), 1);
    let keys = bench.keys(SourceName::Keyring).open().await.unwrap();
    for sealed in all {
        keys.unseal(&tenant("acme"), &context(), &sealed).await.unwrap();
    }
}

#[tokio::test]
async fn macs_are_by_purpose_and_part() {
    let bench = Bench::new();
    let meta = Meta::new(SourceName::Keyring, CHEAP);
    let keys =
        OpenKeys::new(Arc::clone(&bench.store), Key::from_bytes(&[0x42; 32]).unwrap(), meta.vault, meta.key_id.clone());
    let hex: String = keys.mac("test", &[b"a", b"bc"]).iter().map(|byte| format!("{byte:02x}")).collect();
    // Computed by another implementation. If it changes, no record of an existing vault is found.
    assert_eq!(hex, "b2821dfcafb59f841299f0359c62a4b539f667f52feb7d8649726451a4cdf824");
    let others = [
        keys.mac("tests", &[b"a", b"bc"]),
        keys.mac("test", &[b"ab", b"c"]),
        keys.mac("test", &[b"abc"]),
        keys.mac("test", &[b"a", b"bc", b""]),
        keys.record_key(Table::Grant, &[b"a", b"bc"]),
        keys.record_key(Table::Flow, &[b"a", b"bc"]),
    ];
    let distinct: std::collections::BTreeSet<_> = others.iter().collect();
    assert_eq!(distinct.len(), others.len());
    assert!(!distinct.contains(&keys.mac("test", &[b"a", b"bc"])));
}

#[test]
fn a_key_in_the_data_folder_is_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    let config = |source, path: &str| Config { source, path: Some(dir.path().join(path)), env: None };
    assert!(config(SourceName::File, "data/key").warning(&dir.path().join("data")).is_some());
    assert!(config(SourceName::File, "key").warning(&dir.path().join("data")).is_none());
    assert!(config(SourceName::Keyring, "data/key").warning(&dir.path().join("data")).is_none());
}

/// Every way from one place of the key to another, and to another key in the same place.
#[tokio::test]
async fn a_changed_key_opens_and_the_old_one_no_longer() {
    for (from, to) in ways() {
        let bench = Bench::with_outside();
        let (from, to) = (bench.place(from), bench.place(to));
        let sealed = bench.seal_with(&from).await;
        let before = bench.ring.entries.lock().unwrap().clone();
        let old = bench.keys_with(from.clone());
        let serving = bench.keys_with(from.clone()).open().await.unwrap();
        let changed = old.change_to(&to).await.unwrap();
        assert_eq!((changed.from.is_some(), &changed.left), (true, &None), "{from:?} {to:?}");
        bench.set_env("OBO_VAULT_PASSPHRASE", "wrong horse");
        if from.source == to.source && from.source == SourceName::Keyring {
            let after = std::mem::replace(&mut *bench.ring.entries.lock().unwrap(), before);
            fails(&bench.keys_with(from.clone())).await;
            *bench.ring.entries.lock().unwrap() = after;
        } else {
            fails(&bench.keys_with(from.clone())).await;
        }
        bench.set_env("OBO_VAULT_PASSPHRASE", "battery staple");
        let new = bench.keys_with(to.clone()).open().await.unwrap();
        assert_eq!(new.key_id(), changed.to);
        assert_ne!(Some(new.key_id()), changed.from.as_deref());
        bench.opens(&new, &sealed).await;
        // A process that had the vault open goes on, and its records open afterwards.
        bench.opens(&serving, &sealed).await;
        let later = serving.seal(&tenant("acme"), &context(), b"secret").await.unwrap();
        bench.opens(&new, &later).await;
        let entries: Vec<_> = bench.ring.entries.lock().unwrap().keys().cloned().collect();
        let expected = if to.source == SourceName::Keyring { vec![new.vault_id().to_string()] } else { Vec::new() };
        assert_eq!(entries, expected, "{from:?} {to:?}");
    }
}

/// Dies at each step of each way. Then exactly one of the keys opens the vault, nothing is lost, and the same command
/// brings it to its end.
#[tokio::test]
async fn a_change_of_the_key_that_dies_leaves_one_key_and_can_be_taken_up() {
    let mut deaths = 0;
    // What is outside goes through no step of its own, so that these ways stand for all.
    let stand_for_all = |(from, to): &(Config, Config)| {
        use SourceName::{File, Keyring, Passphrase};
        from.source == to.source
            || [(File, Keyring), (Keyring, File), (Keyring, Passphrase)].contains(&(from.source, to.source))
    };
    for (from, to) in ways().into_iter().filter(stand_for_all) {
        for steps in 0.. {
            let bench = Bench::with_outside();
            let (from, to) = (bench.place(from.clone()), bench.place(to.clone()));
            let sealed = bench.seal_with(&from).await;
            let ring_before = bench.ring.entries.lock().unwrap().clone();
            let fuse = Arc::new(Fuse(steps.into()));
            *bench.ring.fuse.lock().unwrap() = Some(Arc::clone(&fuse));
            let store: Arc<dyn Store> = Arc::new(Dying { inner: Arc::clone(&bench.store), fuse: Arc::clone(&fuse) });
            let dying = Keys { store, ..bench.keys_with(from.clone()) };
            let outcome = dying.change_to(&to).await;
            *bench.ring.fuse.lock().unwrap() = None;
            if !fuse.burnt() {
                outcome.unwrap();
                break;
            }
            deaths += 1;

            let what = format!("{from:?} {to:?} after {steps} steps");
            bench.set_env("OBO_VAULT_PASSPHRASE", "correct horse");
            let with_old = match from.source {
                SourceName::Keyring => {
                    let now = std::mem::replace(&mut *bench.ring.entries.lock().unwrap(), ring_before);
                    let opened = bench.keys_with(from.clone()).open().await.ok();
                    *bench.ring.entries.lock().unwrap() = now;
                    opened
                }
                _ => bench.keys_with(from.clone()).open().await.ok(),
            };
            bench.set_env("OBO_VAULT_PASSPHRASE", "battery staple");
            let with_new = match (from.source, to.source) {
                // One entry of one keyring: what is there now opens, and the question is which key it is.
                (SourceName::Keyring, SourceName::Keyring) => {
                    let now = bench.keys_with(to.clone()).open().await.expect(&what);
                    with_old.is_none().then_some(now)
                }
                _ => bench.keys_with(to.clone()).open().await.ok(),
            };
            assert_eq!(with_old.is_some() as u8 + with_new.is_some() as u8, 1, "{what}");
            bench.opens(&with_old.or(with_new).unwrap(), &sealed).await;

            // Once more, with obo.toml as it was.
            let committed = bench.meta().await.unwrap().generation > 1;
            bench.set_env("OBO_VAULT_PASSPHRASE", "correct horse");
            let again = bench.keys_with(from.clone());
            if committed && from.source == SourceName::Passphrase && to.source == SourceName::Passphrase {
                // The old passphrase is no longer one, which is what the person is told.
                assert!(again.change_to(&to).await.unwrap_err().to_string().contains("not the passphrase"), "{what}");
            } else {
                let changed = again.change_to(&to).await.expect(&what);
                assert_eq!(changed.left, None, "{what}");
            }
            bench.set_env("OBO_VAULT_PASSPHRASE", "battery staple");
            let new = bench.keys_with(to.clone()).open().await.expect(&what);
            bench.opens(&new, &sealed).await;
            let entries = bench.ring.entries.lock().unwrap().len();
            assert_eq!(entries, usize::from(to.source == SourceName::Keyring), "{what}");
        }
    }
    assert!(deaths > 60, "{deaths}");
}

/// Two places of the key, for every pair that a change can go between.
fn ways() -> Vec<(Config, Config)> {
    let at = |source, name: &str| Config { source, path: Some(name.into()), env: Some(name.to_owned()) };
    let mut ways = Vec::new();
    let sources = [SourceName::File, SourceName::Env, SourceName::Keyring, SourceName::Passphrase];
    for from in sources {
        ways.extend(sources.map(|to| (at(from, "one"), at(to, "two"))));
    }
    ways
}

impl Bench {
    /// A bench with a key in each place that is not made by obo.
    fn with_outside() -> Self {
        let bench = Self::new();
        bench.set_env("one", &"A".repeat(43));
        bench.set_env("two", &format!("{}B{}", "A".repeat(20), "A".repeat(22)));
        bench.set_env("OBO_VAULT_PASSPHRASE", "correct horse");
        bench.set_env("OBO_VAULT_NEW_PASSPHRASE", "battery staple");
        bench.write_key(&[1; 32], 0o600);
        std::fs::rename(bench.dir.path().join("key"), bench.dir.path().join("one")).unwrap();
        bench
    }

    /// The same with its path in this bench.
    fn place(&self, config: Config) -> Config {
        Config { path: config.path.map(|path| self.dir.path().join(path)), ..config }
    }

    /// Makes the vault, and seals something in it.
    async fn seal_with(&self, config: &Config) -> Vec<u8> {
        let keys = self.keys_with(config.clone()).open().await.unwrap();
        keys.seal(&tenant("acme"), &context(), b"secret").await.unwrap()
    }

    async fn opens(&self, keys: &OpenKeys, sealed: &[u8]) {
        assert_eq!(keys.unseal(&tenant("acme"), &context(), sealed).await.unwrap().expose(), b"secret");
    }
}

#[tokio::test]
async fn a_key_is_not_changed_to_itself_or_to_nothing() {
    let bench = Bench::with_outside();
    let from = bench.place(Config { source: SourceName::File, path: Some("one".into()), env: None });
    let none = bench.keys_with(from.clone()).change_to(&from).await.unwrap_err();
    assert!(none.to_string().contains("no vault here yet"), "{none}");
    bench.seal_with(&from).await;
    let before = bench.meta().await;
    std::fs::copy(bench.dir.path().join("one"), bench.dir.path().join("copy")).unwrap();
    let itself = bench.keys_with(from.clone()).change_to(&from).await.unwrap_err();
    assert!(itself.to_string().contains("the key which the vault has already"), "{itself}");
    bench.set_env("short", "AAAA");
    let short = Config { source: SourceName::Env, path: None, env: Some("short".to_owned()) };
    bench.keys_with(from.clone()).change_to(&short).await.unwrap_err();
    bench.ring.locked.store(true, Ordering::SeqCst);
    bench.keys_with(from.clone()).change_to(&Config::default()).await.unwrap_err();
    assert_eq!(bench.meta().await, before, "nothing was changed");
    // The key file that is made is private, and is no text of somebody else's.
    let to = bench.place(Config { source: SourceName::File, path: Some("two".into()), env: None });
    bench.keys_with(from.clone()).change_to(&to).await.unwrap();
    let made = bench.dir.path().join("two");
    assert_eq!(std::fs::read(&made).unwrap().len(), 44);
    #[cfg(unix)]
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&made.metadata().unwrap()) & 0o777, 0o600);
    let names = std::fs::read_dir(bench.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_string_lossy().starts_with('.')), "nothing is left beside it");
}

/// Everything that the person who runs obo may read about keys.
#[tokio::test]
async fn errors_say_the_problem_and_the_mend() {
    let mut texts = Vec::new();
    let mut say = |case: &str, error: KeyError| texts.push(format!("{case}\n    {error}"));

    let bench = Bench::new();
    bench.ring.locked.store(true, Ordering::SeqCst);
    say("new vault, keyring locked", fails(&bench.keys(SourceName::Keyring)).await);
    bench.ring.locked.store(false, Ordering::SeqCst);
    bench.ring.forgets.store(true, Ordering::SeqCst);
    say("new vault, keyring forgets", fails(&bench.keys(SourceName::Keyring)).await);
    bench.ring.forgets.store(false, Ordering::SeqCst);
    say("new vault, no key file", fails(&bench.keys(SourceName::File)).await);
    say(
        "new vault, no path",
        fails(&bench.keys_with(Config { source: SourceName::File, path: None, env: None })).await,
    );
    #[cfg(unix)]
    {
        bench.write_key(&[1; 32], 0o644);
        say("key file readable by others", fails(&bench.keys(SourceName::File)).await);
    }
    say("no variable", fails(&bench.keys(SourceName::Env)).await);
    bench.set_env("OBO_VAULT_KEY", "not a key");
    say("bad variable", fails(&bench.keys(SourceName::Env)).await);
    say("nobody to ask", fails(&bench.keys(SourceName::Passphrase)).await);
    bench.set_env("OBO_VAULT_PASSPHRASE", "short");
    say("short passphrase", fails(&bench.keys(SourceName::Passphrase)).await);

    bench.keys(SourceName::Keyring).open().await.unwrap();
    say("another source", fails(&bench.keys(SourceName::File)).await);
    let good = std::mem::take(&mut *bench.ring.entries.lock().unwrap());
    say("entry gone", fails(&bench.keys(SourceName::Keyring)).await);
    for (user, text) in [("not base64", "?".to_owned()), ("another key", "A".repeat(43))] {
        let entries = good.keys().map(|vault| (vault.clone(), Secret::new(text.clone()))).collect();
        *bench.ring.entries.lock().unwrap() = entries;
        say(user, fails(&bench.keys(SourceName::Keyring)).await);
    }

    let bench = Bench::new();
    bench.set_env("OBO_VAULT_PASSPHRASE", "correct horse");
    bench.keys(SourceName::Passphrase).open().await.unwrap();
    bench.set_env("OBO_VAULT_PASSPHRASE", "wrong horse");
    say("wrong passphrase", fails(&bench.keys(SourceName::Passphrase)).await);

    insta::assert_snapshot!(steady(&texts.join("\n")));
}

/// Replaces what differs from run to run: vault ids and temporary folders.
fn steady(text: &str) -> String {
    let file = format!("{}key", std::path::MAIN_SEPARATOR);
    text.split_inclusive([' ', '"', '`', '\n'])
        .map(|word| {
            let bare = word.trim_end_matches([' ', '"', '`', '\n']);
            let rest = &word[bare.len()..];
            match bare {
                _ if uuid::Uuid::parse_str(bare).is_ok() => format!("VAULT{rest}"),
                _ if is_key_id(bare.trim_end_matches([')', ';', ','])) => format!("KEY{}", &word[16..]),
                _ if bare.ends_with(&file) => format!("FILE{rest}"),
                _ => word.to_owned(),
            }
        })
        .collect()
}

fn is_key_id(word: &str) -> bool {
    word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}
