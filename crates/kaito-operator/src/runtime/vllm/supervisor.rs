//! `kaito supervise`: the program that an engine's container runs, with vLLM as its child.
//!
//! vLLM's image does not have it, so an init container with the server's image copies it into a volume of the pod.

use k8s_openapi::api::core::v1::VolumeMount;

use super::{
    super::{POD_INDEX, PORT, Ranks, SUPERVISOR_PORT, program::CarriedProgram, strings},
    ENGINE_PORT, LOOPBACK,
};

/// The name of the init container, and of the volume.
const NAME: &str = "supervisor";
const FOLDER: &str = "/opt/kaito";
const PROGRAM: &str = "/opt/kaito/kaito";
/// The flag with the folder that the supervisor empties before each start of the engine.
pub const SCRATCH: &str = "--scratch";
/// Where containers have their shared memory. It outlives the container, so what killed engines leave there would fill it.
pub const SHARED_MEMORY: &str = "/dev/shm";

/// Seconds that an engine may take to end once it is told to, before it is killed. No request is lost then: it is told so once the
/// server has answered its last one, or when it is of no use any more.
pub const GRACE_SECONDS: u32 = 5;

/// The program of the server's image, which the engine mounts read-only.
pub fn carried(image: &str) -> CarriedProgram {
    let program = CarriedProgram::new(NAME, FOLDER, image, &["supervise", "--install", PROGRAM]);
    CarriedProgram { mount: VolumeMount { read_only: Some(true), ..program.mount }, ..program }
}

/// The command line up to vLLM's own arguments.
pub fn command(ranks: Option<&Ranks>) -> Vec<String> {
    let mut command = strings(&[PROGRAM, "supervise"]);
    if let Some(Ranks { pods, master }) = ranks {
        command.extend(strings(&[
            "--rank",
            &format!("$({POD_INDEX})"),
            "--ranks",
            &pods.to_string(),
            "--first",
            master,
        ]));
        // The first has the API, which listens for the server in its pod alone.
        let api = ["--host", LOOPBACK, "--port", &ENGINE_PORT.to_string()].map(|one| format!("--first-argument={one}"));
        command.extend(api);
        command.push("--other-argument=--headless".to_owned());
    }
    // Kubelets ask it over the pod's network, and other ranks report to the first one's.
    command.extend(strings(&["--host", "0.0.0.0", "--port", &SUPERVISOR_PORT.to_string()]));
    command.extend(strings(&["--front", &format!("http://{LOOPBACK}:{PORT}")]));
    command.extend(strings(&["--grace", &format!("{GRACE_SECONDS}s"), &format!("{SCRATCH}={SHARED_MEMORY}")]));
    command.extend(strings(&["--", "vllm"]));
    command
}
