//! How a model's products treat activations: what may be asked for, and what is chosen.

use kaito_kernels::{Compute, DType};

/// How products with weights of 16 bits are to treat activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ComputeChoice {
    /// In bf16 where the processor has fast units for it, else exact.
    #[default]
    Auto,
    /// In f32: what the definition of the model says.
    Exact,
    /// Rounded to bf16 at each product.
    Bf16,
}

const ONLY_EXACT: &str = "products with weights in f32 are always exact: bf16 needs weights in bf16 or f16";

impl ComputeChoice {
    /// What is computed with weights of type `weights` on a device whose units for bf16 are fast, or not. It holds for all steps of a
    /// model, so that the bits of a row do not depend on the tokens that are computed together.
    ///
    /// # Errors
    /// If bf16 is asked for and the weights are f32, with which products are always exact.
    pub fn resolve(self, weights: DType, fast_bf16: bool) -> Result<Compute, String> {
        match (self, weights) {
            (Self::Bf16, DType::F32) => Err(ONLY_EXACT.to_owned()),
            (Self::Bf16, DType::Bf16 | DType::F16) => Ok(Compute::Bf16),
            (Self::Auto, DType::Bf16 | DType::F16) if fast_bf16 => Ok(Compute::Bf16),
            (Self::Auto | Self::Exact, _) => Ok(Compute::Exact),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_bf16_where_it_is_fast_and_weights_have_16_bits() {
        use Compute::{Bf16, Exact};
        for weights in [DType::Bf16, DType::F16] {
            assert_eq!(ComputeChoice::Auto.resolve(weights, true), Ok(Bf16));
            assert_eq!(ComputeChoice::Auto.resolve(weights, false), Ok(Exact));
            for fast in [true, false] {
                assert_eq!(ComputeChoice::Exact.resolve(weights, fast), Ok(Exact));
                assert_eq!(ComputeChoice::Bf16.resolve(weights, fast), Ok(Bf16));
            }
        }
        for choice in [ComputeChoice::Auto, ComputeChoice::Exact] {
            assert_eq!(choice.resolve(DType::F32, true), Ok(Exact));
        }
        let refusal = ComputeChoice::Bf16.resolve(DType::F32, true).unwrap_err();
        assert!(refusal.contains("weights in f32 are always exact"), "{refusal}");
    }
}
