//! What an engine elsewhere is asked, and the channel by which its tokens come back.
//!
//! [`Stream::start`](crate::Stream::start) hands over each prompt of a request as a [`GenerationRequest`]: token ids, and
//! [`GenerationParams`](crate::GenerationParams) with whatever decides what follows them. Whoever computes that takes both ends of a
//! [`generation_channel`], returns the [`GenerationStream`], sends [`Chosen`] tokens by the [`EventSender`] as they come, and ends with
//! a [`GenerationEvent`]. What the client wants in the meantime, it hears by its [`GenerationControl`].

pub use crate::{
    engine::{GenerationControl, GenerationEvent, GenerationRequest, GenerationStream, generation_channel},
    events::EventSender,
    generate::{
        BeamParams, Chosen, ForcedEos, Processors, PromptNumbers, RawProcessors, Returns, SequenceOutput, Strategy,
        TokenScore, Warper, Warpers,
    },
};
