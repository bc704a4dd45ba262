//! Bodies of requests and answers, which are streamed.

use std::{
    io::{self, Read},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::connect::Body;
use crate::Blob;

/// Large enough that the work for each does not count, small enough that many are under way in little memory.
const PIECE: usize = 256 << 10;
/// Pieces that are read ahead of the network.
const AHEAD: usize = 4;

/// What a request carries; it can be made again for another attempt.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// Nothing.
    Nothing,
    /// A few bytes.
    Bytes(Bytes),
    /// Bytes `start` to `end` of a blob.
    Part {
        /// The blob.
        blob: Box<Blob>,
        /// The first.
        start: u64,
        /// One after the last.
        end: u64,
    },
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Part { start, end, .. } => end.saturating_sub(*start),
        }
    }

    /// For one attempt.
    pub(super) fn body(&self, meter: &Arc<Meter>) -> Body {
        match self {
            Self::Nothing => Empty::new().map_err(|never| match never {}).boxed_unsync(),
            Self::Bytes(bytes) => Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync(),
            Self::Part { blob, start, end } => part((**blob).clone(), *start, *end, meter.clone()),
        }
    }
}

/// Counts what one attempt has handed to the network, and keeps why its source failed.
#[derive(Debug, Default)]
pub(super) struct Meter {
    sent: AtomicU64,
    source_error: Mutex<Option<io::Error>>,
}

impl Meter {
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn take_source_error(&self) -> Option<io::Error> {
        self.source_error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn count(&self, piece: io::Result<Bytes>) -> io::Result<Bytes> {
        match piece {
            Ok(bytes) => {
                self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Ok(bytes)
            }
            Err(error) => {
                let told = io::Error::new(error.kind(), "the source failed");
                *self.source_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(told)
            }
        }
    }
}

fn part(blob: Blob, start: u64, end: u64, meter: Arc<Meter>) -> Body {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let outcome = blob.open_at(start).and_then(|reader| read(reader, end.saturating_sub(start), &sender));
        if let Err(error) = outcome {
            // Nobody listens if the request has ended.
            let _ = sender.blocking_send(Err(error));
        }
    });
    let pieces = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
    StreamBody::new(pieces.map(move |piece| meter.count(piece).map(Frame::data))).boxed_unsync()
}

fn read(mut reader: impl Read, mut left: u64, sender: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    while left > 0 {
        let mut piece = BytesMut::zeroed(usize::try_from(left).unwrap_or(PIECE).min(PIECE));
        let mut filled = 0;
        while let Some(rest) = piece.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match reader.read(rest) {
                Ok(0) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("it ends {left} bytes early")));
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        left -= filled as u64;
        if sender.blocking_send(Ok(piece.freeze())).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
