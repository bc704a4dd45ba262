//! Quantises a matrix for measurements of quality: `quantize int8|int4 ROWS COLUMNS`, with f32 on its input and the bytes of the quantised
//! matrix on its output, as `kaito_kernels::quantize` lays them out.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement that fails has nothing better to do than to stop"
)]

use std::{
    io::{self, Read, Write},
    thread::available_parallelism,
};

use kaito_kernels::{DType, MatrixRef, Quantization, ThreadPool, quantize};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [format, rows, cols] = arguments.as_slice() else { panic!("arguments: int8|int4 ROWS COLUMNS") };
    let quantization = match format.as_str() {
        "int8" => Quantization::Int8,
        "int4" => Quantization::Int4,
        other => panic!("{other} is neither int8 nor int4"),
    };
    let (rows, cols) = (rows.parse().expect("a number of rows"), cols.parse().expect("a number of columns"));
    let mut source = Vec::new();
    io::stdin().read_to_end(&mut source).unwrap();
    let matrix = MatrixRef::new(DType::F32, rows, cols, &source).expect("as many numbers as the shape says");
    let mut target = vec![0; quantization.bytes(rows, cols).expect("a shape that fits")];
    quantize(&ThreadPool::new(available_parallelism().unwrap()), quantization, matrix, &mut target);
    io::stdout().write_all(&target).unwrap();
}
