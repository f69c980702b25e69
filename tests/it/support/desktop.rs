//! A desktop session without a desktop: a message bus of its own, and gnome-keyring on it in the mood that a test wants.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// Set where these tests must not be skipped.
const REQUIRED: &str = "OBO_TEST_OS_KEYRING";

/// The programs of Debian's packages `dbus`, `gnome-keyring` and `libsecret-tools`.
const PROGRAMS: [&str; 4] = ["dbus-run-session", "dbus-send", "gnome-keyring-daemon", "secret-tool"];

/// How the keyring is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Unlocked with the password of [`PASSWORD`], as at a login.
    Unlocked,
    /// Started when it is first asked for, and unlocked by nobody.
    Locked,
    /// Unlocking was tried with another password.
    WrongPassword,
    /// There is a bus, and no keyring on it.
    NoService,
    /// There is no bus.
    NoBus,
    /// Something on the bus says that it is the keyring, and never answers.
    Hanging,
}

/// A question to the bus itself, but for its method.
const ASK_THE_BUS: [&str; 4] =
    ["--session", "--print-reply=literal", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus"];

const PASSWORD: &str = "correct horse";

/// A session. Its bus and what runs on it end when it is dropped or ended.
pub struct Desktop {
    home: PathBuf,
    bus: String,
    session: Option<(Child, ChildStdin)>,
    _stub: Option<UnixStream>,
}

/// Whether the programs are there. Says so where they are not; a failure where they must be.
pub fn is_here() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: &&str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let missing: Vec<_> = PROGRAMS.into_iter().filter(|program| !found(program)).collect();
    assert!(missing.is_empty() || std::env::var_os(REQUIRED).is_none(), "{missing:?} are not installed");
    if !missing.is_empty() {
        // Past the capture of the harness, so that nobody takes it for a test that passed.
        let _ = writeln!(std::io::stderr().lock(), "SKIPPED, the OS keyring was NOT tested: {missing:?} are missing");
    }
    missing.is_empty()
}

impl Desktop {
    /// Starts a session of somebody whose files are in `home`.
    pub async fn start(home: &Path, mood: Mood) -> Self {
        for folder in ["data", "run", "cache", "config"] {
            std::fs::create_dir_all(home.join(folder)).unwrap();
        }
        let run = home.join("run");
        std::fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let mut desktop = Self { home: home.to_owned(), bus: String::new(), session: None, _stub: None };
        if mood == Mood::NoBus {
            return desktop;
        }
        let mut command = Command::new("dbus-run-session");
        if matches!(mood, Mood::NoService | Mood::Hanging) {
            // Nothing is started on demand.
            let file = home.join("bus.conf");
            std::fs::write(&file, BUS).unwrap();
            command.arg("--config-file").arg(file);
        }
        command.args(["--", "sh", "-c", "echo \"$DBUS_SESSION_BUS_ADDRESS\"; exec cat > /dev/null"]);
        desktop.at_home(&mut command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        desktop.bus = lines.next_line().await.unwrap().expect("the bus did not start");
        desktop.session = child.stdin.take().map(|stdin| (child, stdin));
        match mood {
            Mood::Unlocked => desktop.unlock(PASSWORD).await,
            Mood::WrongPassword => desktop.unlock("another").await,
            Mood::Hanging => desktop._stub = Some(own_and_say_nothing(&desktop.bus)),
            Mood::Locked | Mood::NoService | Mood::NoBus => {}
        }
        desktop
    }

    /// Starts the keyring as a login does.
    pub async fn login(&self) {
        self.unlock(PASSWORD).await;
    }

    async fn unlock(&self, password: &str) {
        let mut command = Command::new("gnome-keyring-daemon");
        self.inside(command.args(["--unlock", "--components=secrets"]));
        // The daemon goes on by itself; what it holds open would keep us waiting.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(password.as_bytes()).await.unwrap();
        child.wait().await.unwrap();
        self.until_there_is_a_keyring(true).await;
    }

    /// Ends the session.
    pub async fn end(mut self) {
        if let Some((mut child, stdin)) = self.session.take() {
            drop(stdin);
            child.wait().await.unwrap();
        }
    }

    /// Ends the keyring, and leaves the bus.
    pub async fn end_keyring(&self) {
        let mut command = Command::new("dbus-send");
        let method = "org.freedesktop.DBus.GetConnectionUnixProcessID";
        command.args(ASK_THE_BUS).args([method, "string:org.freedesktop.secrets"]);
        let output = self.inside(&mut command).output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let id = text.split_whitespace().last().unwrap_or_else(|| panic!("{text:?}")).parse().unwrap();
        let id = rustix::process::Pid::from_raw(id).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
        self.until_there_is_a_keyring(false).await;
    }

    /// The bus is asked until it says so: neither a start nor an end is known to it at once.
    async fn until_there_is_a_keyring(&self, wanted: bool) {
        loop {
            let mut command = Command::new("dbus-send");
            command.args(ASK_THE_BUS).args(["org.freedesktop.DBus.NameHasOwner", "string:org.freedesktop.secrets"]);
            let output = self.inside(&mut command).output().await.unwrap();
            assert!(output.status.success(), "{output:?}");
            if String::from_utf8(output.stdout).unwrap().contains("true") == wanted {
                return;
            }
        }
    }

    /// What a process of this session has in its environment.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let at = |folder: &str| self.home.join(folder).display().to_string();
        let mut environment = vec![
            ("HOME", self.home.display().to_string()),
            ("XDG_DATA_HOME", at("data")),
            ("XDG_RUNTIME_DIR", at("run")),
            ("XDG_CACHE_HOME", at("cache")),
            ("XDG_CONFIG_HOME", at("config")),
        ];
        if !self.bus.is_empty() {
            environment.push(("DBUS_SESSION_BUS_ADDRESS", self.bus.clone()));
        }
        environment
    }

    fn at_home(&self, command: &mut Command) {
        command.env_remove("DBUS_SESSION_BUS_ADDRESS").env_remove("DISPLAY").envs(self.environment());
    }

    /// Puts a command into the session.
    pub fn inside<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        self.at_home(command);
        command
    }

    /// The users of obo's entries, as another program sees them.
    pub async fn entries(&self) -> Vec<String> {
        let mut command = Command::new("secret-tool");
        let output = self.inside(command.args(["search", "--all", "service", "obo"])).output().await.unwrap();
        // It shows secrets on stdout and attributes on stderr: only the latter are read.
        let text = String::from_utf8(output.stderr).unwrap();
        let mut users: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("attribute.username = ")).map(str::to_owned).collect();
        users.sort_unstable();
        users
    }

    /// Removes an entry, as a person may with another program.
    pub async fn forget(&self, user: &str) {
        let mut command = Command::new("secret-tool");
        let status = self.inside(command.args(["clear", "service", "obo", "username", user])).status().await.unwrap();
        assert!(status.success());
    }
}

/// A session bus on which nothing is started on demand.
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:tmpdir=/tmp</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"#;

/// Takes the keyring's name on the bus (D-Bus specification, "Message Bus Messages"), and then does nothing. The name is
/// given up when the stream is dropped.
fn own_and_say_nothing(bus: &str) -> UnixStream {
    let path = bus.split(',').next().unwrap().strip_prefix("unix:path=").unwrap();
    let mut stream = UnixStream::connect(path).unwrap();
    let user = rustix::process::getuid().as_raw().to_string();
    let user: String = user.bytes().map(|byte| format!("{byte:02x}")).collect();
    stream.write_all(format!("\0AUTH EXTERNAL {user}\r\nBEGIN\r\n").as_bytes()).unwrap();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).unwrap();
    }
    stream.write_all(&method_call(1, "Hello", None)).unwrap();
    stream.write_all(&method_call(2, "RequestName", Some("org.freedesktop.secrets"))).unwrap();
    // The bus says NameAcquired with the name once it is ours.
    let (mut seen, mut buffer, name) = (Vec::new(), [0; 4096], b"org.freedesktop.secrets");
    while !seen.windows(name.len()).any(|window| window == name) {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the bus hung up");
        seen.extend_from_slice(&buffer[..read]);
    }
    stream
}

/// A call of the bus itself, in little endian.
fn method_call(serial: u32, member: &str, name: Option<&str>) -> Vec<u8> {
    let mut fields = Vec::new();
    let mut field = |code: u8, kind: u8, value: &str| {
        fields.resize(fields.len().next_multiple_of(8), 0);
        fields.extend([code, 1, kind, 0]);
        if kind == b'g' {
            fields.push(value.len() as u8);
        } else {
            fields.extend((value.len() as u32).to_le_bytes());
        }
        fields.extend(value.as_bytes());
        fields.push(0);
    };
    field(1, b'o', "/org/freedesktop/DBus");
    field(2, b's', "org.freedesktop.DBus");
    field(3, b's', member);
    field(6, b's', "org.freedesktop.DBus");
    let mut body = Vec::new();
    if let Some(name) = name {
        field(8, b'g', "su");
        body.extend((name.len() as u32).to_le_bytes());
        body.extend(name.as_bytes());
        body.push(0);
        body.resize(body.len().next_multiple_of(4), 0);
        // DBUS_NAME_FLAG_DO_NOT_QUEUE.
        body.extend(4u32.to_le_bytes());
    }
    let mut message = vec![b'l', 1, 0, 1];
    message.extend((body.len() as u32).to_le_bytes());
    message.extend(serial.to_le_bytes());
    message.extend((fields.len() as u32).to_le_bytes());
    message.extend(&fields);
    message.resize(message.len().next_multiple_of(8), 0);
    message.extend(body);
    message
}
