//! Numeric kernels for CPUs, and the one place that maps files into memory: the only `unsafe` of the project.

mod dtype;
mod mapped_file;

pub use dtype::DType;
pub use mapped_file::MappedFile;
