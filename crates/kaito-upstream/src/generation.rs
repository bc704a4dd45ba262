//! A prompt with all its sequences: from the queue to the end.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use futures_util::{
    StreamExt,
    future::{AbortHandle, Abortable},
    stream::FuturesUnordered,
};
use kaito_engine::{
    Error,
    remote::{
        EventSender, GenerationControl, GenerationEvent, GenerationStream, PromptNumbers, SequenceOutput,
        generation_channel,
    },
};
use tokio::{
    runtime::Handle,
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
};

use crate::{engine::Engine, plan::Plan, prompt_scores, sequence::Sequence};

/// The queue before the engine, and what is there of it.
#[derive(Debug)]
pub(crate) struct Queue {
    places: Arc<Semaphore>,
    /// Prompts that wait.
    waiting: Arc<AtomicUsize>,
    most_waiting: usize,
}

impl Queue {
    /// For at most `sequences` at the same time, before which at most `waiting` prompts wait.
    pub(crate) fn new(sequences: usize, waiting: usize) -> Self {
        let places = Arc::new(Semaphore::new(sequences.min(Semaphore::MAX_PERMITS)));
        Self { places, waiting: Arc::default(), most_waiting: waiting }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// A prompt's turn: now, or when its place in the queue has come up.
    ///
    /// # Errors
    /// [`Error::TooBusy`] where the queue is full, unless the prompt is to be let in for the sake of others of its request.
    fn join(&self, even_if_full: bool) -> Result<Turn, Error> {
        if let Ok(permit) = self.places.clone().try_acquire_owned() {
            return Ok(Turn::Now(permit));
        }
        let limit = if even_if_full { usize::MAX } else { self.most_waiting };
        let one_more = |waiting| (waiting < limit).then_some(waiting + 1);
        match self.waiting.fetch_update(Relaxed, Relaxed, one_more) {
            Ok(_) => Ok(Turn::Later(Waiting(self.waiting.clone()))),
            Err(waiting) => Err(Error::TooBusy { waiting, limit }),
        }
    }
}

enum Turn {
    Now(OwnedSemaphorePermit),
    Later(Waiting),
}

/// A place in the queue, until it is dropped.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// What the client says.
#[derive(Debug)]
struct Control {
    task: AbortHandle,
    stops: Arc<[Notify]>,
}

impl GenerationControl for Control {
    fn stop_sequence(&self, sequence: usize) {
        if let Some(stop) = self.stops.get(sequence) {
            stop.notify_one();
        }
    }

    fn cancel(&self) {
        // This drops the request's connections, by which the engine knows.
        self.task.abort();
    }
}

/// Queues a prompt, `even_if_full` for the sake of others of its request.
///
/// # Errors
/// [`Error::TooBusy`].
pub(crate) fn start(
    runtime: &Handle,
    engine: Arc<Engine>,
    queue: &Queue,
    plan: Plan,
    even_if_full: bool,
) -> Result<GenerationStream, Error> {
    let turn = queue.join(even_if_full)?;
    let (task, registration) = AbortHandle::new_pair();
    let stops: Arc<[Notify]> = (0..plan.sequences).map(|_| Notify::new()).collect();
    let control = Box::new(Control { task, stops: stops.clone() });
    let (sender, stream) = generation_channel(plan.sequences.saturating_mul(plan.max_new), control);
    let work = work(engine, queue.places.clone(), turn, plan, stops, sender);
    runtime.spawn(Abortable::new(work, registration));
    Ok(stream)
}

async fn work(
    engine: Arc<Engine>,
    places: Arc<Semaphore>,
    turn: Turn,
    plan: Plan,
    stops: Arc<[Notify]>,
    sender: EventSender,
) {
    let permit = match turn {
        Turn::Now(permit) => permit,
        Turn::Later(waiting) => {
            let Ok(permit) = places.clone().acquire_owned().await else { return };
            drop(waiting);
            permit
        }
    };
    engine.count_prompt(plan.prompt.len());
    sender.started(0);
    let last = match generate(&engine, &places, permit, &plan, &stops, &sender).await {
        Ok(outputs) => GenerationEvent::Finished(outputs),
        Err(error) => {
            tracing::warn!(%error, "a request failed at its engine");
            GenerationEvent::Failed(error)
        }
    };
    sender.end(last);
}

async fn generate(
    engine: &Engine,
    places: &Arc<Semaphore>,
    permit: OwnedSemaphorePermit,
    plan: &Plan,
    stops: &[Notify],
    sender: &EventSender,
) -> Result<Vec<SequenceOutput>, Error> {
    if let Some(likeliest) = plan.prompt_log_probs {
        let _running = engine.running();
        // A prompt of one token has no scores.
        let scores =
            if plan.prompt.len() > 1 { prompt_scores::ask(engine, plan, likeliest).await? } else { Vec::new() };
        if !scores.is_empty() {
            sender.prompt_known(PromptNumbers { scores, pooled: None });
        }
    }
    // The first one has its place; the others wait for theirs, beside other requests.
    let mut permits = std::iter::once(permit);
    let mut running: FuturesUnordered<_> = stops
        .iter()
        .enumerate()
        .map(|(index, stop)| {
            let permit = permits.next();
            async move {
                let closed = |_| Error::EngineStopped;
                let _permit = match permit {
                    Some(permit) => permit,
                    None => places.clone().acquire_owned().await.map_err(closed)?,
                };
                let _running = engine.running();
                let mut sequence = Sequence::new(engine, plan, index, sender);
                let output = sequence.run(stop).await?;
                Ok::<_, Error>((index, output, sequence.cached))
            }
        })
        .collect();
    let mut outputs: Vec<Option<SequenceOutput>> = stops.iter().map(|_| None).collect();
    while let Some(ended) = running.next().await {
        let (index, output, cached) = ended?;
        if let (0, Some(cached)) = (index, cached) {
            engine.count_cached(cached);
            sender.found_cached(cached.min(plan.prompt.len()));
        }
        if let Some(place) = outputs.get_mut(index) {
            *place = Some(output);
        }
    }
    Ok(outputs.into_iter().flatten().collect())
}
