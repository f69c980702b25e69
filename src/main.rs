//! The `obo` program: arguments, logs, and the exit code.

use std::process::ExitCode;

use clap::Parser as _;
use obo::cli::Cli;

/// glibc's gives nothing back after a burst; see docs/decisions/0008.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    keep_secrets_out_of_crashes();
    allow_many_connections();
    let cli = Cli::parse();
    cli.start_logs();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("obo: cannot start: {error}");
            return ExitCode::from(1);
        }
    };
    let result = runtime.block_on(cli.run());
    // A keyring call that hangs, or a read of stdin, must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            if !exit.text().is_empty() {
                eprintln!("obo: {}", exit.text());
            }
            ExitCode::from(exit.code())
        }
    }
}

/// A panic's message may quote data, and a core dump is all of it: panics say where they happened and nothing else, and
/// on Unix no core is written (T17).
fn keep_secrets_out_of_crashes() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        eprintln!("obo: a defect at {place}; please report it");
    }));
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, setrlimit};
        // Where it is refused there is nothing better to do.
        let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        // Other processes of the same user cannot attach or read this one's memory either.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

/// Systems let a process have some hundred connections unless it asks for more; a server holds thousands.
fn allow_many_connections() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let wanted = maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES));
        if current.is_some_and(|current| current < wanted) {
            // Where it is refused, connections that are too many wait, as they do beyond any limit.
            let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
        }
    }
}

/// How many files and connections may be open: those of the server, as many to providers, and some.
#[cfg(unix)]
const OPEN_FILES: u64 = 20_000;

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// In the environment of the test that runs itself once more, to panic there.
    const PANICS: &str = "OBO_TEST_PANICS";

    #[test]
    fn t17_a_panic_says_where_and_nothing_else() {
        let secret = "ya29.c4nary";
        if std::env::var_os(PANICS).is_some() {
            super::keep_secrets_out_of_crashes();
            panic!("the token was {secret}");
        }
        let name = "tests::t17_a_panic_says_where_and_nothing_else";
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", name, "--nocapture"]).env(PANICS, "1").env("RUST_BACKTRACE", "full");
        let output = again.output().unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(said.contains("obo: a defect at src") && said.contains("main.rs:"), "{said}");
        assert!(!said.contains("c4nary") && !said.contains("the token was"), "{said}");
    }
}
