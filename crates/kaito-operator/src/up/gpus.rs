//! The GPUs of this machine.

use std::{env, fs, path::Path, process::Stdio, time::Duration};

use kaito_presets::{GIB, GpuVendor, gib};
use tokio::{process::Command, time};

/// A driver that hangs is one without GPUs.
const LIMIT: Duration = Duration::from_secs(20);
/// The variables that say which GPUs a process may use, and by which numbers.
const VISIBLE: &[(GpuVendor, &str)] =
    &[(GpuVendor::Nvidia, "CUDA_VISIBLE_DEVICES"), (GpuVendor::Amd, "HIP_VISIBLE_DEVICES")];
/// The vendor's number on the PCI bus.
const AMD: &str = "0x1002";

/// The GPUs of one vendor; those of another do not count beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpus {
    /// Who makes them.
    pub vendor: GpuVendor,
    /// Those that processes may use.
    pub each: Vec<Gpu>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// The number by which the driver knows it.
    pub id: String,
    /// Bytes of its memory, where it has memory of its own.
    pub memory: Option<u64>,
    /// Of CUDA, like `9.0`.
    pub compute_capability: Option<String>,
}

impl Gpus {
    /// Those that there are, if any.
    pub async fn of_this_machine() -> Option<Self> {
        let nvidia = nvidia_smi().await.map(|text| (GpuVendor::Nvidia, nvidia(&text)));
        let found = nvidia.filter(|(_, each)| !each.is_empty());
        let (vendor, each) = found.unwrap_or_else(|| (GpuVendor::Amd, amd(Path::new("/sys/class/drm"))));
        let variable = VISIBLE.iter().find(|(of, _)| *of == vendor).and_then(|(_, name)| env::var(name).ok());
        let each = visible(each, variable.as_deref());
        (!each.is_empty()).then_some(Self { vendor, each })
    }

    /// As many as there are.
    pub fn count(&self) -> u32 {
        u32::try_from(self.each.len()).unwrap_or(u32::MAX)
    }

    /// Memory of the smallest, where all have memory of their own.
    pub fn memory(&self) -> Option<u64> {
        self.each.iter().map(|gpu| gpu.memory).collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// The variables by which a process has `count` of them and no others, after `skipped` that other processes have.
    pub fn variables(&self, skipped: u32, count: u32) -> Vec<(&'static str, String)> {
        let ids: Vec<_> =
            self.each.iter().skip(skipped as usize).take(count as usize).map(|gpu| gpu.id.as_str()).collect();
        let visible = VISIBLE.iter().filter(|(of, _)| *of == self.vendor).map(|(_, name)| (*name, ids.join(",")));
        // The numbers are those of nvidia-smi, which counts by the bus.
        let order = (self.vendor == GpuVendor::Nvidia).then(|| ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()));
        visible.chain(order).collect()
    }

    /// In words.
    pub fn describe(&self) -> String {
        let each = self.memory().map_or_else(String::new, |memory| format!(" with {}", gib(memory)));
        let plural = if self.each.len() == 1 { "" } else { "s" };
        format!("{} GPU{plural} of {}{each}", self.each.len(), self.vendor)
    }
}

async fn nvidia_smi() -> Option<String> {
    let mut command = Command::new("nvidia-smi");
    command.args(["--query-gpu=index,memory.total,compute_cap", "--format=csv,noheader,nounits"]);
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = time::timeout(LIMIT, command.output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The lines of `nvidia-smi`: number, MiB of memory, compute capability.
fn nvidia(text: &str) -> Vec<Gpu> {
    let gpu = |line: &str| {
        let mut fields = line.split(',').map(str::trim);
        let id = fields.next().filter(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))?.to_owned();
        let memory = fields.next()?.parse::<u64>().ok().and_then(|mib| mib.checked_mul(1 << 20));
        let is_version = |text: &&str| text.split('.').all(|part| part.parse::<u32>().is_ok());
        Some(Gpu { id, memory, compute_capability: fields.next().filter(is_version).map(str::to_owned) })
    };
    text.lines().filter_map(gpu).collect()
}

/// The cards in a folder of the kernel's that are AMD's. Those of laptops, which share the main memory, are not meant.
fn amd(cards: &Path) -> Vec<Gpu> {
    let is_card = |name: &str| name.strip_prefix("card").and_then(|number| number.parse::<u32>().ok());
    let names = fs::read_dir(cards).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut numbers: Vec<u32> = names.filter_map(|name| is_card(&name.to_string_lossy())).collect();
    numbers.sort_unstable();
    let read = |number: u32, file: &str| {
        let path = cards.join(format!("card{number}")).join("device").join(file);
        fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    };
    let memories =
        numbers.into_iter().filter(|number| read(*number, "vendor").as_deref() == Some(AMD)).filter_map(|number| {
            read(number, "mem_info_vram_total")?.parse::<u64>().ok().filter(|memory| *memory >= 4 * GIB)
        });
    let gpu =
        |(place, memory): (usize, u64)| Gpu { id: place.to_string(), memory: Some(memory), compute_capability: None };
    memories.enumerate().map(gpu).collect()
}

/// Those that a variable names, in its order, up to the first that there is not, as the drivers take it; all without a variable.
fn visible(all: Vec<Gpu>, variable: Option<&str>) -> Vec<Gpu> {
    match variable {
        None => all,
        Some(ids) => {
            let find = |id: &str| all.iter().find(|gpu| gpu.id == id.trim()).cloned();
            ids.split(',').map_while(find).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(id: &str, mib: u64, capability: Option<&str>) -> Gpu {
        Gpu { id: id.to_owned(), memory: Some(mib << 20), compute_capability: capability.map(str::to_owned) }
    }

    #[test]
    fn what_the_driver_says_is_read() {
        let text = "0, 143771, 9.0\n1, 23028, 8.6\n\n2, [N/A], 12.1\n";
        let unified = Gpu { memory: None, ..gpu("2", 0, Some("12.1")) };
        assert_eq!(nvidia(text), [gpu("0", 143_771, Some("9.0")), gpu("1", 23_028, Some("8.6")), unified]);
        assert_eq!(nvidia("0, 143771, [N/A]\n"), [gpu("0", 143_771, None)]);
        assert_eq!(nvidia("No devices were found\n"), []);
        assert_eq!(nvidia("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver\n"), []);
    }

    #[test]
    fn the_cards_of_one_vendor_are_found() {
        let folder = tempfile::tempdir().unwrap();
        for (card, vendor, memory) in [
            ("card0", "0x1a03", None),
            ("card2", AMD, Some("206141652992")),
            ("card1", AMD, Some("206141652992")),
            ("card3", AMD, Some("536870912")),
        ] {
            let device = folder.path().join(card).join("device");
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("vendor"), format!("{vendor}\n")).unwrap();
            if let Some(memory) = memory {
                fs::write(device.join("mem_info_vram_total"), format!("{memory}\n")).unwrap();
            }
        }
        fs::create_dir(folder.path().join("card1-DP-1")).unwrap();
        let found = amd(folder.path());
        assert_eq!(found.iter().map(|gpu| gpu.id.as_str()).collect::<Vec<_>>(), ["0", "1"]);
        assert!(found.iter().all(|gpu| gpu.memory == Some(206_141_652_992)));
        assert_eq!(amd(Path::new("/no/such/folder")), []);
    }

    #[test]
    fn a_variable_says_which_of_them_count() {
        let all = || vec![gpu("0", 8, None), gpu("1", 8, None), gpu("2", 8, None)];
        for (variable, ids) in [
            (None, &["0", "1", "2"][..]),
            (Some("2,0"), &["2", "0"]),
            (Some("1,-1,2"), &["1"]),
            (Some(""), &[]),
            (Some("7"), &[]),
        ] {
            let found = visible(all(), variable);
            assert_eq!(found.iter().map(|gpu| gpu.id.as_str()).collect::<Vec<_>>(), ids, "{variable:?}");
        }
    }

    #[test]
    fn each_process_has_its_own() {
        let gpus =
            Gpus { vendor: GpuVendor::Nvidia, each: ["0", "1", "4", "5"].map(|id| gpu(id, 24_576, None)).to_vec() };
        let order = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned());
        assert_eq!(gpus.variables(0, 2), [("CUDA_VISIBLE_DEVICES", "0,1".to_owned()), order.clone()]);
        assert_eq!(gpus.variables(2, 2), [("CUDA_VISIBLE_DEVICES", "4,5".to_owned()), order]);
        let amd = Gpus { vendor: GpuVendor::Amd, ..gpus.clone() };
        assert_eq!(amd.variables(0, 1), [("HIP_VISIBLE_DEVICES", "0".to_owned())]);
        assert_eq!(gpus.describe(), "4 GPUs of NVIDIA with 24 GiB");
    }
}
