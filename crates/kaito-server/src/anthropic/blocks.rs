//! The blocks that a message is made of, as they come.
//!
//! Whole and streamed answers are made by the same code: pieces of an answer go into [`Blocks`], events come out, and what they
//! add up to is what a whole answer has.

use serde_json::{Map, Value, json};

use crate::openai::tools::Piece;

/// An event: its type, and its other fields.
pub(super) type Event = (&'static str, Value);

/// The blocks of one message.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// The last one may still grow.
    list: Vec<Block>,
    open: bool,
}

#[derive(Debug)]
enum Block {
    Text(String),
    ToolUse { id: String, name: String, input: String },
}

impl Block {
    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!({ "type": "text", "text": text }),
            Self::ToolUse { id, name, input } => {
                // Arguments that the limit of tokens has cut are no object.
                let input: Map<String, Value> = serde_json::from_str(input).unwrap_or_default();
                json!({ "type": "tool_use", "id": id, "name": name, "input": input })
            }
        }
    }
}

impl Blocks {
    /// All blocks as they are now.
    pub(super) fn json(&self) -> Vec<Value> {
        self.list.iter().map(Block::json).collect()
    }

    /// Whether one of them calls.
    pub(super) fn called(&self) -> bool {
        self.list.iter().any(|block| matches!(block, Block::ToolUse { .. }))
    }

    /// Takes a piece of the answer.
    pub(super) fn push(&mut self, piece: Piece, events: &mut Vec<Event>) {
        match piece {
            Piece::Text(text) if text.is_empty() => {}
            Piece::Text(text) => {
                if !matches!(self.list.last(), Some(Block::Text(_)) if self.open) {
                    self.begin(Block::Text(String::new()), events);
                }
                let delta = json!({ "type": "text_delta", "text": text });
                if let Some(Block::Text(whole)) = self.list.last_mut() {
                    whole.push_str(&text);
                }
                self.delta(delta, events);
            }
            Piece::Call { id, name, .. } => {
                // Anthropic's own ids begin so.
                let id = id.strip_prefix("call_").map_or_else(|| id.clone(), |rest| format!("toolu_{rest}"));
                self.begin(Block::ToolUse { id, name, input: String::new() }, events);
            }
            Piece::Arguments { text, .. } if text.is_empty() => {}
            Piece::Arguments { text, .. } => {
                let delta = json!({ "type": "input_json_delta", "partial_json": text });
                if let Some(Block::ToolUse { input, .. }) = self.list.last_mut() {
                    input.push_str(&text);
                }
                self.delta(delta, events);
            }
        }
    }

    /// Ends the last block.
    pub(super) fn end(&mut self, events: &mut Vec<Event>) {
        if std::mem::take(&mut self.open) {
            events.push(("content_block_stop", json!({ "index": self.last() })));
        }
    }

    fn begin(&mut self, block: Block, events: &mut Vec<Event>) {
        self.end(events);
        let content = block.json();
        self.list.push(block);
        self.open = true;
        events.push(("content_block_start", json!({ "index": self.last(), "content_block": content })));
    }

    fn delta(&self, delta: Value, events: &mut Vec<Event>) {
        events.push(("content_block_delta", json!({ "index": self.last(), "delta": delta })));
    }

    fn last(&self) -> usize {
        self.list.len().saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order and the fields of the examples in Anthropic's description of streams.
    #[test]
    fn text_and_calls_are_blocks_that_begin_and_stop() {
        let (mut blocks, mut events) = (Blocks::default(), Vec::new());
        for piece in [
            Piece::Text("Okay".to_owned()),
            Piece::Text(String::new()),
            Piece::Text("!".to_owned()),
            Piece::Call { index: 0, id: "call_1".to_owned(), name: "f".to_owned() },
            Piece::Arguments { index: 0, text: "{\"x\"".to_owned() },
            Piece::Arguments { index: 0, text: ": 1}".to_owned() },
            Piece::Call { index: 1, id: "123456789".to_owned(), name: "g".to_owned() },
            Piece::Arguments { index: 1, text: "{\"cut".to_owned() },
        ] {
            blocks.push(piece, &mut events);
        }
        assert!(blocks.called());
        blocks.end(&mut events);
        blocks.end(&mut events);
        let tool =
            |id: &str, name: &str, input: Value| json!({ "type": "tool_use", "id": id, "name": name, "input": input });
        let text = |text: &str| json!({ "type": "text_delta", "text": text });
        let json = |text: &str| json!({ "type": "input_json_delta", "partial_json": text });
        let delta = |index: usize, delta: Value| ("content_block_delta", json!({ "index": index, "delta": delta }));
        let start =
            |index: usize, block: Value| ("content_block_start", json!({ "index": index, "content_block": block }));
        let stop = |index: usize| ("content_block_stop", json!({ "index": index }));
        assert_eq!(
            events,
            [
                start(0, json!({ "type": "text", "text": "" })),
                delta(0, text("Okay")),
                delta(0, text("!")),
                stop(0),
                start(1, tool("toolu_1", "f", json!({}))),
                delta(1, json("{\"x\"")),
                delta(1, json(": 1}")),
                stop(1),
                start(2, tool("123456789", "g", json!({}))),
                delta(2, json("{\"cut")),
                stop(2),
            ]
        );
        assert_eq!(
            blocks.json(),
            [
                json!({ "type": "text", "text": "Okay!" }),
                tool("toolu_1", "f", json!({ "x": 1 })),
                tool("123456789", "g", json!({})),
            ]
        );
    }
}
