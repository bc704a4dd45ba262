//! Which requests are open, and whether more may be opened.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use super::GenerationEvent;
use crate::{
    Error,
    adapters::{Adapter, AdapterUse},
    device::DeviceError,
    events::EventSender,
};

/// Counts requests from their submission to their last event.
#[derive(Debug, Default)]
pub(super) struct OpenRequests {
    state: Mutex<State>,
    idle: Notify,
}

#[derive(Debug, Default)]
struct State {
    closed: Option<Closed>,
    open: usize,
    waiting: usize,
    /// When the last step ended or work arrived at an idle engine; `None` while there is no work.
    progress: Option<Instant>,
}

/// Why no more requests may be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Closed {
    /// The engine is to end.
    ShuttingDown,
    /// The device is gone.
    DeviceLost(DeviceError),
    /// Its thread is gone.
    Stopped,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OpenCounts {
    pub(super) stopped: bool,
    pub(super) device_lost: Option<DeviceError>,
    pub(super) waiting: usize,
    pub(super) progress: Option<Instant>,
}

impl OpenRequests {
    /// Opens a request that tells `events` what becomes of it, if at most `limit` wait with it, and counts it among those of its
    /// adapter.
    ///
    /// # Errors
    /// A full queue, an engine that shuts down or is gone.
    pub(super) fn open(
        self: &Arc<Self>,
        limit: usize,
        events: EventSender,
        adapter: Option<Adapter>,
    ) -> Result<OpenRequest, Error> {
        let mut state = self.lock();
        match &state.closed {
            Some(Closed::ShuttingDown) => return Err(Error::ShuttingDown),
            Some(Closed::DeviceLost(error)) => return Err(error.clone().into()),
            Some(Closed::Stopped) => return Err(Error::EngineStopped),
            None if state.waiting >= limit => return Err(Error::TooBusy { waiting: state.waiting, limit }),
            None => {}
        }
        state.open += 1;
        state.waiting += 1;
        state.progress.get_or_insert_with(Instant::now);
        drop(state);
        let adapter = adapter.map(AdapterUse::waiting);
        Ok(OpenRequest { requests: self.clone(), events: Some(events), waiting: true, adapter })
    }

    /// Opens no more requests; those that are open stay so. A reason for good is kept: a device stays lost while the engine
    /// shuts down, and a thread that is gone stays gone.
    pub(super) fn close(&self, why: Closed) {
        let mut state = self.lock();
        match (&state.closed, &why) {
            (Some(Closed::Stopped), _) | (Some(Closed::DeviceLost(_)), Closed::ShuttingDown) => {}
            _ => state.closed = Some(why),
        }
    }

    /// Notes that the engine made progress.
    pub(super) fn progressed(&self) {
        let mut state = self.lock();
        state.progress = (state.open > 0).then(Instant::now);
    }

    pub(super) fn counts(&self) -> OpenCounts {
        let state = self.lock();
        OpenCounts {
            stopped: state.closed == Some(Closed::Stopped),
            device_lost: match &state.closed {
                Some(Closed::DeviceLost(error)) => Some(error.clone()),
                _ => None,
            },
            waiting: state.waiting,
            progress: state.progress,
        }
    }

    /// Waits until no request is open.
    pub(super) async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            if self.lock().open == 0 {
                return;
            }
            idle.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is open, wherever it is at the moment. It is closed by being dropped, or with its last event.
#[derive(Debug)]
pub(super) struct OpenRequest {
    requests: Arc<OpenRequests>,
    /// Dropped without a last event, it says that the engine has stopped.
    events: Option<EventSender>,
    waiting: bool,
    adapter: Option<AdapterUse>,
}

impl OpenRequest {
    /// Notes that the request left the queue; `cached_tokens` of its prompt were taken from the prefix cache.
    pub(super) fn start(&mut self, cached_tokens: usize) {
        if std::mem::take(&mut self.waiting) {
            self.requests.lock().waiting -= 1;
        }
        if let Some(adapter) = &mut self.adapter {
            adapter.start();
        }
        if let Some(events) = &self.events {
            events.started(cached_tokens);
        }
    }

    /// Tells the client something.
    pub(super) fn events(&self) -> Option<&EventSender> {
        self.events.as_ref()
    }

    /// Closes the request with its last event.
    pub(super) fn end(mut self, last: GenerationEvent) {
        let events = self.events.take();
        // Closed first, so that a client that saw the last event sees it closed.
        drop(self);
        if let Some(events) = events {
            events.end(last);
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let idle = {
            let mut state = self.requests.lock();
            state.open -= 1;
            state.waiting -= usize::from(self.waiting);
            state.progress = state.progress.filter(|_| state.open > 0);
            state.open == 0
        };
        if idle {
            self.requests.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        path::PathBuf,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;
    use crate::{
        ErrorKind,
        adapters::Adapters,
        device::DeviceErrorKind,
        events::{self, EventReceiver},
    };

    fn opened(requests: &Arc<OpenRequests>) -> (OpenRequest, EventReceiver) {
        let (sender, receiver) = events::queue(1);
        (requests.open(2, sender, None).unwrap(), receiver)
    }

    fn drained(requests: &OpenRequests) -> bool {
        pin!(requests.drained()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn counts(requests: &OpenRequests) -> (usize, usize, bool) {
        let state = requests.lock();
        (state.open, state.waiting, state.progress.is_some())
    }

    #[test]
    fn a_request_is_closed_on_every_path() {
        type Path = fn(OpenRequest);
        let paths: [Path; 5] = [
            // Refused by a channel whose other end is gone, or found in one.
            drop,
            |request| {
                let (sender, receiver) = std::sync::mpsc::channel();
                drop(receiver);
                assert!(sender.send(request).is_err());
            },
            |mut request| {
                request.start(0);
                drop(request);
            },
            |mut request| {
                request.start(0);
                request.end(GenerationEvent::Finished(Vec::new()));
            },
            |request| request.end(GenerationEvent::Failed(Error::Cancelled)),
        ];
        for path in paths {
            let requests = Arc::new(OpenRequests::default());
            let (other, _events) = opened(&requests);
            let (request, events) = opened(&requests);
            assert_eq!(counts(&requests), (2, 2, true));
            let mut waiting = pin!(requests.drained());
            let mut context = Context::from_waker(Waker::noop());
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            path(request);
            assert_eq!(counts(&requests), (1, 1, true));
            assert!(!drained(&requests));
            let mut last = false;
            while let Poll::Ready(event) = events.poll(&context) {
                last = matches!(event, GenerationEvent::Finished(_) | GenerationEvent::Failed(_));
            }
            assert!(last, "the client hears of it");
            drop(other);
            assert_eq!(counts(&requests), (0, 0, false));
            assert!(waiting.poll(&mut context).is_ready() && drained(&requests));
        }
    }

    #[test]
    fn a_request_counts_among_those_of_its_adapter_first_as_one_that_waits() {
        let adapters = Adapters::elsewhere(["first", "second"].map(|name| (name.to_owned(), PathBuf::new())));
        let requests = Arc::new(OpenRequests::default());
        let open = |name: Option<&str>| {
            let adapter = name.map(|name| adapters.find(name).unwrap());
            requests.open(9, events::queue(1).0, adapter).unwrap()
        };
        let counted = || (adapters.waiting().join(","), adapters.running().join(","));
        let expect = |waiting: &str, running: &str| assert_eq!(counted(), (waiting.to_owned(), running.to_owned()));
        expect("", "");
        let (_none, mut second, first) = (open(None), open(Some("second")), open(Some("first")));
        expect("first,second", "");
        second.start(0);
        second.start(0);
        expect("first", "second");
        let (third, mut fourth) = (open(Some("second")), open(Some("second")));
        fourth.start(0);
        expect("first,second", "second");
        second.end(GenerationEvent::Failed(Error::Cancelled));
        drop(third);
        expect("first", "second");
        drop((first, fourth));
        expect("", "");
    }

    #[test]
    fn nothing_is_opened_behind_a_closed_door_or_a_full_queue() {
        let requests = Arc::new(OpenRequests::default());
        let refusal = || requests.open(2, events::queue(1).0, None).map(drop).unwrap_err();
        let (mut first, _) = opened(&requests);
        let (second, _) = opened(&requests);
        assert!(matches!(refusal(), Error::TooBusy { waiting: 2, limit: 2 }));
        assert_eq!(counts(&requests), (2, 2, true));
        first.start(0);
        first.start(0);
        assert_eq!(counts(&requests), (2, 1, true));
        requests.close(Closed::ShuttingDown);
        assert!(matches!(refusal(), Error::ShuttingDown));
        requests.close(Closed::Stopped);
        requests.close(Closed::ShuttingDown);
        assert!(matches!(refusal(), Error::EngineStopped));
        assert!(requests.counts().stopped);
        drop((first, second));
        assert_eq!(counts(&requests), (0, 0, false));
    }

    #[test]
    fn a_lost_device_stays_lost_until_the_thread_is_gone() {
        let requests = Arc::new(OpenRequests::default());
        let lost = DeviceError::new(DeviceErrorKind::Lost, "gpu:0", "fell off the bus");
        requests.close(Closed::ShuttingDown);
        requests.close(Closed::DeviceLost(lost.clone()));
        requests.close(Closed::ShuttingDown);
        let refusal = requests.open(2, events::queue(1).0, None).map(drop).unwrap_err();
        assert_eq!(
            (refusal.to_string().as_str(), refusal.kind()),
            ("gpu:0: fell off the bus", ErrorKind::ShuttingDown)
        );
        assert_eq!((requests.counts().stopped, requests.counts().device_lost), (false, Some(lost)));
        requests.close(Closed::Stopped);
        assert_eq!((requests.counts().stopped, requests.counts().device_lost), (true, None));
    }

    /// Once requests are refused and none is open, none is opened any more.
    #[test]
    fn every_request_that_was_opened_is_waited_for() {
        for _ in 0..200 {
            let requests = Arc::new(OpenRequests::default());
            let clients: Vec<_> = (0..4)
                .map(|_| {
                    let requests = requests.clone();
                    std::thread::spawn(move || requests.open(9, events::queue(1).0, None).ok())
                })
                .collect();
            requests.close(Closed::ShuttingDown);
            let seen = requests.lock().open;
            let let_in: Vec<_> = clients.into_iter().filter_map(|client| client.join().unwrap()).collect();
            assert_eq!(let_in.len(), seen);
        }
    }
}
