//! `kaito chat` from outside: with a model of its own, through a pipe and at a terminal, and with a server.

use std::{
    convert::Infallible,
    fs::{self, File},
    io::{Read, Write},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use kaito_testing::{
    background::Background,
    files::{parity_model, tiny_model},
    process::{free_port, output_with_input, signal, text},
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::program::kaito;

#[test]
fn a_conversation_through_a_pipe() {
    let questions =
        "/system You are brief.\nWhat is Kaito?\n\n/nonsense\nAnd a workspace?\n/reset\n/help\n/quit\nnever read\n";
    let ask = || {
        let mut command = kaito(&["chat", "--temperature", "0", "--max-new-tokens", "20"]);
        let output = output_with_input(&mut command, questions);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("there is no command /nonsense"), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let answers = ask();
    let (spoken, help) = answers.split_at(answers.find("/reset  ").unwrap());
    assert_eq!(spoken.trim().lines().filter(|line| !line.trim().is_empty()).count(), 2, "{answers:?}");
    assert!(help.contains("/system TEXT"));
    assert_eq!(ask(), answers, "without randomness the answers are the same");
}

#[test]
fn a_model_without_a_chat_template_continues_lines() {
    let model = tiny_model();
    let args = ["chat", model.to_str().unwrap(), "--seed", "7", "--max-new-tokens", "5"];
    let first = output_with_input(&mut kaito(&args), "one\ntwo\n");
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert_eq!(first.stdout, output_with_input(&mut kaito(&args), "one\ntwo\n").stdout, "a seed fixes the answers");
}

/// `kaito chat` at a terminal.
struct AtTerminal {
    terminal: File,
    child: Child,
    /// What was written and not looked at yet.
    screen: String,
}

impl AtTerminal {
    /// The editor turns bracketed paste on when it begins to read a line, and off when it has one.
    const READING: &str = "\x1b[?2004h";
    const READ: &str = "\x1b[?2004l";

    fn start(mut command: Command) -> Self {
        let terminal = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&terminal).unwrap();
        rustix::pty::unlockpt(&terminal).unwrap();
        let name = rustix::pty::ptsname(&terminal, Vec::new()).unwrap();
        let side = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        command.env("TERM", "xterm").stdin(side.try_clone().unwrap()).stdout(side).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        Self { terminal: File::from(terminal), child, screen: String::new() }
    }

    fn wait_for(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.screen.find(text) {
                self.screen.drain(..at + text.len());
                return;
            }
            let read = self.terminal.read(&mut buffer).unwrap();
            self.screen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    }

    fn write(&mut self, line: &str) {
        self.terminal.write_all(format!("{line}\r").as_bytes()).unwrap();
        self.wait_for(Self::READ);
    }

    fn interrupt(&mut self) {
        signal(&self.child, Signal::INT);
        self.wait_for(Self::READING);
    }

    fn quit(mut self) -> Output {
        self.write("/quit");
        self.child.wait_with_output().unwrap()
    }
}

/// The line editor took Ctrl-C for itself, and in the moment before the first token it ended the program.
#[test]
fn an_interrupt_ends_the_answer_and_not_the_program() {
    // By the likeliest tokens this one goes on for two thousand.
    let model = parity_model("falcon-40b-type-bf16");
    let args = ["chat", model.to_str().unwrap(), "--max-new-tokens", "100000", "--temperature", "0"];
    let mut chat = AtTerminal::start(kaito(&args));
    chat.wait_for(AtTerminal::READING);
    for _ in 0..10 {
        chat.write("once upon a time");
        chat.interrupt();
    }
    let output = chat.quit();
    assert_eq!(output.status.code(), Some(0));
    // On a busy machine an answer may be over before the signal comes.
    let stopped = text(&output.stderr).matches("[stopped]").count();
    assert!(stopped >= 5, "{stopped} of 10: {}", text(&output.stderr));
}

/// The body of a request, and its key.
type Asked = (Value, Option<String>);

/// A server that speaks OpenAI's chat completions; the last message says how it answers.
struct Server {
    url: String,
    /// In the order in which they came.
    requests: Arc<Mutex<Vec<Asked>>>,
    /// Hears of each stream that its client left.
    left: mpsc::Receiver<()>,
    _background: Background,
}

/// Says that a stream is gone.
struct Left(mpsc::Sender<()>);

impl Drop for Left {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Server {
    fn start() -> Self {
        let requests = Arc::<Mutex<Vec<_>>>::default();
        let (sender, left) = mpsc::channel();
        let seen = Arc::clone(&requests);
        let complete = move |headers: HeaderMap, Json(body): Json<Value>| {
            let key = headers.get(header::AUTHORIZATION).map(|key| key.to_str().unwrap().to_owned());
            let answer = answer(&body, Left(sender.clone()));
            seen.lock().unwrap().push((body, key));
            async move { answer }
        };
        let models = || async { Json(json!({"object": "list", "data": [{"id": "first"}, {"id": "second"}]})) };
        let router = Router::new().route("/v1/chat/completions", post(complete)).route("/v1/models", get(models));
        let background = Background::new();
        let address = background.listen(|listener| async { axum::serve(listener, router).await });
        Self { url: format!("http://{address}"), requests, left, _background: background }
    }

    fn chat(&self, args: &[&str]) -> Command {
        kaito(&[&["chat", "--url", &self.url], args].concat())
    }

    fn bodies(&self) -> Vec<Value> {
        self.requests.lock().unwrap().iter().map(|(body, _)| body.clone()).collect()
    }
}

fn answer(body: &Value, left: Left) -> Response {
    let messages = body["messages"].as_array().unwrap();
    let refused = |status: u16, message: &str| {
        let error =
            json!({"error": {"message": message, "type": "invalid_request_error", "param": null, "code": null}});
        (StatusCode::from_u16(status).unwrap(), Json(error)).into_response()
    };
    let chunk = |delta: Value, reason: Option<&str>| {
        let choices = json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]);
        format!("data: {}\n\n", json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": choices}))
    };
    let role = chunk(json!({"role": "assistant", "content": ""}), None);
    let done = "data: [DONE]\n\n".to_owned();
    let (pieces, hangs) = match messages.last().unwrap()["content"].as_str().unwrap() {
        "wrong key" => return refused(401, "the API key is wrong"),
        "no such model" => return refused(404, "the model \"x\" does not exist; served are: first, second"),
        "too long" => return refused(400, "the prompt has 9000 tokens, but the context is 4096"),
        "busy" => return refused(429, "256 requests wait already"),
        "no stream" => return Json(json!({"choices": []})).into_response(),
        "fail" => {
            (vec![role, format!("data: {}\n\n", json!({"error": {"message": "the device failed"}})), done], false)
        }
        "cut" => (vec![role, chunk(json!({"content": "half of"}), None)], false),
        "hang" => (vec![role, chunk(json!({"content": "wait"}), None)], true),
        "long" => (vec![role, chunk(json!({"content": "so far"}), Some("length")), done], false),
        "control" => {
            (vec![chunk(json!({"content": "a\u{1b}[2Jb"}), None), chunk(json!({}), Some("stop")), done], false)
        }
        question => {
            let words = format!("You said: {question}");
            let words: Vec<String> =
                words.split_inclusive(' ').map(|word| chunk(json!({"content": word}), None)).collect();
            let usage = format!(": comment\n\ndata: {}\n\n", json!({"choices": [], "usage": {"total_tokens": 9}}));
            ([vec![role], words, vec![chunk(json!({}), Some("stop")), usage, done]].concat(), false)
        }
    };
    let mut pieces = pieces.into_iter();
    let stream = futures_util::stream::poll_fn(move |_| {
        let _held = &left;
        match pieces.next() {
            None if hangs => std::task::Poll::Pending,
            piece => std::task::Poll::Ready(piece.map(|piece| Ok::<_, Infallible>(Bytes::from(piece)))),
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response()
}

#[test]
fn a_conversation_with_a_server() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    fs::write(&file, "from-the-file\nsecond\n").unwrap();
    let mut command = server.chat(&["--system", "Be brief.", "--api-key-file", file.to_str().unwrap()]);
    let output = output_with_input(command.env("KAITO_API_KEY", "not-this"), "One\nTwo\n/reset\n/system\nThree\n");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "You said: One\nYou said: Two\nYou said: Three\n");
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    let asked = |messages: &[Value]| json!({"model": "first", "messages": messages, "stream": true});
    let system = said("system", "Be brief.");
    let first = [system.clone(), said("user", "One")];
    let second = [&first[..], &[said("assistant", "You said: One"), said("user", "Two")]].concat();
    assert_eq!(server.bodies(), [asked(&first), asked(&second), asked(&[said("user", "Three")])]);
    assert!(server.requests.lock().unwrap().iter().all(|(_, key)| key.as_deref() == Some("Bearer from-the-file")));
}

#[test]
fn flags_become_fields_of_requests_to_a_server() {
    let server = Server::start();
    let args = ["--model", "second", "--temperature", "0.6", "--max-new-tokens", "7", "--seed", "3"];
    let output = output_with_input(server.chat(&args).env("KAITO_API_KEY", "secret"), "One\n");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let messages = json!([{"role": "user", "content": "One"}]);
    let expected = json!({
        "model": "second", "messages": messages, "stream": true, "temperature": 0.6, "max_tokens": 7, "seed": 3
    });
    assert_eq!(server.requests.lock().unwrap().as_slice(), [(expected, Some("Bearer secret".to_owned()))]);
}

#[test]
fn what_ends_an_answer_of_a_server_is_said() {
    let server = Server::start();
    let long = output_with_input(&mut server.chat(&[]), "long\n");
    assert_eq!((text(&long.stdout), long.status.success()), ("so far\n".to_owned(), true));
    assert!(text(&long.stderr).contains("as many tokens as it may"), "{}", text(&long.stderr));
    let control = output_with_input(&mut server.chat(&[]), "control\n");
    assert_eq!(text(&control.stdout), "a\\u{1b}[2Jb\n", "it cannot control the terminal");
}

#[test]
fn failures_of_a_server_say_what_to_do() {
    let server = Server::start();
    for (question, parts) in [
        ("wrong key", &["status 401", "the API key is wrong", "--api-key-file or KAITO_API_KEY"][..]),
        ("no such model", &["status 404", "served are: first, second", "--model names another model"]),
        ("too long", &["status 400", "the context is 4096", "/reset"]),
        ("busy", &["status 429", "256 requests wait already", "try again later"]),
        ("no stream", &["application/json", "base URL of an OpenAI server"]),
        ("fail", &["error within the stream: the device failed"]),
        ("cut", &["cut before the end"]),
    ] {
        let output = output_with_input(&mut server.chat(&[]), &format!("{question}\nnever asked\n"));
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{question}: {message}");
        assert!(message.contains(&server.url), "{question}: {message}");
        for part in parts {
            assert!(message.contains(part), "{question} lacks {part:?}: {message}");
        }
    }
    let nobody = format!("http://127.0.0.1:{}/v1", free_port());
    for (args, status, parts) in [
        (&["--url", &nobody][..], 1, &[nobody.as_str(), "no connection", "`kaito serve` starts one"][..]),
        (&["--url", "ftp://example.com"], 2, &["--url", "http://localhost:5000"]),
        (&["--url", &server.url, "demo"], 2, &["--url", "[MODEL]"]),
        (&["--model", "first"], 2, &["--url"]),
        (&["--url", &server.url, "--api-key-file", "/no/such/file"], 1, &["--api-key-file", "/no/such/file"]),
        (&["--url", &format!("{}/nothing", server.url), "--model", "x"], 1, &["status 404", "base URL"]),
    ] {
        let output = output_with_input(&mut kaito(&[&["chat"], args].concat()), "One\n");
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
        for part in parts {
            assert!(message.contains(part), "{args:?} lacks {part:?}: {message}");
        }
    }
}

#[test]
fn an_interrupt_ends_the_answer_of_a_server_and_its_request() {
    let server = Server::start();
    let mut chat = AtTerminal::start(server.chat(&[]));
    chat.wait_for(&format!("This is first at {}/v1.", server.url));
    chat.wait_for(AtTerminal::READING);
    chat.write("hang");
    chat.wait_for("wait");
    chat.interrupt();
    server.left.recv_timeout(Duration::from_secs(60)).unwrap();
    chat.write("More");
    chat.wait_for("You said: More");
    chat.wait_for(AtTerminal::READING);
    let output = chat.quit();
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("[stopped]"), "{}", text(&output.stderr));
    // What was said before the interrupt is part of the conversation.
    assert_eq!(server.bodies()[1]["messages"][1], json!({"role": "assistant", "content": "wait"}));
}
