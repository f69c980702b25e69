//! A PostgreSQL of this test run's own: Debian's package, started in a folder that goes away.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Set where a run must not pass without a database: in `.ci/run`.
const REQUIRED: &str = "OBO_TEST_POSTGRES";

/// What a database of a test is called, and where it is.
pub struct Database {
    pub name: String,
    /// As obo's role, which is no superuser.
    pub url: String,
}

/// A new database for `name`, or the one that this run has made for it; none: there is no PostgreSQL here, which was said.
pub fn database(name: &str) -> Option<Database> {
    static MAKING: Mutex<()> = Mutex::new(());
    let server = server()?;
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let digest = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let name = format!("obo_{digest:016x}");
    let there = server.psql("postgres", &format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'"));
    if there.trim() == "0" {
        server.psql("postgres", &format!("CREATE DATABASE {name} OWNER obo"));
    }
    let port = server.port;
    Some(Database { url: format!("postgresql://obo:sesame@127.0.0.1:{port}/{name}"), name })
}

/// The same database through PgBouncer in transaction mode; none: there is no PgBouncer here, which was said.
pub fn pooled(database: &Database) -> Option<String> {
    static POOLER: OnceLock<Option<u16>> = OnceLock::new();
    let port = (*POOLER.get_or_init(start_pooler))?;
    Some(format!("postgresql://obo:sesame@127.0.0.1:{port}/{}", database.name))
}

fn start_pooler() -> Option<u16> {
    let server = server()?;
    let Some(program) = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].map(Path::new).into_iter().find(|p| p.exists())
    else {
        assert!(std::env::var_os(REQUIRED).is_none(), "there is no PgBouncer; install Debian's package pgbouncer");
        eprintln!("SKIPPED: there is no PgBouncer here, so the store \"postgres\" was not tested behind it");
        return None;
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = folder();
    let users = folder.join("users.txt");
    std::fs::write(&users, "\"obo\" \"sesame\"\n").unwrap();
    let settings = folder.join("pgbouncer.ini");
    // Few connections, so that transactions of one client run on several of them.
    let text = format!(
        "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = plain\nauth_file = {}\npool_mode = transaction\ndefault_pool_size = 4\n\
         max_client_conn = 500\n",
        server.port,
        users.display()
    );
    std::fs::write(&settings, text).unwrap();
    let mut pooler = as_postgres(program);
    pooler.arg(&settings).stderr(Stdio::null());
    run_until_the_end(pooler);
    wait_for(port);
    Some(port)
}

/// Runs SQL as the superuser.
pub fn sql(database: &Database, sql: &str) -> String {
    server().unwrap().psql(&database.name, sql)
}

struct Server {
    programs: PathBuf,
    port: u16,
}

impl Server {
    fn is_ready(&self) -> bool {
        let port = self.port.to_string();
        let asked =
            Command::new(self.programs.join("pg_isready")).args(["-q", "-h", "127.0.0.1", "-p", &port]).status();
        asked.unwrap().success()
    }

    fn psql(&self, database: &str, sql: &str) -> String {
        let port = self.port.to_string();
        let output = Command::new(self.programs.join("psql"))
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-d", database])
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn server() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    SERVER.get_or_init(start).as_ref()
}

fn start() -> Option<Server> {
    let Some(programs) = programs() else {
        assert!(std::env::var_os(REQUIRED).is_none(), "there is no PostgreSQL; install Debian's package postgresql");
        eprintln!("SKIPPED: there is no PostgreSQL here, so nothing of the store \"postgres\" was tested");
        return None;
    };
    let base = std::env::temp_dir();
    remove_what_earlier_runs_left(&base);
    let folder = folder();
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    if is_root() {
        // It refuses to run as root.
        assert!(Command::new("chown").arg("postgres:").arg(&folder).status().unwrap().success());
    }
    let data = folder.join("data");
    let made = as_postgres(&programs.join("initdb"))
        .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
        .arg(&data)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = as_postgres(&programs.join("postgres"));
    server.arg("-D").arg(&data).args(["-p", &port.to_string()]);
    for setting in [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "max_connections=500",
        "shared_buffers=32MB",
        // Nothing here needs to outlive the machine; what must outlive the server still does.
        "fsync=off",
        "logging_collector=off",
    ] {
        server.args(["-c", setting]);
    }
    let log = std::fs::File::create(base.join(format!("obo-test-postgres-{}.log", std::process::id()))).unwrap();
    server.stderr(log);
    run_until_the_end(server);
    wait_for(port);
    let server = Server { programs, port };
    // It listens before it answers.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !server.is_ready() {
        assert!(Instant::now() < deadline, "PostgreSQL did not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    server.psql("postgres", "CREATE ROLE obo LOGIN PASSWORD 'sesame'");
    Some(server)
}

/// Where this run keeps what is PostgreSQL's.
fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("obo-test-postgres-{}", std::process::id()))
}

fn is_root() -> bool {
    whoami::username().is_ok_and(|name| name == "root")
}

/// A program that refuses to run as root, and ends with this process, however that ends.
fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.args(["--pdeathsig=INT", "--"]).arg(program).current_dir(folder());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// The signal is sent when the thread ends that started the program: this one ends with the process.
fn run_until_the_end(mut command: Command) {
    std::thread::spawn(move || {
        let mut child = command.spawn().unwrap();
        let _ = child.wait();
        std::thread::park();
    });
}

fn wait_for(port: u16) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "nothing listens at port {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where the server's programs are: Debian does not put them on the path.
fn programs() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    versions.retain(|folder| folder.join("initdb").exists());
    versions.sort();
    versions.pop()
}

fn remove_what_earlier_runs_left(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix("obo-test-postgres-") else { continue };
        let pid = rest.trim_end_matches(".log");
        if !Path::new("/proc").join(pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
