//! The pods of the runtime vllm as processes of this machine, one pod for each rank.
//!
//! The containers of a pod have a network of their own, and reach each other at 127.0.0.1. Here each pod has another loopback
//! address, on which the ports of its containers are free, and everything that names an address names that one.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
};

use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec};

use super::{
    UpError,
    gpus::Gpus,
    plan::{self, Local, PodPlan},
    pod::PLACES_IN_THE_POD,
    vllm::{PROGRAM, Vllm},
};
use crate::{
    layout::gpus_of,
    runtime::{ADAPTERS, ENGINE, ENGINE_PORT, IMAGE_WEIGHTS, PORT, SCRATCH, SUPERVISOR_PORT, WEIGHTS},
};

/// The ports that the containers of a pod listen on.
const PORTS: [u16; 3] = [PORT, SUPERVISOR_PORT, ENGINE_PORT];
/// The interface of loopback addresses. Ranks that talk over another one would look for each other elsewhere.
const INTERFACE: &str = "lo";
/// The variables by which the libraries of ranks are told of it.
const INTERFACES: [&str; 2] = ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"];

/// What takes the place of images and nodes.
pub struct Substitutes<'a> {
    /// The directory of the weights.
    pub weights: &'a Path,
    /// The folder of the adapters.
    pub adapters: Option<&'a Path>,
    /// vLLM's program.
    pub vllm: &'a Vllm,
    /// This machine's GPUs, where they compute.
    pub gpus: Option<&'a Gpus>,
    /// How many pods serve the model together.
    pub ranks: u32,
}

/// Plans the processes of all pods. `local` is the first one's.
///
/// # Errors
/// Where a pod needs something that only a cluster has, or no addresses are free.
pub fn plan(pod: &PodSpec, local: &Local<'_>, substitutes: &Substitutes<'_>) -> Result<PodPlan, UpError> {
    let addresses = addresses(substitutes.ranks)?;
    let first = addresses.first().copied().unwrap_or(Ipv4Addr::LOCALHOST);
    let rendezvous = free_port()?;
    let gpus = gpus_of(pod);
    let mut whole: Option<PodPlan> = None;
    for (rank, address) in (0_u32..).zip(&addresses) {
        let place = Place { rank, address: *address, first, rendezvous, gpus };
        let mut pod = pod.clone();
        let free_address = |port: Option<u16>| Ok(SocketAddr::from((*address, port.unwrap_or(PORT))));
        let name = local.pod.strip_suffix("-0").map_or_else(|| local.pod.to_owned(), |of| format!("{of}-{rank}"));
        let local = Local { address: *address, rank, pod: &name, free_address: &free_address, ..local.clone() };
        pod.containers.iter_mut().for_each(|container| place.put(container, substitutes));
        match &mut whole {
            None => whole = Some(plan::plan(&pod, &local)?),
            Some(whole) => {
                // The server of a pod that is not the first one's serves nothing.
                pod.containers.retain(|container| container.name == ENGINE);
                let mut processes = plan::processes(&pod, &local)?;
                processes.iter_mut().for_each(|process| process.container = format!("{ENGINE}-{rank}"));
                whole.processes.extend(processes);
            }
        }
    }
    whole.ok_or(UpError::NoContainers)
}

/// Where one pod is on this machine.
struct Place {
    rank: u32,
    address: Ipv4Addr,
    /// The first pod's address.
    first: Ipv4Addr,
    /// The port at which the ranks meet.
    rendezvous: u16,
    /// GPUs of each pod.
    gpus: u32,
}

impl Place {
    /// Makes a container of the pod one of this machine.
    fn put(&self, container: &mut Container, substitutes: &Substitutes<'_>) {
        for words in [&mut container.command, &mut container.args].into_iter().flatten() {
            for word in words.iter_mut() {
                *word = self.word(word, substitutes);
            }
            // All programs of this machine have the same shared memory.
            words.retain(|word| !word.starts_with(&format!("{SCRATCH}=")));
            // What follows these on the command line.
            set(words, "--first", &self.first.to_string());
            set(words, "--master-addr", &self.first.to_string());
            set(words, "--master-port", &self.rendezvous.to_string());
            if let Some(program) = words.iter().position(|word| word == "--").and_then(|at| words.get_mut(at + 1))
                && program == PROGRAM
            {
                *program = substitutes.vllm.program.display().to_string();
            }
        }
        let env = container.env.get_or_insert_default();
        env.retain(|variable| !PLACES_IN_THE_POD.contains(&variable.name.as_str()));
        if container.name == ENGINE {
            env.extend(self.variables(substitutes));
        }
    }

    fn word(&self, word: &str, substitutes: &Substitutes<'_>) -> String {
        let address = self.address.to_string();
        if word == Ipv4Addr::UNSPECIFIED.to_string() {
            return address;
        }
        let mut word = word.replace(&Ipv4Addr::LOCALHOST.to_string(), &address);
        let weights = substitutes.weights.display().to_string();
        word = word.replace(&format!("{WEIGHTS}{IMAGE_WEIGHTS}"), &weights);
        if let Some(adapters) = substitutes.adapters {
            word = word.replace(ADAPTERS, &adapters.display().to_string());
        }
        word
    }

    fn variables(&self, substitutes: &Substitutes<'_>) -> Vec<EnvVar> {
        let mut variables = match substitutes.gpus {
            Some(gpus) => gpus.variables(self.rank.saturating_mul(self.gpus), self.gpus),
            None => Vec::new(),
        };
        if substitutes.ranks > 1 {
            variables.extend(INTERFACES.map(|name| (name, INTERFACE.to_owned())));
        }
        let variable =
            |(name, value): (&str, String)| EnvVar { name: name.to_owned(), value: Some(value), value_from: None };
        variables.into_iter().map(variable).collect()
    }
}

/// Gives a flag another value, wherever it stands.
fn set(words: &mut [String], flag: &str, value: &str) {
    let with_value = format!("{flag}=");
    let mut follows = false;
    for word in words {
        if follows {
            *word = value.to_owned();
        } else if word.starts_with(&with_value) {
            *word = format!("{with_value}{value}");
        }
        follows = word == flag;
    }
}

/// Loopback addresses on which the ports of a pod are free, one for each rank.
fn addresses(ranks: u32) -> Result<Vec<Ipv4Addr>, UpError> {
    // 127.0.0.1 is what other programs take.
    let all = (2..=254).map(|last| Ipv4Addr::new(127, 0, 0, last));
    let is_free = |address: &Ipv4Addr| PORTS.iter().all(|port| TcpListener::bind((*address, *port)).is_ok());
    let found: Vec<_> = all.filter(is_free).take(ranks as usize).collect();
    if found.len() < ranks as usize { Err(UpError::NoAddress { ports: PORTS.to_vec() }) } else { Ok(found) }
}

/// A port that is free on every address: where ranks meet, torch listens on all of them.
fn free_port() -> Result<u16, UpError> {
    let port = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|listener| listener.local_addr());
    port.map(|address| address.port()).map_err(|source| UpError::System { doing: "looking for a free port", source })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use super::{
        super::{Host, Manifest, UpOptions, gpus::Gpu, pod},
        *,
    };

    const KAITO: &str = "/usr/local/bin/kaito";

    fn manifest(count: u32, config: &str) -> Manifest {
        let text = format!(
            "apiVersion: kaito.sh/v1beta1\nkind: Workspace\nmetadata: {{name: llama, annotations: {{kaito.sh/runtime: vllm}}}}\n\
             resource: {{count: {count}, labelSelector: {{matchLabels: {{a: b}}}}}}\n\
             inference:\n  config: flags\n  preset: {{name: llama-2-13b-chat, accessMode: private, presetOptions: {{image: 'r.example/a:1'}}}}\n\
             ---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: flags}}\ndata: {{{config}}}\n"
        );
        Manifest::read(&text, None).unwrap().0
    }

    fn gpus(count: usize) -> Gpus {
        let gpu = |place: usize| Gpu { id: place.to_string(), memory: Some(80 << 30), compute_capability: None };
        Gpus { vendor: kaito_presets::GpuVendor::Nvidia, each: (0..count).map(gpu).collect() }
    }

    fn vllm(is_for_cpus: bool) -> Vllm {
        Vllm { program: "/opt/bin/vllm".into(), is_for_cpus }
    }

    /// The processes of the controller's pods on this machine, and the directory of the weights.
    fn planned(manifest: &Manifest, host: &Host) -> (PodPlan, PathBuf, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().canonicalize().unwrap();
        let options = UpOptions {
            kaito: Path::new(KAITO),
            port: 0,
            host,
            weights: Some(&weights),
            adapters: None,
            log: |_, _| {},
        };
        let plan = pod::plan(manifest, &options).unwrap();
        (plan, weights, folder)
    }

    /// What follows a flag.
    fn value<'a>(args: &'a [String], flag: &str) -> Option<&'a str> {
        let mut pairs = args.windows(2).filter(|pair| pair[0] == flag);
        pairs.next().map(|pair| pair[1].as_str())
    }

    #[test]
    fn one_pod_is_a_server_and_an_engine_on_an_address_of_their_own() {
        let host = Host::with(Some(gpus(2)), Some(vllm(false)));
        let (plan, weights, _folder) = planned(&manifest(1, ""), &host);
        let weights = weights.to_str().unwrap();
        let [server, engine] = &plan.processes[..] else { panic!("{plan:#?}") };
        let address = plan.address.ip().to_string();
        assert_ne!(address, "127.0.0.1");
        assert_eq!((server.program.as_path(), engine.program.as_path()), (Path::new(KAITO), Path::new(KAITO)));
        assert_eq!(plan.address.port(), 5000);
        assert_eq!(server.env["KAITO_HOST"], address);
        assert_eq!(value(&server.args, "--weights"), Some(weights));
        assert_eq!(value(&server.args, "--upstream"), Some(format!("http://{address}:8000").as_str()));
        let (supervise, engines) = engine.args.split_at(engine.args.iter().position(|word| word == "--").unwrap());
        assert_eq!(supervise[0], "supervise");
        assert!(!engine.args.iter().any(|word| word.contains("/dev/shm")), "it is everybody's: {:?}", engine.args);
        assert_eq!(value(supervise, "--host"), Some(address.as_str()));
        assert_eq!(value(supervise, "--front"), Some(format!("http://{address}:5000").as_str()));
        assert_eq!(engines[1..4], ["/opt/bin/vllm", "serve", weights]);
        assert_eq!((value(engines, "--host"), value(engines, "--port")), (Some(address.as_str()), Some("8000")));
        // The preset asks for two.
        assert_eq!(engine.env["CUDA_VISIBLE_DEVICES"], "0,1");
        assert_eq!(value(engines, "--tensor-parallel-size"), Some("2"));
        assert!(!engine.env.contains_key("HOME"), "{:?}", engine.env);
    }

    #[test]
    fn each_rank_has_an_address_and_gpus_of_its_own() {
        let host = Host::with(Some(gpus(4)), Some(vllm(false)));
        let (plan, _, _folder) = planned(&manifest(2, ""), &host);
        let names: Vec<_> = plan.processes.iter().map(|process| process.container.as_str()).collect();
        assert_eq!(names, ["server", "engine", "engine-1"]);
        let first = plan.address.ip().to_string();
        let mut addresses = Vec::new();
        let mut meeting = Vec::new();
        for (rank, process) in plan.processes[1..].iter().enumerate() {
            let args = &process.args;
            assert_eq!(value(args, "--rank"), Some(rank.to_string().as_str()));
            assert_eq!(
                (value(args, "--first"), value(args, "--master-addr")),
                (Some(first.as_str()), Some(first.as_str()))
            );
            assert_eq!(value(args, "--node-rank"), Some(rank.to_string().as_str()));
            let address = value(args, "--host").unwrap();
            assert_eq!(process.env["VLLM_HOST_IP"], address);
            assert!(args.contains(&format!("--first-argument={address}")), "{args:?}");
            assert_eq!(process.env["GLOO_SOCKET_IFNAME"], "lo");
            assert_eq!(process.env["CUDA_VISIBLE_DEVICES"], rank.to_string());
            addresses.push(address);
            meeting.push(value(args, "--master-port").unwrap());
        }
        assert_eq!(addresses[0], first);
        assert_ne!(addresses[0], addresses[1]);
        assert_eq!(meeting[0], meeting[1], "they meet at one port");
    }

    #[test]
    fn on_cpus_each_rank_counts_as_one_gpu() {
        let host = Host::with(None, Some(vllm(true)));
        let config = "inference_config.yaml: \"vllm: {tensor-parallel-size: 2, max-model-len: 512}\"";
        let (plan, _, _folder) = planned(&manifest(2, config), &host);
        for process in &plan.processes[1..] {
            assert_eq!(value(&process.args, "--tensor-parallel-size"), Some("2"));
            assert_eq!(value(&process.args, "--pipeline-parallel-size"), Some("1"));
            assert!(!process.env.contains_key("CUDA_VISIBLE_DEVICES"), "{:?}", process.env);
        }
    }

    #[test]
    fn without_weights_nothing_is_planned() {
        let host = Host::with(None, Some(vllm(true)));
        let manifest = manifest(1, "");
        assert_eq!(pod::needs_weights(&manifest, &host).unwrap().unwrap().name, "llama-2-13b-chat");
        let options =
            UpOptions { kaito: Path::new(KAITO), port: 0, host: &host, weights: None, adapters: None, log: |_, _| {} };
        let error = pod::plan(&manifest, &options).unwrap_err().to_string();
        assert!(error.contains("llama-2-13b-chat") && error.contains("--weights"), "{error}");
        let kaito = Host::with(None, None);
        let mut of_kaito = manifest.clone();
        of_kaito.workspace.metadata.annotations = Some(BTreeMap::new());
        assert_eq!(pod::needs_weights(&of_kaito, &kaito).unwrap(), None);
    }

    #[test]
    fn gpus_that_are_too_small_are_told_of() {
        let mut small = gpus(2);
        small.each.iter_mut().for_each(|gpu| gpu.memory = Some(8 << 30));
        let host = Host::with(Some(small), Some(vllm(false)));
        let error = pod::needs_weights(&manifest(1, ""), &host).unwrap_err().to_string();
        assert!(error.contains("GpuMemoryTooSmall") && error.contains("llama-2-13b-chat"), "{error}");
    }
}
