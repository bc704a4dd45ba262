//! The forward pass of a decoder-only transformer, over a ragged batch: tokens of many sequences, each with a length of
//! its own, in one pass over the weights.

use crate::{
    device::{Adapted, Adapters, BufferKind, DeviceError, DeviceErrorKind, Epilogue, Operations},
    executor::{Executor, ExecutorLimits, HostMemory, StepInput, StepOutput, Ticket},
    rope::RopeTable,
};
use kaito_model::{
    adapter::AdapterWeights,
    config::{LinearKind, Mlp, ModelConfig, Positions, QkvLayout, Residual},
    weights::ModelWeights,
};

struct Layer<O: Operations> {
    attention_norm: O::Norm,
    /// Of query heads, and of key heads.
    query_key_norms: Option<[O::Norm; 2]>,
    mlp_norm: Option<O::Norm>,
    qkv: O::Linear,
    attention_output: O::Linear,
    mlp_in: O::Linear,
    mlp_out: O::Linear,
}

/// Activations of the largest step, allocated once.
struct Workspace<O: Operations> {
    residual: O::Buffer,
    normed: O::Buffer,
    /// The MLP's input where it has a norm of its own beside the attention's (Falcon 40B).
    mlp_normed: Option<O::Buffer>,
    qkv: O::Buffer,
    attended: O::Buffer,
    mlp_inner: O::Buffer,
    last: O::Buffer,
    logits: O::Buffer,
    /// The residual stream behind the final norm, of all rows of a step.
    states: O::Buffer,
}

/// A step that was submitted, and what it gives.
struct UnderWay {
    ticket: Ticket,
    /// Rows of logits.
    logits: usize,
    /// Rows of hidden states.
    states: usize,
}

/// A model on a device, with the KV cache of its running sequences.
pub struct Decoder<O: Operations> {
    operations: O,
    config: ModelConfig,
    qkv_layout: QkvLayout,
    limits: ExecutorLimits,
    rope: Option<RopeTable>,
    embedding: O::Linear,
    layers: Vec<Layer<O>>,
    final_norm: O::Norm,
    head: O::Linear,
    adapters: Adapters<O::LowRank>,
    pool: O::KvPool,
    workspace: Workspace<O>,
    /// Where the next logits go, unless they lie there still.
    logits: Option<HostMemory>,
    /// Where the next hidden states go; taken when they are wanted for the first time.
    states: Option<HostMemory>,
    /// Steps since the start.
    steps: u64,
    /// The step that was submitted last, until it is collected.
    under_way: Option<UnderWay>,
}

impl<O: Operations> Decoder<O> {
    /// Puts a model on the device.
    pub fn new(
        mut operations: O,
        config: ModelConfig,
        weights: ModelWeights,
        limits: ExecutorLimits,
    ) -> Result<Self, DeviceError> {
        let spec = config.layer;
        let layers = weights
            .layers
            .into_iter()
            .map(|layer| {
                let query_key_norms = match (spec.attention.query_key_norm, layer.query_key_norms) {
                    (None, None) => None,
                    (Some(kind), Some([query, key])) => {
                        Some([operations.load_norm(query, kind)?, operations.load_norm(key, kind)?])
                    }
                    (asked, _) => {
                        let which = if asked.is_some() { "are missing" } else { "are not asked for" };
                        let cause = format!("weights of norms on queries and keys {which}");
                        return Err(DeviceError::new(DeviceErrorKind::Other, "decoder", cause));
                    }
                };
                Ok(Layer {
                    query_key_norms,
                    attention_norm: operations.load_norm(layer.attention_norm, spec.norm)?,
                    mlp_norm: layer.mlp_norm.map(|weights| operations.load_norm(weights, spec.norm)).transpose()?,
                    qkv: operations.load_linear(layer.qkv)?,
                    attention_output: operations.load_linear(layer.attention_output)?,
                    mlp_in: operations.load_linear(layer.mlp_in)?,
                    mlp_out: operations.load_linear(layer.mlp_out)?,
                })
            })
            .collect::<Result<Vec<_>, DeviceError>>()?;
        let ExecutorLimits { step_tokens, step_logits, .. } = limits;
        let mut buffer = |rows: usize, width: usize, kind: BufferKind| operations.buffer(rows, width, kind);
        let has_two_norms = spec.residual == Residual::Parallel;
        let workspace = Workspace {
            residual: buffer(step_tokens, config.hidden_size, BufferKind::Exact)?,
            normed: buffer(step_tokens, config.hidden_size, BufferKind::Operand)?,
            mlp_normed: has_two_norms
                .then(|| buffer(step_tokens, config.hidden_size, BufferKind::Operand))
                .transpose()?,
            qkv: buffer(step_tokens, spec.attention.qkv_width(), BufferKind::Exact)?,
            attended: buffer(step_tokens, spec.attention.query_width(), BufferKind::Operand)?,
            mlp_inner: buffer(step_tokens, spec.mlp.width, BufferKind::Operand)?,
            last: buffer(step_logits, config.hidden_size, BufferKind::Exact)?,
            logits: buffer(step_logits, config.vocab_size, BufferKind::Logits)?,
            states: buffer(step_tokens, config.hidden_size, BufferKind::Exact)?,
        };
        operations.reserve(&config, &limits)?;
        Ok(Self {
            rope: RopeTable::of(&config),
            qkv_layout: QkvLayout::of(&spec.attention),
            embedding: operations.load_linear(weights.embedding)?,
            layers,
            final_norm: operations.load_norm(weights.final_norm, config.final_norm)?,
            head: operations.load_linear(weights.head)?,
            adapters: Adapters::with_room_for(step_tokens, limits.sequences),
            pool: operations.kv_pool(&config, limits.pages, limits.page_size)?,
            workspace,
            logits: Some(operations.host_memory(limits.step_logits * config.vocab_size)?),
            states: None,
            steps: 0,
            under_way: None,
            limits,
            operations,
            config,
        })
    }

    /// Computes a step as far as its logits, which stay on the device.
    fn forward(&mut self, step: StepInput) -> Result<(), DeviceError> {
        let Self {
            operations,
            config,
            qkv_layout: layout,
            embedding,
            layers,
            final_norm,
            head,
            adapters,
            pool,
            workspace: w,
            ..
        } = self;
        let (spec, rows, wanted, states) = (&config.layer, step.rows(), step.wanted.len(), step.states);
        let rotation = match &config.positions {
            Positions::Rotary(rope) => Some(rope.pairing),
            Positions::Alibi => None,
        };
        let activation = match spec.mlp.kind {
            Mlp::SwiGlu => Epilogue::SwiGlu,
            Mlp::Gelu => Epilogue::Gelu,
        };

        operations.begin(step)?;
        operations.copy_pages(pool);
        operations.embed(embedding, &mut w.residual);
        for (index, layer) in layers.iter().enumerate() {
            operations.norm(&layer.attention_norm, rows, &w.residual, &mut w.normed);
            // Both norms of a parallel layer see the residual stream before anything is added to it.
            if let (Some(normed), Some(norm)) = (&mut w.mlp_normed, &layer.mlp_norm) {
                operations.norm(norm, rows, &w.residual, normed);
            }
            operations.linear(
                &layer.qkv,
                rows,
                &w.normed,
                &mut w.qkv,
                Epilogue::Set,
                adapters.of(index, LinearKind::Qkv),
            );
            if let Some([query, key]) = &layer.query_key_norms {
                operations.norm_heads(query, rows, &mut w.qkv, layout.width, &layout.query);
                operations.norm_heads(key, rows, &mut w.qkv, layout.width, &layout.key);
            }
            operations.place(pool, index, &mut w.qkv, layout, rotation);
            operations.attention(pool, index, &w.qkv, layout, &mut w.attended);
            operations.linear(
                &layer.attention_output,
                rows,
                &w.attended,
                &mut w.residual,
                Epilogue::Add,
                adapters.of(index, LinearKind::AttentionOutput),
            );

            let mlp_input = match (spec.residual, &layer.mlp_norm) {
                (Residual::Sequential, Some(norm)) => {
                    operations.norm(norm, rows, &w.residual, &mut w.normed);
                    &w.normed
                }
                (Residual::Parallel, _) => w.mlp_normed.as_ref().unwrap_or(&w.normed),
                _ => &w.normed,
            };
            operations.linear(
                &layer.mlp_in,
                rows,
                mlp_input,
                &mut w.mlp_inner,
                activation,
                adapters.of(index, LinearKind::MlpIn),
            );
            operations.linear(
                &layer.mlp_out,
                rows,
                &w.mlp_inner,
                &mut w.residual,
                Epilogue::Add,
                adapters.of(index, LinearKind::MlpOut),
            );
        }
        if wanted > 0 {
            operations.select_rows(&w.residual, config.hidden_size, &mut w.last);
            operations.norm(final_norm, wanted, &w.last, &mut w.normed);
            operations.linear(head, wanted, &w.normed, &mut w.logits, Epilogue::Set, Adapted::none());
        }
        if states {
            operations.norm(final_norm, rows, &w.residual, &mut w.states);
        }
        Ok(())
    }

    /// Computes the rotary angles of a step's rows.
    fn add_angles(&self, step: &mut StepInput) {
        let Some(rope) = &self.rope else { return };
        let StepInput { spans, cos, sin, .. } = step;
        let angles = self.limits.step_tokens * rope.angles();
        for part in [&mut *cos, &mut *sin] {
            part.clear();
            part.reserve(angles);
        }
        for span in spans {
            let positions = span.context - span.rows..span.context;
            positions.for_each(|position| rope.push_angles(position, span.variant.long, cos, sin));
        }
    }
}

impl<O: Operations> Executor for Decoder<O> {
    fn limits(&self) -> &ExecutorLimits {
        &self.limits
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn submit(&mut self, mut input: StepInput) -> Result<Ticket, DeviceError> {
        // A step that panicked, or that nobody collects, is given up.
        self.under_way = None;
        if let Err(adapter) = self.adapters.divide(&input) {
            let cause = format!("adapter {adapter} is wanted, and is not there");
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, "decoder", cause));
        }
        self.add_angles(&mut input);
        let (logits, states) = (input.wanted.len(), if input.states { input.rows() } else { 0 });
        self.forward(input)?;
        self.steps += 1;
        self.under_way = Some(UnderWay { ticket: Ticket::new(self.steps), logits, states });
        Ok(Ticket::new(self.steps))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<StepOutput, DeviceError> {
        let UnderWay { logits: wanted, states: rows, .. } =
            self.under_way.take().filter(|step| step.ticket == ticket).ok_or_else(|| {
                let cause = format!("step {} is not under way", ticket.number());
                DeviceError::new(DeviceErrorKind::Other, "decoder", cause)
            })?;
        let ModelConfig { vocab_size, hidden_size, .. } = self.config;
        let mut logits = match self.logits.take() {
            Some(logits) => logits,
            None => self.operations.host_memory(self.limits.step_logits * vocab_size)?,
        };
        let mut states = match self.states.take() {
            None if rows > 0 => Some(self.operations.host_memory(self.limits.step_tokens * hidden_size)?),
            states => states,
        };
        let (logits_len, states_len) = (wanted * vocab_size, rows * hidden_size);
        let of_states = states.as_mut().map_or(&mut [][..], |states| &mut (**states).as_mut()[..states_len]);
        let of_logits = &mut (*logits).as_mut()[..logits_len];
        let finished =
            self.operations.finish(&mut [(&self.workspace.logits, of_logits), (&self.workspace.states, of_states)]);
        match finished {
            Ok(input) => {
                let output = StepOutput::new(input, logits, logits_len);
                Ok(match states {
                    Some(states) => output.with_states(states, states_len),
                    None => output,
                })
            }
            Err(error) => {
                (self.logits, self.states) = (Some(logits), states);
                Err(error)
            }
        }
    }

    fn add_adapter(&mut self, id: u32, weights: AdapterWeights) -> Result<(), DeviceError> {
        self.adapters.add(&mut self.operations, id, weights, self.config.num_layers)
    }

    fn remove_adapter(&mut self, id: u32) {
        self.adapters.remove(id);
    }

    fn recycle(&mut self, output: StepOutput) -> StepInput {
        let (mut input, logits, states) = output.into_parts();
        (self.logits, self.states) = (Some(logits), states);
        input.clear();
        input
    }
}

#[cfg(test)]
mod tests;
