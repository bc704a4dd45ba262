//! One run of a container: its program, as the first process of a process namespace of its own, whose end ends all others in it.

use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Container, Pod};
use rustix::process::Signal;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::{
    super::{process::signal, variables},
    image::Image,
    sandbox::{Mount, Sandbox},
};
use crate::control_plane::spawn;

/// The environment's, and that of the parts of a pod.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a container is to be started.
pub struct Launch<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub sandbox: &'a Sandbox,
    pub host_ip: &'a str,
    pub image: Image,
    pub mounts: Vec<Mount>,
    /// What it prints.
    pub log: PathBuf,
}

/// A container that runs.
pub struct Instance {
    /// Waits for the first process of the container; the kernel ends the container with it.
    child: Child,
    pub inside: Inside,
    pub log: PathBuf,
    pub since: Instant,
}

/// What it takes to run a command in a container.
#[derive(Debug, Clone)]
pub struct Inside {
    /// The container's first process, by this machine's numbers; 0 where it ended before it began.
    first: u32,
    environment: HashMap<String, String>,
    user: [String; 2],
}

impl Launch<'_> {
    pub async fn start(self) -> Instance {
        let Self { pod, container, sandbox, host_ip, image, mounts, log } = self;
        let mut environment: HashMap<String, String> = image.environment.iter().cloned().collect();
        environment.entry("PATH".to_owned()).or_insert_with(|| PATH.to_owned());
        environment.insert("HOSTNAME".to_owned(), pod.metadata.name.clone().unwrap_or_default());
        for variable in container.env.iter().flatten() {
            let value = variables::value(pod, host_ip, &sandbox.ip, variable);
            environment.insert(variable.name.clone(), variables::expanded(&value, &environment));
        }
        let words =
            container.command.as_ref().unwrap_or(&image.entrypoint).iter().chain(container.args.iter().flatten());
        let words = words.map(|word| variables::expanded(word, &environment));
        assert!(container.working_dir.is_none(), "the simulated kubelet knows no working directory but the root");
        let user = user(pod, container);
        let own = container.security_context.as_ref();
        let mode = if own.and_then(|own| own.read_only_root_filesystem) == Some(true) { "ro" } else { "rw" };

        let folder = sandbox.folder.join("containers").join(&container.name);
        fs::create_dir_all(&folder).unwrap();
        let begun = folder.with_extension("begun");
        let _ = fs::remove_file(&begun);
        let output = File::create(&log).unwrap();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "nsenter", "--target", &sandbox.pid().to_string()])
            .args(["--mount", "--net", "--uts", "--ipc"])
            .args(["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"])
            .args(["bash", "-c", include_str!("container.sh"), "container.sh"])
            .arg(&folder)
            .args([mode, &user[0], &user[1]]);
        for mount in &mounts {
            command.arg(&mount.source).args([mount.path.as_str(), if mount.read_only { "ro" } else { "rw" }]);
        }
        command
            .arg("--")
            .args(words)
            .env_clear()
            .envs(&environment)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let mut child = spawn(&mut command);
        let first = first_process(&mut child, &begun).await;
        Instance { child, inside: Inside { first, environment, user }, log, since: Instant::now() }
    }
}

/// Once it has its root; 0 if it has ended before.
async fn first_process(child: &mut Child, begun: &Path) -> u32 {
    let pid = child.id().unwrap();
    loop {
        if begun.exists() {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            return children.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or_default();
        }
        if child.try_wait().unwrap().is_some() {
            return 0;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// The numbers of a container's user and group.
fn user(pod: &Pod, container: &Container) -> [String; 2] {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let user = own.and_then(|own| own.run_as_user).or_else(|| of_pod.and_then(|of_pod| of_pod.run_as_user));
    let group = own.and_then(|own| own.run_as_group).or_else(|| of_pod.and_then(|of_pod| of_pod.run_as_group));
    [user, group].map(|number| number.unwrap_or_default().to_string())
}

impl Inside {
    /// A command in the container, as `kubectl exec` has it; it ends when its handle is dropped.
    pub fn exec(&self, words: &[String]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.first.to_string(),
                "--mount",
                "--net",
                "--uts",
                "--ipc",
                "--pid",
                "--root",
                "--wd",
            ])
            .args(["setpriv", "--reuid", &self.user[0], "--regid", &self.user[1], "--groups", &self.user[1]])
            .args(["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--pdeathsig", "KILL", "--"])
            .args(words)
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

impl Instance {
    /// Its exit status, once it has ended.
    pub async fn ended(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.child.wait().await.unwrap();
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
    }

    /// What it is told before it ends, `SIGTERM`, and the end of all its processes after `limit`; its exit status.
    pub async fn terminate(&mut self, container: &Container, limit: Duration) -> i32 {
        /// However long the hook took.
        const AFTER_THE_HOOK: Duration = Duration::from_secs(2);
        let begin = Instant::now();
        let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
        if let Some(hook) = hook {
            let words = hook.exec.as_ref().and_then(|exec| exec.command.as_ref());
            let words = words.unwrap_or_else(|| panic!("the simulated kubelet knows hooks with exec alone: {hook:?}"));
            let mut command = self.inside.exec(words);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let _ = timeout(limit, command.status()).await;
        }
        self.signal(Signal::TERM);
        let left = limit.saturating_sub(begin.elapsed()).max(AFTER_THE_HOOK);
        match timeout(left, self.ended()).await {
            Ok(code) => code,
            Err(_) => self.kill().await,
        }
    }

    /// Ends all of its processes at once.
    pub async fn kill(&mut self) -> i32 {
        self.signal(Signal::KILL);
        match timeout(Duration::from_secs(5), self.ended()).await {
            Ok(code) => code,
            Err(_) => {
                self.child.kill().await.unwrap();
                137
            }
        }
    }

    fn signal(&self, which: Signal) {
        // It may not have begun.
        if self.inside.first != 0 {
            signal(self.inside.first, which);
        }
    }

    /// The end of what it printed, as a kubelet keeps it for a container that fails.
    pub fn last_words(&self) -> String {
        const LINES: usize = 80;
        const BYTES: usize = 2048;
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log[log.len().saturating_sub(BYTES)..]).into_owned();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}
