//! The program that these tests run.

use std::{ffi::OsStr, path::Path, process::Command};

use kaito_testing::process;

/// Where it is.
pub const KAITO: &str = env!("CARGO_BIN_EXE_kaito");

/// `kaito` in an environment that holds nothing of this machine's user.
pub fn kaito(args: &[impl AsRef<OsStr>]) -> Command {
    process::command(KAITO, env!("CARGO_TARGET_TMPDIR"), args)
}

/// A `PATH` by which shells find it.
pub fn path() -> String {
    format!("{}:{}", Path::new(KAITO).parent().unwrap().display(), std::env::var("PATH").unwrap())
}

/// The names below `Commands:` in a help text.
pub fn commands(help: &str) -> Vec<String> {
    let below = help.split_once("Commands:\n").map_or("", |(_, below)| below);
    let lines = below.lines().take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}
