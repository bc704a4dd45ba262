//! What a real control plane needs around it in tests: simulated nodes, network of services, and Karpenter.
//!
//! The API server, etcd, the controller manager and the scheduler are the real programs (the script `run` starts them);
//! nodes are simulated by [`kubelet::Kubelet`], which writes what a kubelet writes, in the states that a test asks for.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests that fails, fails the test"
)]

pub mod audit;
pub mod control_plane;
pub mod eventually;
pub mod karpenter;
pub mod kubelet;
pub mod network;
pub mod workspace;
