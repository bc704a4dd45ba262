//! Vectors whose elements borrow from what changes between two steps, in memory that is taken once.

/// An empty vector in the memory of `vec`, for elements of the same size that borrow from elsewhere.
///
/// The standard library collects in place where sizes agree. If it ever stopped, nothing but speed would be lost;
/// `tests/allocations.rs` would tell.
pub(crate) fn recycled<T, U>(mut vec: Vec<T>) -> Vec<U> {
    vec.clear();
    vec.into_iter().filter_map(|_| None).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_kept_and_elements_are_not() {
        let text = String::from("text");
        let mut borrowing: Vec<&str> = Vec::with_capacity(100);
        borrowing.push(&text);
        let place = borrowing.as_ptr().cast::<u8>();
        let recycled: Vec<&'static str> = recycled(borrowing);
        assert_eq!((recycled.len(), recycled.capacity(), recycled.as_ptr().cast()), (0, 100, place));
    }
}
