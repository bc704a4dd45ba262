//! Workspaces end to end: the chart's manifests on a real control plane, run by `tests/cluster/run`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "what fails in a test, fails the test")]

mod case;
mod stand_ins;
mod suite;

use std::{process::ExitCode, sync::Arc};

use libtest_mimic::Arguments;
use suite::{Phase, Suite, cases};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Cases mostly wait.
    arguments.test_threads.get_or_insert(16);
    let runtime = Arc::new(tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap());
    let suite = Arc::new(runtime.block_on(Suite::start()));

    let phases = [Phase { prepare: None, cases: cases![stand_ins: becomes_ready, tells_failures_as_a_kubelet_does] }];
    let failed = phases.into_iter().any(|phase| !phase.run(&arguments, &runtime, &suite));
    runtime.block_on(suite.stop());
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
