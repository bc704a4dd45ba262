//! Failures of a device.

/// What a failure means for the work that the device was given, and for the work to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceErrorKind {
    /// There is not enough memory for this piece of work; a smaller one may succeed.
    OutOfMemory,
    /// The device is gone, and what lay in its memory with it: nothing can succeed any more.
    Lost,
    /// The device can't do what it was asked for.
    Unsupported,
    /// Anything else; other work may succeed.
    Other,
}

/// A failure of the device itself, not of a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{device}: {cause}")]
pub struct DeviceError {
    /// What it means.
    pub kind: DeviceErrorKind,
    /// The device, for people (`cpu`).
    pub device: String,
    /// What went wrong.
    pub cause: String,
}

impl DeviceError {
    /// A failure of `device`.
    pub fn new(kind: DeviceErrorKind, device: &str, cause: impl Into<String>) -> Self {
        Self { kind, device: device.to_owned(), cause: cause.into() }
    }
}
