//! Probes of a container, as a kubelet makes them.

use std::{io::Write as _, process::Stdio, time::Duration};

use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{super::process::port_of, instance::Inside};

/// A container whose probes are made.
pub struct Probed<'a> {
    pub container: &'a Container,
    pub inside: Inside,
    pub ip: &'a str,
    pub client: &'a reqwest::Client,
    /// What failing probes said.
    pub log: std::fs::File,
}

/// What a container has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    Started,
    Ready(bool),
}

/// Longest time between two probes: a kubelet's own, or less, so that tests wait less.
const OFTEN: Duration = Duration::from_secs(2);

/// How often a probe is made, and how often it may fail in a row: for as long as the pod says.
fn times(probe: &Probe) -> (Duration, u32) {
    let seconds = |value: Option<i32>, usual: u32| value.and_then(|value| u32::try_from(value).ok()).unwrap_or(usual);
    let period = Duration::from_secs(seconds(probe.period_seconds, 10).into());
    let failures = seconds(probe.failure_threshold, 3);
    let interval = period.min(OFTEN);
    let allowed = (period * failures).as_millis().div_ceil(interval.as_millis().max(1));
    (interval, u32::try_from(allowed).unwrap_or(u32::MAX))
}

impl Probed<'_> {
    /// Tells what the container comes to, and returns the cause when it must be ended.
    pub async fn watch(&self, tell: impl Fn(Reached)) -> String {
        if let Some(probe) = &self.container.startup_probe
            && let Some(cause) = self.fails("startup", probe, |_| {}, true).await
        {
            return cause;
        }
        tell(Reached::Started);
        let readiness = async {
            match &self.container.readiness_probe {
                // Failures have no end: only the container's.
                Some(probe) => loop {
                    self.fails("readiness", probe, |ready| tell(Reached::Ready(ready)), false).await;
                    tell(Reached::Ready(false));
                },
                None => {
                    tell(Reached::Ready(true));
                    std::future::pending().await
                }
            }
        };
        let liveness = async {
            match &self.container.liveness_probe {
                Some(probe) => self.fails("liveness", probe, |_| {}, false).await.unwrap_or_default(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = readiness => unreachable!("readiness is asked for as long as the container runs"),
            cause = liveness => cause,
        }
    }

    /// Returns the cause when a probe has failed as often as it may, or nothing where it has succeeded and `once` is said.
    async fn fails(&self, kind: &str, probe: &Probe, each: impl Fn(bool), once: bool) -> Option<String> {
        let (interval, allowed) = times(probe);
        let delay = probe.initial_delay_seconds.and_then(|delay| u64::try_from(delay).ok()).unwrap_or_default();
        sleep(Duration::from_secs(delay)).await;
        let mut failures = 0;
        loop {
            match self.probe(probe).await {
                Ok(()) => {
                    failures = 0;
                    each(true);
                    if once {
                        return None;
                    }
                }
                Err(cause) => {
                    failures += 1;
                    let text = format!("{kind} probe {failures} of {allowed} failed: {}\n", cause.trim());
                    let _ = (&self.log).write_all(text.as_bytes());
                    if failures >= allowed {
                        return Some(text);
                    }
                }
            }
            sleep(interval).await;
        }
    }

    async fn probe(&self, probe: &Probe) -> Result<(), String> {
        let seconds = probe.timeout_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(1);
        let limit = Duration::from_secs(seconds);
        let asked = async {
            if let Some(get) = &probe.http_get {
                let host = get.host.as_deref().unwrap_or(self.ip);
                let port = port_of(self.container, &get.port);
                let url = format!("http://{host}:{port}{}", get.path.as_deref().unwrap_or("/"));
                let answer = self.client.get(url).send().await.map_err(|error| format!("{error:?}"))?;
                let status = answer.status();
                // Redirections are successes.
                if status.as_u16() < 400 {
                    Ok(())
                } else {
                    Err(format!("{status} {}", answer.text().await.unwrap_or_default()))
                }
            } else if let Some(socket) = &probe.tcp_socket {
                let address = (socket.host.as_deref().unwrap_or(self.ip), port_of(self.container, &socket.port));
                TcpStream::connect(address).await.map(drop).map_err(|error| error.to_string())
            } else if let Some(exec) = &probe.exec {
                let mut command = self.inside.exec(exec.command.as_deref().unwrap_or_default());
                let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().await;
                let output = output.map_err(|error| error.to_string())?;
                let text =
                    || String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned();
                if output.status.success() { Ok(()) } else { Err(text()) }
            } else {
                panic!("the simulated kubelet does not know such probes: {probe:?}")
            }
        };
        timeout(limit, asked).await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_may_fail_for_as_long_as_the_pod_says() {
        let probe =
            |period, failures| Probe { period_seconds: period, failure_threshold: failures, ..Probe::default() };
        for (probe, seconds, allowed) in [
            (probe(Some(10), Some(180)), 2, 900),
            (probe(Some(1), Some(5)), 1, 5),
            (probe(None, None), 2, 15),
            (probe(Some(3), Some(1)), 2, 2),
        ] {
            assert_eq!(times(&probe), (Duration::from_secs(seconds), allowed));
        }
    }
}
