//! `kaito supervise` over real processes: engines that end, hang, and leave others behind; ranks on addresses of their own.

use std::{
    ffi::OsStr,
    fs,
    io::{Read, Write},
    net::TcpListener,
    process::{Child, ChildStderr, ChildStdout, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use kaito_testing::{
    http::Client,
    process::{free_port, output, signal, text},
    wait::wait_for,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::program::kaito;

/// A time to sleep for that no other test has: by it the processes of a test's engines are found.
struct Mark(String);

impl Mark {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        Self(format!("1000000.{}{:03}", std::process::id(), COUNT.fetch_add(1, SeqCst)))
    }

    /// Processes of engines that run: id and state.
    fn processes(&self) -> Vec<(i32, char)> {
        let read = |folder: fs::DirEntry| {
            let arguments = fs::read(folder.path().join("cmdline")).ok()?;
            let arguments: Vec<_> = arguments.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            let is_marked = arguments.iter().any(|argument| argument.contains(&self.0));
            let is_engine = arguments.get(1).is_none_or(|argument| argument != "supervise");
            let stat = fs::read_to_string(folder.path().join("stat")).ok()?;
            let state = stat.rsplit_once(") ")?.1.chars().next()?;
            (is_marked && is_engine && state != 'Z')
                .then(|| Some((folder.file_name().to_str()?.parse().ok()?, state)))?
        };
        fs::read_dir("/proc").unwrap().flatten().filter_map(read).collect()
    }

    fn signal(&self, signal: Signal) {
        for (pid, _) in self.processes() {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
        }
    }

    fn wait_until_gone(&self) {
        wait_for("the end of all processes", || self.processes().is_empty().then_some(()));
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// A supervisor that runs.
struct Supervised {
    child: Child,
    client: Client,
    output: Arc<Mutex<String>>,
    readers: Vec<thread::JoinHandle<()>>,
}

fn read(mut from: impl Read + Send + 'static, into: &Arc<Mutex<String>>) -> thread::JoinHandle<()> {
    let into = Arc::clone(into);
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    })
}

impl Supervised {
    fn start(host: &str, port: u16, flags: &[&str], script: &str) -> Self {
        let port_text = port.to_string();
        let own = ["supervise", "--host", host, "--port", &port_text];
        let arguments = [&own, flags, &["--", "sh", "-c", script]].concat();
        let mut child = kaito(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = Arc::default();
        let (out, err): (ChildStdout, ChildStderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let readers = vec![read(out, &output), read(err, &output)];
        Self { child, client: Client { address: format!("{host}:{port}") }, output, readers }
    }

    fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        self.client.try_get(path).ok()
    }

    fn overview(&self) -> Option<Value> {
        serde_json::from_str(&self.get("/ranks")?.1).ok()
    }

    /// Waits until what rank 0 knows of all ranks is so.
    fn wait_until(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || self.overview().filter(&condition))
    }

    fn terminate(&self) {
        signal(&self.child, Signal::TERM);
    }

    /// Its end, after all of its output.
    fn ended(&mut self) -> (ExitStatus, String) {
        let status = wait_for("the end of a supervisor", || self.child.try_wait().unwrap());
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        (status, self.output())
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All ranks run in the incarnation of this number.
fn all_run(number: u64) -> impl Fn(&Value) -> bool {
    move |overview| {
        let runs = |rank: &Value| rank["state"]["running"]["number"] == number;
        overview["incarnation"]["number"] == number && overview["ranks"].as_array().unwrap().iter().all(runs)
    }
}

/// Supervisors of three ranks on addresses of their own, whose engines have a process beside the first.
struct Ranks {
    mark: Mark,
    port: u16,
    supervised: Vec<Supervised>,
    flags: Vec<String>,
}

impl Ranks {
    fn start(order: [usize; 3], flags: &[&str]) -> Self {
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        let mut ranks = Self { mark: Mark::new(), port: free_port(), supervised: Vec::new(), flags };
        let mut started: Vec<_> = order.iter().map(|rank| (*rank, ranks.supervisor(*rank))).collect();
        started.sort_by_key(|(rank, _)| *rank);
        ranks.supervised = started.into_iter().map(|(_, supervised)| supervised).collect();
        ranks
    }

    fn supervisor(&self, rank: usize) -> Supervised {
        let (number, host, script) = (rank.to_string(), format!("127.0.0.{}", rank + 1), self.script());
        let own = ["--rank", &number, "--ranks", "3", "--first", "127.0.0.1", "--grace", "1s"];
        let flags: Vec<_> = own.into_iter().chain(self.flags.iter().map(String::as_str)).collect();
        Supervised::start(&host, self.port, &flags, &script)
    }

    /// An engine that knows its rank by its arguments.
    fn script(&self) -> String {
        format!("sleep {0} & echo \"I am $$ with $*\"; wait", self.mark.0)
    }

    fn first(&self) -> &Supervised {
        &self.supervised[0]
    }

    /// The first process of the engine that runs, by the id that it prints. It runs before its line can be read, and until then the last line is
    /// that of the engine before it, whose process has ended.
    fn engine(&self, rank: usize) -> Pid {
        wait_for("what an engine says of itself", || {
            let output = self.supervised[rank].output();
            let (pid, _) = output.rsplit_once("I am ")?.1.split_once(" with")?;
            let pid = pid.parse().ok()?;
            self.mark.processes().iter().any(|(process, _)| *process == pid).then(|| Pid::from_raw(pid))?
        })
    }

    fn restart(&mut self, rank: usize) {
        self.supervised[rank] = self.supervisor(rank);
    }
}

#[test]
fn an_engine_that_ends_by_itself_fails_its_supervisor_after_its_last_words() {
    for (script, end) in [
        (
            "echo loading; echo 'ValueError: no such model' >&2; echo bye; exit 3",
            "error: the engine ended with exit status 3: ValueError: no such model\n",
        ),
        ("exit 0", "error: the engine ended with exit status 0\n"),
        ("echo gone; kill -9 $$", "error: the engine was ended by signal 9 (SIGKILL)\n"),
    ] {
        let mut supervised = Supervised::start("127.0.0.1", 0, &["--log", "error"], script);
        let (status, output) = supervised.ended();
        assert_eq!(status.code(), Some(1), "{output}");
        assert!(output.ends_with(end), "{output}");
        assert_eq!(output.contains("loading\n"), script.contains("loading"), "{output}");
    }
}

#[test]
fn what_cannot_be_run_is_refused_with_the_next_step() {
    let port = free_port().to_string();
    let beside = ["--port", &port];
    for (arguments, parts) in [
        (&["--rank", "2", "--ranks", "2", "--", "true"][..], &["--rank 2: with --ranks 2 the ranks are 0 to 1"][..]),
        (&["--rank", "1", "--ranks", "2", "--", "true"], &["--rank 1 needs --first HOST"]),
        (&[], &["no program to run", "kaito supervise -- vllm serve MODEL"]),
        (&["--", "/no/such/program"], &["the engine could not be started: /no/such/program"]),
        (&["--host", "192.0.2.1", "--", "true"], &["cannot listen on 192.0.2.1", "--host and --port"]),
        (&["--ranks", "0", "--", "true"], &["from 1 to 1024"]),
        (&["--install", "/no/such/folder/kaito"], &["cannot copy this program to /no/such/folder/kaito"]),
        (&["--install", "/tmp/kaito", "--", "true"], &["--install"]),
    ] {
        let refused = output(&mut kaito(&[&["supervise"], &beside[..], arguments].concat()));
        let said = text(&refused.stderr);
        assert!(!refused.status.success(), "{arguments:?}");
        for part in parts {
            assert!(said.contains(part), "{arguments:?}: {said}");
        }
    }
}

#[test]
fn it_copies_itself_to_where_another_image_runs_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kaito");
    for _ in 0..2 {
        let installed = output(&mut kaito(&["supervise".as_ref(), "--install".as_ref(), path.as_os_str()]));
        assert!(installed.status.success(), "{}", text(&installed.stderr));
    }
    let mut copy = std::process::Command::new(&path);
    assert!(text(&output(copy.arg("--version")).stdout).starts_with("kaito "));
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [OsStr::new("kaito")]);
}

/// An engine that ignores SIGTERM, with processes in sessions of their own whose parents have ended.
#[test]
fn nothing_of_an_engine_is_left_after_sigterm() {
    let mark = Mark::new();
    let orphan = format!("trap \"\" TERM; sleep {} & wait", mark.0);
    let script =
        format!("trap '' TERM; setsid sh -c 'setsid sh -c \"$0\" &' '{orphan}'; sleep {} & wait; wait", mark.0);
    let mut supervised = Supervised::start("127.0.0.1", free_port(), &["--grace", "300ms"], &script);
    wait_for("the engine's processes", || (mark.processes().len() >= 4).then_some(()));
    assert_eq!(supervised.get("/livez").unwrap().0, 200);
    wait_for("readiness", || supervised.get("/readyz").filter(|(status, _)| *status == 200));
    supervised.terminate();
    let (status, output) = supervised.ended();
    assert!(status.success(), "{output}");
    assert_eq!(mark.processes(), []);
}

/// vLLM's API server leaves its engine and its workers behind where it is killed.
#[test]
fn nothing_of_an_engine_is_left_where_its_first_process_is_killed() {
    let mark = Mark::new();
    let script = format!("setsid sleep {0} & sleep {0} & echo $$; wait", mark.0);
    let mut supervised = Supervised::start("127.0.0.1", free_port(), &["--log", "error"], &script);
    wait_for("the engine's processes", || (mark.processes().len() >= 3).then_some(()));
    let engine = wait_for("the engine's id", || supervised.output().trim().parse().ok().and_then(Pid::from_raw));
    kill_process(engine, Signal::KILL).unwrap();
    let (status, output) = supervised.ended();
    assert_eq!(status.code(), Some(1));
    assert!(output.contains("error: the engine was ended by signal 9"), "{output}");
    assert_eq!(mark.processes(), []);
}

#[test]
fn ranks_start_together_and_the_loss_of_an_engine_is_the_end_of_all() {
    let own = ["--first-argument", "--port", "--first-argument", "8000", "--other-argument=--headless"];
    let mut ranks = Ranks::start([2, 0, 1], &own);
    ranks.first().wait_until("all run", all_run(1));
    for (rank, arguments) in ["with 8000", "with ", "with "].iter().enumerate() {
        let expected = if rank == 0 { *arguments } else { "with \n" };
        wait_for("an engine's arguments", || ranks.supervised[rank].output().contains(expected).then_some(()));
    }
    wait_for("readiness", || ranks.supervised[1].get("/readyz").filter(|(status, _)| *status == 200));
    let (status, said) = ranks.supervised[1].get("/ranks").unwrap();
    assert!(status == 404 && said.contains("this is rank 1; rank 0, at http://127.0.0.1:"), "{said}");
    kill_process(ranks.engine(2), Signal::KILL).unwrap();
    let (status, output) = ranks.supervised[2].ended();
    assert_eq!(status.code(), Some(1));
    assert!(
        output.trim_end().lines().last().unwrap().starts_with("error: the engine was ended by signal 9"),
        "{output}"
    );
    // The others stay, without engines.
    ranks.mark.wait_until_gone();
    let overview = ranks.first().wait_until("rank 2 is waited for", |overview| overview["phase"] == "waiting");
    let cause = overview["cause"].as_str().unwrap();
    assert!(cause.contains("the engine of rank 2 was ended by signal 9"), "{cause}");
    wait_for("rank 1 waits", || {
        let (status, said) = ranks.supervised[1].get("/readyz")?;
        (status == 503 && said.contains("waits for all ranks to start together")).then_some(())
    });
    ranks.restart(2);
    ranks.first().wait_until("all run again", all_run(2));
}

#[test]
fn a_supervisor_that_is_lost_is_the_end_of_all_ranks_until_another_is_there() {
    let mut ranks = Ranks::start([0, 1, 2], &[]);
    ranks.first().wait_until("all run", all_run(1));
    // As a node that is lost; what remains there would have gone with it.
    let engine = ranks.engine(1);
    ranks.supervised[1].kill();
    ranks.first().wait_until("it is missed", |overview| {
        overview["cause"].as_str().is_some_and(|cause| cause.contains("rank 1 did not report any more"))
    });
    let _ = rustix::process::kill_process_group(engine, Signal::KILL);
    ranks.mark.wait_until_gone();
    ranks.restart(1);
    ranks.first().wait_until("all run again", all_run(2));
    // Rank 0 itself, whose incarnations another one does not know.
    let engine = ranks.engine(0);
    ranks.supervised[0].kill();
    let _ = rustix::process::kill_process_group(engine, Signal::KILL);
    ranks.mark.wait_until_gone();
    ranks.restart(0);
    ranks.first().wait_until("all run again", all_run(1));
}

/// The health of a front.
struct Front {
    url: String,
    health: Arc<Mutex<Option<(u16, &'static str)>>>,
    asked: Arc<AtomicUsize>,
}

impl Front {
    /// One that is healthy, until it says something else, or is gone.
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let health = Arc::new(Mutex::new(Some((200, "it is well"))));
        let asked = Arc::<AtomicUsize>::default();
        let (said, count) = (Arc::clone(&health), Arc::clone(&asked));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some((status, sentence)) = *said.lock().unwrap() else { return };
                let mut head = [0; 4096];
                let read = stream.read(&mut head).unwrap_or_default();
                assert!(head[..read].starts_with(b"GET /healthz "));
                let body = format!("{{\"detail\":\"{sentence}\"}}");
                let length = body.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                count.fetch_add(1, SeqCst);
            }
        });
        Self { url, health, asked }
    }

    fn says(&self, health: Option<(u16, &'static str)>) {
        *self.health.lock().unwrap() = health;
    }

    fn wait_until_asked(&self, times: usize) {
        let before = self.asked.load(SeqCst);
        wait_for("the front is asked", || (self.asked.load(SeqCst) >= before + times).then_some(()));
    }
}

#[test]
fn a_stopped_process_is_named_and_an_engine_that_is_stuck_by_it_is_replaced() {
    let front = Front::start();
    let ranks = Ranks::start([1, 2, 0], &["--front", &front.url]);
    ranks.first().wait_until("all run", |overview| all_run(1)(overview) && overview["phase"] == "running");
    assert_eq!(ranks.first().overview().unwrap()["cause"], Value::Null);
    // The process beside the first one of rank 2.
    let engine = ranks.engine(2).as_raw_nonzero().get();
    let before = ranks.mark.processes();
    let parent = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok())
    };
    let beside = before.iter().map(|(pid, _)| *pid).find(|pid| parent(pid) == Some(engine)).unwrap();
    kill_process(Pid::from_raw(beside).unwrap(), Signal::STOP).unwrap();
    let named = format!("topped processes: {beside} (sleep) of rank 2");
    let says = |overview: &Value, part: &str| overview["cause"].as_str().is_some_and(|cause| cause.contains(part));
    ranks.first().wait_until("it is named", |overview| says(overview, &named));
    assert!(all_run(1)(&ranks.first().overview().unwrap()), "stopped is not stuck");
    front.says(Some((
        503,
        "The engine is stuck: no progress for 9 s, with 8 sequences running and 0 requests waiting.",
    )));
    let why = "The engine is stuck: no progress for 9 s, with 8 sequences running and 0 requests waiting (stopped processes: ";
    ranks.first().wait_until("the cause is kept", |overview| says(overview, why) && says(overview, &named));
    front.says(Some((200, "it is well")));
    ranks.first().wait_until("all run again", |overview| all_run(2)(overview) && overview["phase"] == "running");
    let after = ranks.mark.processes();
    assert!(before.iter().all(|(pid, _)| after.iter().all(|(other, _)| other != pid)), "{before:?} {after:?}");
}

#[test]
fn engines_end_when_the_front_has_answered_its_last_requests() {
    let front = Front::start();
    let mut ranks = Ranks::start([0, 1, 2], &["--front", &front.url]);
    ranks.first().wait_until("all run", all_run(1));
    front.says(Some((503, "The server is shutting down.")));
    ranks.supervised.iter().for_each(Supervised::terminate);
    // Longer than any of them waits to hear that the front, and rank 0, were told to end too.
    front.wait_until_asked(9);
    assert!(all_run(1)(&ranks.first().overview().unwrap()));
    assert_eq!(ranks.mark.processes().len(), 6);
    front.says(None);
    for supervised in &mut ranks.supervised {
        let (status, output) = supervised.ended();
        assert!(status.success(), "{output}");
    }
    assert_eq!(ranks.mark.processes(), []);
}

#[test]
fn a_shutdown_ends_all_processes_of_all_ranks_until_there_is_another_front() {
    let front = Front::start();
    let ranks = Ranks::start([0, 1, 2], &["--front", &front.url]);
    ranks.first().wait_until("all run", all_run(1));
    front.says(Some((503, "The server is shutting down.")));
    assert_eq!(ranks.first().client.post("/shutdown", "{}").0, 200);
    ranks.mark.wait_until_gone();
    front.wait_until_asked(9);
    assert_eq!(ranks.mark.processes(), []);
    front.says(Some((503, "The model is loading.")));
    ranks.first().wait_until("all run again", all_run(2));
    // Another rank, and one that nobody would start again, end nothing.
    assert_eq!(ranks.supervised[1].client.post("/shutdown", "{}").0, 404);
    assert!(all_run(2)(&ranks.first().overview().unwrap()));
}

#[test]
fn a_rank_alone_that_is_told_to_end_is_replaced() {
    let mut ranks = Ranks::start([0, 1, 2], &[]);
    ranks.first().wait_until("all run", all_run(1));
    ranks.supervised[1].terminate();
    let (status, output) = ranks.supervised[1].ended();
    assert!(status.success(), "{output}");
    ranks.restart(1);
    ranks.first().wait_until("all run again", all_run(2));
}

#[test]
fn what_is_no_report_of_another_rank_is_refused() {
    let mark = Mark::new();
    let script = format!("sleep {}", mark.0);
    let first = Supervised::start("127.0.0.1", free_port(), &["--ranks", "2"], &script);
    first.wait_until("rank 0 waits", |overview| overview["ranks"][0]["state"] == "idle");
    let report = r#"{"supervisor":1,"sequence":1,"state":"idle"}"#;
    let post = |report: &str| -> Value {
        let (status, order) = first.client.post("/ranks/1", report);
        assert_eq!(status, 200, "{order}");
        serde_json::from_str(&order).unwrap()
    };
    let order = post(report);
    assert_eq!(order["run"], false, "a supervisor that has not shown that it lives: {order}");
    let order = post(&format!(r#"{{"supervisor":1,"sequence":2,"state":"idle","token":{}}}"#, order["token"]));
    for (part, value) in [("run", true), ("kill", false), ("exit", false)] {
        assert_eq!(order[part], value, "{order}");
    }
    for (path, body, status, part) in [
        ("/ranks/0", report, 404, "rank 0 reports to nobody"),
        ("/ranks/2", report, 404, "2 ranks serve this model"),
        ("/ranks/x", report, 404, "rank x"),
        ("/ranks/1", "{}", 400, "missing field"),
        ("/ranks/1", &format!("[\"{}\"]", "x".repeat(70_000)), 413, "65536 bytes at most"),
    ] {
        let (answered, said) = first.client.post(path, body);
        assert!(answered == status && said.contains(part), "{path}: {answered} {said}");
    }
}
