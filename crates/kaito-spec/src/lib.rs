//! What a decoder-only transformer is, as data: the element types of its weights, and the parts of its layers with their shapes.
//!
//! All crates that read, compute, plan or pack models describe them in these types, so a fact about models is written once. Nothing
//! is read or computed here beyond counting, and there are no dependencies.
#![forbid(unsafe_code)]

mod dtype;
mod layer;
mod linear;
mod rotary;

pub use dtype::DType;
pub use layer::{AttentionSpec, LayerSpec, Mlp, MlpSpec, Norm, QkvOrder, Residual};
pub use linear::{LinearKind, LinearSpec};
pub use rotary::RopePairing;
