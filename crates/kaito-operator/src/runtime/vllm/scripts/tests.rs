//! The scripts, run by bash against servers of the test's own.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
};

use super::*;

/// A server whose answer to every request can be changed; `None` closes the connection.
struct Fake {
    port: u16,
    answer: Arc<Mutex<Option<&'static str>>>,
}

const WELL: &str = "HTTP/1.1 200 OK\r\n\r\n{\"status\":\"Healthy\"}";
const LOADS: &str = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"detail\":\"The model is loading: 7 %.\"}";
const HANGS: &str = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"detail\":\"The engine is stuck: no progress for 75 s, with \
                     3 sequences running and 2 requests waiting.\"}";
const DRAINING: &str = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"detail\":\"The server is shutting down.\"}";

impl Fake {
    fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fake = Self { port: listener.local_addr().unwrap().port(), answer: Arc::new(Mutex::new(Some(answer))) };
        let answer = Arc::clone(&fake.answer);
        thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let Some(answer) = *answer.lock().unwrap() else { continue };
                // A request has arrived when its head has ended.
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && connection.read(&mut byte).is_ok_and(|read| read > 0) {
                    head.push(byte[0]);
                }
                let _ = connection.write_all(answer.as_bytes());
            }
        });
        fake
    }

    fn answers(&self, answer: impl Into<Option<&'static str>>) {
        *self.answer.lock().unwrap() = answer.into();
    }
}

fn ranks() -> Ranks {
    // An address that every system knows the name of.
    Ranks { pods: 2, master: "127.0.0.1".to_owned() }
}

/// Runs a script that means these ports, for the pod of this number.
fn run(script: &str, (engine, server, first): (u16, u16, u16), file: &str, pod: &str) -> Output {
    let script = script
        .replace(&format!(" {ENGINE_PORT} "), &format!(" {engine} "))
        .replace(&format!(" {PORT} "), &format!(" {server} "))
        .replace(&format!(" {RANK_PORT} "), &format!(" {first} "))
        .replace(&format!("{RANK_PORT:04X}"), &format!("{first:04X}"))
        .replace(MASTER, file)
        .replace("sleep 2", "sleep 0");
    Command::new("bash").args(["-c", &script]).env("POD_INDEX", pod).output().unwrap()
}

fn passes(script: &str, ports: (u16, u16, u16), file: &str, pod: &str) -> bool {
    run(script, ports, file, pod).status.success()
}

/// A port on which nobody listens. One that the system gave would be given to another test next.
const NOBODY: u16 = 1;

/// They are looked for in what another crate says.
#[test]
fn the_words_that_are_looked_for_are_the_servers() {
    let server = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../kaito-server/src");
    for (file, words) in [("health.rs", STUCK), ("state.rs", DRAINS)] {
        assert!(std::fs::read_to_string(server.join(file)).unwrap().contains(words), "{file}: {words}");
    }
    assert!(HANGS.contains(STUCK) && DRAINING.contains(DRAINS));
}

#[test]
fn an_engine_goes_on_while_it_answers_and_is_not_stuck() {
    let (engine, server) = (Fake::start(WELL), Fake::start(WELL));
    let ports = (engine.port, server.port, NOBODY);
    let ranks = ranks();
    for ranks in [None, Some(&ranks)] {
        let alive = |ports| passes(&alive(ranks), ports, "/no/such/file", "0");
        for (at_engine, at_server, expected) in [
            (WELL, WELL, true),
            (WELL, LOADS, true),
            (WELL, DRAINING, true),
            (WELL, HANGS, false),
            (LOADS, WELL, false),
            (LOADS, HANGS, false),
        ] {
            engine.answers(at_engine);
            server.answers(at_server);
            assert_eq!(alive(ports), expected, "{at_engine} {at_server}");
        }
        engine.answers(WELL);
        assert!(alive((engine.port, NOBODY, NOBODY)), "the server restarts");
        assert!(!alive((NOBODY, server.port, NOBODY)), "the engine is away");
        engine.answers(None);
        assert!(!alive(ports), "the engine says nothing");
    }
}

#[test]
fn the_first_rank_is_ready_when_the_model_answers() {
    let server = Fake::start(LOADS);
    let ready = |port| passes(&ready(&ranks()), (NOBODY, port, NOBODY), "/no/such/file", "0");
    assert!(!ready(server.port));
    server.answers(WELL);
    assert!(ready(server.port));
    assert!(!ready(NOBODY));
}

#[test]
fn another_rank_goes_on_for_as_long_as_it_holds_its_connection_to_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("master");
    let path = file.to_str().unwrap();
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = first.local_addr().unwrap().port();
    let ranks = ranks();
    let scripts = [alive(Some(&ranks)), ready(&ranks)];
    let said = |script: &str, port| {
        let output = run(script, (NOBODY, NOBODY, port), path, "1");
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let expect = |port, fit: bool, words: &str| {
        for script in &scripts {
            let (passes, text) = said(script, port);
            assert!(passes == fit && text.contains(words), "{words}: {passes} {text}");
        }
    };
    expect(port, false, "");
    std::fs::write(&file, "127.0.0.1\n").unwrap();
    expect(port, false, "the first rank is another one now");
    let held = TcpStream::connect(first.local_addr().unwrap()).unwrap();
    // Before it in the queue are those of the probes above.
    let taken = loop {
        let (taken, from) = first.accept().unwrap();
        if from == held.local_addr().unwrap() {
            break taken;
        }
    };
    expect(port, true, "");
    // The first one's process ends, and another one listens there at once.
    drop(taken);
    expect(port, false, "the first rank is another one now");
    drop(held);
    expect(NOBODY, false, "the first rank cannot be reached");
    std::fs::write(&file, "127.0.0.9\n").unwrap();
    expect(port, false, "the first rank has moved to 127.0.0.1");
}

#[test]
fn an_engine_ends_after_the_last_answer_of_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("master");
    std::fs::write(&file, "127.0.0.1\n").unwrap();
    let path = file.to_str().unwrap().to_owned();
    let ranks = ranks();
    for (script, pod) in [(drained(None), "0"), (drained(Some(&ranks)), "0"), (drained(Some(&ranks)), "1")] {
        let server = Fake::start(DRAINING);
        let (port, at) = (server.port, path.clone());
        let waits = thread::spawn(move || run(&script, (NOBODY, port, NOBODY), &at, pod));
        thread::sleep(std::time::Duration::from_millis(1500));
        assert!(!waits.is_finished(), "pod {pod} ends while the server drains");
        server.answers(None);
        waits.join().unwrap();
    }
    // An engine that is restarted alone does not wait.
    for answer in [WELL, LOADS, HANGS] {
        let server = Fake::start(answer);
        run(&drained(None), (NOBODY, server.port, NOBODY), &path, "0");
    }
}

#[test]
fn the_first_rank_has_the_api_and_the_others_are_headless() {
    let folder = tempfile::tempdir().unwrap();
    let (file, program) = (folder.path().join("master"), folder.path().join("vllm"));
    std::fs::write(&program, "#!/bin/sh\necho \"$@\"\n").unwrap();
    let mut permissions = std::fs::metadata(&program).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    std::fs::set_permissions(&program, permissions).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let started = |pod: &str| {
        let script = start(&ranks()).replace(MASTER, file.to_str().unwrap());
        let arguments = ["-c", &script, "vllm", "serve", "/w", "--node-rank", pod];
        let output = Command::new("bash").args(arguments).env("POD_INDEX", pod).env("PATH", &path).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(started("0"), "serve /w --node-rank 0 --host 127.0.0.1 --port 8000\n");
    assert!(!file.exists());
    assert_eq!(started("1"), "serve /w --node-rank 1 --headless\n");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "127.0.0.1\n");
}
