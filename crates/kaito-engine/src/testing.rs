//! An engine without a model, whose device and whose requests panic on demand: for tests of what goes on around a model.
//!
//! The fake model's next token depends on all tokens before it, as they lie in the pages of keys and values. So a token that
//! was computed from pages with anything else in them is a wrong one.

#![allow(clippy::panic, reason = "that is what it is for")]

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use kaito_kernels::ThreadPool;

use crate::{
    Error,
    backend::{AttentionSpan, Backend, BackendError, Write},
    decoder::{Decoder, DecoderLimits},
    engine::Engine,
    kv_cache::{KvCache, PageCopy},
    scheduler::{Faults, Scheduler, SchedulerLimits},
};
use kaito_model::{
    config::{AttentionSpec, LayerSpec, Mlp, MlpSpec, ModelConfig, Norm, Positions, QkvLayout, Residual, RopePairing},
    weights::{LayerWeights, Linear, ModelWeights, NormWeights},
};

/// Tokens of the fake model.
pub const VOCAB: usize = 64;
/// Tokens in a page.
pub const PAGE_SIZE: usize = 4;

/// Makes forward passes panic, half way through, or wait.
#[derive(Debug, Clone, Default)]
pub struct DeviceFaults {
    once: Arc<AtomicBool>,
    /// A token and one, or 0.
    poison: Arc<AtomicU32>,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

#[derive(Debug, Default)]
struct Gate {
    /// How many passes may still begin; all where it is `None`.
    passes: Option<usize>,
    /// Whether one waits.
    waits: bool,
}

impl DeviceFaults {
    /// The next pass panics.
    pub fn once(&self) {
        self.once.store(true, Relaxed);
    }

    /// Every pass panics that computes this token.
    pub fn poison(&self, token: u32) {
        self.poison.store(token + 1, Relaxed);
    }

    /// Lets so many more passes begin, and the one after them wait.
    pub fn allow(&self, passes: usize) {
        let mut gate = self.gate();
        gate.waits &= passes == 0;
        gate.passes = Some(gate.passes.unwrap_or(0) + passes);
        self.gate.1.notify_all();
    }

    /// Lets all passes begin.
    pub fn release(&self) {
        self.gate().passes = None;
        self.gate.1.notify_all();
    }

    /// Returns when a pass waits.
    pub async fn waits(&self) {
        while !self.gate().waits {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) {
        let mut gate = self.gate();
        while gate.passes == Some(0) {
            gate.waits = true;
            gate = self.gate.1.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        gate.waits = false;
        gate.passes = gate.passes.map(|left| left - 1);
    }
}

/// A running engine of the fake model, and what makes it panic.
pub struct FakeEngine {
    /// The engine.
    pub engine: Engine,
    /// Panics in the bookkeeping of requests, which are numbered from 0 as they are submitted.
    pub requests: Faults,
    /// Panics in forward passes.
    pub device: DeviceFaults,
}

impl FakeEngine {
    /// Starts one with so many pages and rows, that proposes up to `drafts` tokens in a step.
    ///
    /// # Errors
    /// A thread that can't be started.
    pub fn start(pages: u32, rows: usize, drafts: usize) -> Result<Self, Error> {
        let device = DeviceFaults::default();
        let limits =
            DecoderLimits { pages: pages as usize, page_size: PAGE_SIZE, step_tokens: 32, step_logits: rows + drafts };
        let decoder = Decoder::new(FakeBackend::new(device.clone()), config(), weights(), limits)?;
        let limits = SchedulerLimits {
            rows,
            step_tokens: 32,
            step_tokens_beside_streams: rows.clamp(9, 32),
            step_drafts: drafts,
            long_above: None,
        };
        let scheduler = Scheduler::new(limits, KvCache::new(pages, PAGE_SIZE));
        let requests = scheduler.faults().clone();
        Ok(Self { engine: Engine::start(decoder, scheduler, 100)?, requests, device })
    }
}

fn config() -> ModelConfig {
    let norm = Norm::Rms { eps: 1e-5 };
    ModelConfig {
        family: "fake",
        vocab_size: VOCAB,
        hidden_size: 1,
        num_layers: 1,
        layer: LayerSpec {
            attention: AttentionSpec::new(1, 1, 2),
            mlp: MlpSpec { kind: Mlp::Gelu, width: 1, bias: false },
            norm,
            residual: Residual::ParallelSharedNorm,
        },
        final_norm: norm,
        positions: Positions::Alibi,
        max_position_embeddings: 1024,
        dialog_format: None,
    }
}

/// What a linear map of the fake model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Passes on what comes in.
    Pass,
    /// Nothing.
    Nothing,
    /// Makes scores.
    Head,
}

fn weights() -> ModelWeights {
    let linear = |role: Role| Linear { out_features: role as usize, in_features: 1, parts: Vec::new(), bias: None };
    let norm = || NormWeights { weight: vec![1.0], bias: None };
    ModelWeights {
        embedding: linear(Role::Pass),
        layers: vec![LayerWeights {
            attention_norm: norm(),
            mlp_norm: None,
            qkv: linear(Role::Pass),
            attention_output: linear(Role::Pass),
            mlp_in: linear(Role::Nothing),
            mlp_out: linear(Role::Nothing),
        }],
        final_norm: norm(),
        head: linear(Role::Head),
    }
}

/// A device whose activations are one number a row: a token, and behind attention a hash of all tokens up to it.
struct FakeBackend {
    pool: ThreadPool,
    faults: DeviceFaults,
    poisoned: bool,
}

impl FakeBackend {
    fn new(faults: DeviceFaults) -> Self {
        Self { pool: ThreadPool::new(NonZeroUsize::MIN.saturating_add(1)), faults, poisoned: false }
    }
}

/// The tokens in a page's slots.
fn slot(pages: &[u32], at: usize) -> usize {
    pages[at / PAGE_SIZE] as usize * PAGE_SIZE + at % PAGE_SIZE
}

fn scores(state: f32, scores: &mut [f32]) {
    let mut state = (u64::from(state.to_bits()) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for score in scores {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *score = (state >> 40) as f32 / (1 << 22) as f32;
    }
}

impl Backend for FakeBackend {
    type Buffer = Vec<f32>;
    type Linear = Role;
    type Norm = ();
    type KvPool = Vec<f32>;

    fn buffer(&self, len: usize) -> Result<Vec<f32>, BackendError> {
        Ok(vec![0.0; len])
    }

    fn load_linear(&self, linear: Linear) -> Result<Role, BackendError> {
        let roles = [Role::Pass, Role::Nothing, Role::Head];
        Ok(roles.into_iter().find(|role| *role as usize == linear.out_features).unwrap_or(Role::Nothing))
    }

    fn load_norm(&self, _: NormWeights, _: Norm) -> Result<(), BackendError> {
        Ok(())
    }

    fn kv_pool(&self, _: &ModelConfig, pages: usize, page_size: usize) -> Result<Vec<f32>, BackendError> {
        Ok(vec![-1.0; pages * page_size])
    }

    fn reserve(&mut self, _: &ModelConfig, _: usize) {}

    fn host_pool(&self) -> &ThreadPool {
        &self.pool
    }

    fn embed(&mut self, _: &Role, ids: &[u32], output: &mut Vec<f32>) {
        self.faults.enter();
        let poison = self.faults.poison.load(Relaxed);
        self.poisoned = ids.iter().any(|id| id + 1 == poison) || self.faults.once.swap(false, Relaxed);
        output.iter_mut().zip(ids).for_each(|(output, &id)| *output = id as f32);
    }

    fn norm(&mut self, (): &(), rows: usize, input: &Vec<f32>, output: &mut Vec<f32>) {
        output[..rows].copy_from_slice(&input[..rows]);
    }

    fn linear(&mut self, role: &Role, rows: usize, input: &Vec<f32>, output: &mut Vec<f32>, _: Write) {
        match role {
            Role::Pass => output[..rows].copy_from_slice(&input[..rows]),
            Role::Nothing => {}
            Role::Head => {
                input[..rows].iter().zip(output.chunks_exact_mut(VOCAB)).for_each(|(&state, row)| scores(state, row));
            }
        }
    }

    fn rope(&mut self, _: &mut Vec<f32>, _: &QkvLayout, _: RopePairing, _: usize, _: &[f32], _: &[f32]) {}

    fn store_kv(&mut self, pool: &mut Vec<f32>, _: usize, qkv: &Vec<f32>, _: &QkvLayout, spans: &[AttentionSpan]) {
        for span in spans {
            for row in 0..span.rows {
                pool[slot(span.pages, span.context - span.rows + row)] = qkv[span.first_row + row];
            }
        }
    }

    fn attention(
        &mut self,
        pool: &Vec<f32>,
        _: usize,
        _: &Vec<f32>,
        _: &QkvLayout,
        spans: &[AttentionSpan],
        output: &mut Vec<f32>,
    ) {
        assert!(!self.poisoned, "a fault of the device, as asked for");
        for span in spans {
            for row in 0..span.rows {
                let past = (0..=span.context - span.rows + row).map(|at| pool[slot(span.pages, at)]);
                let hash =
                    past.fold(17u32, |hash, token| (hash ^ token.to_bits()).wrapping_mul(0x9e37_79b1).rotate_left(13));
                // What an f32 holds exactly.
                output[span.first_row + row] = (hash >> 8) as f32;
            }
        }
    }

    fn swiglu(&mut self, _: usize, _: &Vec<f32>, _: usize, _: &mut Vec<f32>) {}

    fn gelu(&mut self, _: usize, _: usize, _: &mut Vec<f32>) {}

    fn select_rows(&mut self, input: &Vec<f32>, width: usize, selected: &[usize], output: &mut Vec<f32>) {
        for (to, &from) in selected.iter().enumerate() {
            output[to * width..][..width].copy_from_slice(&input[from * width..][..width]);
        }
    }

    fn read(&mut self, buffer: &Vec<f32>, output: &mut [f32]) {
        output.copy_from_slice(&buffer[..output.len()]);
    }

    fn copy_pages(&mut self, pool: &mut Vec<f32>, copies: &[PageCopy]) {
        for copy in copies {
            let from = copy.from as usize * PAGE_SIZE;
            pool.copy_within(from..from + PAGE_SIZE, copy.to as usize * PAGE_SIZE);
        }
    }
}
