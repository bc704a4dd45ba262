/// Which components of a head form a pair that the rotary position embedding rotates; `n` components are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// Component `i` with `i + n / 2`: Hugging Face's checkpoints.
    Halves,
    /// Component `2 i` with `2 i + 1`: Meta's checkpoints.
    Interleaved,
}
