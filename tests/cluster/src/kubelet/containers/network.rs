//! The network of pods: a network namespace for each, joined by a bridge in one more, which this machine reaches too.
//!
//! No namespace has a name, and a process that ends with the tests holds each: the kernel removes all of it then.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::super::lock;
use crate::control_plane::{printed, spawn};

/// The interface of a pod.
pub const INTERFACE: &str = "eth0";

/// The network of all pods whose containers run.
pub(in crate::kubelet) struct PodNetwork {
    /// Holds the namespace of the bridge.
    bridge: Child,
    /// The first three bytes of all addresses.
    prefix: String,
    given: AtomicU32,
    pods: Mutex<BTreeMap<String, Reached>>,
    /// Namespaces of pods that have been, and the pods' names.
    past: Mutex<Vec<(String, PathBuf)>>,
}

/// A pod that has an address.
struct Reached {
    namespace: String,
    name: String,
    ip: String,
    /// The process that holds its namespaces.
    pid: u32,
    hosts: PathBuf,
    /// By which other pods know it.
    names: Vec<String>,
}

/// Where a program listens within a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// The pod's address, the unspecified one, or one of loopback.
    pub address: IpAddr,
    /// The TCP port.
    pub port: u16,
}

impl PodNetwork {
    pub async fn start() -> Self {
        let script = "ip link set lo up; ip link add pods type bridge; ip link set pods up";
        let bridge = hold(&["--net"], script, &[]).await;
        let holder = bridge.id().unwrap().to_string();
        let used = ip(&["-4", "-oneline", "address"]).await;
        // Of benchmarks (RFC 2544); several runs share this machine.
        let prefix = (std::process::id()..)
            .map(|number| format!("198.{}.{}", 18 + (number >> 8) % 2, number % 256))
            .find(|prefix| !used.contains(&format!(" {prefix}.")))
            .unwrap();
        let link = format!("kaito{}", std::process::id());
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "machine", "netns", &holder]).await;
        ip(&["address", "add", &format!("{prefix}.1/24"), "dev", &link]).await;
        ip(&["link", "set", &link, "up"]).await;
        within(&holder, "ip link set machine master pods; ip link set machine up", &[]).await;
        let (given, pods, past) = (AtomicU32::new(1), Mutex::default(), Mutex::default());
        Self { bridge, prefix, given, pods, past }
    }

    /// Joins a pod whose namespaces the process `pid` holds; its address.
    pub async fn join(&self, pod: &Pod, pid: u32, hosts: &Path) -> String {
        let number = self.given.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(number < 255, "the network of pods has no address left");
        let address = format!("{}.{number}", self.prefix);
        let (bridge, holder) = (self.bridge.id().unwrap().to_string(), pid.to_string());
        let script = "ip link add \"pod-$1\" type veth peer name \"$2\" netns \"$3\"
            ip link set \"pod-$1\" master pods
            ip link set \"pod-$1\" up";
        within(&bridge, script, &[&number.to_string(), INTERFACE, &holder]).await;
        let script = "ip address add \"$1/24\" dev \"$2\"; ip link set \"$2\" up";
        within(&holder, script, &[&address, INTERFACE]).await;
        let spec = pod.spec.as_ref().unwrap();
        let namespace = pod.namespace().unwrap();
        let named = spec.hostname.as_ref().zip(spec.subdomain.as_ref());
        let names = named.into_iter().flat_map(|(host, domain)| {
            ["svc.cluster.local", "svc"].map(|end| format!("{host}.{domain}.{namespace}.{end}"))
        });
        let reached = Reached {
            names: names.collect(),
            name: pod.name_any(),
            ip: address.clone(),
            pid,
            hosts: hosts.to_owned(),
            namespace,
        };
        lock(&self.past).push((pod.name_any(), namespace_of(pid).unwrap()));
        let mut pods = lock(&self.pods);
        pods.insert(pod.uid().unwrap(), reached);
        tell(&pods);
        address
    }

    /// The pod has ended.
    pub fn leave(&self, uid: &str) {
        let mut pods = lock(&self.pods);
        pods.remove(uid);
        tell(&pods);
    }

    pub fn address(&self, namespace: &str, pod: &str) -> Option<String> {
        self.reached(namespace, pod, |reached| reached.ip.clone())
    }

    pub fn listeners(&self, namespace: &str, pod: &str) -> Vec<Listener> {
        let pid = self.reached(namespace, pod, |reached| reached.pid).unwrap_or_else(|| panic!("{pod} does not run"));
        let mut listeners: Vec<_> = ["tcp", "tcp6"]
            .iter()
            .flat_map(|kind| listening(&fs::read_to_string(format!("/proc/{pid}/net/{kind}")).unwrap_or_default()))
            .collect();
        listeners.sort();
        listeners.dedup();
        listeners
    }

    fn reached<T>(&self, namespace: &str, pod: &str, found: impl Fn(&Reached) -> T) -> Option<T> {
        let pods = lock(&self.pods);
        pods.values().find(|reached| reached.namespace == namespace && reached.name == pod).map(found)
    }

    /// Processes in the namespaces of pods that have ended.
    pub fn left_behind(&self) -> Vec<String> {
        let running: Vec<_> = lock(&self.pods).values().filter_map(|reached| namespace_of(reached.pid)).collect();
        let mut past = lock(&self.past).clone();
        past.retain(|(_, namespace)| !running.contains(namespace));
        let numbers = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut found = Vec::new();
        for pid in numbers.filter_map(|name| name.parse::<u32>().ok()) {
            let Some(namespace) = namespace_of(pid) else { continue };
            if let Some((pod, _)) = past.iter().find(|(_, past)| *past == namespace) {
                let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                found.push(format!("{pod}: {pid} {}", command.replace('\0', " ")));
            }
        }
        found
    }
}

/// Each pod's file of names, as the pods are now.
fn tell(pods: &BTreeMap<String, Reached>) {
    for to in pods.values() {
        let mut text = format!("127.0.0.1 localhost\n::1 localhost ip6-localhost\n{} {}\n", to.ip, to.name);
        for about in pods.values().filter(|about| !about.names.is_empty()) {
            writeln!(text, "{} {}", about.ip, about.names.join(" ")).unwrap();
        }
        // The file itself is mounted, so it is not replaced by another one.
        fs::write(&to.hosts, text).unwrap();
    }
}

/// A network namespace, by which processes can be told from each other; none of a process that has ended.
fn namespace_of(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

/// Those of /proc/net/tcp or tcp6 that wait for connections.
fn listening(table: &str) -> Vec<Listener> {
    const LISTEN: &str = "0A";
    let parse = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (address, port) = fields.next()?.split_once(':')?;
        let is_listening = fields.nth(1) == Some(LISTEN);
        // Words of 32 bits, each with its bytes in this machine's order.
        let words = address.as_bytes().chunks(8).map(|word| {
            let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
            Some(word.to_ne_bytes())
        });
        let bytes = words.collect::<Option<Vec<_>>>()?.concat();
        let address = match bytes.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
            _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
        };
        is_listening.then_some(Listener { address, port: u16::from_str_radix(port, 16).ok()? })
    };
    table.lines().skip(1).filter_map(parse).collect()
}

/// A process that holds new namespaces, for as long as these tests run, once the script has set them up in it.
pub async fn hold(namespaces: &[&str], script: &str, arguments: &[&str]) -> Child {
    let script = format!("{script}\necho held\nexec sleep infinity");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare"]).args(namespaces).args(["bash", "-euc", &script, "holder"]);
    let mut child = spawn(command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
    assert_eq!(line, "held\n", "{namespaces:?} cannot be made");
    child
}

async fn ip(words: &[&str]) -> String {
    printed(Command::new("ip").args(words), "").await.stdout()
}

/// Runs a script in the network namespace of a process.
async fn within(pid: &str, script: &str, arguments: &[&str]) {
    let mut command = Command::new("nsenter");
    command.args(["--target", pid, "--net", "bash", "-euc", script, "within"]).args(arguments);
    printed(&mut command, "").await.stdout();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of a machine with a little-endian processor, where listeners, a connection and both families occur.
    #[test]
    #[cfg(target_endian = "little")]
    fn listeners_are_read_from_the_kernels_tables() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n";
        let four = "   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20 1\n   \
                    1: 050012C6:733C 060012C6:8AB2 01 00000000:00000000 00:00000000 00000000     0        0 21 1\n";
        let six = "   0: 00000000000000000000000000000000:1388 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 0\n   \
                   1: 0000000000000000FFFF00000100007F:1389 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 0\n";
        let text = |listener: &Listener| format!("{} {}", listener.address, listener.port);
        let found = |table: &str| listening(&format!("{head}{table}")).iter().map(text).collect::<Vec<_>>();
        assert_eq!(found(four), ["127.0.0.1 8000"]);
        assert_eq!(found(six), [":: 5000", "127.0.0.1 5001"]);
    }
}
