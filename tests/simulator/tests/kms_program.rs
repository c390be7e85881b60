//! `simulator-kms` as a process: its first line, its control interface, its end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests stop at the first surprise"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use simulator::authority::Authority;

/// The program, ended when the test ends.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(folder: &std::path::Path) -> (Program, Value) {
    let root = folder.join("root.pem");
    std::fs::write(&root, Authority::ephemeral().unwrap().root_pem()).unwrap();
    let principals = folder.join("principals.json");
    std::fs::write(
        &principals,
        r#"{"AKID": {"secret": "s", "arn": "arn:aws:iam::111122223333:role/R", "iam_allows": true}}"#,
    )
    .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulator-kms"));
    command.args(["--control", "127.0.0.1:0", "--region", "eu-west-1", "--state"]).arg(folder.join("state"));
    command.arg("--attestation-root").arg(&root).arg("--principals").arg(&principals).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Program(child), serde_json::from_str(&line).unwrap())
}

fn control(ready: &Value, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let address = ready["control"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
    let mut stream = TcpStream::connect(&address).unwrap();
    let body = body.to_string();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

#[test]
fn the_first_line_tells_where_it_serves_and_the_control_interface_obeys() {
    let folder = tempfile::tempdir().unwrap();
    let (mut program, ready) = start(folder.path());
    let port = ready["port"].as_u64().unwrap();
    assert_eq!(ready["url"], json!(format!("https://localhost:{port}")));
    assert!(std::fs::read_to_string(ready["ca"].as_str().unwrap()).unwrap().starts_with("-----BEGIN CERTIFICATE"));
    assert!(TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).is_ok());
    let fault = json!({"kind": {"lie": "other-key-id"}, "times": 3, "operation": "Decrypt"});
    assert_eq!(control(&ready, "POST", "/faults", &fault), (200, json!({})));
    assert_eq!(control(&ready, "POST", "/faults", &json!({"kind": {"delay": {"millis": 5}}})), (200, json!({})));
    let (_, pending) = control(&ready, "GET", "/faults", &Value::Null);
    assert_eq!((pending[0].clone(), pending[1]["times"].clone()), (fault, json!(1)));
    assert_eq!(control(&ready, "DELETE", "/faults", &Value::Null).0, 200);
    assert_eq!(control(&ready, "GET", "/faults", &Value::Null).1, json!([]));
    assert_eq!(control(&ready, "PUT", "/layout", &json!("primitive")).0, 200);
    assert_eq!(control(&ready, "PUT", "/attestation-clock-ahead", &json!(301)).0, 200);
    assert_eq!(
        control(
            &ready,
            "PUT",
            "/principals",
            &json!({"B": {"secret": "s", "arn": "arn:aws:iam::111122223333:user/u"}})
        )
        .0,
        200
    );
    assert_eq!(control(&ready, "GET", "/journal", &Value::Null).1, json!([]));
    assert_eq!(control(&ready, "GET", "/keys", &Value::Null).1, json!([]));
    for (method, path, body, status) in [
        ("POST", "/faults", json!({"kind": "nonsense"}), 400),
        ("POST", "/faults", json!({"kind": "throttle", "time": 3}), 400),
        ("PUT", "/principals", json!({"B": {}}), 400),
        ("GET", "/nonsense", Value::Null, 404),
    ] {
        assert_eq!(control(&ready, method, path, &body).0, status, "{method} {path}");
    }
    // SIGTERM, to this process alone.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(program.0.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(program.0.wait().unwrap().success());
}
