//! Workspaces end to end: the chart's manifests on a real control plane, run by `tests/cluster/run`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "what fails in a test, fails the test")]

mod admission;
mod burst;
mod case;
mod claims;
mod disruptions;
mod distributed;
mod failures;
mod guide;
mod installation;
mod lifecycle;
mod manifests;
mod nodes;
mod permissions;
mod printed;
mod ranks;
mod rollouts;
mod stand_ins;
mod suite;

use std::{process::ExitCode, sync::Arc};

use installation::Provisioner;
use libtest_mimic::Arguments;
use suite::{Phase, Suite, cases};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Cases mostly wait.
    let together = *arguments.test_threads.get_or_insert(24);
    let runtime = Arc::new(tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap());
    let suite = Arc::new(runtime.block_on(Suite::start()));
    let mut failed = false;
    for Phase { provisioner, threads, cases } in phases(together) {
        arguments.test_threads = Some(threads);
        failed |= !suite::run(&arguments, &runtime, &suite, provisioner, cases);
    }
    runtime.block_on(suite.stop());
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// In this order; within a group, several cases at a time.
fn phases(together: usize) -> Vec<Phase> {
    let phase = |provisioner, threads, cases| Phase { provisioner, threads, cases };
    vec![
        phase(
            None,
            together,
            cases![stand_ins: becomes_ready, tells_failures_as_a_kubelet_does, really_runs, runs_all_containers],
        ),
        phase(None, 1, cases![guide: as_it_is_written]),
        phase(Some(Provisioner::None), 1, cases![printed: as_in_the_documentation]),
        phase(Some(Provisioner::None), 1, cases![rollouts: another_tag_restarts_one_model_at_a_time]),
        // Its engines need the processors, of which the others would lack the time that they are given.
        phase(Some(Provisioner::None), 1, cases![ranks: two_nodes_serve_one_model]),
        phase(
            Some(Provisioner::None),
            together,
            cases![
                manifests: examples, documentation;
                nodes:
                    missing_nodes_are_counted_and_explained, preferred_nodes_come_first, a_node_that_fails_and_returns,
                    gpus_decide_on_the_runtime;
                failures:
                    an_image_that_cannot_be_pulled, a_server_that_crashes, a_server_that_runs_out_of_memory,
                    a_pod_that_no_node_takes, a_node_that_others_keep_for_themselves, a_quota_for_pods,
                    a_quota_for_services, a_model_that_loads, an_adapter_that_cannot_be_pulled, weights_that_a_claim_keeps,
                    flags_that_are_missing, a_configuration_of_the_kaito_project;
                distributed:
                    two_ranks_on_two_nodes, ranks_of_our_own_server_are_refused, one_rank_fails, engines_that_end_say_why,
                    a_rank_that_is_lost_with_its_node_is_named, ranks_of_a_changed_template_are_replaced_together,
                    one_node_of_two_is_missing, vllm_across_nodes;
                lifecycle:
                    deleting_at_every_stage, deleting_the_namespace, somebody_elses_finalizer_is_left_alone,
                    drift_is_repaired, changes_within_the_rules_are_followed, a_load_balancer_on_request;
                admission:
                    what_cannot_work_is_refused_with_its_numbers, defaults_warnings_and_both_versions,
                    what_is_fixed_cannot_be_changed;
            ],
        ),
        phase(Some(Provisioner::Karpenter), 1, cases![claims: without_karpenters_kinds]),
        phase(
            Some(Provisioner::Karpenter),
            together,
            cases![
                claims:
                    nodes_are_claimed_and_given_back, a_claim_that_fails, a_cloud_without_machines,
                    deleting_while_claims_are_pending, one_claim_for_the_node_that_is_missing,
                    a_node_is_claimed_in_place_of_a_tainted_one;
            ],
        ),
        phase(
            Some(Provisioner::None),
            1,
            cases![
                disruptions:
                    the_leader_dies, the_leader_is_asked_to_go, the_api_server_restarts,
                    image_volumes_are_switched_off_and_on, what_cannot_be_read_says_so,
                    the_webhooks_certificate_is_renewed, nothing_is_admitted_unchecked;
                claims: without_a_provisioner_they_are_told_of;
                burst: five_hundred_workspaces;
                permissions: nothing_was_forbidden, nothing_is_granted_in_vain;
            ],
        ),
    ]
}
