//! Downloads model repositories into the usual hub cache.
#![forbid(unsafe_code)]
