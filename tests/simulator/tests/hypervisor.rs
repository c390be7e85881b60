//! The simulated hypervisor runs exactly what it measured. This program is also the enclave that it starts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "tests"
)]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use attestation::Document;
use attestation::measurement::{h48, h48_of_parts};
use attestation::nsm::{ClientNonce, DocumentRequest, Nsm};
use libtest_mimic::{Arguments, Trial};
use simulator::authority::Authority;
use simulator::hypervisor::{Console, Enclave, EnclaveSpec, HypervisorError, Inside, start};

fn main() -> ExitCode {
    if env::args_os().any(|argument| argument == "--power-fd") {
        return enclave();
    }
    let trial = |name: &str, claim: fn()| {
        Trial::test(name, move || {
            claim();
            Ok(())
        })
    };
    let trials = vec![
        trial(
            "the_documents_show_what_was_measured_before_the_start",
            the_documents_show_what_was_measured_before_the_start,
        ),
        trial(
            "a_program_with_one_byte_changed_has_other_measurements",
            a_program_with_one_byte_changed_has_other_measurements,
        ),
        trial("a_file_changed_after_the_start_changes_nothing", a_file_changed_after_the_start_changes_nothing),
        trial("debug_mode_is_the_hypervisors_switch", debug_mode_is_the_hypervisors_switch),
        trial(
            "an_enclave_gets_no_environment_and_no_other_descriptor",
            an_enclave_gets_no_environment_and_no_other_descriptor,
        ),
        trial("an_enclave_ends_with_its_hypervisor", an_enclave_ends_with_its_hypervisor),
        trial("killing_and_waiting_work_from_any_thread", killing_and_waiting_work_from_any_thread),
        trial("a_script_is_not_started", a_script_is_not_started),
        trial("the_command_prints_one_line_and_kills_on_sigterm", the_command_prints_one_line_and_kills_on_sigterm),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The enclave: tells on its console what it finds, and stays until it is killed, unless its image says otherwise.
fn enclave() -> ExitCode {
    let environment = env::vars_os().count();
    let descriptors: Vec<String> =
        fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let inside = Inside::enter(env::args_os()).unwrap();
    let nonce = ClientNonce::new(&[5; 16]).unwrap();
    let request = DocumentRequest::for_client(nonce, &attestation::keyset::Digest::of(&inside.image_configuration));
    println!("environment {environment}");
    println!("descriptors {}", descriptors.join(" "));
    println!("vsock {}", inside.vsock.display());
    println!("document {}", hex::encode(inside.nsm.document(&request).unwrap()));
    if inside.image_configuration == b"end" {
        return ExitCode::from(7);
    }
    loop {
        thread::park();
    }
}

struct Stage {
    folder: tempfile::TempDir,
    spec: EnclaveSpec,
    authority: Arc<Authority>,
}

fn stage(configuration: &[u8]) -> Stage {
    let folder = tempfile::tempdir().unwrap();
    let (program, image) = (folder.path().join("program"), folder.path().join("image.toml"));
    fs::copy(env::current_exe().unwrap(), &program).unwrap();
    fs::write(&image, configuration).unwrap();
    let spec = EnclaveSpec { console: Console::Pipe, ..EnclaveSpec::new(program, image, folder.path().join("vsock")) };
    Stage { folder, spec, authority: Arc::new(Authority::ephemeral().unwrap()) }
}

fn lines(enclave: &mut Enclave) -> impl Iterator<Item = (String, String)> {
    let console = BufReader::new(enclave.take_console().unwrap());
    console.lines().map(|line| {
        let line = line.unwrap();
        let (name, value) = line.split_once(' ').unwrap();
        (name.to_owned(), value.to_owned())
    })
}

fn document(enclave: &mut Enclave) -> Document {
    let (_, hex) = lines(enclave).find(|(name, _)| name == "document").unwrap();
    Document::parse(&hex::decode(hex).unwrap()).unwrap()
}

fn the_documents_show_what_was_measured_before_the_start() {
    let stage = stage(b"release = 1");
    let program = fs::read(&stage.spec.program).unwrap();
    let mut enclave = start(Arc::clone(&stage.authority), &stage.spec).unwrap();
    let document = document(&mut enclave);
    let pcrs = document.pcrs();
    assert_eq!(pcrs[&0], h48_of_parts(&[&program, b"release = 1"]));
    assert_eq!((pcrs[&1], pcrs[&2]), (h48(&program), h48(b"release = 1")));
    assert_eq!(document.module_id(), enclave.module_id());
    assert_eq!(enclave.registers().pcr0, pcrs[&0]);
    // What the program read as the file of its image is what was measured.
    assert_eq!(document.user_data().unwrap(), attestation::keyset::Digest::of(b"release = 1").as_bytes());
}

fn a_program_with_one_byte_changed_has_other_measurements() {
    let stage = stage(b"");
    let before = document(&mut start(Arc::clone(&stage.authority), &stage.spec).unwrap());
    let mut program = fs::read(&stage.spec.program).unwrap();
    // A byte that is printed: read-only data, so that the changed program runs all the same.
    let at = program.windows(12).position(|window| window == b"environment ").unwrap();
    program[at] ^= 0x20;
    fs::write(&stage.spec.program, program).unwrap();
    let after = document(&mut start(Arc::clone(&stage.authority), &stage.spec).unwrap());
    assert_ne!(before.pcrs()[&0], after.pcrs()[&0]);
    assert_ne!(before.pcrs()[&1], after.pcrs()[&1]);
    assert_eq!(before.pcrs()[&2], after.pcrs()[&2]);
}

fn a_file_changed_after_the_start_changes_nothing() {
    let stage = stage(b"first");
    let mut enclave = start(Arc::clone(&stage.authority), &stage.spec).unwrap();
    // The program's file is not even busy: it does not run from there.
    fs::write(&stage.spec.program, b"overwritten").unwrap();
    fs::write(&stage.spec.image_configuration, b"second").unwrap();
    let document = document(&mut enclave);
    assert_eq!(document.user_data().unwrap(), attestation::keyset::Digest::of(b"first").as_bytes());
    let running = PathBuf::from(format!("/proc/{}/exe", enclave.pid()));
    assert!(fs::read_link(&running).unwrap().to_string_lossy().contains("memfd:enclave"));
    let error = fs::OpenOptions::new().write(true).open(running).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(1 | 13 | 26)), "the running bytes are sealed: {error}");
}

fn debug_mode_is_the_hypervisors_switch() {
    let mut stage = stage(b"");
    stage.spec.debug = true;
    let mut enclave = start(Arc::clone(&stage.authority), &stage.spec).unwrap();
    assert_eq!(enclave.registers().pcr0, [0; 48]);
    let document = document(&mut enclave);
    assert!(document.is_debug());
    assert_ne!(document.pcrs()[&4], [0; 48]);
}

fn an_enclave_gets_no_environment_and_no_other_descriptor() {
    let stage = stage(b"");
    let mut enclave = start(Arc::clone(&stage.authority), &stage.spec).unwrap();
    let found: Vec<(String, String)> = lines(&mut enclave).take(3).collect();
    assert_eq!(found[0], ("environment".to_owned(), "0".to_owned()));
    let mut descriptors: Vec<u32> = found[1].1.split(' ').map(|number| number.parse().unwrap()).collect();
    descriptors.sort_unstable();
    // 0 to 4, and the folder that is being listed.
    assert_eq!(descriptors[..5], [0, 1, 2, 3, 4]);
    assert!(descriptors.len() <= 6, "{descriptors:?}");
    assert_eq!(found[2].1, stage.folder.path().join("vsock").display().to_string());
}

fn an_enclave_ends_with_its_hypervisor() {
    let stage = stage(b"end");
    let enclave = start(Arc::clone(&stage.authority), &stage.spec).unwrap();
    assert_eq!(enclave.wait().unwrap().code(), Some(7));

    // A hypervisor that is killed cannot clean up after itself.
    let files = stage_files(b"");
    let mut hypervisor = command(&files, &[]).spawn().unwrap();
    let line = first_line(&mut hypervisor);
    let pid = line["pid"].as_u64().unwrap();
    hypervisor.kill().unwrap();
    hypervisor.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_running(pid) {
        assert!(Instant::now() < deadline, "the enclave outlives its hypervisor");
        thread::sleep(Duration::from_millis(10));
    }
}

fn killing_and_waiting_work_from_any_thread() {
    let stage = stage(b"");
    let enclave = start(Arc::clone(&stage.authority), &stage.spec).unwrap();
    assert!(enclave.try_wait().unwrap().is_none());
    let waiters: Vec<_> = (0..4)
        .map(|_| {
            let process = enclave.process();
            thread::spawn(move || process.wait().unwrap())
        })
        .collect();
    enclave.kill().unwrap();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap().code(), None);
    }
    // A second time nothing is hit.
    enclave.kill().unwrap();
}

fn a_script_is_not_started() {
    let stage = stage(b"");
    fs::write(&stage.spec.program, "#!/bin/sh\n").unwrap();
    assert!(matches!(start(Arc::clone(&stage.authority), &stage.spec), Err(HypervisorError::Image(_))));
}

fn the_command_prints_one_line_and_kills_on_sigterm() {
    let stage = stage_files(b"release = 1");
    let mut hypervisor = command(&stage, &[]).spawn().unwrap();
    let line = first_line(&mut hypervisor);
    let measured = command(&stage, &["--measure-only"]).output().unwrap();
    let measured: serde_json::Value = serde_json::from_slice(&measured.stdout).unwrap();
    for register in ["pcr0", "pcr1", "pcr2"] {
        assert_eq!(line[register], measured[register]);
    }
    let pid = line["pid"].as_u64().unwrap();
    assert!(is_running(pid));
    let id = nix::unistd::Pid::from_raw(i32::try_from(hypervisor.id()).unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(hypervisor.wait().unwrap().code(), Some(137));
    assert!(!is_running(pid));
    assert!(stage.path().join("authority/root.pem").exists());
}

fn stage_files(configuration: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(env::current_exe().unwrap(), folder.path().join("program")).unwrap();
    fs::write(folder.path().join("image.toml"), configuration).unwrap();
    folder
}

fn command(stage: &tempfile::TempDir, more: &[&str]) -> Command {
    let path = |name: &str| stage.path().join(name);
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_simulator-hypervisor")));
    command.arg("--authority").arg(path("authority")).arg("--program").arg(path("program"));
    command.arg("--image").arg(path("image.toml")).arg("--vsock").arg(path("vsock"));
    command.arg("--console").arg(path("console")).arg("--json").args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn first_line(child: &mut std::process::Child) -> serde_json::Value {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

/// Running, and not only waiting to be reaped.
fn is_running(pid: u64) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X'])))
}
