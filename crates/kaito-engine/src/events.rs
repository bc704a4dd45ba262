//! The queue of a request's events between the engine's thread and the request's client.
//!
//! It is no channel of a library, since a channel allocates on the engine's thread for what it carries. Here, the room for a
//! request's tokens is allocated by the thread that submits the request.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use crate::{
    Error,
    engine::GenerationEvent,
    generate::{Chosen, PromptNumbers},
};

/// Tokens that a client can be behind before its queue takes more memory.
const ROOM: usize = 1024;

#[derive(Debug, Default)]
struct Queue {
    started: bool,
    /// Tokens of the prompt that were taken from the prefix cache.
    cached_tokens: usize,
    of_prompt: Option<PromptNumbers>,
    chosen: Vec<Chosen>,
    last: Option<GenerationEvent>,
    /// Wakes the client that waits for more.
    waker: Option<Waker>,
}

/// A queue for a request of at most `tokens` tokens.
pub(crate) fn queue(tokens: usize) -> (EventSender, EventReceiver) {
    let queue = Queue { chosen: Vec::with_capacity(tokens.min(ROOM)), ..Queue::default() };
    let queue = Arc::new(Mutex::new(queue));
    (EventSender(queue.clone()), EventReceiver(queue))
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The engine's end. Dropped before the last event, it says that the engine has stopped.
#[derive(Debug)]
pub struct EventSender(Arc<Mutex<Queue>>);

impl EventSender {
    /// The request left the queue; `cached_tokens` of its prompt were taken from the prefix cache.
    pub fn started(&self, cached_tokens: usize) {
        self.change(|queue| (queue.started, queue.cached_tokens) = (true, cached_tokens));
    }

    /// So many tokens of the prompt were taken from a prefix cache, as it turned out later.
    pub fn found_cached(&self, tokens: usize) {
        lock(&self.0).cached_tokens = tokens;
    }

    /// Takes the tokens out of `chosen`.
    pub fn chosen(&self, chosen: &mut Vec<Chosen>) {
        self.change(|queue| queue.chosen.append(chosen));
    }

    /// This became known of the prompt.
    pub fn prompt_known(&self, numbers: PromptNumbers) {
        // No event of its own: it is there with the first token, or with the last event.
        lock(&self.0).of_prompt = Some(numbers);
    }

    /// Says how the request ended.
    pub fn end(self, last: GenerationEvent) {
        self.change(|queue| queue.last = Some(last));
    }

    fn change(&self, change: impl FnOnce(&mut Queue)) {
        let waker = {
            let mut queue = lock(&self.0);
            change(&mut queue);
            queue.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        self.change(|queue| {
            queue.last.get_or_insert(GenerationEvent::Failed(Error::EngineStopped));
        });
    }
}

/// The client's end.
#[derive(Debug)]
pub(crate) struct EventReceiver(Arc<Mutex<Queue>>);

impl EventReceiver {
    /// Tokens of the prompt that were taken from the prefix cache, once the request left the queue.
    pub(crate) fn cached_tokens(&self) -> usize {
        lock(&self.0).cached_tokens
    }

    /// Takes what became known of the prompt, once there is a token or the request has ended.
    pub(crate) fn take_prompt_numbers(&self) -> Option<PromptNumbers> {
        lock(&self.0).of_prompt.take()
    }

    /// The next event. After the last one there is never another.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<GenerationEvent> {
        let mut queue = lock(&self.0);
        if mem::take(&mut queue.started) {
            return Poll::Ready(GenerationEvent::Started);
        }
        if !queue.chosen.is_empty() {
            return Poll::Ready(GenerationEvent::Chosen(queue.chosen.drain(..).collect()));
        }
        if let Some(last) = queue.last.take() {
            return Poll::Ready(last);
        }
        queue.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(token: u32) -> Chosen {
        Chosen { sequence: 0, token, score: None }
    }

    fn poll(receiver: &EventReceiver) -> Poll<GenerationEvent> {
        receiver.poll(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_client_that_lags_behind_hears_everything_in_order() {
        let (sender, receiver) = queue(2 * ROOM);
        sender.started(16);
        for token in 0..2 * ROOM as u32 {
            sender.chosen(&mut vec![chosen(token)]);
        }
        sender.end(GenerationEvent::Finished(Vec::new()));
        assert!(matches!(poll(&receiver), Poll::Ready(GenerationEvent::Started)));
        assert_eq!(receiver.cached_tokens(), 16);
        let Poll::Ready(GenerationEvent::Chosen(tokens)) = poll(&receiver) else { panic!("no tokens") };
        assert_eq!(tokens, (0..2 * ROOM as u32).map(chosen).collect::<Vec<_>>());
        assert!(matches!(poll(&receiver), Poll::Ready(GenerationEvent::Finished(_))));
        assert!(poll(&receiver).is_pending());
    }

    #[test]
    fn a_sender_that_is_gone_is_an_engine_that_stopped() {
        let (sender, receiver) = queue(1);
        sender.chosen(&mut vec![chosen(1)]);
        drop(sender);
        assert!(matches!(poll(&receiver), Poll::Ready(GenerationEvent::Chosen(_))));
        assert!(matches!(poll(&receiver), Poll::Ready(GenerationEvent::Failed(Error::EngineStopped))));
    }
}
