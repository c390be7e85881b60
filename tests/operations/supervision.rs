//! `deploy/run-enclave.sh`, with a fake `nitro-cli`: the real one runs on EC2 alone. So this shows what the script does
//! with what `nitro-cli` says, and nothing about `nitro-cli`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tests::programs::project;

/// The fake, and a folder for what it does.
struct Instance {
    folder: TempDir,
}

/// How the script went.
struct Ended {
    code: i32,
    said: String,
    after: Duration,
}

struct Running {
    child: Child,
    since: Instant,
}

impl Instance {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::copy(project().join("tests/operations/nitro-cli.sh"), folder.path().join("bin/nitro-cli")).unwrap();
        fs::write(folder.path().join("image.eif"), [0; 1000]).unwrap();
        fs::create_dir(folder.path().join("run")).unwrap();
        Self { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn switch(&self, name: &str) {
        fs::write(self.at(name), "").unwrap();
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.at("calls")).unwrap_or_default()
    }

    fn starts(&self) -> usize {
        self.calls().lines().filter(|line| line.starts_with("run-enclave")).count()
    }

    fn command(&self) -> Command {
        let path = format!("{}:{}", self.at("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.arg(project().join("deploy/run-enclave.sh")).env_clear().env("PATH", path);
        command
            .env("FAKE", self.folder.path())
            .env("EIF", self.at("image.eif"))
            .env("MEMORY", "512")
            .env("POLL", "0.1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(self.at("said")).unwrap());
        command
    }

    fn start(command: &mut Command) -> Running {
        Running { since: Instant::now(), child: command.spawn().unwrap() }
    }

    fn run(&self, settings: &[(&str, &str)]) -> Ended {
        let mut command = self.command();
        self.ended(Self::start(command.envs(settings.iter().copied())))
    }

    fn ended(&self, mut running: Running) -> Ended {
        let status = loop {
            if let Some(status) = running.child.try_wait().unwrap() {
                break status;
            }
            if running.since.elapsed() > LIMIT {
                let _ = running.child.kill();
                panic!("the script does not end:\n{}", self.said());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Ended { code: status.code().unwrap_or(-1), said: self.said(), after: running.since.elapsed() }
    }

    fn said(&self) -> String {
        let mut said = String::new();
        fs::File::open(self.at("said")).unwrap().read_to_string(&mut said).unwrap();
        said
    }

    fn wait(&self, what: &str, ready: impl Fn() -> bool) {
        let since = Instant::now();
        while !ready() {
            assert!(since.elapsed() < LIMIT, "{what}: never\n{}\n{}", self.calls(), self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn looks(&self) -> usize {
        self.calls().lines().filter(|line| line.starts_with("describe-enclaves")).count()
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

fn has(path: &Path) -> bool {
    path.exists()
}

#[test]
fn an_enclave_is_started_with_its_settings_and_terminated_when_told_to_stop() {
    let instance = Instance::new();
    let running = Instance::start(instance.command().env("CPUS", "4").env("CID", "20"));
    instance.wait("several looks", || instance.looks() >= 4);
    running.signal(Signal::SIGTERM);
    let ended = instance.ended(running);
    assert_eq!(ended.code, 0, "{}", ended.said);
    let eif = instance.at("image.eif");
    let start = format!("run-enclave --eif-path {} --memory 512 --cpu-count 4 --enclave-cid 20", eif.display());
    assert!(instance.calls().lines().any(|line| line == start), "{}", instance.calls());
    assert!(instance.calls().contains("terminate-enclave --enclave-id i-0a2b9faf0dffc7c02-enc19ca3b4e461afb1"));
    assert!(!has(&instance.at("enclave")));
}

#[test]
fn an_enclave_that_ends_by_itself_ends_its_supervisor_with_an_error() {
    let instance = Instance::new();
    let running = Instance::start(&mut instance.command());
    instance.wait("a look", || instance.looks() >= 2);
    fs::remove_file(instance.at("enclave")).unwrap();
    let ended = instance.ended(running);
    assert_eq!(ended.code, 1, "{}", ended.said);
    assert!(ended.said.contains("enc19ca3b4e461afb1 has ended"), "{}", ended.said);
}

#[test]
fn an_enclave_in_another_state_than_running_is_terminated() {
    let instance = Instance::new();
    fs::write(instance.at("state"), "TERMINATING").unwrap();
    let ended = instance.run(&[]);
    assert_eq!(ended.code, 1, "{}", ended.said);
    assert!(ended.said.contains("is TERMINATING") && !has(&instance.at("enclave")), "{}", ended.said);
}

#[test]
fn a_stop_while_the_enclave_starts_leaves_none_behind() {
    let instance = Instance::new();
    instance.switch("slow");
    let running = Instance::start(&mut instance.command());
    instance.wait("the start", || instance.starts() == 1);
    running.signal(Signal::SIGTERM);
    let ended = instance.ended(running);
    assert_eq!(ended.code, 0, "{}", ended.said);
    assert!(instance.calls().contains("terminate-enclave") && !has(&instance.at("enclave")), "{}", instance.calls());
}

#[test]
fn the_console_is_read_in_debug_mode_alone_and_loudly() {
    let instance = Instance::new();
    let running = Instance::start(instance.command().env("DEBUG", "1"));
    instance.wait("the console", || instance.said().contains("console of i-0a2b"));
    running.signal(Signal::SIGTERM);
    let ended = instance.ended(running);
    assert_eq!(ended.code, 0, "{}", ended.said);
    assert!(instance.calls().contains("--debug-mode"));
    assert!(ended.said.lines().filter(|line| line.starts_with("<1>") && line.contains("DEBUG MODE")).count() >= 2);

    for quiet in ["", "0"] {
        let instance = Instance::new();
        let running = Instance::start(instance.command().env("DEBUG", quiet));
        instance.wait("several looks", || instance.looks() >= 3);
        running.signal(Signal::SIGTERM);
        let ended = instance.ended(running);
        assert!(!instance.calls().contains("console") && !instance.calls().contains("--debug-mode"));
        assert!(!ended.said.contains("DEBUG MODE"), "{}", ended.said);
    }
}

#[test]
fn an_enclave_left_over_under_the_same_cid_is_terminated_first() {
    let instance = Instance::new();
    fs::write(instance.at("enclave"), "16\n").unwrap();
    let running = Instance::start(&mut instance.command());
    instance.wait("the start", || instance.starts() == 1 && instance.looks() >= 2);
    let calls = instance.calls();
    let (before, _) = calls.split_once("run-enclave").unwrap();
    assert!(before.contains("terminate-enclave"), "{calls}");
    running.signal(Signal::SIGTERM);
    assert_eq!(instance.ended(running).code, 0);
}

#[test]
fn an_enclave_that_cannot_be_looked_at_is_not_left_running() {
    let instance = Instance::new();
    let running = Instance::start(&mut instance.command());
    instance.wait("a look", || instance.looks() >= 2);
    instance.switch("broken");
    let ended = instance.ended(running);
    assert_eq!(ended.code, 1, "{}", ended.said);
    assert!(ended.said.contains("3 of 3") && !has(&instance.at("enclave")), "{}", ended.said);
}

#[test]
fn a_start_that_fails_is_an_error_with_nitro_clis_own_words() {
    for (switch, words) in [("refuse", "[ E39 ]"), ("silent", "said no EnclaveID")] {
        let instance = Instance::new();
        instance.switch(switch);
        let ended = instance.run(&[]);
        assert_eq!(ended.code, 1, "{}", ended.said);
        assert!(ended.said.contains(words), "{}", ended.said);
    }
}

#[test]
fn each_early_end_makes_the_next_start_wait_longer() {
    let instance = Instance::new();
    instance.switch("refuse");
    let run = instance.at("run").display().to_string();
    let settings = [("RUNTIME_DIRECTORY", run.as_str())];
    let first = instance.run(&settings);
    assert!(first.after < Duration::from_secs(2), "{:?}", first.after);
    let second = instance.run(&settings);
    assert!(second.after >= Duration::from_secs(2) && second.said.contains("waiting 2 s"), "{}", second.said);
    assert_eq!(fs::read_to_string(instance.at("run/failures")).unwrap(), "2\n");

    // A stop does not wait for the wait.
    fs::write(instance.at("run/failures"), "9000\n").unwrap();
    let running = Instance::start(instance.command().env("RUNTIME_DIRECTORY", &run));
    instance.wait("the wait", || instance.said().contains("waiting 300 s"));
    let starts = instance.starts();
    running.signal(Signal::SIGTERM);
    let ended = instance.ended(running);
    assert_eq!((ended.code, instance.starts()), (0, starts), "{}", ended.said);
    assert!(!has(&instance.at("run/failures")), "who stops it begins anew");
}

#[test]
fn wrong_settings_are_named_and_nothing_is_started() {
    let instance = Instance::new();
    for (name, value, words) in [
        ("MEMORY", "", "MEMORY should be a whole number"),
        ("MEMORY", "0512", "MEMORY should be a whole number"),
        ("CPUS", "two", "CPUS should be a whole number"),
        ("CID", "3", "CID: 3 belongs to the machine"),
        ("POLL", "often", "POLL should be a number of seconds"),
        ("EIF", "", "EIF is not set"),
        ("EIF", "/nowhere.eif", "cannot be read"),
    ] {
        let ended = instance.run(&[(name, value)]);
        assert_eq!(ended.code, 2, "{name}={value}: {}", ended.said);
        assert!(ended.said.contains(words), "{name}={value}: {}", ended.said);
    }
    fs::write(instance.at("image.eif"), vec![0; 200 << 20]).unwrap();
    let ended = instance.run(&[]);
    assert!(ended.code == 2 && ended.said.contains("4 times the image: 800"), "{}", ended.said);
    assert_eq!(instance.starts(), 0);
}

#[test]
fn without_nitro_cli_it_is_said_where_to_get_it() {
    let instance = Instance::new();
    fs::remove_file(instance.at("bin/nitro-cli")).unwrap();
    let made = Command::new("make")
        .args(["--no-print-directory", "run-enclave", "MEMORY=512"])
        .current_dir(project())
        .env("PATH", format!("{}:/usr/bin:/bin", instance.at("bin").display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(!made.status.success() && said.contains("dnf install aws-nitro-enclaves-cli"), "{said}");
}

const LIMIT: Duration = Duration::from_secs(30);
