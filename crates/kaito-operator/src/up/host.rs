//! This machine as the node of a workspace: what it has, and which runtime it gets.

use std::path::Path;

use kaito_presets::{CustomInstanceType, GpuVendor, InstanceTypes, Preset};

use super::{
    UpError,
    gpus::Gpus,
    machine::Machine,
    vllm::{self, Vllm},
};
use crate::{
    layout,
    runtime::{Circumstances, choose},
    workspace::{Runtime, RuntimeChoice, Workspace},
};

/// What this machine is called among the instance types.
pub const INSTANCE_TYPE: &str = "this-machine";
/// CPUs that stand for a GPU have all the memory that a GPU may have: how much vLLM takes of the main memory is its own affair.
const MEMORY_OF_CPUS: &str = "1024Gi";

/// This machine.
#[derive(Debug, Clone)]
pub struct Host {
    machine: Machine,
    gpus: Option<Gpus>,
    vllm: Option<Vllm>,
    /// Where vLLM was looked for.
    looked_for: String,
}

impl Host {
    /// This one. `vllm` is vLLM's program, which is otherwise looked for in `PATH`.
    pub async fn this(vllm: Option<&Path>) -> Self {
        let looked_for = vllm.map_or_else(|| format!("{} in PATH", vllm::PROGRAM), |path| path.display().to_string());
        Self {
            machine: Machine::this(),
            gpus: Gpus::of_this_machine().await,
            vllm: Vllm::find(vllm.unwrap_or(Path::new(vllm::PROGRAM))),
            looked_for,
        }
    }

    /// A machine of 8 cores with these.
    #[cfg(test)]
    pub(super) fn with(gpus: Option<Gpus>, vllm: Option<Vllm>) -> Self {
        use kaito_presets::GIB;

        let machine = Machine { cores: 8, memory: Some(64 * GIB) };
        Self { machine, gpus, vllm, looked_for: "vllm in PATH".to_owned() }
    }

    /// In words.
    pub fn describe(&self) -> String {
        let gpus = self.gpus.as_ref().map_or_else(String::new, |gpus| format!(", {}", gpus.describe()));
        format!("{}{gpus}", self.machine.describe())
    }

    /// What computes a preset here.
    ///
    /// # Errors
    /// Where the workspace asks for vLLM, which is not there, or has no GPUs here that it needs.
    pub(super) fn runtime(&self, workspace: &Workspace, preset: &'static Preset) -> Result<Computing<'_>, UpError> {
        let choice = match workspace.runtime() {
            Ok(choice) => choice,
            // The pod is refused for it, in the words of a cluster.
            Err(_) => return Ok(Computing::Kaito),
        };
        let ranks = layout::ranks(workspace, preset).unwrap_or(1);
        let Some(vllm) = &self.vllm else {
            return match choice {
                RuntimeChoice::Fixed(Runtime::Vllm) => Err(UpError::VllmMissing { program: self.looked_for.clone() }),
                _ => Ok(Computing::Kaito),
            };
        };
        let adapters = workspace.inference.as_ref().map_or(&[][..], |inference| &inference.adapters);
        let circumstances = Circumstances {
            preset,
            adapters,
            ranks,
            gpus: self.gpus.as_ref().filter(|_| !vllm.is_for_cpus).map_or(0, Gpus::count) / ranks,
            gpu_memory: self.gpus.as_ref().and_then(Gpus::memory),
        };
        if choose(choice, circumstances).runtime == Runtime::Kaito {
            return Ok(Computing::Kaito);
        }
        match &self.gpus {
            _ if vllm.is_for_cpus => Ok(Computing::Vllm { vllm, gpus: None, each: 1 }),
            None => Err(UpError::GpusMissing { program: vllm.program.clone() }),
            Some(gpus) if gpus.count() < ranks => {
                Err(UpError::RanksDoNotFit { preset: preset.name.to_owned(), ranks, gpus: gpus.count() })
            }
            Some(gpus) => Ok(Computing::Vllm { vllm, gpus: Some(gpus), each: gpus.count() / ranks }),
        }
    }
}

/// What computes a preset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Computing<'a> {
    /// This program.
    Kaito,
    /// vLLM.
    Vllm {
        /// Its program.
        vllm: &'a Vllm,
        /// This machine's GPUs; none where its build computes on CPUs.
        gpus: Option<&'a Gpus>,
        /// GPUs that each rank may have; on CPUs one, which stands for them.
        each: u32,
    },
}

impl Computing<'_> {
    /// The runtime.
    pub fn runtime(&self) -> Runtime {
        match self {
            Self::Kaito => Runtime::Kaito,
            Self::Vllm { .. } => Runtime::Vllm,
        }
    }

    /// The part of this machine that a rank may have, as a type of nodes that controllers know.
    ///
    /// # Errors
    /// Where its GPUs are none that models are divided among.
    pub fn instance_types(&self) -> Result<InstanceTypes, UpError> {
        let Self::Vllm { gpus, each, .. } = self else { return Ok(InstanceTypes::built_in()) };
        let memory = gpus.map(|gpus| gpus.memory().or(Machine::this().memory));
        let machine = CustomInstanceType {
            name: INSTANCE_TYPE.to_owned(),
            gpus: *each,
            gpu_memory: match memory {
                None => MEMORY_OF_CPUS.to_owned(),
                Some(bytes) => bytes.unwrap_or_default().to_string(),
            },
            gpu_vendor: gpus.map_or(GpuVendor::default(), |gpus| gpus.vendor),
            gpu_model: None,
            compute_capability: gpus.and_then(|gpus| gpus.each.first()?.compute_capability.clone()),
            cpus: None,
            memory: None,
        };
        InstanceTypes::with_custom([machine]).map_err(|source| UpError::Gpus { message: source.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use kaito_presets::GIB;

    use super::{super::gpus::Gpu, *};

    fn host(gpus: usize, gib: u64, vllm: Option<bool>) -> Host {
        let gpu = |place: usize| Gpu {
            id: place.to_string(),
            memory: Some(gib * GIB),
            compute_capability: Some("9.0".to_owned()),
        };
        let each: Vec<_> = (0..gpus).map(gpu).collect();
        Host::with(
            (gpus > 0).then_some(Gpus { vendor: GpuVendor::Nvidia, each }),
            vllm.map(|is_for_cpus| Vllm { program: "/opt/bin/vllm".into(), is_for_cpus }),
        )
    }

    fn workspace(preset: &str, count: u32, runtime: Option<&str>) -> Workspace {
        let annotations =
            runtime.map_or_else(String::new, |runtime| format!("annotations: {{kaito.sh/runtime: {runtime}}}, "));
        serde_saphyr::from_str(&format!(
            "apiVersion: kaito.sh/v1beta1\nkind: Workspace\nmetadata: {{{annotations}name: a}}\n\
             resource: {{count: {count}, labelSelector: {{matchLabels: {{a: b}}}}}}\ninference: {{preset: {{name: {preset}}}}}\n"
        ))
        .unwrap()
    }

    /// `kaito`, or GPUs of each rank, or the error.
    fn chosen(host: &Host, preset: &str, count: u32, runtime: Option<&str>) -> String {
        match host.runtime(&workspace(preset, count, runtime), kaito_presets::find(preset).unwrap()) {
            Ok(Computing::Kaito) => "kaito".to_owned(),
            Ok(Computing::Vllm { each, gpus, .. }) => format!("{each} of {}", gpus.map_or(0, Gpus::count)),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn vllm_computes_where_it_is_asked_for_or_there_are_gpus() {
        const VLLM: Option<&str> = Some("vllm");
        for (gpus, gib, vllm, preset, count, runtime, expected) in [
            (0, 0, None, "mistral-7b", 1, None, "kaito"),
            (0, 0, Some(true), "mistral-7b", 1, None, "kaito"),
            (1, 80, None, "mistral-7b", 1, None, "kaito"),
            (1, 80, Some(false), "mistral-7b", 1, None, "1 of 1"),
            (1, 80, Some(false), "mistral-7b", 1, Some("auto"), "1 of 1"),
            (1, 80, Some(false), "mistral-7b", 1, Some("kaito"), "kaito"),
            // Its build does not use them.
            (1, 80, Some(true), "mistral-7b", 1, None, "kaito"),
            // Too little memory for vLLM.
            (1, 12, Some(false), "mistral-7b", 1, None, "kaito"),
            (0, 0, Some(true), "mistral-7b", 1, VLLM, "1 of 0"),
            (0, 0, Some(true), "llama-2-13b-chat", 2, VLLM, "1 of 0"),
            (4, 80, Some(false), "llama-2-13b-chat", 2, VLLM, "2 of 4"),
            (4, 80, Some(false), "llama-2-13b-chat", 2, None, "2 of 4"),
        ] {
            let host = host(gpus, gib, vllm);
            assert_eq!(chosen(&host, preset, count, runtime), expected, "{gpus} {vllm:?} {preset} {count} {runtime:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named_with_the_next_step() {
        let vllm = Some("vllm");
        for (host, preset, count, parts) in [
            (host(1, 80, None), "mistral-7b", 1, &["vllm in PATH", "--vllm", "kaito.sh/runtime"][..]),
            (host(0, 0, Some(false)), "mistral-7b", 1, &["/opt/bin/vllm", "no GPUs", "kaito.sh/runtime: kaito"]),
            (
                host(1, 80, Some(false)),
                "llama-2-13b-chat",
                2,
                &["llama-2-13b-chat", "2 ranks", "1 GPU", "resource.count"],
            ),
        ] {
            let message = chosen(&host, preset, count, vllm);
            for part in parts {
                assert!(message.contains(part), "{part}: {message}");
            }
        }
    }

    #[test]
    fn a_rank_has_its_part_of_this_machine() {
        let host = host(4, 80, Some(false));
        let workspace = workspace("llama-2-13b-chat", 2, None);
        let computing = host.runtime(&workspace, kaito_presets::find("llama-2-13b-chat").unwrap()).unwrap();
        let types = computing.instance_types().unwrap();
        let this = types.find(INSTANCE_TYPE).unwrap();
        assert_eq!((this.gpus, this.gpu.usable_memory), (2, 80 * GIB));
        assert_eq!(host.describe(), "8 cores, 64.0 GiB of memory, 4 GPUs of NVIDIA with 80 GiB");
    }
}
