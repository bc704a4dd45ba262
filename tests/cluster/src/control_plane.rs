//! The control plane that the script `run` has started.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
};

/// Where the control plane is, and an administrator's client of it.
#[derive(Clone)]
pub struct ControlPlane {
    /// A client with an administrator's rights.
    pub client: Client,
    /// Logs, process ids, the audit log.
    pub folder: PathBuf,
    /// The address of the API server.
    pub server: String,
}

/// What a program printed, and whether it succeeded.
#[derive(Debug)]
pub struct Printed {
    /// Whether its exit status was 0.
    pub success: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error, where kubectl shows warnings.
    pub stderr: String,
}

impl Printed {
    /// The standard output of a program that must have succeeded.
    pub fn stdout(self) -> String {
        assert!(self.success, "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// The standard error of a program that must have failed.
    pub fn error(self) -> String {
        assert!(!self.success, "succeeded, and should not have: {}{}", self.stdout, self.stderr);
        self.stderr
    }
}

impl ControlPlane {
    /// The one whose folder and kubeconfig the environment names.
    pub async fn from_environment() -> Self {
        let folder = env::var_os("KAITO_CLUSTER").expect("run by tests/cluster/run, which sets KAITO_CLUSTER");
        let folder = PathBuf::from(folder);
        let kubeconfig = Kubeconfig::read_from(folder.join("admin.kubeconfig")).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let server = config.cluster_url.to_string();
        let plane = Self { client: Client::try_from(config).unwrap(), folder, server };
        plane.note("tests", std::process::id());
        plane
    }

    /// Notes the process's id, so that the script `run` ends it if this program does not.
    pub fn note(&self, name: &str, pid: u32) {
        fs::write(self.folder.join("pids").join(name), pid.to_string()).unwrap();
    }

    /// The process has ended.
    pub fn forget(&self, name: &str) {
        let _ = fs::remove_file(self.folder.join("pids").join(name));
    }

    /// The id of a process of the control plane, such as `kube-apiserver`.
    pub fn pid(&self, name: &str) -> i32 {
        fs::read_to_string(self.folder.join("pids").join(name)).unwrap().trim().parse().unwrap()
    }

    /// Runs kubectl as an administrator.
    pub async fn kubectl(&self, arguments: &[&str]) -> Printed {
        self.kubectl_with(arguments, "").await
    }

    /// Runs kubectl as an administrator, with `input` on its standard input.
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Printed {
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(self.folder.join("admin.kubeconfig"))
            .arg("--cache-dir")
            .arg(self.folder.join("kubectl-cache"))
            .args(arguments);
        printed(&mut command, input).await
    }
}

/// Runs a program to its end.
pub async fn printed(command: &mut Command, input: &str) -> Printed {
    let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // A program that does not read its input may end before all of it is written.
    let writing = tokio::spawn(async move { stdin.write_all(input.as_bytes()).await });
    let output = child.wait_with_output().await.unwrap();
    let _ = writing.await;
    Printed {
        success: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Starts a program that ends when its handle is dropped.
pub fn spawn(command: &mut Command) -> Child {
    let name = command.as_std().get_program().to_owned();
    command.kill_on_drop(true).spawn().unwrap_or_else(|error| panic!("{}: {error}", name.display()))
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

/// The program under test: `KAITO_BINARY`, or what cargo has built beside this test.
pub fn kaito() -> PathBuf {
    let binary = env::var_os("KAITO_BINARY").map_or_else(
        || env::current_exe().unwrap().ancestors().nth(2).unwrap().join("kaito"),
        |path| repository().join(path),
    );
    assert!(binary.exists(), "{}: build it first, by cargo build --bin kaito", binary.display());
    binary
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
