//! Conversations with tools, rendered by templates in the shape of published ones.

use std::path::Path;

use kaito_engine::{Conversation, Ending, Tokenizer};
use serde_json::{Map, Value, json};

use super::Grammar;
use super::{ToolFormat, ToolSetting, Tools, apply_history};
use crate::error::ApiError;
use crate::fields::Fields;

/// A tokenizer with the special tokens of Mistral 7B v0.3, and a chat template.
fn tokenizer(template: &str) -> Tokenizer {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tokenizer = Tokenizer::open(&crates.join("kaito-model/tests/fixtures/tokenizer/mistral_v03")).unwrap();
    let file = crates.join("kaito-jinja/tests/chats").join(template).with_extension("jinja");
    let source = if file.exists() { std::fs::read_to_string(file).unwrap() } else { template.to_owned() };
    tokenizer.with_chat_template(&source).unwrap()
}

fn call_token(tokenizer: &Tokenizer) -> u32 {
    let id = (0..).take(tokenizer.vocab_size()).find(|id| tokenizer.token_text(*id).as_deref() == Some("[TOOL_CALLS]"));
    id.unwrap()
}

fn messages(value: Value) -> Vec<Map<String, Value>> {
    value.as_array().unwrap().iter().map(|message| message.as_object().unwrap().clone()).collect()
}

fn tools(more: Value) -> Tools {
    let mut body = json!({
        "tools": [
            {"type": "function", "function": {
                "name": "get_weather", "description": "Gives the weather of a city.",
                "parameters": {"type": "object", "required": ["city"], "properties": {
                    "city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}}}}},
            {"type": "function", "function": {"name": "stop"}},
        ],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Tools::parse(&mut Fields::root(body.as_object().unwrap().clone())).unwrap().unwrap()
}

fn history() -> Vec<Map<String, Value>> {
    messages(json!([
        {"role": "user", "content": "Weather in Zürich and Rome?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"unit\":\"celsius\",\"city\":\"Zürich\"}"}},
            {"id": "call_AbCdEfGhIjKl", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Rome\"}"}}]},
        {"role": "tool", "tool_call_id": "call_AbCdEfGhIjKl", "content": "{\"degrees\": 30}"},
        {"role": "tool", "tool_call_id": "call_1", "content": "{\"degrees\": 22}"},
        {"role": "assistant", "content": "22 and 30."},
        {"role": "user", "content": "Thanks"},
    ]))
}

fn rendered(tools: &Tools, conversation: &mut Conversation, tokenizer: &Tokenizer) -> (ToolFormat, String) {
    let format = tools.apply(conversation, tokenizer).unwrap();
    let text = tokenizer.render(conversation, &|| false).unwrap_or_else(|error| format!("refused: {error}"));
    (format, text)
}

#[test]
fn prompts_have_the_tools_and_the_history() {
    let mut all = String::new();
    let system = |mut messages: Vec<_>| {
        messages.insert(0, json!({"role": "system", "content": "Be brief."}).as_object().unwrap().clone());
        messages
    };
    // Mistral's first instruct models take no system message, and the first Phi-3 leaves it out.
    let refuses = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}\
                   {% endif %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else m.content + eos_token }}{% endfor %}";
    let leaves_out = "{% for m in messages %}{% if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endif %}{% endfor %}";
    for (template, name) in [
        ("mistral-v3-tools", "mistral-v3-tools"),
        ("llama-2", "llama-2"),
        ("phi-3", "phi-3"),
        ("falcon", "falcon"),
        (refuses, "one that refuses system messages"),
        (leaves_out, "one that leaves system messages out"),
    ] {
        for (messages, what) in [(history(), "a history"), (system(history()), "a history after a system message")] {
            let (format, text) = rendered(&tools(json!({})), &mut Conversation::new(messages), &tokenizer(template));
            let format = if format == ToolFormat::Generic { "generic" } else { "native" };
            all.push_str(&format!("== {name}, {format}, {what}\n{text}\n"));
        }
    }
    insta::assert_snapshot!(all);
}

#[test]
fn the_instructions_say_what_is_asked() {
    let mut all = String::new();
    for more in [
        json!({}),
        json!({"parallel_tool_calls": false}),
        json!({"tool_choice": "required"}),
        json!({"tool_choice": "required", "parallel_tool_calls": false}),
        json!({"tool_choice": {"type": "function", "function": {"name": "stop"}}}),
        json!({"tool_choice": "none"}),
    ] {
        let mut conversation = Conversation::new(messages(json!([{"role": "user", "content": "Hi"}])));
        let (_, text) = rendered(&tools(more.clone()), &mut conversation, &tokenizer("phi-3"));
        all.push_str(&format!("== {more}\n{text}\n"));
    }
    insta::assert_snapshot!(all);
}

#[test]
fn the_format_is_the_models_own_where_it_has_one() {
    let native = tokenizer("mistral-v3-tools");
    let own = ToolFormat::Native { call_token: call_token(&native) };
    let generic = tokenizer("llama-2");
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let without_token = Tokenizer::open(&crates.join("kaito-model/tests/fixtures/tokenizer/llama2")).unwrap();
    let without_token = without_token.with_chat_template("{{ messages }}{{ tools }}").unwrap();
    let own_template = |template: &str| Conversation {
        template: Some(template.to_owned()),
        ..Conversation::new(messages(json!([{"role": "user", "content": "Hi"}])))
    };
    let none = "`tools` can't be used: this server takes only the model's own format of tools (--tool-format native), and the \
                model's chat template has none.";
    let off = "`tools` can't be used: they are switched off here (--tool-format off).";
    let plain = Conversation::new(messages(json!([{"role": "user", "content": "Hi"}])));
    for (tokenizer, conversation, setting, expected) in [
        (&native, plain.clone(), ToolSetting::Auto, Ok(own)),
        (&native, plain.clone(), ToolSetting::Native, Ok(own)),
        (&native, plain.clone(), ToolSetting::Generic, Ok(ToolFormat::Generic)),
        (&native, plain.clone(), ToolSetting::Off, Err(off)),
        (&native, own_template("{{ messages }}"), ToolSetting::Auto, Ok(ToolFormat::Generic)),
        (&generic, own_template("{{ messages }}{{ tools }}"), ToolSetting::Auto, Ok(own)),
        (&generic, plain.clone(), ToolSetting::Auto, Ok(ToolFormat::Generic)),
        (&generic, plain.clone(), ToolSetting::Native, Err(none)),
        (&without_token, plain.clone(), ToolSetting::Auto, Ok(ToolFormat::Generic)),
    ] {
        let format = tools(json!({})).with_setting(setting).apply(&mut conversation.clone(), tokenizer);
        let format = format.as_ref().map_err(ApiError::detail);
        assert_eq!(format, expected.as_ref().map_err(|error| *error), "{setting:?}");
    }
}

#[test]
fn a_history_is_told_without_tools_too() {
    for (template, part) in
        [("llama-2", "Result of get_weather: {\"degrees\": 30}"), ("mistral-v3-tools", "\"call_id\": \"dEfGhIjKl\"")]
    {
        let tokenizer = tokenizer(template);
        let mut conversation = Conversation::new(history());
        apply_history(ToolSetting::Off, &mut conversation, &tokenizer).unwrap();
        let text = tokenizer.render(&conversation, &|| false).unwrap();
        assert!(text.contains(part) && !text.contains("Gives the weather"), "{text}");
    }
    // Others stay as they are.
    let mut conversation =
        Conversation::new(messages(json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])));
    let before = conversation.clone();
    apply_history(ToolSetting::Auto, &mut conversation, &tokenizer("llama-2")).unwrap();
    assert_eq!(conversation, before);
}

#[test]
fn results_belong_to_calls_by_id_or_else_in_order() {
    let call = |name: &str| json!({"function": {"name": name, "arguments": {}}});
    let mut conversation = Conversation::new(messages(json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call("f"), call("g")]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": "3", "name": "h"},
        {"role": "tool", "content": "4", "tool_call_id": "unknown"},
        {"role": "tool", "content": null},
    ])));
    let native = tokenizer("mistral-v3-tools");
    let mut natively = conversation.clone();
    tools(json!({})).apply(&mut natively, &native).unwrap();
    let ids: Vec<&str> =
        natively.messages[2..4].iter().map(|message| message["tool_call_id"].as_str().unwrap()).collect();
    let calls = natively.messages[1]["tool_calls"].as_array().unwrap();
    assert_eq!(calls.iter().map(|call| call["id"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    tools(json!({})).apply(&mut conversation, &tokenizer("phi-3")).unwrap();
    assert_eq!(
        conversation.messages.last().unwrap()["content"],
        "Result of f: 1\n\nResult of g: 2\n\nResult of h: 3\n\nResult of unknown: 4\n\nResult of the call: "
    );
}

/// Each is as much work as it is long.
#[test]
fn a_history_of_many_short_messages_is_rewritten() {
    let count = 20_000;
    let calls: Vec<Value> =
        (0..count).map(|id| json!({"id": id.to_string(), "function": {"name": "f", "arguments": "{}"}})).collect();
    let result = |id: i32| json!({"role": "tool", "tool_call_id": id.to_string(), "content": id.to_string()});
    let mut history = vec![json!({"role": "user", "content": "a"}), json!({"role": "assistant", "tool_calls": calls})];
    history.extend((0..count).rev().map(result));
    for (template, messages) in [("phi-3", 4), ("mistral-v3-tools", history.len())] {
        let mut conversation = Conversation::new(messages_of(&history));
        tools(json!({})).apply(&mut conversation, &tokenizer(template)).unwrap();
        assert_eq!(conversation.messages.len(), messages);
    }
}

fn messages_of(values: &[Value]) -> Vec<Map<String, Value>> {
    messages(values.to_vec().into())
}

#[test]
fn a_history_that_is_wrong_is_refused_by_place() {
    let history =
        |call: Value| messages(json!([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": call}]));
    for (calls, sentence) in [
        (json!("f"), "`messages[1].tool_calls` is \"f\": it must be a list of calls."),
        (json!([1]), "`messages[1].tool_calls[0]` is 1: it must be an object."),
        (
            json!([{"id": "a"}]),
            "`messages[1].tool_calls[0].function` is missing: it must be an object with the function's name.",
        ),
        (
            json!([{"id": "a", "function": {"arguments": "{}"}}]),
            "`messages[1].tool_calls[0].function.name` is missing: it must be the function's name.",
        ),
        (
            json!([{"function": {"name": "f"}}, {"function": {"name": "f", "arguments": "{\"a\": 1"}}]),
            "`messages[1].tool_calls[1].function.arguments` is \"{\\\"a\\\": 1\": it must be a JSON object, as text.",
        ),
        (
            json!([{"function": {"name": "f", "arguments": "[1]"}}]),
            "`messages[1].tool_calls[0].function.arguments` is \"[1]\": it must be a JSON object, as text.",
        ),
        (
            json!([{"function": {"name": "f", "arguments": 1}}]),
            "`messages[1].tool_calls[0].function.arguments` is 1: it must be a JSON object, as text.",
        ),
    ] {
        for template in ["llama-2", "mistral-v3-tools"] {
            let mut conversation = Conversation::new(history(calls.clone()));
            let error = tools(json!({})).apply(&mut conversation, &tokenizer(template)).unwrap_err();
            assert_eq!(error.detail(), sentence);
        }
    }
}

#[test]
fn a_last_message_is_continued_behind_what_was_joined() {
    let mut conversation = Conversation {
        ending: Ending::ContinueFinalMessage,
        ..Conversation::new(messages(json!([
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "One,"}, {"role": "assistant", "content": "two,"},
        ])))
    };
    let (_, text) = rendered(&tools(json!({})), &mut conversation, &tokenizer("phi-3"));
    assert!(text.ends_with("<|assistant|>\nOne,\n\ntwo,"), "{text}");
}

#[test]
fn formats_of_the_answer_stand_beside_calls_or_are_refused() {
    let schema = |whitespace: Option<&str>| Grammar::JsonSchema {
        schema: json!({}),
        strict: false,
        whitespace: whitespace.map(str::to_owned),
    };
    let must = "`response_format` can't be used: the answer must be a call, as `tool_choice` has it.";
    let named = json!({"type": "function", "function": {"name": "stop"}});
    for (choice, response, refused) in [
        (json!("auto"), None, None),
        (json!("auto"), Some(Grammar::JsonObject), None),
        (json!("auto"), Some(Grammar::Regex("a".to_owned())), None),
        (json!("auto"), Some(schema(None)), None),
        (
            json!("auto"),
            Some(schema(Some(" "))),
            Some("`response_format` can't be used: a pattern of white space can't be given together with `tools`."),
        ),
        (
            json!("auto"),
            Some(Grammar::JsonSchema {
                schema: json!({"properties": {"tool_calls": {}}}),
                strict: true,
                whitespace: None,
            }),
            Some(
                "`response_format` can't be used: its property `tool_calls` is how calls of `tools` are told from answers.",
            ),
        ),
        (
            json!("auto"),
            Some(Grammar::Lark("start: \"a\"".to_owned())),
            Some("`response_format` can't be used: a grammar in Lark can't stand beside the calls of `tools`."),
        ),
        (json!("none"), Some(Grammar::Lark("start: \"a\"".to_owned())), None),
        (json!("required"), None, None),
        (json!("required"), Some(Grammar::JsonObject), Some(must)),
        (named, Some(schema(None)), Some(must)),
    ] {
        let checked = tools(json!({ "tool_choice": choice })).check_response("response_format", response.as_ref());
        assert_eq!(checked.as_ref().err().map(ApiError::detail), refused);
        if response.is_some() && choice == "none" {
            assert_eq!(
                tools(json!({ "tool_choice": choice })).grammar(ToolFormat::Generic, response.as_ref()),
                response
            );
        }
    }
}

#[test]
fn grammars_bind_answers_to_calls_and_text() {
    let mut all = String::new();
    let native = ToolFormat::Native { call_token: 5 };
    let named = json!({"type": "function", "function": {"name": "stop"}});
    for (format, more, response) in [
        (ToolFormat::Generic, json!({}), None),
        (ToolFormat::Generic, json!({"parallel_tool_calls": false}), Some(Grammar::JsonObject)),
        (ToolFormat::Generic, json!({}), Some(Grammar::Regex("^a/b\\/c$".to_owned()))),
        (ToolFormat::Generic, json!({}), Some(Grammar::Choice(vec!["yes".to_owned(), "no\n".to_owned()]))),
        (ToolFormat::Generic, json!({"tool_choice": "required"}), None),
        (native, json!({ "tool_choice": named }), None),
        (native, json!({}), None),
    ] {
        let Some(Grammar::Lark(text)) = tools(more.clone()).grammar(format, response.as_ref()) else {
            panic!("{more}")
        };
        // How schemas are compiled is another crate's matter.
        let text: Vec<String> = text
            .lines()
            .map(|line| line.find(",\"x-guidance\"").map_or(line.to_owned(), |at| format!("{}}}", &line[..at])))
            .collect();
        all.push_str(&format!("== {format:?}, {more}, {response:?}\n{}\n\n", text.join("\n")));
    }
    insta::assert_snapshot!(all);
}
