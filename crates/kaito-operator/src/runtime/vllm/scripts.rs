//! Scripts for bash in vLLM's image: how a rank starts, the probes, and what an engine waits for before it ends.
//!
//! An engine listens on its loopback address, which a kubelet's probe over HTTP does not reach, and a headless rank listens
//! nowhere. So the probes are scripts.

use super::{
    super::{PORT, RANK_PORT, Ranks},
    ENGINE_PORT, LOOPBACK,
};

/// Where a rank that is not the first keeps the first one's address.
const MASTER: &str = "/tmp/master";

/// What the server's `/healthz` says of an engine that owes a token for too long, and of itself while it ends.
const STUCK: &str = "The engine is stuck";
const DRAINS: &str = "The server is shutting down";

/// `ask HOST PORT PATH` prints the answer over HTTP, if there is one within five seconds.
const ASK: &str = r#"ask() { timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1" || exit; printf "GET $2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" >&3; cat <&3' "$@"; }
"#;

/// Starts a rank; `$@` are vLLM's arguments. The first has the API; the others wait until it has an address.
pub fn start(ranks: &Ranks) -> String {
    let Ranks { master, .. } = ranks;
    format!(
        r#"set -eu
if [ "$POD_INDEX" = 0 ]; then exec vllm "$@" --host {LOOPBACK} --port {ENGINE_PORT}; fi
until address=$(getent hosts {master}); do sleep 1; done
echo "${{address%% *}}" >{MASTER}
exec vllm "$@" --headless
"#
    )
}

/// Whether an engine, or a rank of one, is to go on.
pub fn alive(ranks: Option<&Ranks>) -> String {
    // vLLM says that it is well while its ranks hang; the server, which waits for tokens, knows better.
    let first = format!(
        "ask {LOOPBACK} {ENGINE_PORT} /health | head -n 1 | grep -q ' 200 ' || {{ echo 'the engine does not answer'; exit 1; }}\n\
         ! ask {LOOPBACK} {PORT} /healthz | grep '{STUCK}'\n"
    );
    match ranks {
        None => format!("{ASK}{first}"),
        Some(ranks) => format!("{ASK}if [ \"$POD_INDEX\" = 0 ]; then\n{first}exit\nfi\n{}", joined(ranks)),
    }
}

/// Whether a rank is ready: the first when the model answers, the others when they have joined it.
pub fn ready(ranks: &Ranks) -> String {
    format!(
        "{ASK}if [ \"$POD_INDEX\" = 0 ]; then\nask {LOOPBACK} {PORT} /healthz | head -n 1 | grep -q ' 200 '\nexit\nfi\n{}",
        joined(ranks)
    )
}

/// Whether a rank that is not the first still belongs to the first one: the first is where it was, takes connections, and has
/// not closed the one that this rank holds for as long as both live. A rank does not notice by itself: it waits for ever.
fn joined(ranks: &Ranks) -> String {
    let Ranks { master, .. } = ranks;
    format!(
        r#"master=$(cat {MASTER}) || exit 1
now=$(getent hosts {master}) && [ "${{now%% *}}" != "$master" ] && {{ echo "the first rank has moved to ${{now%% *}}"; exit 1; }}
timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$master" {RANK_PORT} || {{ echo 'the first rank cannot be reached'; exit 1; }}
grep -Eqs ' [0-9A-F]+:{RANK_PORT:04X} 01 ' /proc/net/tcp /proc/net/tcp6 || {{ echo 'the first rank is another one now'; exit 1; }}
"#
    )
}

/// Waits, before an engine is told to end, until the server has answered its last requests. Where the server goes on, the engine
/// alone is restarted, and nothing is waited for.
pub fn drained(ranks: Option<&Ranks>) -> String {
    let server = match ranks {
        None => format!("server={LOOPBACK}\n"),
        Some(_) => format!("if [ \"$POD_INDEX\" = 0 ]; then server={LOOPBACK}; else server=$(cat {MASTER}); fi\n"),
    };
    // The server is told to end at the same moment.
    format!("{ASK}{server}sleep 2\nwhile ask \"$server\" {PORT} /healthz | grep -q '{DRAINS}'; do sleep 1; done\n")
}

#[cfg(test)]
mod tests;
