//! The processes, those who call them, and the one who kills them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use obo::app::{App, Settings, Way};
use obo::clock::{Clock as _, SystemClock};
use obo::config::{Config, Environment};
use obo::egress::Egress;
use obo::id::{Person, Source, TenantId};
use obo::oauth::{Account, Oauth, parse_token_answer};
use obo::vault::Vault;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::evil_provider::{self, Death, EvilProvider, Point, Rotation};

type Problem = Box<dyn std::error::Error + Send + Sync>;

const USAGE: &str = "usage: proof (--grace | --strict) (--kill | --sigterm | --freeze) [--kills N] [--processes N] [--people N]
             [--postgres URL [--restart COMMAND]]
--grace alone is --grace --kill. --freeze stops processes for longer than a lease and lets them go on; --kills counts those too.
--restart: the shell command that restarts the database, run again and again.";

/// How long the provider accepts a replaced token, with `--grace`.
const GRACE: Duration = Duration::from_secs(30);

/// How long a process may take to be ready, or to end once it is asked to.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait for an exchange to kill a process in.
const AMBUSH: Duration = Duration::from_secs(10);

/// How long a process is frozen: longer than the four seconds of a lease, and than those by which it is renewed.
const FREEZE: Duration = Duration::from_secs(6);

/// Between restarts of the database.
const RESTART: Duration = Duration::from_secs(20);

/// Callers of one process.
const CALLERS: usize = 2;

/// What is done to a process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blow {
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Term,
    /// SIGSTOP, and SIGCONT when its leases are over.
    Freeze,
}

#[derive(Clone)]
struct Plan {
    rotation: Rotation,
    blow: Blow,
    kills: u64,
    processes: usize,
    people: usize,
    /// An empty database: the processes are replicas, each with a folder of its own, and their connections are cut.
    postgres: Option<String>,
    /// What restarts the database.
    restart: Option<String>,
}

impl Plan {
    /// Whether somebody must lose: nobody can keep what a provider says only to a process that is being killed, and never
    /// again.
    fn may_lose(&self) -> bool {
        self.rotation == Rotation::Strict && self.blow == Blow::Kill
    }

    fn from_arguments() -> Result<Self, String> {
        let mut arguments = std::env::args().skip(1);
        let (mut rotation, mut blow) = (None, None);
        let (mut kills, mut processes, mut people, mut postgres, mut restart) = (40, 8, 24, None, None);
        while let Some(argument) = arguments.next() {
            if argument == "--postgres" || argument == "--restart" {
                let value = if argument == "--restart" { &mut restart } else { &mut postgres };
                *value = Some(arguments.next().ok_or(USAGE)?);
                continue;
            }
            let mut number = || arguments.next().and_then(|n| n.parse::<u64>().ok()).filter(|n| *n > 0).ok_or(USAGE);
            match argument.as_str() {
                "--grace" => rotation = Some(Rotation::Graced(GRACE.as_millis() as i64)),
                "--strict" => rotation = Some(Rotation::Strict),
                "--sigterm" => blow = Some(Blow::Term),
                "--kill" => blow = Some(Blow::Kill),
                "--freeze" => blow = Some(Blow::Freeze),
                "--kills" => kills = number()?,
                "--processes" => processes = number()? as usize,
                "--people" => people = number()? as usize,
                _ => return Err(USAGE.to_owned()),
            }
        }
        if rotation.is_some_and(|rotation| rotation != Rotation::Strict) {
            blow = blow.or(Some(Blow::Kill));
        }
        let (Some(rotation), Some(blow)) = (rotation, blow) else { return Err(USAGE.to_owned()) };
        if restart.is_some() && postgres.is_none() {
            return Err(USAGE.to_owned());
        }
        Ok(Self { rotation, blow, kills, processes, people, postgres, restart })
    }
}

pub(crate) fn main() -> ExitCode {
    let plan = match Plan::from_arguments() {
        Ok(plan) => plan,
        Err(text) => {
            eprintln!("{text}");
            return ExitCode::from(2);
        }
    };
    let ran = tokio::runtime::Runtime::new().map_err(Problem::from).and_then(|runtime| runtime.block_on(run(plan)));
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("the proof could not be made: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn run(plan: Plan) -> Result<bool, Problem> {
    let began = Instant::now();
    let scene = Scene::set(plan.clone()).await?;
    let finished = CancellationToken::new();
    let callers: Vec<_> = (0..plan.processes)
        .flat_map(|slot| (0..CALLERS).map(move |caller| (slot, caller)))
        .map(|(slot, caller)| tokio::spawn(Arc::clone(&scene).call(slot, caller, finished.clone())))
        .collect();
    let keepers: Vec<_> =
        (0..plan.processes).map(|slot| tokio::spawn(Arc::clone(&scene).keep(slot, finished.clone()))).collect();
    let told = tokio::spawn(Arc::clone(&scene).tell(finished.clone()));
    let cut = tokio::spawn(Arc::clone(&scene).cut(finished.clone()));
    let restart = tokio::spawn(Arc::clone(&scene).restart(finished.clone()));

    // The keepers end when all kills are done, each with a process that runs.
    let mut children = Vec::new();
    for keeper in keepers {
        children.push(keeper.await??);
    }
    finished.cancel();
    for caller in callers {
        caller.await?;
    }
    told.await?;
    cut.await??;
    restart.await??;
    // Every token has ended now, so that each connection must be refreshed once more.
    sleep(Duration::from_millis(1500)).await;
    let mut broken = 0;
    for person in 0..plan.people {
        let mut connected = scene.still_connected(person).await;
        if !connected && plan.may_lose() && scene.is_dead(person) {
            // Lost with one of the last kills, and counted as lost; the person connects again.
            scene.consent(person).await?;
            connected = scene.still_connected(person).await;
        }
        broken += u64::from(!connected);
    }
    for mut child in children {
        child.kill().await?;
    }
    scene.judge(began.elapsed(), broken)
}

#[derive(Default)]
struct Counts {
    calls: AtomicU64,
    failed_calls: AtomicU64,
    consents: AtomicU64,
    given_up: AtomicU64,
    kills: AtomicU64,
    in_exchange: AtomicU64,
    at_the_answer: AtomicU64,
    elsewhere: AtomicU64,
    unclean: AtomicU64,
    cut: AtomicU64,
    restarts: AtomicU64,
}

struct Scene {
    plan: Plan,
    folder: tempfile::TempDir,
    provider: EvilProvider,
    http: reqwest::Client,
    ports: Vec<u16>,
    bearers: Vec<String>,
    people: Vec<Person>,
    /// One consent at a time for each.
    consenting: Vec<tokio::sync::Mutex<()>>,
    vault: Vault,
    catalog: Arc<obo::catalog::Catalog>,
    counts: Counts,
    /// The exchanges that a process was killed in, or before it can have written down the answer: (family, generation).
    windows: Mutex<HashSet<(usize, u64)>>,
}

impl Scene {
    async fn set(plan: Plan) -> Result<Arc<Self>, Problem> {
        let folder = tempfile::tempdir()?;
        let provider = EvilProvider::start(evil_provider::Settings {
            rotation: plan.rotation,
            lifetime: 1,
            latency: Duration::from_millis(10),
            now: Box::new(|| SystemClock.now().as_millisecond()),
        })
        .await?;
        let tools = folder.path().join("tools/evil");
        std::fs::create_dir_all(&tools)?;
        std::fs::write(tools.join("provider.toml"), provider.manifest())?;
        std::fs::write(tools.join("who.toml"), EvilProvider::tool())?;
        let key = folder.path().join("vault.key");
        std::fs::write(&key, [7; 32])?;
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;

        let mut ports = Vec::new();
        for slot in 0..plan.processes {
            // Bound again by a process of this proof a moment later.
            let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            ports.push(port);
            std::fs::write(folder.path().join(format!("{slot}.toml")), config(&plan, slot, port, provider.origin()))?;
        }
        let settings = Settings {
            config: Config::parse(
                &config(&plan, 0, ports[0], provider.origin()),
                "obo.toml",
                folder.path(),
                &Environment::default(),
            )?,
            data_dir: folder.path().join("data"),
            clock: Arc::new(SystemClock),
            way: Way::Command,
            prompt: None,
        };
        let egress = Egress::new(&settings.config.network, &settings.config.written_urls())?;
        let app = App::open(settings)?;
        app.keys.open().await?;
        let vault = Vault::new(Arc::clone(&app.store), app.keys.clone(), Oauth::new(egress), Arc::clone(&app.clock));

        let (mut people, mut bearers) = (Vec::new(), Vec::new());
        for number in 0..plan.people {
            let user = format!("person-{number}").parse()?;
            let person = Person { tenant: TenantId::default_tenant(), source: Source::obo(), user };
            let life = Duration::from_secs(30 * 86_400);
            let (_, bearer) = app.obo.identity().tokens().issue(&person, Vec::new(), life).await?;
            bearers.push(bearer.expose().to_owned());
            people.push(person);
        }
        let scene = Arc::new(Self {
            plan,
            folder,
            provider,
            http: reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build()?,
            ports,
            bearers,
            consenting: (0..people.len()).map(|_| tokio::sync::Mutex::default()).collect(),
            people,
            vault,
            catalog: app.catalog,
            counts: Counts::default(),
            windows: Mutex::default(),
        });
        for person in 0..scene.people.len() {
            scene.consent(person).await?;
        }
        Ok(scene)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Somebody connects, again where they had.
    async fn consent(&self, person: usize) -> Result<(), Problem> {
        let who = &self.people[person];
        let name = who.user.as_str();
        let provider = self.catalog.provider("evil").ok_or("the manifest of the provider does not load")?;
        let answer = parse_token_answer(200, self.provider.consent(name).to_string().as_bytes())?;
        let account = Account { key: name.to_owned(), label: name.to_owned() };
        let scopes = ["who".to_owned()].into();
        self.vault.deposit(who, provider, account, answer, &scopes).await.map_err(|f| f.to_string())?;
        Ok(())
    }

    /// One call of a person's to a process: the tool's answer, or nothing where the process is not there.
    async fn ask(&self, slot: usize, person: usize) -> Option<Value> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
            "name": "Evil_Who", "arguments": {}, "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": { "name": "proof", "version": "1" },
                "io.modelcontextprotocol/clientCapabilities": {} } } });
        let request = self
            .http
            .post(format!("http://127.0.0.1:{}/mcp", self.ports[slot]))
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", "tools/call")
            .header("mcp-name", "Evil_Who")
            .bearer_auth(&self.bearers[person])
            .timeout(PATIENCE)
            .json(&body);
        let text = request.send().await.ok()?.text().await.ok()?;
        let json = match text.rfind("data:") {
            Some(at) => text[at + 5..].lines().next()?,
            None => &text,
        };
        serde_json::from_str::<Value>(json.trim()).ok()?.get("result").cloned()
    }

    async fn call(self: Arc<Self>, slot: usize, caller: usize, finished: CancellationToken) {
        let mut person = slot * CALLERS + caller;
        while !finished.is_cancelled() {
            person = (person + 1) % self.people.len();
            let Some(result) = self.ask(slot, person).await else {
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            self.counts.calls.fetch_add(1, Ordering::Relaxed);
            if is_answered(&result) {
                sleep(Duration::from_millis(5)).await;
                continue;
            }
            if self.counts.failed_calls.fetch_add(1, Ordering::Relaxed) == 0 {
                eprintln!("the first call that failed: {result}");
            }
            if asks_for_consent(&result) {
                let _one = self.consenting[person].lock().await;
                // Somebody else's call may have led to a consent meanwhile.
                if self.ask(slot, person).await.is_some_and(|again| asks_for_consent(&again)) {
                    self.counts.given_up.fetch_add(u64::from(!self.is_dead(person)), Ordering::Relaxed);
                    self.counts.consents.fetch_add(1, Ordering::Relaxed);
                    if let Err(problem) = self.consent(person).await {
                        eprintln!("{problem}");
                    }
                }
            }
        }
    }

    /// Keeps a process running, and kills it, until there were enough kills.
    async fn keep(self: Arc<Self>, slot: usize, finished: CancellationToken) -> Result<Child, Problem> {
        let mut round = slot;
        let mut running = None;
        loop {
            let mut child = match running.take() {
                Some(child) => child,
                None => self.start(slot).await?,
            };
            if finished.is_cancelled() || self.counts.kills.fetch_add(1, Ordering::SeqCst) >= self.plan.kills {
                return Ok(child);
            }
            round += 1;
            // Some exchanges are left alone. Otherwise those that go on with what a kill interrupted would be killed in
            // their turn, until no grace covers it.
            for _ in 0..round % 4 * 3 {
                let (told, release) = self.provider.ambush(&client(slot), Point::Before);
                let _ = timeout(AMBUSH, told).await;
                drop(release);
            }
            // Between the request and the rotation, between that and the answer, and while the answer is on its way.
            let point = [Point::Before, Point::After, Point::Answered, Point::After][round / 4 % 4];
            let client = client(slot);
            let (told, release) = self.provider.ambush(&client, point);
            match timeout(AMBUSH, told).await {
                Ok(Ok(_)) => {
                    let counter =
                        if point == Point::Answered { &self.counts.at_the_answer } else { &self.counts.in_exchange };
                    counter.fetch_add(1, Ordering::Relaxed);
                    if point == Point::Answered {
                        // Into reading, writing and answering: from at once to a few milliseconds later.
                        sleep(Duration::from_micros((round as u64 * 613) % 8000)).await;
                    }
                }
                _ => drop(self.counts.elsewhere.fetch_add(1, Ordering::Relaxed)),
            }
            let pid = child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)).ok_or("it has ended")?;
            if self.plan.blow == Blow::Freeze {
                rustix::process::kill_process(pid, rustix::process::Signal::STOP)?;
                // The provider answers, and nobody listens.
                drop(release);
                sleep(FREEZE).await;
                rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
                running = Some(child);
            } else if self.plan.blow == Blow::Term {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
                sleep(Duration::from_millis((round as u64 * 7) % 60)).await;
                drop(release);
                let ended = timeout(PATIENCE, child.wait()).await;
                let clean = matches!(ended, Ok(Ok(status)) if status.success());
                self.counts.unclean.fetch_add(u64::from(!clean), Ordering::Relaxed);
                child.kill().await?;
            } else {
                // Before the signal: another process may ask for the same tokens before this one hears of the end.
                self.provider.families().doom(&client, true);
                child.kill().await?;
                let unwritten = self.provider.died(&client);
                self.lock_windows().extend(unwritten.into_iter().map(|which| (which.family, which.generation)));
                drop(release);
            }
        }
    }

    async fn start(&self, slot: usize) -> Result<Child, Problem> {
        let program = std::env::current_exe()?;
        // Examples are built into a folder beside the program.
        let program = program.parent().and_then(Path::parent).ok_or("no such folder")?.join("obo");
        let log = std::fs::File::options().create(true).append(true).open(self.path(&format!("{slot}.log")))?;
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OBO_")) {
            command.env_remove(name);
        }
        command
            .env("RUST_LOG", "warn")
            .arg("--config")
            .arg(self.path(&format!("{slot}.toml")))
            .arg("--data-dir")
            .arg(self.path(&match self.plan.postgres {
                Some(_) => format!("data-{slot}"),
                None => "data".to_owned(),
            }))
            .arg("serve")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        let spawn = |command: &mut Command| {
            let cannot = |error| format!("the program cannot be started; build it first: cargo build ({error})");
            command.spawn().map_err(cannot)
        };
        let mut child = spawn(&mut command)?;
        // What its predecessor sent last has arrived by then, and nothing of its own.
        sleep(Duration::from_millis(50)).await;
        self.provider.families().doom(&client(slot), false);
        let health = format!("http://127.0.0.1:{}/healthz", self.ports[slot]);
        let until = Instant::now() + PATIENCE;
        loop {
            if self.http.get(&health).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(child);
            }
            if let Some(status) = child.try_wait()? {
                if self.plan.restart.is_some() && Instant::now() < until {
                    // The database was away; whoever keeps programs running starts it again.
                    sleep(Duration::from_millis(200)).await;
                    child = spawn(&mut command)?;
                    continue;
                }
                return Err(format!("process {slot} did not start ({status}): {}", self.end_of_log(slot)).into());
            }
            if Instant::now() > until {
                return Err(format!("process {slot} is not ready: {}", self.end_of_log(slot)).into());
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn end_of_log(&self, slot: usize) -> String {
        let text = std::fs::read_to_string(self.path(&format!("{slot}.log"))).unwrap_or_default();
        text.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
    }

    /// Whether the newest connection of a person has ended, by the provider.
    fn is_dead(&self, person: usize) -> bool {
        let families = self.provider.families();
        families.of(self.people[person].user.as_str()).is_none_or(|family| family.death.is_some())
    }

    /// Whether a person's calls still go through, by the provider's word that they are for the right account.
    async fn still_connected(&self, person: usize) -> bool {
        for slot in 0..self.plan.processes {
            let Some(result) = self.ask(slot, person).await else { continue };
            let text = result.pointer("/content/0/text").and_then(Value::as_str).unwrap_or_default();
            let value: Value = serde_json::from_str(text).unwrap_or_default();
            return is_answered(&result) && value["account"] == self.people[person].user.as_str();
        }
        false
    }

    /// Cuts connections to the database, a few at a time.
    async fn cut(self: Arc<Self>, finished: CancellationToken) -> Result<(), Problem> {
        let Some(url) = &self.plan.postgres else { return Ok(()) };
        let (mut client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
                   WHERE usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()
                     AND application_name = 'obo' ORDER BY random() LIMIT 3) AS these";
        while timeout(Duration::from_millis(100), finished.cancelled()).await.is_err() {
            match client.query_typed_one(cut, &[]).await {
                Ok(row) => drop(self.counts.cut.fetch_add(row.get::<_, i64>(0).unsigned_abs(), Ordering::Relaxed)),
                Err(error) if self.plan.restart.is_none() => return Err(error.into()),
                Err(_) => {
                    if let Ok((again, connection)) = tokio_postgres::connect(url, tokio_postgres::NoTls).await {
                        tokio::spawn(connection);
                        client = again;
                    }
                }
            }
        }
        Ok(())
    }

    /// Restarts the database, again and again.
    async fn restart(self: Arc<Self>, finished: CancellationToken) -> Result<(), Problem> {
        let Some(restart) = &self.plan.restart else { return Ok(()) };
        while timeout(RESTART, finished.cancelled()).await.is_err() {
            let mut command = Command::new("sh");
            let status = command.arg("-c").arg(restart).stdin(Stdio::null()).stdout(Stdio::null()).status().await?;
            if !status.success() {
                return Err(format!("the database was not restarted: {status}").into());
            }
            self.counts.restarts.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Says how far it is, for long runs.
    async fn tell(self: Arc<Self>, finished: CancellationToken) {
        while timeout(Duration::from_secs(30), finished.cancelled()).await.is_err() {
            let kills = self.counts.kills.load(Ordering::Relaxed).min(self.plan.kills);
            let (refreshes, lost, slowest) = {
                let f = self.provider.families();
                (f.refreshes, f.lost(), f.slowest)
            };
            eprintln!("{kills} kills, {refreshes} refreshes, {lost} lost, last taken up after {slowest} ms");
        }
    }

    /// Prints what came of it: whether everything is as it is promised.
    fn judge(&self, took: Duration, broken: u64) -> Result<bool, Problem> {
        let families = self.provider.families();
        let windows = self.lock_windows();
        let lost = families.lost();
        let unexplained = families.all().iter().enumerate().filter(|(number, family)| match family.death {
            Some(Death::Reused { generation, .. }) => !windows.contains(&(*number, generation)),
            _ => false,
        });
        let unexplained = unexplained.count();
        let mut leaks = 0;
        for slot in 0..self.plan.processes {
            let text = std::fs::read_to_string(self.path(&format!("{slot}.log"))).unwrap_or_default();
            leaks += text.matches("evil-r.").count() + text.matches("evil-a.").count();
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let again = families.again();
        let (unclean, given_up) = (count(&self.counts.unclean), count(&self.counts.given_up));
        let kills = count(&self.counts.kills).min(self.plan.kills);
        let signal = match self.plan.blow {
            Blow::Kill => "kills (SIGKILL)".to_owned(),
            Blow::Term => "kills (SIGTERM)".to_owned(),
            Blow::Freeze => format!("freezes of {} s", FREEZE.as_secs()),
        };
        let provider = match self.plan.rotation {
            Rotation::Graced(grace) => format!("grace of {} s", grace / 1000),
            Rotation::Strict => "strict".to_owned(),
            Rotation::Keeps => "keeps".to_owned(),
        };
        println!(
            "provider: {provider}; {} processes, {} people, {} s",
            self.plan.processes,
            self.plan.people,
            took.as_secs()
        );
        println!("{signal}: {kills}");
        println!("  inside an exchange: {}", count(&self.counts.in_exchange));
        println!("  while its answer was on the way: {}", count(&self.counts.at_the_answer));
        println!("  with no exchange within {AMBUSH:?}: {}", count(&self.counts.elsewhere));
        if self.plan.postgres.is_some() {
            println!("connections to the database cut: {}", count(&self.counts.cut));
            println!("restarts of the database: {}", count(&self.counts.restarts));
        }
        println!("calls answered: {}", count(&self.counts.calls) - count(&self.counts.failed_calls));
        println!("calls that failed: {}", count(&self.counts.failed_calls));
        println!("refreshes: {}", families.refreshes);
        println!("tokens presented again, because their answer was lost: {again}");
        println!("  the last of them after: {:.1} s", families.slowest as f64 / 1000.0);
        println!("tokens presented while the same one was under way: {}", families.concurrent);
        println!("connections lost, by the provider: {lost}");
        println!("  of these without a kill in that exchange, or within a second of its answer: {unexplained}");
        println!("connections given up though they live: {given_up}");
        println!("people not connected at the end: {broken}");
        println!("processes that did not end cleanly: {unclean}");
        println!("tokens in logs: {leaks}");

        let whole = (self.plan.may_lose() || lost == 0)
            && unexplained == 0
            && (self.plan.rotation != Rotation::Strict || self.plan.blow == Blow::Kill || again == 0)
            && families.concurrent == 0
            && given_up == 0
            && broken == 0
            && unclean == 0
            && leaks == 0
            && families.refreshes > kills;
        println!("{}", if whole { "as promised" } else { "NOT as promised" });
        if !whole {
            let kept = std::env::temp_dir().join(format!("obo-proof-{}", std::process::id()));
            std::fs::create_dir_all(&kept)?;
            for slot in 0..self.plan.processes {
                let name = format!("{slot}.log");
                let _ = std::fs::copy(self.path(&name), kept.join(&name));
            }
            println!("the logs are in {}", kept.display());
        }
        Ok(whole)
    }

    fn lock_windows(&self) -> std::sync::MutexGuard<'_, HashSet<(usize, u64)>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The secret that a process shows the provider, by which that tells the processes apart.
fn client(slot: usize) -> String {
    format!("process-{slot}")
}

fn config(plan: &Plan, slot: usize, port: u16, origin: &str) -> String {
    let vault = match &plan.postgres {
        Some(url) => format!("[vault]\nstore = \"postgres\"\nurl = {url:?}\n"),
        None => String::new(),
    };
    format!(
        "[server]\nlisten = \"127.0.0.1:{port}\"\ncalls_per_minute = 0\nconsent_wait = \"0s\"\n{vault}\
         [vault.key]\nsource = \"file\"\npath = \"vault.key\"\n\
         [providers.evil]\nclient_id = \"proof\"\nclient_secret = \"{}\"\norigin = \"{origin}\"\n\
         [tools]\ndirs = [\"tools\"]\nenable = [\"Evil.*\"]\n",
        client(slot)
    )
}

fn is_answered(result: &Value) -> bool {
    result["isError"] != true && result.get("content").is_some()
}

fn asks_for_consent(result: &Value) -> bool {
    result["_meta"].get("obo/authorization").is_some() || result.get("inputRequests").is_some()
}
