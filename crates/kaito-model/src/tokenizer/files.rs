//! Reading the small files around a model, with a bound on their size.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use serde_json::{Map, Value};

use super::TokenizerError;
use crate::json;

/// Largest tokenizer file that is read. The largest published ones have about 20 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The file's contents, or `None` if there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    let error = |source| TokenizerError::Read { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(error(source)),
    };
    let bytes = file.metadata().map_err(error)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(TokenizerError::TooLarge { path: path.to_owned(), bytes, limit: MAX_FILE_BYTES });
    }
    // Not every file knows its length, a named pipe for one.
    let mut contents = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut contents).map_err(error)?;
    if contents.len() as u64 > MAX_FILE_BYTES {
        let bytes = contents.len() as u64;
        return Err(TokenizerError::TooLarge { path: path.to_owned(), bytes, limit: MAX_FILE_BYTES });
    }
    Ok(Some(contents))
}

/// The file as a JSON object, or `None` if there is no such file.
pub(super) fn read_json(path: &Path) -> Result<Option<Map<String, Value>>, TokenizerError> {
    read(path)?.map(|contents| parse_json(path, &contents)).transpose()
}

/// The contents of the file `path` as a JSON object.
pub(super) fn parse_json(path: &Path, contents: &[u8]) -> Result<Map<String, Value>, TokenizerError> {
    json::parse_object(contents).map_err(|error| malformed(path, error))
}

/// Says that `path` does not hold what it should.
pub(super) fn malformed(path: &Path, reason: impl ToString) -> TokenizerError {
    TokenizerError::Malformed { path: path.to_owned(), reason: reason.to_string() }
}
