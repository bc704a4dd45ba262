//! The catalogue of models, as data.
#![forbid(unsafe_code)]
