//! `kaito serve` at the limits: of its flags, and of the file handles that the system gives it.

use std::{net::TcpStream, thread, time::Duration};

use kaito_testing::{
    process::{Serving, command, output, text},
    wait::wait_for,
};

use crate::program::{KAITO, kaito};

/// Every flag of `kaito serve` that takes a number, a time or a size.
const NUMBERS: [&str; 12] = [
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
    "--upstream-wait",
    "--adapter-memory",
];
/// The smallest, the largest, and what lies beyond.
const VALUES: [&str; 6] = ["0", "1", "9223372036854775808", "18446744073709551615", "18446744073709551616", "-1"];

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
            match Serving::try_start(&mut kaito(&["serve", &format!("{flag}={value}")])) {
                Ok(server) => {
                    let (status, answer) = server.post("/chat", r#"{"prompt":"a","max_new_tokens":1}"#);
                    assert!(status < 500, "{flag}={value}: {answer}");
                    assert_eq!(server.get("/healthz").0, 200, "{flag}={value}");
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
    let server = Serving::start(&mut command("sh", env!("CARGO_TARGET_TMPDIR"), &["-c", &script, KAITO]));
    let idle: Vec<_> = (0..2 * HANDLES).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    wait_for("a line of the log", || server.log().contains("cannot take connections").then_some(()));
    // Several more tries fail meanwhile.
    thread::sleep(Duration::from_millis(500));
    drop(idle);
    assert_eq!(server.get("/healthz").0, 200);
    assert_eq!(server.log().matches("cannot take connections").count(), 1, "{}", server.log());
}
