//! The items that a response is made of, as they come.
//!
//! Whole and streamed answers are made by the same code: pieces of an answer go into [`Items`], events come out, and what they
//! add up to is what a whole answer has.

use kaito_engine::FinishReason;
use serde_json::{Map, Value, json};

use super::super::head;
use super::super::tools::Piece;

/// An event before it has its number: its type and its other fields.
pub(super) type Event = (&'static str, Map<String, Value>);

/// The items of one response.
#[derive(Debug, Default)]
pub(super) struct Items {
    /// The last one may still grow.
    list: Vec<Item>,
    open: bool,
}

#[derive(Debug)]
struct Item {
    id: String,
    kind: Kind,
    status: &'static str,
}

#[derive(Debug)]
enum Kind {
    /// The text of a message.
    Message(String),
    Call {
        call_id: String,
        name: String,
        arguments: String,
    },
}

const IN_PROGRESS: &str = "in_progress";
const COMPLETED: &str = "completed";
const INCOMPLETE: &str = "incomplete";

impl Item {
    fn message() -> Self {
        Self { id: head::new_id("msg_"), kind: Kind::Message(String::new()), status: IN_PROGRESS }
    }

    fn json(&self) -> Value {
        let Self { id, kind, status } = self;
        match kind {
            Kind::Message(text) => {
                // A message that begins has no parts yet.
                let content = if *status == IN_PROGRESS { json!([]) } else { json!([part(text)]) };
                json!({ "id": id, "type": "message", "status": status, "role": "assistant", "content": content })
            }
            Kind::Call { call_id, name, arguments } => json!({
                "id": id, "type": "function_call", "status": status, "call_id": call_id, "name": name, "arguments": arguments,
            }),
        }
    }
}

/// The one part of a message.
fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

impl Items {
    /// All items as they are now.
    pub(super) fn json(&self) -> Vec<Value> {
        self.list.iter().map(Item::json).collect()
    }

    /// Takes a piece of the answer.
    pub(super) fn push(&mut self, piece: Piece, events: &mut Vec<Event>) {
        match piece {
            Piece::Text(text) if text.is_empty() => {}
            Piece::Text(text) => {
                if !matches!(self.list.last(), Some(Item { kind: Kind::Message(_), .. }) if self.open) {
                    self.close(COMPLETED, events);
                    self.begin_message(events);
                }
                let index = self.list.len().saturating_sub(1);
                let Some(Item { id, kind: Kind::Message(whole), .. }) = self.list.last_mut() else { return };
                whole.push_str(&text);
                let delta =
                    json!({ "item_id": id, "output_index": index, "content_index": 0, "delta": text, "logprobs": [] });
                events.push(("response.output_text.delta", fields(delta)));
            }
            Piece::Call { id, name, .. } => {
                self.close(COMPLETED, events);
                let kind = Kind::Call { call_id: id, name, arguments: String::new() };
                self.begin(Item { id: head::new_id("fc_"), kind, status: IN_PROGRESS }, events);
            }
            Piece::Arguments { text, .. } if text.is_empty() => {}
            Piece::Arguments { text, .. } => {
                let index = self.list.len().saturating_sub(1);
                let Some(Item { id, kind: Kind::Call { arguments, .. }, .. }) = self.list.last_mut() else { return };
                arguments.push_str(&text);
                let delta = json!({ "item_id": id, "output_index": index, "delta": text });
                events.push(("response.function_call_arguments.delta", fields(delta)));
            }
        }
    }

    /// Ends the last item; a response without any gets an empty message.
    pub(super) fn end(&mut self, reason: FinishReason, events: &mut Vec<Event>) {
        if self.list.is_empty() {
            self.begin_message(events);
        }
        self.close(if reason == FinishReason::Length { INCOMPLETE } else { COMPLETED }, events);
    }

    fn begin_message(&mut self, events: &mut Vec<Event>) {
        let item = Item::message();
        let id = item.id.clone();
        self.begin(item, events);
        let index = self.list.len().saturating_sub(1);
        let added = json!({ "item_id": id, "output_index": index, "content_index": 0, "part": part("") });
        events.push(("response.content_part.added", fields(added)));
    }

    fn begin(&mut self, item: Item, events: &mut Vec<Event>) {
        let added = json!({ "output_index": self.list.len(), "item": item.json() });
        events.push(("response.output_item.added", fields(added)));
        self.list.push(item);
        self.open = true;
    }

    fn close(&mut self, status: &'static str, events: &mut Vec<Event>) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let index = self.list.len().saturating_sub(1);
        let Some(item) = self.list.last_mut() else { return };
        item.status = status;
        let id = &item.id;
        match &item.kind {
            Kind::Message(text) => {
                let done =
                    json!({ "item_id": id, "output_index": index, "content_index": 0, "text": text, "logprobs": [] });
                events.push(("response.output_text.done", fields(done)));
                let done = json!({ "item_id": id, "output_index": index, "content_index": 0, "part": part(text) });
                events.push(("response.content_part.done", fields(done)));
            }
            Kind::Call { name, arguments, .. } => {
                let done = json!({ "item_id": id, "output_index": index, "name": name, "arguments": arguments });
                events.push(("response.function_call_arguments.done", fields(done)));
            }
        }
        let done = json!({ "output_index": index, "item": item.json() });
        events.push(("response.output_item.done", fields(done)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events_of(pieces: Vec<Piece>, reason: FinishReason) -> (Vec<Event>, Vec<Value>) {
        let (mut items, mut events) = (Items::default(), Vec::new());
        for piece in pieces {
            items.push(piece, &mut events);
        }
        items.end(reason, &mut events);
        (events, items.json())
    }

    fn kinds(events: &[Event]) -> Vec<&str> {
        events.iter().map(|(kind, _)| kind.strip_prefix("response.").unwrap()).collect()
    }

    #[test]
    fn a_text_is_a_message_with_one_part() {
        let text = |text: &str| Piece::Text(text.to_owned());
        let (events, items) = events_of(vec![text("a"), text(""), text("b")], FinishReason::EndToken);
        assert_eq!(
            kinds(&events),
            [
                "output_item.added",
                "content_part.added",
                "output_text.delta",
                "output_text.delta",
                "output_text.done",
                "content_part.done",
                "output_item.done"
            ]
        );
        assert_eq!(events[0].1["item"]["content"], json!([]));
        assert_eq!(events[0].1["item"]["status"], "in_progress");
        assert_eq!(events[1].1["part"]["text"], "");
        assert_eq!(events[4].1["text"], "ab");
        assert_eq!(events[6].1["item"], items[0]);
        assert_eq!(items[0]["status"], "completed");
        assert_eq!(items[0]["content"][0]["text"], "ab");
        assert!(events[1..6].iter().all(|(_, fields)| fields["item_id"] == items[0]["id"]));
    }

    #[test]
    fn calls_come_after_the_text_each_an_item() {
        let call = |index: usize| Piece::Call { index, id: format!("call_{index}"), name: "f".to_owned() };
        let arguments = |index: usize, text: &str| Piece::Arguments { index, text: text.to_owned() };
        let pieces = vec![
            Piece::Text("a".to_owned()),
            call(0),
            arguments(0, "{\"x\""),
            arguments(0, ":1}"),
            call(1),
            arguments(1, "{"),
        ];
        let (events, items) = events_of(pieces, FinishReason::Length);
        assert_eq!(
            kinds(&events)[2..],
            [
                "output_text.delta",
                "output_text.done",
                "content_part.done",
                "output_item.done",
                "output_item.added",
                "function_call_arguments.delta",
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "output_item.done",
                "output_item.added",
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "output_item.done"
            ]
        );
        let states: Vec<_> = items.iter().map(|item| (&item["type"], &item["status"])).collect();
        assert_eq!(
            json!(states),
            json!([["message", "completed"], ["function_call", "completed"], ["function_call", "incomplete"]])
        );
        assert_eq!((&items[1]["call_id"], &items[1]["arguments"]), (&json!("call_0"), &json!("{\"x\":1}")));
        assert_eq!(items[2]["arguments"], "{");
        assert_eq!(events.last().unwrap().1["output_index"], 2);
    }

    #[test]
    fn an_answer_without_text_is_an_empty_message() {
        let (events, items) = events_of(Vec::new(), FinishReason::EndToken);
        assert_eq!(
            kinds(&events),
            ["output_item.added", "content_part.added", "output_text.done", "content_part.done", "output_item.done"]
        );
        assert_eq!(items[0]["content"][0]["text"], "");
    }
}
