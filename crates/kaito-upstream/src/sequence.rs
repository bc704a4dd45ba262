//! One sequence of a request: asked for, followed, and taken up again where its engine fails.

use kaito_client::EventStream;
use kaito_engine::{
    Error, FinishReason,
    remote::{Chosen, EventSender, SequenceOutput, TokenScore},
};
use tokio::{sync::Notify, time};

use crate::{
    engine::Engine,
    failure::{Failure, Patience},
    plan::Plan,
    wire::{self, Finish, Piece, Wrong},
};

/// What marks the end of a stream.
const DONE: &str = "[DONE]";
/// How long the end of a stream is waited for once its sequence has ended: what comes then is worth a moment, not more.
const FAREWELL: time::Duration = time::Duration::from_secs(1);

/// A sequence as far as it is there.
pub(crate) struct Sequence<'a> {
    engine: &'a Engine,
    plan: &'a Plan,
    index: usize,
    sender: &'a EventSender,
    tokens: Vec<u32>,
    scores: Vec<TokenScore>,
    /// Tokens of this attempt, which begin with those that were there before where all are generated again.
    come: usize,
    /// Tokens of the prompt that the engine found in its prefix cache.
    pub(crate) cached: Option<usize>,
}

impl<'a> Sequence<'a> {
    /// The sequence of this index, before its first token.
    pub(crate) fn new(engine: &'a Engine, plan: &'a Plan, index: usize, sender: &'a EventSender) -> Self {
        Self { engine, plan, index, sender, tokens: Vec::new(), scores: Vec::new(), come: 0, cached: None }
    }

    /// Generates it to its end, or until `stop` says that it is long enough.
    ///
    /// # Errors
    /// A request that the engine refuses, an engine that is away for too long or that is none.
    pub(crate) async fn run(&mut self, stop: &Notify) -> Result<SequenceOutput, Error> {
        let finish_reason = tokio::select! {
            biased;
            () = stop.notified() => FinishReason::Stop,
            ended = self.persist() => ended?,
        };
        let new = std::mem::take(&mut self.tokens);
        Ok(SequenceOutput {
            tokens: self.plan.prompt.iter().copied().chain(new).collect(),
            score: None,
            finish_reason,
            scores: self.plan.log_probs.map(|_| std::mem::take(&mut self.scores)),
        })
    }

    /// Asks again until there is an end.
    async fn persist(&mut self) -> Result<FinishReason, Error> {
        if self.plan.max_new == 0 {
            return Ok(FinishReason::Length);
        }
        let mut patience = Patience::new(self.engine.url(), self.engine.wait());
        loop {
            let before = self.tokens.len();
            let failure = match self.attempt().await {
                Ok(reason) => return Ok(reason),
                Err(failure) => failure,
            };
            if self.tokens.len() > before {
                patience.renew();
            }
            self.engine.look();
            patience.after(failure).await?;
        }
    }

    async fn attempt(&mut self) -> Result<FinishReason, Failure> {
        let (engine, plan) = (self.engine, self.plan);
        let body = plan.body(&engine.model(), self.index, &self.tokens);
        self.come = if plan.again { 0 } else { self.tokens.len() };
        let failed = |failure| Failure::of(engine.url(), failure);
        let response = engine.http().send(&engine.route("/v1/completions"), Some(&body)).await.map_err(failed)?;
        let mut stream = EventStream::of(response).map_err(failed)?;
        let mut events = Vec::new();
        loop {
            let more = stream.read(&mut events).await.map_err(failed)?;
            let mut events = events.drain(..);
            while let Some(event) = events.next() {
                if event.data == DONE {
                    return Err(Failure::lost("the stream ended before its sequence did"));
                }
                if let Some(reason) = self.take(self.read(&event.data)?)? {
                    let rest: Vec<_> = events.collect();
                    self.part(stream, rest).await;
                    return Ok(reason);
                }
            }
            drop(events);
            if !more {
                return Err(Failure::lost("the stream was cut before its sequence ended"));
            }
        }
    }

    fn read(&self, data: &str) -> Result<Piece, Failure> {
        let url = self.engine.url();
        wire::piece(data, self.engine.vocab_size(), self.plan.log_probs).map_err(|wrong| match wrong {
            Wrong::Fault(fault) => Failure::fault(url, fault),
            Wrong::Error(error) => Failure::in_stream(url, &error),
        })
    }

    /// Takes what is new; says why the sequence ended, if it did.
    fn take(&mut self, piece: Piece) -> Result<Option<FinishReason>, Failure> {
        let Self { engine, plan, index, .. } = *self;
        self.cached = piece.cached.or(self.cached);
        let fault = |fault: String| Failure::fault(engine.url(), fault);
        let mut chosen = Vec::with_capacity(piece.tokens.len());
        let mut ended = None;
        let mut wrong = None;
        for (token, score) in piece.tokens {
            if ended.is_some() || self.come >= plan.max_new {
                let most = plan.max_new;
                wrong = Some(fault(format!("goes on behind the end of a sequence of at most {most} tokens")));
                break;
            }
            match self.tokens.get(self.come) {
                None => {
                    self.tokens.push(token);
                    self.scores.extend(score.clone());
                    chosen.push(Chosen { sequence: index, token, score });
                }
                Some(&before) if before == token => {}
                Some(before) => {
                    let at = self.come;
                    let said = format!(
                        "was restarted, and gave the token {token} at position {at} of an answer that had {before} there: \
                         the request can't be taken up again"
                    );
                    wrong = Some(fault(said));
                    break;
                }
            }
            self.come += 1;
            ended = if plan.end_tokens.contains(&token) {
                Some(FinishReason::EndToken)
            } else if plan.stop_tokens.contains(&token) {
                Some(FinishReason::Stop)
            } else {
                (self.come >= plan.max_new).then_some(FinishReason::Length)
            };
        }
        if !chosen.is_empty() {
            engine.count_tokens(chosen.len());
            self.sender.chosen(&mut chosen);
        }
        match (wrong, ended, piece.finish) {
            (Some(wrong), ..) => Err(wrong),
            (None, Some(reason), _) => Ok(Some(reason)),
            (None, None, None) => Ok(None),
            // A grammar that lets nothing follow.
            (None, None, Some(Finish::Stop)) if plan.constrained => Ok(Some(FinishReason::Stop)),
            (None, None, Some(Finish::GivenUp)) => Err(Failure::lost("the engine gave the sequence up")),
            (None, None, Some(finish)) => {
                let word = if finish == Finish::Stop { "stop" } else { "length" };
                let (come, most) = (self.come, plan.max_new);
                Err(fault(format!(
                    "ended a sequence for \"{word}\" after {come} of {most} tokens, none of which ends it"
                )))
            }
        }
    }

    /// Reads the end of the stream: the number of cached tokens comes there, and a connection that is read to its end can be used
    /// again. Nothing of it is needed.
    async fn part(&mut self, mut stream: EventStream, mut events: Vec<kaito_client::Event>) {
        let last = async {
            loop {
                for event in events.drain(..) {
                    if let Ok(piece) = self.read(&event.data) {
                        self.cached = piece.cached.or(self.cached);
                    }
                }
                if !matches!(stream.read(&mut events).await, Ok(true)) {
                    break;
                }
            }
        };
        // An end that does not come changes nothing.
        let _ = time::timeout(FAREWELL, last).await;
    }
}
