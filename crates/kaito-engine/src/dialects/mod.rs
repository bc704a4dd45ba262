//! What requests mean to other programs, for those who are used to them.
//!
//! A dialect makes [`Prepared`](crate::Prepared) prompts of its own kind of request; from there on its requests are like all
//! others. Nothing else of the engine knows of dialects.

pub mod meta;
pub mod openai;
pub mod transformers;
