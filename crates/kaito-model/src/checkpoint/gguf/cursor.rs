//! Reading a file from its beginning on.

use crate::checkpoint::error::FormatError;

/// A place in a file.
pub(super) struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self { file, at: 0 }
    }

    /// Bytes that were read.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Bytes that were not read yet.
    pub(super) fn left(&self) -> usize {
        self.file.len() - self.at
    }

    /// The next `count` bytes.
    pub(super) fn bytes(&mut self, count: u64, what: &str) -> Result<&'a [u8], FormatError> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        match end.and_then(|end| Some((end, self.file.get(self.at..end)?))) {
            Some((end, bytes)) => {
                self.at = end;
                Ok(bytes)
            }
            None => Err(FormatError::malformed(format!(
                "the file is truncated: {what} at byte {} needs {count} bytes, {} are left",
                self.at,
                self.left()
            ))),
        }
    }

    fn number<const N: usize>(&mut self, what: &str) -> Result<[u8; N], FormatError> {
        let mut number = [0; N];
        number.copy_from_slice(self.bytes(N as u64, what)?);
        Ok(number)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        self.number(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        self.number(what).map(u64::from_le_bytes)
    }

    /// All bytes that `read` reads.
    pub(super) fn spanned(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<(), FormatError>,
    ) -> Result<&'a [u8], FormatError> {
        let start = self.at;
        read(self)?;
        Ok(self.file.get(start..self.at).unwrap_or_default())
    }

    /// A length and so many bytes.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a [u8], FormatError> {
        let length = self.u64(what)?;
        self.bytes(length, what)
    }

    /// A string of UTF-8 of at most `limit` bytes.
    pub(super) fn text(&mut self, limit: u64, what: &str) -> Result<&'a str, FormatError> {
        let at = self.at;
        let bytes = self.string(what)?;
        if bytes.len() as u64 > limit {
            let length = bytes.len();
            return Err(FormatError::malformed(format!("{what} at byte {at} has {length} bytes, at most {limit}")));
        }
        std::str::from_utf8(bytes).map_err(|_| FormatError::malformed(format!("{what} at byte {at} is not UTF-8")))
    }
}
