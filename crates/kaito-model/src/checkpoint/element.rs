use kaito_kernels::DType;

/// Element type of a stored tensor. Models compute with the three float types; the others occur in buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementType {
    /// Its name in safetensors headers.
    pub name: &'static str,
    /// Bytes of one element.
    pub size: usize,
    /// The type to compute with, if there is one.
    pub dtype: Option<DType>,
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
        Some(Self { name, size, dtype })
    }
}

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
