//! How exact products are.

use super::*;

/// The error of a product, as a part of its own size: of normal weights, whose rows do not influence each other, and
/// normal activations, with and without the few large components that language models have.
///
/// Of 128 normal numbers the greatest magnitude is near 2.9. Steps of a 127th of that have a root mean square error of
/// 2.9 / 127 / sqrt(12) = 0.0066; weights and activations together 0.0094. A component 20 times as large as the others is, rotated,
/// 20 / sqrt(128) = 1.8 in each of them, next to 1: the greatest magnitude is near 1.8 + 2.9, the size sqrt(1 + 1.8^2), and so the error
/// no larger than without it. 4 bits have the error of their weights, near 0.07.
/// A thousand results tell these parts to some 3%.
#[test]
fn relative_errors_of_true_shapes() {
    const ROWS: usize = 256;
    const TOKENS: usize = 4;
    println!("columns  activations  int8    int4");
    for cols in [2048, 3072, 4096, 4544, 5632, 8192, 11008, 14336, 18176] {
        let mut next = normal(cols as u64);
        let weight: Vec<f32> = (0..ROWS * cols).map(|_| 0.02 * next()).collect();
        for (name, large, bounds) in [("normal", 1.0, [0.0105, 0.078]), ("a few large", 20.0, [0.0125, 0.078])] {
            let size = |i: usize| if i % cols % 128 == 77 { large } else { 1.0 };
            let input: Vec<f32> = (0..TOKENS * cols).map(|i| size(i) * next()).collect();
            let mut errors = [0.0; 2];
            for (error, quantization) in errors.iter_mut().zip([Quantization::Int8, Quantization::Int4]) {
                let data = quantized(quantization, ROWS, cols, &weight);
                let case = Case { quantization, rows: ROWS, cols, tokens: TOKENS, input: input.clone(), data };
                let output = case.compute(DotLevel::chosen(), &pool(2));
                let (mut squares, mut sizes) = (0.0, 0.0);
                for (i, y) in output.into_iter().enumerate() {
                    let (x, w) = (&input[i / ROWS * cols..][..cols], &weight[i % ROWS * cols..][..cols]);
                    let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    squares += (f64::from(y) - exact).powi(2);
                    sizes += exact.powi(2);
                }
                *error = (squares / sizes).sqrt();
            }
            println!("{cols:7}  {name:11}  {:.4}  {:.4}", errors[0], errors[1]);
            for (error, bound) in errors.into_iter().zip(bounds) {
                assert!(error < bound, "{cols} columns, {name}: {error} is not below {bound}");
            }
        }
    }
}
