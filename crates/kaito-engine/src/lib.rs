//! Runs decoder-only language models in continuous batches: requests in, tokens and their text out.
//!
//! [`LanguageModel::load`] reads a model's directory and starts its engine. [`LanguageModel::generate`] queues a [`Request`];
//! its [`Stream`] carries [`Delta`]s while text is generated and the whole [`Output`] at the end. Many requests run at the
//! same time, each step computing tokens for all of them.
//!
//! ```
//! use kaito_engine::{GenerateOptions, LanguageModel, LoadOptions, Request, StreamEvent};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), kaito_engine::Error> {
//! # let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/parity/fixtures/llama-multi-head");
//! # let directory = std::path::Path::new(directory);
//! let options = LoadOptions { max_seq_len: Some(256), ..LoadOptions::default() };
//! let model = LanguageModel::load(directory, &options, &|part| eprintln!("{:.0} %", 100.0 * part))?;
//!
//! let mut stream = model.generate(Request {
//!     prompt: "Once upon a time".into(),
//!     options: GenerateOptions { max_new_tokens: Some(12), do_sample: Some(false), ..Default::default() },
//!     stop: vec!["\n\n".to_owned()],
//!     ..Request::default()
//! })?;
//! let mut text = String::new();
//! while let Some(event) = stream.next().await {
//!     match event? {
//!         StreamEvent::Started | StreamEvent::PromptScored(_) => {}
//!         StreamEvent::Delta(delta) => {
//!             print!("{}", delta.text);
//!             text.push_str(&delta.text);
//!         }
//!         StreamEvent::Finished(output) => {
//!             assert_eq!(output.sequences[0].text, text);
//!             assert!((1..=12).contains(&output.usage.generated_tokens));
//!         }
//!     }
//! }
//! assert!(!text.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! [`dialects`] has requests with the semantics of other programs, [`remote`] what a request's tokens are asked with where an engine
//! elsewhere computes them. The engine knows no HTTP, no preset names and no Kubernetes.
#![forbid(unsafe_code)]

mod adapters;
mod cancel;
mod capacity;
mod decoder;
mod device;
pub mod dialects;
mod engine;
mod error;
mod events;
mod executor;
mod generate;
mod kv_cache;
mod language_model;
mod output;
mod parallel;
mod prefix_index;
mod prompt_bytes;
mod quantized;
mod recycle;
pub mod remote;
mod request;
mod rope;
mod scheduler;
mod speculation;
mod stop_strings;
mod stream;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
mod throttle;
mod token_choice;

pub use adapters::{Adapter, AdapterSource, Adapters, NamedAdapter};
pub use cancel::Cancel;
pub use device::{
    ComputeChoice, DeviceChoice, DeviceError, DeviceErrorKind, DeviceMemory, DeviceProperties, Precisions, StepBudget,
    list as devices,
};
pub use engine::EngineStats;
pub use error::{Error, ErrorKind};
pub use generate::{
    Constraint, ConstraintSource, EarlyStopping, FinishReason, GenerateError, GenerateOptions, GenerationParams,
    PARAMETER_NAMES, ParameterError, Pooling, TokenMask,
};
pub use kaito_kernels::{
    BlockFormat, Compute, DType, FileChange, KernelLevel, KvDType, LevelError, Quantization, WhatChanged, choose_level,
};
pub use kaito_model::adapter::FILES as ADAPTER_FILES;
pub use kaito_model::tokenizer::{DecodeOptions, Special};
pub use kaito_model::{
    checkpoint::gguf::model_name as gguf_model_name,
    config::DialogFormat,
    tokenizer::{CONVERSATION_VARIABLES, ChatMessage, Conversation, Ending, Tokenizer},
};
pub use language_model::{LanguageModel, LoadOptions, ModelFiles, ModelInfo};
pub use output::{
    Delta, LikelyToken, Output, OutputSequence, PromptOutput, PromptScored, StopReason, StreamEvent, Token, TokenScore,
    Usage,
};
pub use request::{Decoding, Prepared, Prompt, Request, RequestContext};
pub use stop_strings::{MAX_STOP_BYTES, MAX_STOPS, StopStrings};
pub use stream::Stream;
pub use throttle::Throttle;
