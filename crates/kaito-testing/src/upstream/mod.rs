//! An engine that speaks vLLM's protocol (`/v1/completions` by token ids, as its `completion/protocol.py` describes it) over the null
//! model's function, and fails, hangs, lies and restarts on demand.

mod sampling;

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use kaito_engine::Tokenizer;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
    sync::Notify,
    task::{JoinHandle, JoinSet},
};

use self::sampling::{Sampling, Step};
use crate::files::letters;

/// The name by which it knows its model.
pub const MODEL: &str = "letters";

/// What becomes of a request for tokens.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is answered with this status and message.
    Status(u16, &'static str),
    /// Its connection is closed after so many tokens.
    Cut(usize),
    /// An event with an error comes after so many tokens, and the end of the stream.
    Error(usize, Value),
    /// Nothing comes after so many tokens.
    Hang(usize),
    /// After so many tokens the stream is this, word by word.
    Says(usize, String),
    /// All of the answer, its head included.
    Raw(String),
}

/// A running engine.
pub struct FakeUpstream {
    address: SocketAddr,
    state: Arc<State>,
    serving: Option<JoinHandle<()>>,
}

struct State {
    tokenizer: Tokenizer,
    requests: Mutex<Vec<Value>>,
    faults: Mutex<VecDeque<Fault>>,
    /// How many tokens may still come; all where it is `None`.
    gate: Mutex<Option<usize>>,
    opened: Notify,
    /// Requests that are answered at the moment.
    open: AtomicUsize,
    /// The status of `/health`.
    health: Mutex<u16>,
    max_model_len: Mutex<usize>,
    /// Adapters of its model.
    adapters: Mutex<Vec<&'static str>>,
    metrics: Mutex<String>,
    /// Tokens of each prompt that its prefix cache has, where it tells them.
    cached: Mutex<Option<usize>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl FakeUpstream {
    /// Starts one on a port of the system's choice.
    pub async fn start() -> Self {
        let state = Arc::new(State {
            tokenizer: Tokenizer::open(&letters()).unwrap(),
            requests: Mutex::default(),
            faults: Mutex::default(),
            gate: Mutex::default(),
            opened: Notify::new(),
            open: AtomicUsize::new(0),
            health: Mutex::new(200),
            max_model_len: Mutex::new(1024),
            adapters: Mutex::default(),
            metrics: Mutex::default(),
            cached: Mutex::default(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Some(tokio::spawn(serve(listener, state.clone())));
        Self { address, state, serving }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it as a signal would that nothing catches: its port and all connections are closed.
    pub async fn kill(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }

    /// Starts it again, where it was.
    pub async fn restart(&mut self) {
        self.kill().await;
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        self.serving = Some(tokio::spawn(serve(listener, self.state.clone())));
    }

    /// What the next requests for tokens meet, in their order.
    pub fn next(&self, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.state.faults).extend(faults);
    }

    /// The bodies of all requests for tokens so far.
    pub fn requests(&self) -> Vec<Value> {
        lock(&self.state.requests).clone()
    }

    /// Lets so many more tokens come, and no others.
    pub fn allow(&self, tokens: usize) {
        let mut gate = lock(&self.state.gate);
        *gate = Some(gate.unwrap_or(0) + tokens);
        drop(gate);
        self.state.opened.notify_waiters();
    }

    /// Lets all tokens come.
    pub fn release(&self) {
        *lock(&self.state.gate) = None;
        self.state.opened.notify_waiters();
    }

    /// Whether all tokens that may come have come.
    pub fn is_held(&self) -> bool {
        *lock(&self.state.gate) == Some(0)
    }

    /// Requests for tokens that are answered at the moment.
    pub fn open(&self) -> usize {
        self.state.open.load(SeqCst)
    }

    /// The status of `/health` from now on.
    pub fn set_health(&self, status: u16) {
        *lock(&self.state.health) = status;
    }

    /// The longest sequence that `/v1/models` tells from now on.
    pub fn set_max_model_len(&self, tokens: usize) {
        *lock(&self.state.max_model_len) = tokens;
    }

    /// The adapters that `/v1/models` tells from now on.
    pub fn set_adapters(&self, names: &[&'static str]) {
        *lock(&self.state.adapters) = names.to_vec();
    }

    /// How many tokens of each prompt its prefix cache has, from now on.
    pub fn set_cached(&self, tokens: usize) {
        *lock(&self.state.cached) = Some(tokens);
    }

    /// What `/metrics` says from now on.
    pub fn set_metrics(&self, text: impl Into<String>) {
        *lock(&self.state.metrics) = text.into();
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    // All connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        connections.spawn(connection(stream, state.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Answers one request. A client that closes its connection is not answered any further, as vLLM does it.
async fn connection(stream: TcpStream, state: Arc<State>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(reading.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
    reading.read_exact(&mut body).await?;
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    tokio::select! {
        answered = answer(&path, &body, &mut writing, &state) => answered?,
        _ = reading.read_u8() => return Ok(()),
    }
    writing.shutdown().await
}

async fn answer(path: &str, body: &[u8], to: &mut OwnedWriteHalf, state: &State) -> io::Result<()> {
    let known = MODEL;
    match path {
        "/health" => {
            let status = *lock(&state.health);
            respond(to, status, "text/plain", "").await
        }
        "/v1/models" => {
            let length = *lock(&state.max_model_len);
            let mut data =
                vec![json!({ "id": known, "object": "model", "root": known, "parent": null, "max_model_len": length })];
            data.extend(lock(&state.adapters).iter().map(|name| {
                json!({ "id": name, "object": "model", "root": format!("/mnt/{name}"), "parent": known, "max_model_len": null })
            }));
            let models = json!({ "object": "list", "data": data });
            respond(to, 200, "application/json", &models.to_string()).await
        }
        "/metrics" => {
            let metrics = lock(&state.metrics).clone();
            respond(to, 200, "text/plain; version=0.0.4", &metrics).await
        }
        "/v1/completions" => {
            state.open.fetch_add(1, SeqCst);
            let _open = Open(state);
            complete(body, to, state).await
        }
        _ => respond(to, 404, "application/json", r#"{"detail":"Not Found"}"#).await,
    }
}

struct Open<'a>(&'a State);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

async fn respond(to: &mut OwnedWriteHalf, status: u16, kind: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    to.write_all(format!("{head}{body}").as_bytes()).await
}

/// An error as vLLM's `ErrorResponse` has it.
async fn refuse(to: &mut OwnedWriteHalf, status: u16, message: &str) -> io::Result<()> {
    let error = json!({ "error": { "message": message, "type": "BadRequestError", "param": null, "code": status } });
    respond(to, status, "application/json", &error.to_string()).await
}

async fn complete(body: &[u8], to: &mut OwnedWriteHalf, state: &State) -> io::Result<()> {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return refuse(to, 400, "no JSON").await };
    lock(&state.requests).push(body.clone());
    let fault = lock(&state.faults).pop_front();
    let longest = *lock(&state.max_model_len);
    let mut sampling = match Sampling::read(&body, &state.tokenizer, longest) {
        Ok(sampling) => sampling,
        Err(message) => return refuse(to, 400, &message).await,
    };
    match &fault {
        Some(Fault::Status(status, message)) => return refuse(to, *status, message).await,
        Some(Fault::Raw(answer)) => return to.write_all(answer.as_bytes()).await,
        _ => {}
    }
    if body["stream"] != true {
        let answer =
            json!({ "id": "cmpl-1", "object": "text_completion", "model": MODEL, "choices": [sampling.whole()] });
        return respond(to, 200, "application/json", &answer.to_string()).await;
    }
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\
                Connection: close\r\n\r\n";
    to.write_all(head.as_bytes()).await?;
    let mut tokens = 0;
    loop {
        match &fault {
            Some(Fault::Cut(at)) if *at == tokens => return Ok(()),
            Some(Fault::Error(at, error)) if *at == tokens => {
                chunk(to, &format!("data: {}\n\ndata: [DONE]\n\n", json!({ "error": error }))).await?;
                return end(to).await;
            }
            Some(Fault::Hang(at)) if *at == tokens => std::future::pending().await,
            Some(Fault::Says(at, text)) if *at == tokens => {
                chunk(to, text).await?;
                return end(to).await;
            }
            _ => {}
        }
        pass(state).await;
        let Step { choice, finished } = match sampling.step() {
            Ok(step) => step,
            Err(message) => {
                let error = json!({ "error": { "message": message, "code": 400 } });
                chunk(to, &format!("data: {error}\n\ndata: [DONE]\n\n")).await?;
                return end(to).await;
            }
        };
        tokens += 1;
        let event = json!({ "id": "cmpl-1", "object": "text_completion", "model": MODEL, "choices": [choice] });
        chunk(to, &format!("data: {event}\n\n")).await?;
        if finished {
            break;
        }
    }
    if body["stream_options"]["include_usage"] == true {
        let details = lock(&state.cached).map(|cached| json!({ "cached_tokens": cached }));
        let usage = json!({ "prompt_tokens": sampling.prompt_len(), "completion_tokens": tokens,
            "prompt_tokens_details": details });
        chunk(to, &format!("data: {}\n\n", json!({ "id": "cmpl-1", "choices": [], "usage": usage }))).await?;
    }
    chunk(to, "data: [DONE]\n\n").await?;
    end(to).await
}

async fn chunk(to: &mut OwnedWriteHalf, text: &str) -> io::Result<()> {
    to.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await
}

async fn end(to: &mut OwnedWriteHalf) -> io::Result<()> {
    to.write_all(b"0\r\n\r\n").await
}

/// Returns when one more token may come.
async fn pass(state: &State) {
    loop {
        let opened = state.opened.notified();
        match &mut *lock(&state.gate) {
            None => return,
            Some(0) => {}
            Some(left) => {
                *left -= 1;
                return;
            }
        }
        opened.await;
    }
}
