//! How a model's products treat activations: what may be asked for, and what is chosen.

use kaito_kernels::{Compute, DType};

/// How products are to treat activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ComputeChoice {
    /// With weights of 16 bits in bf16, with weights in blocks in int8, where the processor is faster at it; else exact.
    #[default]
    Auto,
    /// In f32: what the definition of the model says.
    Exact,
    /// Rounded to bf16 at each product with weights of 16 bits.
    Bf16,
    /// Rounded to 8 bits at each product with weights in the block formats of GGUF.
    Int8,
}

/// What products multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Weights of a floating point type.
    Floats(DType),
    /// Weights in the block formats of GGUF, or some of them.
    Blocks,
}

const ONLY_EXACT: &str = "products with weights in f32 are always exact: bf16 needs weights in bf16 or f16";
const NOT_IN_BF16: &str = "products with weights in the blocks of a GGUF file are exact or in int8, not in bf16";
const NO_BLOCKS: &str = "int8 needs weights in the blocks of a GGUF file, as they are stored; --quantize int8 makes 8 bits of other weights";

impl ComputeChoice {
    /// What is computed with weights that are held so, where `is_fast` says which roundings make products faster. It holds for all steps of
    /// a model, so that the bits of a row do not depend on the tokens that are computed together.
    ///
    /// # Errors
    /// If a rounding is asked for that products with such weights do not have.
    pub(crate) fn resolve(self, weights: Held, is_fast: impl Fn(Compute) -> bool) -> Result<Compute, String> {
        let rounded = match weights {
            Held::Floats(DType::F32) => Compute::Exact,
            Held::Floats(DType::Bf16 | DType::F16) => Compute::Bf16,
            Held::Blocks => Compute::Int8,
        };
        match (self, rounded) {
            (Self::Exact, _) => Ok(Compute::Exact),
            (Self::Auto, _) => Ok(if is_fast(rounded) { rounded } else { Compute::Exact }),
            (Self::Bf16, Compute::Bf16) | (Self::Int8, Compute::Int8) => Ok(rounded),
            (Self::Bf16, Compute::Exact) => Err(ONLY_EXACT.to_owned()),
            (Self::Bf16, Compute::Int8) => Err(NOT_IN_BF16.to_owned()),
            (Self::Int8, Compute::Exact | Compute::Bf16) => Err(NO_BLOCKS.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_what_is_fast_for_the_weights() {
        use Compute::{Bf16, Exact, Int8};
        use ComputeChoice as Choice;
        let (never, always) = (|_| false, |_| true);
        let no = |part: &'static str| Err(part);
        for (weights, choice, slow, fast) in [
            (Held::Floats(DType::Bf16), Choice::Auto, Ok(Exact), Ok(Bf16)),
            (Held::Floats(DType::F16), Choice::Auto, Ok(Exact), Ok(Bf16)),
            (Held::Floats(DType::F16), Choice::Exact, Ok(Exact), Ok(Exact)),
            (Held::Floats(DType::F16), Choice::Bf16, Ok(Bf16), Ok(Bf16)),
            (Held::Floats(DType::F16), Choice::Int8, no("int8 needs weights"), no("int8 needs weights")),
            (Held::Floats(DType::F32), Choice::Auto, Ok(Exact), Ok(Exact)),
            (Held::Floats(DType::F32), Choice::Exact, Ok(Exact), Ok(Exact)),
            (Held::Floats(DType::F32), Choice::Bf16, no("f32 are always exact"), no("f32 are always exact")),
            (Held::Floats(DType::F32), Choice::Int8, no("int8 needs weights"), no("int8 needs weights")),
            (Held::Blocks, Choice::Auto, Ok(Exact), Ok(Int8)),
            (Held::Blocks, Choice::Exact, Ok(Exact), Ok(Exact)),
            (Held::Blocks, Choice::Bf16, no("exact or in int8"), no("exact or in int8")),
            (Held::Blocks, Choice::Int8, Ok(Int8), Ok(Int8)),
        ] {
            for (is_fast, expected) in [(never as fn(Compute) -> bool, slow), (always, fast)] {
                match (choice.resolve(weights, is_fast), expected) {
                    (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{choice:?} {weights:?}"),
                    (Err(found), Err(part)) => assert!(found.contains(part), "{choice:?} {weights:?}: {found}"),
                    (found, expected) => panic!("{choice:?} {weights:?}: {found:?}, not {expected:?}"),
                }
            }
        }
    }
}
