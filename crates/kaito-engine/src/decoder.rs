//! The forward pass of a decoder-only transformer, over a ragged batch: tokens of many sequences, each with a length of
//! its own, in one pass over the weights.

use std::mem;

use kaito_kernels::ThreadPool;

use crate::{
    backend::{AttentionSpan, Backend, BackendError, Write},
    kv_cache::{PageCopy, PageId},
    recycle::recycled,
    rope::RopeTable,
};
use kaito_model::{
    config::{Mlp, ModelConfig, Positions, QkvLayout, Residual},
    weights::ModelWeights,
};

/// The part of one sequence that a step computes.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// The tokens to compute, at least one.
    pub tokens: &'a [u32],
    /// Tokens proposed behind them, computed as if they were the sequence's own.
    pub draft: &'a [u32],
    /// Position of the first of them: how many tokens of the sequence are in the cache already.
    pub start: usize,
    /// Pages of the sequence, enough for all of them, writable from `start` on.
    pub pages: &'a [PageId],
    /// Whether the sequence is so long that long-rope's long factors apply.
    pub long: bool,
    /// How many of the last tokens the logits are wanted after.
    pub logits: usize,
}

impl Span<'_> {
    /// Rows of the batch that the span takes.
    fn rows(&self) -> usize {
        self.tokens.len() + self.draft.len()
    }
}

struct Layer<B: Backend> {
    attention_norm: B::Norm,
    mlp_norm: Option<B::Norm>,
    qkv: B::Linear,
    attention_output: B::Linear,
    mlp_in: B::Linear,
    mlp_out: B::Linear,
}

/// Activations of the largest step, allocated once.
struct Workspace<B: Backend> {
    residual: B::Buffer,
    normed: B::Buffer,
    /// The MLP's input where it has a norm of its own beside the attention's (Falcon 40B).
    mlp_normed: Option<B::Buffer>,
    qkv: B::Buffer,
    attended: B::Buffer,
    mlp_in: B::Buffer,
    mlp_inner: B::Buffer,
    last: B::Buffer,
    logits: B::Buffer,
}

/// A model on a device, with the keys and values of its running sequences.
pub struct Decoder<B: Backend> {
    backend: B,
    config: ModelConfig,
    qkv_layout: QkvLayout,
    limits: DecoderLimits,
    rope: Option<RopeTable>,
    embedding: B::Linear,
    layers: Vec<Layer<B>>,
    final_norm: B::Norm,
    head: B::Linear,
    pool: B::KvPool,
    workspace: Workspace<B>,
    batch: Batch,
}

/// The rows of a step. Its memory is used again at every step.
struct Batch {
    ids: Vec<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    spans: Vec<AttentionSpan<'static>>,
    /// Rows that logits are wanted after.
    wanted: Vec<usize>,
}

/// What a [`Decoder`] must have room for.
#[derive(Debug, Clone, Copy)]
pub struct DecoderLimits {
    /// Pages of keys and values.
    pub pages: usize,
    /// Tokens in a page.
    pub page_size: usize,
    /// Tokens computed in one step.
    pub step_tokens: usize,
    /// Rows of logits in one step.
    pub step_logits: usize,
}

impl<B: Backend> Decoder<B> {
    /// Puts a model on the device.
    pub fn new(
        mut backend: B,
        config: ModelConfig,
        weights: ModelWeights,
        limits: DecoderLimits,
    ) -> Result<Self, BackendError> {
        let spec = config.layer;
        let layers = weights
            .layers
            .into_iter()
            .map(|layer| {
                Ok(Layer {
                    attention_norm: backend.load_norm(layer.attention_norm, spec.norm)?,
                    mlp_norm: layer.mlp_norm.map(|weights| backend.load_norm(weights, spec.norm)).transpose()?,
                    qkv: backend.load_linear(layer.qkv)?,
                    attention_output: backend.load_linear(layer.attention_output)?,
                    mlp_in: backend.load_linear(layer.mlp_in)?,
                    mlp_out: backend.load_linear(layer.mlp_out)?,
                })
            })
            .collect::<Result<Vec<_>, BackendError>>()?;
        let rows = |width: usize| backend.buffer(limits.step_tokens * width);
        let workspace = Workspace {
            residual: rows(config.hidden_size)?,
            normed: rows(config.hidden_size)?,
            mlp_normed: (spec.residual == Residual::Parallel).then(|| rows(config.hidden_size)).transpose()?,
            qkv: rows(spec.attention.qkv_width())?,
            attended: rows(spec.attention.query_width())?,
            mlp_in: rows(spec.mlp.in_width())?,
            mlp_inner: rows(spec.mlp.width)?,
            last: backend.buffer(limits.step_logits * config.hidden_size)?,
            logits: backend.buffer(limits.step_logits * config.vocab_size)?,
        };
        backend.reserve(&config, limits.step_tokens);
        let rope = RopeTable::of(&config);
        let angles = limits.step_tokens * rope.as_ref().map_or(0, RopeTable::angles);
        let batch = Batch {
            ids: Vec::with_capacity(limits.step_tokens),
            cos: Vec::with_capacity(angles),
            sin: Vec::with_capacity(angles),
            spans: Vec::with_capacity(limits.step_tokens),
            wanted: Vec::with_capacity(limits.step_logits),
        };
        Ok(Self {
            rope,
            qkv_layout: QkvLayout::of(&spec.attention),
            embedding: backend.load_linear(weights.embedding)?,
            layers,
            final_norm: backend.load_norm(weights.final_norm, config.final_norm)?,
            head: backend.load_linear(weights.head)?,
            pool: backend.kv_pool(&config, limits.pages, limits.page_size)?,
            workspace,
            batch,
            limits,
            backend,
            config,
        })
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What it has room for.
    pub fn limits(&self) -> &DecoderLimits {
        &self.limits
    }

    /// Threads of the host, for what is not computed on the device.
    pub fn host_pool(&self) -> &ThreadPool {
        self.backend.host_pool()
    }

    /// Copies pages of keys and values, before a step writes to the copies.
    pub fn copy_pages(&mut self, copies: &[PageCopy]) {
        if !copies.is_empty() {
            self.backend.copy_pages(&mut self.pool, copies);
        }
    }

    /// Computes `spans`, stores their keys and values, and leaves in `logits` a row of `vocab_size` for each token that
    /// they are wanted after, in order.
    pub fn forward(&mut self, spans: &[Span], logits: &mut Vec<f32>) {
        let attention_spans = self.place(spans);
        let Self {
            backend,
            config,
            qkv_layout: layout,
            embedding,
            layers,
            final_norm,
            head,
            pool,
            workspace: w,
            batch,
            ..
        } = self;
        let Batch { ids, cos, sin, wanted, .. } = batch;
        let (spec, rows) = (&config.layer, ids.len());

        backend.embed(embedding, ids, &mut w.residual);
        for (index, layer) in layers.iter().enumerate() {
            backend.norm(&layer.attention_norm, rows, &w.residual, &mut w.normed);
            // Both norms of a parallel layer see the residual stream before anything is added to it.
            if let (Some(normed), Some(norm)) = (&mut w.mlp_normed, &layer.mlp_norm) {
                backend.norm(norm, rows, &w.residual, normed);
            }
            backend.linear(&layer.qkv, rows, &w.normed, &mut w.qkv, Write::Set);
            if let Positions::Rotary(rope) = &config.positions {
                backend.rope(&mut w.qkv, layout, rope.pairing, rows, cos, sin);
            }
            backend.store_kv(pool, index, &w.qkv, layout, &attention_spans);
            backend.attention(pool, index, &w.qkv, layout, &attention_spans, &mut w.attended);
            backend.linear(&layer.attention_output, rows, &w.attended, &mut w.residual, Write::Add);

            let mlp_input = match (spec.residual, &layer.mlp_norm) {
                (Residual::Sequential, Some(norm)) => {
                    backend.norm(norm, rows, &w.residual, &mut w.normed);
                    &w.normed
                }
                (Residual::Parallel, _) => w.mlp_normed.as_ref().unwrap_or(&w.normed),
                _ => &w.normed,
            };
            backend.linear(&layer.mlp_in, rows, mlp_input, &mut w.mlp_in, Write::Set);
            let inner = match spec.mlp.kind {
                Mlp::SwiGlu => {
                    backend.swiglu(rows, &w.mlp_in, spec.mlp.width, &mut w.mlp_inner);
                    &w.mlp_inner
                }
                Mlp::Gelu => {
                    backend.gelu(rows, spec.mlp.width, &mut w.mlp_in);
                    &w.mlp_in
                }
            };
            backend.linear(&layer.mlp_out, rows, inner, &mut w.residual, Write::Add);
        }

        logits.resize(wanted.len() * config.vocab_size, 0.0);
        if !wanted.is_empty() {
            backend.select_rows(&w.residual, config.hidden_size, wanted, &mut w.last);
            backend.norm(final_norm, wanted.len(), &w.last, &mut w.normed);
            backend.linear(head, wanted.len(), &w.normed, &mut w.logits, Write::Set);
            backend.read(&w.logits, logits);
        }
        self.batch.spans = recycled(attention_spans);
    }

    /// Gives each span its rows of the batch, and computes the rows' rotary angles.
    fn place<'a>(&mut self, spans: &[Span<'a>]) -> Vec<AttentionSpan<'a>> {
        let Batch { ids, cos, sin, spans: placed, wanted } = &mut self.batch;
        ids.clear();
        cos.clear();
        sin.clear();
        wanted.clear();
        let mut placed = recycled(mem::take(placed));
        for span in spans {
            let first_row = ids.len();
            ids.extend(span.tokens.iter().chain(span.draft));
            wanted.extend(ids.len().saturating_sub(span.logits)..ids.len());
            let context = span.start + span.rows();
            if let Some(rope) = &self.rope {
                (span.start..context).for_each(|position| rope.push_angles(position, span.long, cos, sin));
            }
            placed.push(AttentionSpan { first_row, rows: span.rows(), context, pages: span.pages });
        }
        placed
    }
}
