//! `kaito serve` at the limits: of its flags, and of the file handles that the system gives it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing helper fails its test")]

mod support;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use support::{kaito, output, text};

/// Every flag of `kaito serve` that takes a number, a time or a size.
const NUMBERS: [&str; 10] = [
    "--port",
    "--request-timeout",
    "--max-waiting",
    "--drain-limit",
    "--body-limit",
    "--stall-limit",
    "--threads",
    "--max-seq-len",
    "--max-batch-size",
    "--kv-cache-memory",
];
/// The smallest, the largest, and what lies beyond.
const VALUES: [&str; 6] = ["0", "1", "9223372036854775808", "18446744073709551615", "18446744073709551616", "-1"];

/// A server that listens, and its log.
struct Started {
    child: Child,
    address: String,
    log: PathBuf,
}

impl Started {
    /// Starts a server; one that ends before it has loaded its model leaves its status and its log.
    fn new(command: &mut Command, name: &str) -> Result<Self, (ExitStatus, String)> {
        let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("limits-{name}.log"));
        let stderr = File::create(&log).unwrap();
        let mut child = command.env("KAITO_PORT", "0").stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address =
            lines.filter_map(|line| Some(line.split_once("address")?.1.trim().strip_prefix("http://")?.to_owned()));
        match { address }.next() {
            Some(address) => Ok(Self { child, address, log }),
            None => {
                let status = child.wait().unwrap();
                Err((status, fs::read_to_string(&log).unwrap()))
            }
        }
    }

    /// The status and the body of the answer to a request.
    fn ask(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer[9..12].parse().unwrap(), answer)
    }

    fn health(&self) -> u16 {
        self.ask("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").0
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The flags in the help whose value is written so.
fn flags(help: &str, values: &[&str]) -> Vec<String> {
    let words: Vec<_> = help.split_whitespace().collect();
    words
        .windows(2)
        .filter(|pair| pair[0].starts_with("--") && values.iter().any(|value| pair[1] == format!("<{value}>")))
        .map(|pair| pair[0].to_owned())
        .collect()
}

#[test]
fn no_number_of_a_flag_makes_requests_fail() {
    let help = text(&output(&mut kaito(&["serve", "--help"])).stdout);
    let mut named = flags(&help, &["N", "TIME", "SIZE", "TOKENS", "PORT"]);
    let mut known = NUMBERS.map(str::to_owned).to_vec();
    named.sort();
    known.sort();
    assert_eq!(named, known, "a flag that this test does not know");
    let (mut served, mut refused) = (0, 0);
    for flag in NUMBERS {
        for value in VALUES {
            // The tests' own port is 0 already; the first one may be in use.
            if flag == "--port" && ["0", "1"].contains(&value) {
                continue;
            }
            match Started::new(&mut kaito(&["serve", &format!("{flag}={value}")]), "flags") {
                Ok(server) => {
                    let body = r#"{"prompt":"a","max_new_tokens":1}"#;
                    let head =
                        "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close";
                    let request = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    let (status, answer) = server.ask(&request);
                    assert!(status < 500, "{flag}={value}: {answer}");
                    assert_eq!(server.health(), 200, "{flag}={value}");
                    served += 1;
                }
                Err((status, log)) => {
                    let named = [flag, &flag[2..].replace('-', "_")].iter().any(|name| log.contains(name));
                    assert!(status.code().is_some_and(|code| code > 0) && named, "{flag}={value}: {status} {log}");
                    assert!(!log.contains("panicked"), "{flag}={value}: {log}");
                    refused += 1;
                }
            }
        }
    }
    assert!(served >= 8 && refused >= 30, "{served} served, {refused} refused");
}

/// Each failed try used to be logged, ten a second.
#[cfg(unix)]
#[test]
fn a_server_without_file_handles_says_so_once_and_goes_on() {
    const HANDLES: usize = 48;
    let script = format!("ulimit -n {HANDLES}; exec \"$0\" serve");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_kaito")]).stdin(Stdio::null());
    command
        .env_clear()
        .env("HOME", env!("CARGO_TARGET_TMPDIR"))
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let server = Started::new(&mut command, "handles").unwrap();
    let idle: Vec<_> = (0..2 * HANDLES).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !server.log().contains("cannot take connections") {
        assert!(Instant::now() < deadline, "{}", server.log());
        thread::sleep(Duration::from_millis(20));
    }
    // Several more tries fail meanwhile.
    thread::sleep(Duration::from_millis(500));
    drop(idle);
    assert_eq!(server.health(), 200);
    assert_eq!(server.log().matches("cannot take connections").count(), 1, "{}", server.log());
}
