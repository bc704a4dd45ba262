use kaito_kernels::{BlockFormat, DType};

use super::tensor::byte_len;

/// Element type of a stored tensor. Models compute with the three float types and with blocks; the others occur in buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementType {
    /// Its name in safetensors headers, or in GGUF.
    pub name: &'static str,
    /// Bytes of one element, or of one block of elements.
    pub size: usize,
    /// The type to compute with, if there is one.
    pub dtype: Option<DType>,
    /// How elements lie in blocks, where they do.
    pub blocks: Option<BlockFormat>,
}

/// Every known type: name in safetensors, name of torch's storage class, size.
/// <https://github.com/huggingface/safetensors#format>
const TYPES: [(&str, &str, usize, Option<DType>); 19] = [
    ("F32", "FloatStorage", 4, Some(DType::F32)),
    ("BF16", "BFloat16Storage", 2, Some(DType::Bf16)),
    ("F16", "HalfStorage", 2, Some(DType::F16)),
    ("F64", "DoubleStorage", 8, None),
    ("I64", "LongStorage", 8, None),
    ("I32", "IntStorage", 4, None),
    ("I16", "ShortStorage", 2, None),
    ("I8", "CharStorage", 1, None),
    ("U8", "ByteStorage", 1, None),
    ("BOOL", "BoolStorage", 1, None),
    ("U16", "", 2, None),
    ("U32", "", 4, None),
    ("U64", "", 8, None),
    ("F8_E4M3", "", 1, None),
    ("F8_E5M2", "", 1, None),
    ("F8_E4M3FNUZ", "", 1, None),
    ("F8_E5M2FNUZ", "", 1, None),
    ("F8_E8M0", "", 1, None),
    ("C64", "ComplexFloatStorage", 8, None),
];

impl ElementType {
    /// The type that safetensors calls `name`.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        Self::find(|safetensors, _| safetensors == name)
    }

    /// The type of the elements of torch's storage class `class`.
    pub fn from_torch_storage(class: &str) -> Option<Self> {
        Self::find(|_, torch| torch == class && !class.is_empty())
    }

    fn find(matches: impl Fn(&str, &str) -> bool) -> Option<Self> {
        let &(name, _, size, dtype) = TYPES.iter().find(|(safetensors, torch, ..)| matches(safetensors, torch))?;
        Some(Self { name, size, dtype, blocks: None })
    }

    /// The type that has this number in GGUF; its name, or the number, where it is not read.
    pub fn from_ggml(number: u32) -> Result<Self, String> {
        let Some(&(_, name)) = GGML_TYPES.iter().find(|(known, _)| *known == number) else {
            return Err(format!("type {number}"));
        };
        let blocks = BlockFormat::all().find(|format| format.name() == name);
        let in_blocks =
            blocks.map(|blocks| Self { name, size: blocks.block_bytes(), dtype: None, blocks: Some(blocks) });
        in_blocks.or_else(|| Self::from_safetensors(name)).ok_or_else(|| format!("type {name}"))
    }

    /// The types of weights that are read from GGUF, in words.
    pub fn read_from_ggml() -> String {
        let blocks: Vec<&str> = BlockFormat::all().map(BlockFormat::name).collect();
        format!("F32, F16, BF16, {} are", blocks.join(", "))
    }

    /// Elements of a block; 1 where they lie one by one.
    pub fn block_elements(&self) -> usize {
        self.blocks.map_or(1, BlockFormat::block_weights)
    }

    /// Bytes of a tensor of this shape, outermost dimension first. `None` if that overflows, or if its rows are no whole blocks.
    pub fn bytes_of(&self, shape: &[usize]) -> Option<usize> {
        let (&row, outer) = shape.split_last().unwrap_or((&1, &[]));
        let row = row.is_multiple_of(self.block_elements()).then(|| row / self.block_elements())?;
        byte_len(outer, self.size)?.checked_mul(row)
    }
}

/// The types of GGUF, by number, also those that are not read: so that an error can name them.
const GGML_TYPES: [(u32, &str); 34] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// Where a tensor lies in a weight file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub element: ElementType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Steps between neighbours in each dimension, in elements; `None` for row-major order without gaps.
    pub strides: Option<Vec<usize>>,
    /// The bytes of the file from its first to its last element.
    pub range: std::ops::Range<usize>,
}
