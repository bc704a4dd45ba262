//! Files that `torch.save` writes: a zip archive with a pickle that describes the tensors, and their bytes.

use std::ops::Range;

use super::{
    element::StoredTensor,
    error::{FormatError, shorten},
    pickle::{self, TensorView},
    zip,
};

const PICKLE: &str = "data.pkl";
/// The number 0x1950a86a20f9469cfc6c in a pickle of any protocol: PyTorch before 1.6 began its files with it.
const LEGACY_MAGIC: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19";
/// A pickle begins with its protocol, and those of later protocols with the length of their first part.
const LONGEST_BEFORE_MAGIC: usize = 11;
/// Files of a tar archive, which the very first versions wrote.
const LEGACY_TAR_FILES: [&[u8]; 4] = [b"sys_info\0", b"pickle\0", b"storages\0", b"tensors\0"];

/// Lists the tensors in a file of `torch.save`; `file` is the whole file.
///
/// # Errors
/// For the format of PyTorch before 1.6, for TorchScript archives, and for whatever contradicts itself or the file.
pub fn parse(file: &[u8]) -> Result<Vec<StoredTensor>, FormatError> {
    if is_legacy(file) {
        return Err(FormatError::malformed(
            "written in the format of PyTorch before 1.6; convert it once with \
             torch.save(torch.load(path, map_location=\"cpu\"), path) under a newer PyTorch",
        ));
    }
    if !file.starts_with(b"PK\x03\x04") {
        return Err(FormatError::malformed(format!(
            "not a PyTorch file: it does not begin as a zip archive ({} bytes)",
            file.len()
        )));
    }
    let archive = zip::parse(file)?;
    let prefix = archive_prefix(&archive)?;
    let bytes = |name: &str| archive.bytes(&format!("{prefix}{name}"));
    if archive.range(&format!("{prefix}constants.pkl"))?.is_some() {
        return Err(FormatError::malformed(
            "a TorchScript archive, which holds a program; save its state_dict() instead",
        ));
    }
    if let Some(order) = bytes("byteorder")?.filter(|order| order != b"little") {
        let order = shorten(&String::from_utf8_lossy(order));
        return Err(FormatError::malformed(format!("byte order {order:?}, expected \"little\"")));
    }
    let program = bytes(PICKLE)?.unwrap_or_default();
    let views = pickle::parse(program)?;
    let mut tensors = Vec::with_capacity(views.len());
    for (name, view) in views {
        let key = format!("{prefix}data/{}", view.storage);
        let storage = archive.range(&key)?.ok_or_else(|| {
            FormatError::tensor(&name, format!("its storage {} is not in the archive", shorten(&key)))
        })?;
        tensors.push(locate(name, view, storage)?);
    }
    Ok(tensors)
}

/// Whether the file is of PyTorch before 1.6: several pickles with the bytes behind them, or a tar archive of such.
fn is_legacy(file: &[u8]) -> bool {
    let start = file.get(..LONGEST_BEFORE_MAGIC + LEGACY_MAGIC.len()).unwrap_or(file);
    let pickled =
        start.first() == Some(&0x80) && start.windows(LEGACY_MAGIC.len()).any(|window| window == LEGACY_MAGIC);
    // Without the mark of the tar format, of which there were several.
    let name = file.get(..512).map(|header| header.strip_prefix(b"./").unwrap_or(header));
    pickled || name.is_some_and(|name| LEGACY_TAR_FILES.iter().any(|file| name.starts_with(file)))
}

/// The archive's only folder, with its slash; its name is that of the file when it was saved.
fn archive_prefix<'a>(archive: &'a zip::Archive) -> Result<&'a str, FormatError> {
    let mut prefixes = archive.names().filter_map(|name| name.strip_suffix(PICKLE)).filter(|p| p.ends_with('/'));
    match (prefixes.next(), prefixes.next()) {
        (Some(prefix), None) => Ok(prefix),
        (None, _) => Err(FormatError::malformed(format!("a zip archive without {PICKLE}: not a PyTorch file"))),
        (Some(_), Some(_)) => Err(FormatError::malformed(format!("a zip archive with several {PICKLE}"))),
    }
}

/// Checks a view against the storage that it looks at.
fn locate(name: String, view: TensorView, storage: &Range<usize>) -> Result<StoredTensor, FormatError> {
    let TensorView { element, storage_len, offset, shape, strides, storage: _ } = view;
    let refuse = |reason: String| Err(FormatError::tensor(&name, reason));
    if storage_len.checked_mul(element.size) != Some(storage.len()) {
        return refuse(format!(
            "its storage of {storage_len} {} elements should have {} bytes, has {}",
            element.name,
            storage_len.saturating_mul(element.size),
            storage.len()
        ));
    }
    let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    // Elements from the first to the last that the view reaches.
    let extent = if shape.contains(&0) {
        Some(0)
    } else {
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(0usize, |sum, (&dim, &stride)| sum.checked_add((dim - 1).checked_mul(stride)?));
        last.and_then(|last| last.checked_add(1))
    };
    let end = extent.and_then(|extent| offset.checked_add(extent)).filter(|&end| end <= storage_len);
    let (Some(elements), Some(end)) = (elements, end) else {
        return refuse(format!(
            "shape {shape:?} with strides {strides:?} at offset {offset} leaves its storage of {storage_len} elements"
        ));
    };
    // More elements than the storage has would be elements that share a place; a copy could grow without bound.
    if elements > storage_len {
        return refuse(format!("shape {shape:?} with strides {strides:?} repeats elements of its storage"));
    }
    let place = |element_index: usize| storage.start + element_index * element.size;
    let range = place(end - extent.unwrap_or(0))..place(end);
    let strides = (!is_row_major(&shape, &strides)).then_some(strides);
    Ok(StoredTensor { name, element, shape, strides, range })
}

/// Whether the elements lie in row-major order without gaps. The stride of a dimension of one element is free.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.contains(&0)
        || shape.iter().zip(strides).rev().all(|(&dim, &stride)| {
            let fits = dim == 1 || stride == expected;
            expected *= dim;
            fits
        })
}
