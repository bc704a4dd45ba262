//! The part of Python's pickle format that `torch.save` writes for a dictionary of tensors.
//!
//! A pickle is a program for a stack machine, and a general interpreter runs whatever code it names. This one knows
//! a fixed list of names, each of which only describes data; anything else ends the reading. Opcodes follow
//! `pickletools` of CPython, names follow `torch.serialization` and `torch._utils`.

use std::collections::{HashMap, HashSet};

use super::{
    element::ElementType,
    error::{FormatError, shorten},
    safetensors::MAX_DIMENSIONS,
};

/// Longest pickle that is read; that of a 70B shard has some 100 kB.
const MAX_PICKLE: usize = 16 << 20;
/// Most values that a pickle may make; a tensor takes some twenty.
const MAX_VALUES: usize = 2 << 20;
/// Longest name of a storage; PyTorch numbers them. Every tensor copies its storage's name, so it must be short.
const MAX_STORAGE_NAME: usize = 64;

/// A tensor as a pickle describes it: a view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorView {
    /// Name of the entry that holds the storage.
    pub storage: String,
    /// Type of the elements.
    pub element: ElementType,
    /// Elements that the storage holds.
    pub storage_len: usize,
    /// First element of the view.
    pub offset: usize,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Steps between neighbours in each dimension, in elements.
    pub strides: Vec<usize>,
}

/// Reads a pickle of a dictionary and returns its tensors by name, in its order. Entries that are no tensors are
/// passed over.
///
/// # Errors
/// For names and opcodes that `torch.save` does not write, and for a program that uses its stack or memo wrongly.
pub fn parse(bytes: &[u8]) -> Result<Vec<(String, TensorView)>, FormatError> {
    if bytes.len() > MAX_PICKLE {
        return Err(malformed(format!("has {} bytes, at most {MAX_PICKLE} are read", bytes.len())));
    }
    let mut machine =
        Machine { input: bytes, at: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let top = machine.run()?;
    machine.into_tensors(top)
}

fn malformed(reason: impl std::fmt::Display) -> FormatError {
    FormatError::Malformed(format!("the pickle {reason}"))
}

/// Place of a value in [`Machine::values`]. Values refer to each other by place, so that neither cycles nor deep
/// nesting cost anything but the values themselves.
#[derive(Debug, Clone, Copy)]
struct Place(usize);

#[derive(Debug)]
enum PickleValue {
    /// None, and numbers that are no integers: never looked at.
    Opaque,
    Bool,
    Int(i64),
    Text(String),
    Tuple(Vec<Place>),
    List,
    /// Pairs in the order of their insertion.
    Dict(Vec<(Place, Place)>),
    Name(Name),
    Storage {
        key: String,
        element: ElementType,
        len: usize,
    },
    Tensor(Box<TensorView>),
}

/// The names that a pickle may use.
#[derive(Debug, Clone, Copy)]
enum Name {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(ElementType),
    /// An attribute of `torch` that is data: `torch.float16`, say.
    DType,
}

const DTYPES: [&str; 12] =
    ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool", "float", "half"];

impl Name {
    fn resolve(module: &str, name: &str) -> Result<Self, FormatError> {
        let known = match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", dtype) if DTYPES.contains(&dtype) => Some(Self::DType),
            ("torch", class) => ElementType::from_torch_storage(class).map(Self::Storage),
            _ => None,
        };
        known.ok_or_else(|| {
            let (module, name) = (shorten(module), shorten(name));
            malformed(format!(
                "names {module}.{name}, which is refused: only tensors and dictionaries of them are read"
            ))
        })
    }
}

struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    values: Vec<PickleValue>,
    stack: Vec<Place>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<usize, Place>,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Place, FormatError> {
        loop {
            let at = self.at;
            let [opcode] = self.read()?;
            match opcode {
                b'.' => return self.pop(),
                0x80 => match self.read()? {
                    [2..=5] => {}
                    [version] => return Err(malformed(format!("has protocol {version}, expected 2 to 5"))),
                },
                // FRAME: a hint for buffering.
                0x95 => drop(self.read::<8>()?),
                b'(' => self.marks.push(self.stack.len()),
                b'N' => self.push(PickleValue::Opaque)?,
                0x88 | 0x89 => self.push(PickleValue::Bool)?,
                b'G' => {
                    self.read::<8>()?;
                    self.push(PickleValue::Opaque)?;
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.read()?);
                    self.push(PickleValue::Int(value.into()))?;
                }
                b'K' => {
                    let [value] = self.read()?;
                    self.push(PickleValue::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.read()?);
                    self.push(PickleValue::Int(value.into()))?;
                }
                0x8a => {
                    let [len] = self.read()?;
                    let value = self.long(len.into())?;
                    self.push(value)?;
                }
                b'X' => {
                    let len = u32::from_le_bytes(self.read()?);
                    self.text(len.into())?;
                }
                0x8c => {
                    let [len] = self.read()?;
                    self.text(len.into())?;
                }
                b')' => self.push(PickleValue::Tuple(Vec::new()))?,
                0x85..=0x87 => {
                    let items = self.pop_many((opcode - 0x84).into())?;
                    self.push(PickleValue::Tuple(items))?;
                }
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(PickleValue::Tuple(items))?;
                }
                b']' => self.push(PickleValue::List)?,
                b'a' => {
                    self.pop()?;
                    self.expect_list()?;
                }
                b'e' => {
                    self.pop_mark()?;
                    self.expect_list()?;
                }
                b'}' => self.push(PickleValue::Dict(Vec::new()))?,
                b's' => {
                    let items = self.pop_many(2)?;
                    self.set_items(&items)?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_items(&items)?;
                }
                b'q' => {
                    let [slot] = self.read()?;
                    self.memoize(slot.into())?;
                }
                b'r' => {
                    let slot = u32::from_le_bytes(self.read()?);
                    self.memoize(slot as usize)?;
                }
                0x94 => self.memoize(self.memo.len())?,
                b'h' => {
                    let [slot] = self.read()?;
                    self.recall(slot.into())?;
                }
                b'j' => {
                    let slot = u32::from_le_bytes(self.read()?);
                    self.recall(slot as usize)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(PickleValue::Name(Name::resolve(&module, &name)?))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let name = Name::resolve(self.as_text(module)?, self.as_text(name)?)?;
                    self.push(PickleValue::Name(name))?;
                }
                b'Q' => self.load_storage()?,
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                other => {
                    return Err(malformed(format!(
                        "has opcode 0x{other:02x} at offset {at}, which torch.save does not write"
                    )));
                }
            }
        }
    }

    /// Makes a tensor's storage of its persistent id: `("storage", class, key, location, elements)`.
    fn load_storage(&mut self) -> Result<(), FormatError> {
        let id = self.pop()?;
        let value = match self.as_tuple(id) {
            Some(&[tag, class, key, _location, len]) => {
                match (self.value(tag), self.value(class), self.value(key), self.as_size(len)) {
                    (
                        PickleValue::Text(tag),
                        &PickleValue::Name(Name::Storage(element)),
                        PickleValue::Text(key),
                        Some(len),
                    ) if tag == "storage" && key.len() <= MAX_STORAGE_NAME => {
                        Some(PickleValue::Storage { key: key.clone(), element, len })
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        self.push(value.ok_or_else(|| malformed("refers to something that is no tensor storage"))?)
    }

    /// Calls a name with a tuple of arguments.
    fn reduce(&mut self) -> Result<(), FormatError> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let &PickleValue::Name(name) = self.value(function) else {
            return Err(malformed("calls something that is no function"));
        };
        let arguments = self.as_tuple(arguments).unwrap_or(&[]);
        let value = match (name, arguments) {
            (Name::OrderedDict, []) => PickleValue::Dict(Vec::new()),
            (Name::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                PickleValue::Tensor(Box::new(self.tensor_view(storage, offset, shape, strides)?))
            }
            (Name::RebuildParameter, &[tensor, ..]) => match self.value(tensor) {
                PickleValue::Tensor(view) => PickleValue::Tensor(view.clone()),
                _ => return Err(malformed("makes a parameter of something that is no tensor")),
            },
            _ => return Err(malformed(format!("calls {name:?} with {} arguments", arguments.len()))),
        };
        self.push(value)
    }

    fn tensor_view(
        &self,
        storage: Place,
        offset: Place,
        shape: Place,
        strides: Place,
    ) -> Result<TensorView, FormatError> {
        let sizes = |place: Place| -> Option<Vec<usize>> {
            let items = self.as_tuple(place).filter(|items| items.len() <= MAX_DIMENSIONS)?;
            items.iter().map(|&item| self.as_size(item)).collect()
        };
        match (self.value(storage), self.as_size(offset), sizes(shape), sizes(strides)) {
            (PickleValue::Storage { key, element, len }, Some(offset), Some(shape), Some(strides))
                if shape.len() == strides.len() =>
            {
                Ok(TensorView { storage: key.clone(), element: *element, storage_len: *len, offset, shape, strides })
            }
            _ => Err(malformed("rebuilds a tensor from arguments that are not (storage, offset, shape, strides)")),
        }
    }

    /// Sets an object's attributes; only a dictionary's are known (`_metadata` of a state), and they say nothing of
    /// tensors.
    fn build(&mut self) -> Result<(), FormatError> {
        self.pop()?;
        match self.stack.last().map(|&top| self.value(top)) {
            Some(PickleValue::Dict(_)) => Ok(()),
            _ => Err(malformed("sets attributes of something that is no dictionary")),
        }
    }

    fn set_items(&mut self, items: &[Place]) -> Result<(), FormatError> {
        let top = self.stack.last().map(|place| place.0);
        match top.and_then(|top| self.values.get_mut(top)) {
            Some(PickleValue::Dict(pairs)) if items.len().is_multiple_of(2) => {
                pairs.extend(items.as_chunks().0.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            _ => Err(malformed("sets items of something that is no dictionary")),
        }
    }

    fn expect_list(&self) -> Result<(), FormatError> {
        match self.stack.last().map(|&top| self.value(top)) {
            Some(PickleValue::List) => Ok(()),
            _ => Err(malformed("appends to something that is no list")),
        }
    }

    fn memoize(&mut self, slot: usize) -> Result<(), FormatError> {
        let top = *self.stack.last().ok_or_else(underflow)?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: usize) -> Result<(), FormatError> {
        let place =
            *self.memo.get(&slot).ok_or_else(|| malformed(format!("recalls value {slot}, which it never kept")))?;
        self.stack.push(place);
        Ok(())
    }

    fn push(&mut self, value: PickleValue) -> Result<(), FormatError> {
        if self.values.len() == MAX_VALUES {
            return Err(malformed(format!("makes more than {MAX_VALUES} values")));
        }
        self.stack.push(Place(self.values.len()));
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Place, FormatError> {
        // Values below a mark can't be popped before the mark is.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(underflow());
        }
        self.stack.pop().ok_or_else(underflow)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Place>, FormatError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count).filter(|&start| start >= floor) {
            Some(start) => Ok(self.stack.split_off(start)),
            None => Err(underflow()),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Place>, FormatError> {
        let mark = self.marks.pop().ok_or_else(underflow)?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn take(&mut self, len: usize) -> Result<&[u8], FormatError> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.input.len());
        let end = end.ok_or_else(|| malformed(format!("ends within a value, after {} bytes", self.input.len())))?;
        let taken = &self.input[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn line(&mut self) -> Result<String, FormatError> {
        let rest = &self.input[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or_else(|| malformed("ends within a name"))?;
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        self.at += end + 1;
        Ok(line)
    }

    fn text(&mut self, len: u64) -> Result<(), FormatError> {
        let at = self.at;
        let bytes = self.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        let text = std::str::from_utf8(bytes).map_err(|_| malformed(format!("has broken UTF-8 at offset {at}")))?;
        let text = text.to_owned();
        self.push(PickleValue::Text(text))
    }

    /// An integer of `len` bytes, two's complement. Those beyond 64 bits occur only in values that are not used.
    fn long(&mut self, len: usize) -> Result<PickleValue, FormatError> {
        let bytes = self.take(len)?;
        if bytes.len() > 8 {
            return Ok(PickleValue::Opaque);
        }
        let fill = if bytes.last().is_some_and(|&byte| byte >= 0x80) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        Ok(PickleValue::Int(i64::from_le_bytes(wide)))
    }

    fn value(&self, place: Place) -> &PickleValue {
        self.values.get(place.0).unwrap_or(&PickleValue::Opaque)
    }

    fn as_text(&self, place: Place) -> Result<&str, FormatError> {
        match self.value(place) {
            PickleValue::Text(text) => Ok(text),
            _ => Err(malformed("names something by what is no text")),
        }
    }

    fn as_tuple(&self, place: Place) -> Option<&[Place]> {
        match self.value(place) {
            PickleValue::Tuple(items) => Some(items),
            _ => None,
        }
    }

    fn as_size(&self, place: Place) -> Option<usize> {
        match *self.value(place) {
            PickleValue::Int(value) => usize::try_from(value).ok(),
            _ => None,
        }
    }

    fn into_tensors(self, top: Place) -> Result<Vec<(String, TensorView)>, FormatError> {
        let PickleValue::Dict(pairs) = self.value(top) else {
            return Err(malformed("holds no dictionary of tensors"));
        };
        let mut seen = HashSet::new();
        let mut tensors = Vec::new();
        for &(key, value) in pairs {
            if let (PickleValue::Text(name), PickleValue::Tensor(view)) = (self.value(key), self.value(value)) {
                if !seen.insert(name) {
                    return Err(FormatError::tensor(name, "occurs twice"));
                }
                tensors.push((name.clone(), (**view).clone()));
            }
        }
        Ok(tensors)
    }
}

fn underflow() -> FormatError {
    malformed("takes a value from an empty stack")
}
