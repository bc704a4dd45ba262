//! The stream of a request: its prompts' generations, merged, as text.

mod assembler;
mod sequence_text;
mod token_texts;

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

pub(crate) use self::assembler::Assembler;
use self::assembler::Complete;
use crate::{
    Error,
    engine::{GenerationEvent, GenerationRequest, GenerationStream},
    generate::{Chosen, FinishReason},
    output::{Delta, Output, OutputSequence, PromptOutput, StreamEvent, Usage},
    request::{Preparation, Prepared},
};

/// Tokens that become text in one go, before other tasks get their turns: less than a millisecond.
const PIECE: usize = 512;

/// The events of a request. Dropping it cancels the request and frees its pages.
#[derive(Debug)]
pub struct Stream {
    prompts: Vec<Generating>,
    /// The prompt whose tokens become text.
    current: usize,
    /// Tokens of that prompt that came and are not text yet.
    chosen: std::vec::IntoIter<Chosen>,
    /// Prompts whose answer is not complete.
    incomplete: usize,
    ready: VecDeque<StreamEvent>,
    /// Answers that were known from the beginning; they wait for the start.
    known: Vec<StreamEvent>,
    /// Tokens that were worked on since this task last let others go on.
    worked: usize,
    started: bool,
    ended: bool,
    usage: Usage,
}

/// What one of a request's prompts comes to.
#[derive(Debug)]
struct Generating {
    /// `None` when its last event came.
    events: Option<GenerationStream>,
    /// `None` when `sequences` are complete.
    assembler: Option<Box<Assembler>>,
    sequences: Vec<OutputSequence>,
    output: PromptOutput,
}

impl Stream {
    /// Queues all prompts with `submit`, which is told whether one is the first; if one is refused, none runs. For an engine that is
    /// not a [`LanguageModel`](crate::LanguageModel): [`remote`](crate::remote) has what its `submit` needs.
    ///
    /// # Errors
    /// Those of `submit`.
    pub fn start(
        prompts: Vec<Prepared>,
        submit: impl Fn(GenerationRequest, bool) -> Result<GenerationStream, Error>,
    ) -> Result<Self, Error> {
        let mut stream = Self {
            prompts: Vec::with_capacity(prompts.len()),
            current: 0,
            chosen: Vec::new().into_iter(),
            incomplete: 0,
            ready: VecDeque::new(),
            known: Vec::new(),
            worked: 0,
            started: false,
            ended: false,
            usage: Usage::default(),
        };
        let mut first = 0;
        for prepared in prompts {
            let sequences = prepared.sequences();
            let generating = match prepared.0 {
                Preparation::Known(text) => stream.answered(first, text),
                Preparation::Generate(generate) => {
                    let (request, mut assembler) = *generate;
                    assembler.number_from(first);
                    stream.usage.prompt_tokens += request.prompt.len();
                    let events = Some(submit(request, stream.incomplete == 0)?);
                    stream.incomplete += 1;
                    Generating {
                        events,
                        assembler: Some(Box::new(assembler)),
                        sequences: Vec::new(),
                        output: PromptOutput::default(),
                    }
                }
            };
            stream.prompts.push(generating);
            first += sequences;
        }
        if stream.incomplete == 0 {
            stream.begin();
        }
        Ok(stream)
    }

    fn answered(&mut self, sequence: usize, text: String) -> Generating {
        let finish_reason = FinishReason::Stop;
        self.known.push(StreamEvent::Delta(Delta {
            sequence,
            text: text.clone(),
            token: None,
            finish_reason: Some(finish_reason),
            stop_reason: None,
        }));
        let answer = OutputSequence {
            text,
            tokens: Vec::new(),
            finish_reason,
            stop_reason: None,
            beam_score: None,
            scores: None,
        };
        Generating { events: None, assembler: None, sequences: vec![answer], output: PromptOutput::default() }
    }

    /// The next event; `None` after the last one or an error. However much there is to do, other tasks get their turns.
    pub async fn next(&mut self) -> Option<Result<StreamEvent, Error>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.ended {
                return None;
            }
            if self.worked >= PIECE {
                self.worked = 0;
                tokio::task::yield_now().await;
                continue;
            }
            if self.work() {
                continue;
            }
            if self.incomplete == 0 {
                self.ended = true;
                let mut output = Output { usage: self.usage, ..Output::default() };
                for prompt in self.prompts.drain(..) {
                    output.sequences.extend(prompt.sequences);
                    output.prompts.push(prompt.output);
                }
                return Some(Ok(StreamEvent::Finished(output)));
            }
            let (prompt, event) = next_of(&mut self.prompts).await;
            self.current = prompt;
            if let Err(error) = self.take(event) {
                self.ended = true;
                self.prompts.clear();
                self.ready.clear();
                return Some(Err(error));
            }
        }
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    /// Those of the request's events.
    pub async fn output(mut self) -> Result<Output, Error> {
        while let Some(event) = self.next().await {
            if let StreamEvent::Finished(output) = event? {
                return Ok(output);
            }
        }
        Err(Error::EngineStopped)
    }

    /// Turns some of what came into text; `false` where nothing is left to do.
    fn work(&mut self) -> bool {
        let Some(prompt) = self.prompts.get_mut(self.current) else { return false };
        let Some(assembler) = &mut prompt.assembler else { return false };
        if assembler.is_scoring() {
            self.worked += assembler.score_prompt(PIECE, self.current, &mut self.ready);
            return true;
        }
        if let Some(chosen) = self.chosen.next() {
            let (stopped, worked) = assembler.push(&chosen, &mut self.ready);
            self.worked += worked;
            if stopped && let Some(events) = &prompt.events {
                events.stop_sequence(chosen.sequence);
            }
            return true;
        }
        if !assembler.is_ending() {
            return false;
        }
        self.worked += assembler.go_on(PIECE, &mut self.ready);
        if let Some(Complete { sequences, prompt: output, generated }) = assembler.take_complete() {
            self.usage.generated_tokens += generated;
            (prompt.sequences, prompt.output) = (sequences, output);
            prompt.assembler = None;
            self.incomplete -= 1;
        }
        true
    }

    /// Takes the current prompt's next event.
    fn take(&mut self, event: Option<GenerationEvent>) -> Result<(), Error> {
        let Some(prompt) = self.prompts.get_mut(self.current) else { return Ok(()) };
        match event {
            Some(GenerationEvent::Started) => self.begin(),
            Some(GenerationEvent::Chosen(chosen)) => {
                prompt.learn();
                self.chosen = chosen.into_iter();
            }
            Some(GenerationEvent::Finished(outputs)) => {
                prompt.learn();
                let events = prompt.events.take();
                self.usage.cached_tokens += events.as_ref().map_or(0, GenerationStream::cached_tokens);
                if let Some(assembler) = &mut prompt.assembler {
                    assembler.end(outputs);
                }
                // A prompt that is as long as a sequence may be never leaves the queue.
                self.begin();
            }
            Some(GenerationEvent::Failed(error)) => return Err(error),
            None => return Err(Error::EngineStopped),
        }
        Ok(())
    }

    fn begin(&mut self) {
        if !std::mem::replace(&mut self.started, true) {
            self.ready.push_back(StreamEvent::Started);
            self.ready.extend(self.known.drain(..));
        }
    }
}

impl Generating {
    /// Takes what became known of the prompt, if anything did.
    fn learn(&mut self) {
        let numbers = self.events.as_ref().and_then(GenerationStream::take_prompt_numbers);
        if let (Some(assembler), Some(numbers)) = (&mut self.assembler, numbers) {
            assembler.learn(numbers);
        }
    }
}

/// The next event of any of the prompts that wait for one, and which prompt's it is. A future that is not ready keeps no
/// state of its own, so the streams can be asked anew each time.
async fn next_of(prompts: &mut [Generating]) -> (usize, Option<GenerationEvent>) {
    poll_fn(|context| {
        for (index, prompt) in prompts.iter_mut().enumerate() {
            if let Some(events) = &mut prompt.events
                && let Poll::Ready(event) = pin!(events.next()).poll(context)
            {
                return Poll::Ready((index, event));
            }
        }
        Poll::Pending
    })
    .await
}
