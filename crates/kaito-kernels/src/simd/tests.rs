use super::*;

struct Exp<'a>(&'a [f32]);

impl Kernel for Exp<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let mut out = vec![0.0; self.0.len()];
        for (x, y) in self.0.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
            simd.store_partial(y, simd.exp(simd.load_partial(x)));
        }
        out
    }
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    let mut inputs: Vec<f32> = (0..400_000).map(|i| -106.0 + i as f32 * (196.0 / 400_000.0)).collect();
    inputs.extend((0..1000).map(|i| (i as f32 - 500.0) * 1e-7));
    for &level in Level::available() {
        let outputs = dispatch(level, Exp(&inputs));
        for (&x, y) in inputs.iter().zip(outputs) {
            let expected = f64::from(x).exp();
            if expected > f64::from(f32::MAX) {
                assert!(y == f32::INFINITY || y >= f32::MAX * 0.999_999, "{level:?}: exp({x}) = {y}");
                continue;
            }
            let ulp = f64::from((expected as f32).next_up() - expected as f32).max(f64::from(f32::from_bits(1)));
            let error = (f64::from(y) - expected).abs() / ulp;
            assert!(error < 2.0, "{level:?}: exp({x}) = {y}, expected {expected}: {error} ulp");
        }
    }
}

#[test]
fn exp_of_special_values() {
    for &level in Level::available() {
        let y = dispatch(level, Exp(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, f32::MIN, f32::MAX]));
        assert_eq!(y[..2], [f32::INFINITY, 0.0], "{level:?}");
        assert!(y[2].is_nan(), "{level:?}");
        assert_eq!(y[3..], [1.0, 1.0, 0.0, f32::INFINITY], "{level:?}");
    }
}

struct Tanh<'a>(&'a [f32]);

impl Kernel for Tanh<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let mut out = vec![0.0; self.0.len()];
        for (x, y) in self.0.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
            simd.store_partial(y, simd.tanh(simd.load_partial(x)));
        }
        out
    }
}

#[test]
fn tanh_is_within_four_units_in_the_last_place() {
    let mut inputs: Vec<f32> = (0..400_000).map(|i| -12.0 + i as f32 * (24.0 / 400_000.0)).collect();
    // Powers of two and what lies beside them, down to the smallest.
    inputs.extend((0..0x7f80).map(|high| f32::from_bits(high << 16 | 0x2345)));
    for &level in Level::available() {
        for (&x, y) in inputs.iter().zip(dispatch(level, Tanh(&inputs))) {
            let expected = f64::from(x).tanh();
            let nearest = (expected as f32).abs();
            let error = (f64::from(y) - expected).abs() / f64::from(nearest.next_up() - nearest);
            assert!(error < 4.0, "{level:?}: tanh({x}) = {y}, expected {expected}: {error} units");
            assert!(y.abs() <= 1.0, "{level:?}: tanh({x}) = {y}");
        }
    }
}

#[test]
fn tanh_of_special_values() {
    for &level in Level::available() {
        let y = dispatch(level, Tanh(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0]));
        assert!(y[0].is_nan(), "{level:?}");
        assert_eq!(y[1..], [1.0, -1.0, 1.0, -1.0, 0.0, 0.0], "{level:?}");
    }
}

struct Scale(f32, Vec<f32>);

impl Kernel for Scale {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let mut out = vec![0.0; self.1.len()];
        for (n, y) in self.1.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
            simd.store_partial(y, simd.scale_by_exp2(simd.splat(self.0), simd.load_partial(n)));
        }
        out
    }
}

/// Down to denormal numbers, some of which lie in the middle of two, and up to infinity.
#[test]
fn scaling_by_powers_of_two_rounds_once() {
    for v in [1.0, 0.5, 1.5, 1.25, -1.75, std::f32::consts::FRAC_1_SQRT_2, 1.414_213_4, 1.000_000_1, 1.999_999_9] {
        let powers: Vec<f32> = (-151..=128).map(|n| n as f32).collect();
        for &level in Level::available() {
            for (n, y) in (-151..=128).zip(dispatch(level, Scale(v, powers.clone()))) {
                let expected = (f64::from(v) * 2f64.powi(n)) as f32;
                assert_eq!(y.to_bits(), expected.to_bits(), "{level:?}: {v} * 2^{n} is {y}, not {expected}");
            }
        }
    }
}

struct Widen<'a>(&'a [u8], bool);

impl Kernel for Widen<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let mut out = vec![0.0; self.0.len() / 2];
        for (x, y) in self.0.chunks_exact(2 * S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
            // SAFETY: the chunk has as many bytes.
            let v = unsafe { if self.1 { simd.load_bf16(x.as_ptr()) } else { simd.load_f16(x.as_ptr()) } };
            simd.store_slice(y, v);
        }
        out
    }
}

/// IEEE 754 binary16 by its definition.
fn f16_value(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

#[test]
fn every_half_value_widens_exactly_at_any_alignment() {
    for shift in [0, 1] {
        let mut bytes = vec![0u8; shift];
        bytes.extend((0..=u16::MAX).flat_map(u16::to_le_bytes));
        for &level in Level::available() {
            for is_bf16 in [true, false] {
                let out = dispatch(level, Widen(&bytes[shift..], is_bf16));
                for (bits, y) in (0..=u16::MAX).zip(out) {
                    let expected = if is_bf16 { f32::from_bits(u32::from(bits) << 16) } else { f16_value(bits) };
                    let same = y.to_bits() == expected.to_bits() || (y.is_nan() && expected.is_nan());
                    assert!(same, "{level:?} bf16 {is_bf16}: {bits:#x} widens to {y}, not {expected}");
                }
            }
        }
    }
}

struct PackBf16<'a>(&'a [f32; 32]);

impl Kernel for PackBf16<'_> {
    type Output = [u32; 16];

    fn run<S: Simd>(self, simd: S) -> [u32; 16] {
        let mut target = TileRow([0; 16]);
        simd.pack_bf16(self.0, &mut target);
        target.0
    }
}

/// The nearest numbers of 8 significant bits, with which ties are decided by their magnitude.
#[test]
fn numbers_are_packed_as_the_nearest_bf16_and_ties_go_away_from_zero() {
    let steps = |x: f32| f64::from(x) / 2f64.powi(f64::from(x).abs().log2().floor() as i32 - 7);
    let mut state = 7u32;
    for round in 0..2000 {
        let numbers: [f32; 32] = std::array::from_fn(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Exponents far from both ends; ties in every other round, whose lower 16 bits are half a step.
            let bits = 0x2000_0000 + (state >> 2) + ((i as u32 & 1) << 31);
            f32::from_bits(if round % 2 == 0 { bits & 0xffff_0000 | 0x8000 } else { bits })
        });
        for &level in Level::available() {
            let packed = dispatch(level, PackBf16(&numbers));
            for (i, x) in numbers.iter().enumerate() {
                let y = f32::from_bits(packed[i / 2] >> (16 * (i % 2)) << 16);
                let unit = f64::from(*x) / steps(*x);
                assert_eq!(f64::from(y), steps(*x).round() * unit, "{level:?}: {x}");
            }
        }
    }
    for &level in Level::available() {
        assert_eq!(dispatch(level, PackBf16(&[0.0; 32])), [0; 16]);
    }
}

struct Exp2Roughly(f32);

impl Kernel for Exp2Roughly {
    type Output = f32;

    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut lanes = [0.0; MAX_LANES];
        simd.store_slice(&mut lanes, simd.exp2_roughly(simd.splat(self.0)));
        lanes[0]
    }
}

#[test]
fn rough_powers_of_two_are_within_a_part_of_2_to_the_minus_18() {
    for &level in Level::available() {
        for i in 0..=150_000u32 {
            let x = -126.0 * (i as f32 / 150_000.0);
            let (y, expected) = (dispatch(level, Exp2Roughly(x)), f64::from(x).exp2());
            let error = (f64::from(y) / expected - 1.0).abs();
            assert!(error <= 2f64.powi(-18), "{level:?}: 2^{x} is {y}, {error} off");
        }
        assert_eq!(dispatch(level, Exp2Roughly(0.0)), 1.0, "{level:?}");
        for tiny in [-151.0, -1e30, f32::NEG_INFINITY] {
            assert_eq!(dispatch(level, Exp2Roughly(tiny)), 0.0, "{level:?}: {tiny}");
        }
        assert!(dispatch(level, Exp2Roughly(f32::NAN)).is_nan(), "{level:?}");
    }
}

struct SplitF16<'a>(&'a [u8; 64]);

impl Kernel for SplitF16<'_> {
    type Output = [[u16; 32]; 2];

    fn run<S: Simd>(self, simd: S) -> [[u16; 32]; 2] {
        let [mut high, mut low] = [TileRow([0; 16]); 2];
        simd.split_f16(self.0, &mut high, &mut low);
        [high, low].map(|row| std::array::from_fn(|i| (row.0[i / 2] >> (16 * (i % 2))) as u16))
    }
}

/// All values side by side with their neighbours, and with values of other exponents.
#[test]
fn every_half_is_split_into_its_first_8_bits_and_the_others() {
    for apart in [1, 10_007] {
        let values: Vec<u16> = (0..=u16::MAX).map(|i| i.wrapping_mul(apart)).collect();
        for &level in Level::available() {
            for values in values.chunks_exact(32) {
                let mut bytes = [0; 64];
                bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(to, value)| *to = value.to_le_bytes());
                let [high, low] = dispatch(level, SplitF16(&bytes));
                for ((bits, high), low) in values.iter().zip(high).zip(low) {
                    let value = f16_value(*bits);
                    let [high, low] = [high, low].map(|bits| f32::from_bits(u32::from(bits) << 16));
                    let same = if value.is_finite() {
                        let first = f32::from_bits(value.to_bits() & 0xffff_0000);
                        high.to_bits() == first.to_bits() && low.to_bits() == (value - first).to_bits()
                    } else if value.is_nan() {
                        high.is_nan()
                    } else {
                        high == value && low == 0.0
                    };
                    assert!(same, "{level:?}: {bits:#x} is {high} and {low}, not {value}");
                }
            }
        }
    }
}

struct Round<'a>(&'a [f32]);

impl Kernel for Round<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let mut out = vec![0.0; self.0.len()];
        for (x, y) in self.0.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
            simd.store_partial(y, simd.round_to_bf16(simd.load_partial(x)));
        }
        out
    }
}

/// As `half` rounds, which `convert` compares with the definition.
#[test]
fn rounds_to_the_nearest_bf16() {
    let mut inputs = vec![f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0];
    inputs.extend([f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff), f32::NAN]);
    for high in 0..=u16::MAX {
        inputs.extend([0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| f32::from_bits(u32::from(high) << 16 | low)));
    }
    for &level in Level::available() {
        for (&x, y) in inputs.iter().zip(dispatch(level, Round(&inputs))) {
            let expected = bf16::from_f32(x).to_f32();
            let same = y.to_bits() == expected.to_bits() || (y.is_nan() && expected.is_nan());
            assert!(same, "{level:?}: {x:e} becomes {y:e}, not {expected:e}");
            assert_eq!(y.to_bits() & 0xffff, 0, "{level:?}: {x:e}");
        }
    }
}
