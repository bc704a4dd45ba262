//! The peak of integer products, for the roofline: with operands in registers, or in the first level cache at most.

use std::hint::black_box;

use super::{
    BLOCK_ROWS, GROUP,
    dot::{Dot, DotKernel, DotLevel, GROUP_BYTES, QUADS, dispatch},
    input::{InputGroups, Numbers},
};

/// Does `steps` steps of products. The number of operations that they were.
pub(crate) fn dot_products(steps: usize) -> usize {
    match DotLevel::chosen() {
        // SAFETY: the processor has what an available level needs.
        #[cfg(target_arch = "x86_64")]
        DotLevel::Amx | DotLevel::Avx512Vnni => unsafe { vnni(steps) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        DotLevel::Avx2 => unsafe { maddubs(steps) },
        level => dispatch(level, Groups { steps }),
    }
}

/// The instruction alone.
///
/// # Safety
/// The processor has the features named here.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn vnni(steps: usize) -> usize {
    use std::arch::x86_64::*;

    const SUMS: usize = 24;
    let mut sums = [_mm512_set1_epi32(black_box(1)); SUMS];
    let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(5)));
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    black_box(sums);
    steps * SUMS * 64 * 2
}

/// The instruction alone, which a product of 4 bits takes once, one of 8 bits twice.
///
/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn maddubs(steps: usize) -> usize {
    use std::arch::x86_64::*;

    const PRODUCTS: usize = 8;
    let mut products = [_mm256_set1_epi8(black_box(1)); PRODUCTS];
    let factor = _mm256_set1_epi8(black_box(5));
    for _ in 0..steps {
        for product in &mut products {
            *product = _mm256_maddubs_epi16(*product, factor);
        }
    }
    black_box(products);
    steps * PRODUCTS * 32 * 2
}

/// Where a product takes several instructions: a group with the largest tile, again and again.
struct Groups {
    steps: usize,
}

impl DotKernel for Groups {
    type Output = usize;

    #[inline(always)]
    fn run<D: Dot>(self, dot: D) -> usize {
        match (D::TILE_BLOCKS, D::TILE_TOKENS) {
            (2.., 8..) => groups::<D, 2, 8>(dot, self.steps),
            (2.., _) => groups::<D, 2, 2>(dot, self.steps),
            (_, 8..) => groups::<D, 1, 8>(dot, self.steps),
            _ => groups::<D, 1, 2>(dot, self.steps),
        }
    }
}

#[inline(always)]
fn groups<D: Dot, const R: usize, const T: usize>(dot: D, steps: usize) -> usize {
    let weights = [[3u8; GROUP_BYTES]; R];
    let (numbers, corrections) = ([Numbers([5; GROUP]); T], [0; T]);
    let mut weight_pointers = [std::ptr::null(); R];
    for (pointer, weights) in weight_pointers.iter_mut().zip(&weights) {
        *pointer = weights.as_ptr();
    }
    let input = InputGroups {
        numbers: numbers.as_ptr(),
        scales: std::ptr::null(),
        corrections: corrections.as_ptr(),
        sums: std::ptr::null(),
        pairs: std::ptr::null(),
        width: T,
    };
    for _ in 0..steps {
        // SAFETY: each pointer is that of a whole group.
        black_box(unsafe { dot.group::<R, T, QUADS>(black_box(weight_pointers), black_box(input)) });
    }
    steps * R * T * BLOCK_ROWS * GROUP * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_on_every_level() {
        for &level in DotLevel::available() {
            let one = dispatch(level, Groups { steps: 1 });
            assert!(one >= 2 * 2 * BLOCK_ROWS * GROUP, "{level:?} {one}");
            assert_eq!(dispatch(level, Groups { steps: 3 }), 3 * one, "{level:?}");
        }
    }
}
