use std::alloc::{Layout, alloc_zeroed};

/// A type of which all bits zero are a value.
///
/// # Safety
/// All bits zero are a value of it, and its size is not zero.
pub unsafe trait ZeroBits: Copy {}

// SAFETY: 0.0.
unsafe impl ZeroBits for f32 {}
// SAFETY: zero.
unsafe impl ZeroBits for i8 {}
// SAFETY: two zeros.
unsafe impl ZeroBits for [u8; 2] {}

/// `len` zeros that take no memory before they are written; `None` if there is no room for them.
///
/// `vec![0; len]` after `try_reserve` would find that out too, but glibc's allocator serves a size that was just freed from its
/// heap and fills it with zeros, which takes the memory at once.
pub fn zeros<T: ZeroBits>(len: usize) -> Option<Vec<T>> {
    let layout = Layout::array::<T>(len).ok()?;
    if layout.size() == 0 {
        return Some(Vec::new());
    }
    // SAFETY: the size is not zero.
    let start = unsafe { alloc_zeroed(layout) }.cast::<T>();
    // SAFETY: the memory is the global allocator's, of the layout of `len` elements; zeros are values of the type.
    (!start.is_null()).then(|| unsafe { Vec::from_raw_parts(start, len, len) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_of_any_length_are_zeros() {
        assert_eq!(zeros::<f32>(0), Some(Vec::new()));
        assert_eq!(zeros::<[u8; 2]>(3), Some(vec![[0; 2]; 3]));
        assert_eq!(zeros::<f32>(usize::MAX), None);
        assert_eq!(zeros::<i8>(1 << 60), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn many_buffers_of_zeros_take_no_memory_before_they_are_written() {
        // 64 MiB each, as keys and values have. Below 32 MiB glibc may serve what another test freed, and fill it with zeros.
        const LEN: usize = 16 << 20;
        let resident = || -> usize {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let before = resident();
        let buffers: Vec<Vec<f32>> = (0..16).map(|_| zeros(LEN).unwrap()).collect();
        let taken = resident().saturating_sub(before);
        // Other tests run beside this one.
        assert!(taken < buffers.len() * LEN * size_of::<f32>() / 2, "{taken} bytes");
    }
}
