//! A reader of protocol buffers, as far as `sentencepiece_model.proto` needs one.
//!
//! Every length is checked against the bytes that are there, so nothing is allocated that the file does not hold.
//! Unknown fields are skipped; the deprecated group encoding is refused.

use super::ModelError;

/// One field of a message: its number and what it holds.
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

/// Reads the fields of one message, in the order of the file.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// The next field's number and value; `None` at the end of the message.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, ModelError> {
        if self.position == self.bytes.len() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let (number, wire_type) = (tag >> 3, tag & 7);
        if number == 0 {
            return Err(self.error("field number 0"));
        }
        let value = match wire_type {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed64)?,
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length).map_err(|_| self.error("a length beyond the end of the file"))?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                let mut little_endian = [0; 4];
                little_endian.copy_from_slice(self.take(4)?);
                Value::Fixed32(u32::from_le_bytes(little_endian))
            }
            other => return Err(self.error(&format!("wire type {other}"))),
        };
        Ok(Some((number, value)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ModelError> {
        let taken = self.position.checked_add(length).and_then(|end| self.bytes.get(self.position..end));
        let taken = taken.ok_or_else(|| self.error(&format!("{length} bytes beyond the end of the message")))?;
        self.position += length;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, ModelError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.take(1)?.first().ok_or_else(|| self.error("a cut number"))?;
            // Ten bytes hold 70 bits; the reference implementation drops the six too many as well.
            if shift < 64 {
                value |= u64::from(byte & 0x7f) << shift;
            }
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error("a number of more than ten bytes"))
    }

    fn error(&self, what: &str) -> ModelError {
        ModelError::Protobuf { offset: self.position, what: what.to_owned() }
    }
}

impl<'a> Value<'a> {
    /// A boolean, as any number that is not zero.
    pub(super) fn as_bool(&self) -> Option<bool> {
        self.as_i32().map(|value| value != 0)
    }

    /// An `int32` or an enumeration; negative ones are written in ten bytes.
    pub(super) fn as_i32(&self) -> Option<i32> {
        match self {
            // The wire holds 64 bits of which an int32 keeps the lower half.
            Value::Varint(value) => Some(*value as u32 as i32),
            _ => None,
        }
    }

    pub(super) fn as_f32(&self) -> Option<f32> {
        match self {
            Value::Fixed32(bits) => Some(f32::from_bits(*bits)),
            _ => None,
        }
    }

    pub(super) fn as_bytes(&self) -> Option<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}
