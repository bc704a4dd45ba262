//! Conversations with tools, documents, variables and endings, as transformers renders them.

use std::cell::Cell;
use std::fs;

use kaito_model::tokenizer::{Conversation, Ending, Special, Tokenizer, TokenizerError};
use serde_json::{Map, Value, json};

use crate::{copy_of, fixture, open_meta};

/// The tokenizer of the references with another template.
fn with_template(source: &str) -> Tokenizer {
    Tokenizer::open(&fixture("llama2")).unwrap().with_chat_template(source).unwrap()
}

fn published(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../kaito-jinja/tests/chats");
    fs::read_to_string(format!("{folder}/{name}.jinja")).unwrap()
}

fn messages(value: &Value) -> Vec<Map<String, Value>> {
    value.as_array().unwrap().iter().map(|message| message.as_object().unwrap().clone()).collect()
}

fn render(tokenizer: &Tokenizer, conversation: &Conversation) -> Result<String, TokenizerError> {
    tokenizer.render(conversation, &|| false)
}

#[test]
fn conversations_render_as_transformers_renders_them() {
    let text = fs::read_to_string(fixture("conversations.json")).unwrap();
    let fixtures: Value = serde_json::from_str(&text).unwrap();
    let tokenizer = Tokenizer::open(&fixture("llama2")).unwrap();
    let mut differences = Vec::new();
    let cases = fixtures["cases"].as_array().unwrap();
    for case in cases {
        let field = |name: &str| case[name].as_str().unwrap();
        let mut more = fixtures["more"][field("more")].as_object().unwrap().clone();
        let mut list = |name: &str| more.remove(name).map(|list| list.as_array().unwrap().clone());
        let conversation = Conversation {
            messages: messages(&fixtures["conversations"][field("conversation")]),
            tools: list("tools"),
            documents: list("documents"),
            variables: more,
            template: Some(published(field("template"))),
            ending: match field("ending") {
                "generation" => Ending::AddGenerationPrompt,
                "continue" => Ending::ContinueFinalMessage,
                _ => Ending::Complete,
            },
        };
        let rendered = render(&tokenizer, &conversation);
        // The sentences are ours; what a template raises is its own.
        let same = match (&rendered, case["text"].as_str(), case["error"].as_str()) {
            (Ok(ours), Some(expected), _) => ours == expected,
            (Err(TokenizerError::ChatRefused { message }), _, Some(error)) => {
                error == format!("TemplateError: {message}")
            }
            (Err(_), _, Some(error)) => !error.starts_with("TemplateError"),
            _ => false,
        };
        if !same {
            differences.push(format!("{case}\n  ours {rendered:?}"));
        }
    }
    assert!(cases.len() > 1000, "{} cases", cases.len());
    assert!(
        differences.is_empty(),
        "{} of {}:\n{}",
        differences.len(),
        cases.len(),
        differences[..differences.len().min(8)].join("\n")
    );
}

#[test]
fn a_given_template_goes_before_the_models_and_a_requests_own_before_both() {
    let directory = copy_of("llama2");
    fs::write(directory.path().join("chat_template.jinja"), "model").unwrap();
    let tokenizer = Tokenizer::open(directory.path()).unwrap();
    let mut conversation = Conversation::new(messages(&json!([{"role": "user", "content": "a"}])));
    assert_eq!(tokenizer.chat_template_source(), Some("model"));
    assert_eq!(render(&tokenizer, &conversation).unwrap(), "model");
    let given = tokenizer.with_chat_template("given {{ bos_token }}{{ tools }}").unwrap();
    assert_eq!(given.chat_template_source(), Some("given {{ bos_token }}{{ tools }}"));
    assert_eq!(render(&given, &conversation).unwrap(), "given <s>None");
    let file = directory.path().join("given.jinja");
    fs::write(&file, "file {{ eos_token }}\n").unwrap();
    conversation.template = None;
    assert_eq!(render(&given.clone().with_chat_template_file(&file).unwrap(), &conversation).unwrap(), "file </s>");
    for (contents, reason) in
        [(&b"{%"[..], "is damaged: the given chat template can't be used: line 1:"), (b"\xff", "it is no UTF-8")]
    {
        fs::write(&file, contents).unwrap();
        let error = given.clone().with_chat_template_file(&file).unwrap_err().to_string();
        assert!(error.contains("given.jinja") && error.contains(reason), "{error}");
    }
    let error = given.with_chat_template_file(&directory.path().join("none")).unwrap_err().to_string();
    assert!(error.starts_with("cannot read ") && error.contains("none: "), "{error}");
    conversation.template = Some("own".to_owned());
    // A model without one can be given one; a request's own needs none.
    let without = open_meta("meta_llama");
    assert_eq!((without.has_chat_template(), without.chat_template_source()), (false, None));
    assert_eq!(render(&without, &conversation).unwrap(), "own");
    conversation.template = None;
    assert!(matches!(render(&without, &conversation), Err(TokenizerError::NoChatTemplate)));
    assert_eq!(render(&without.with_chat_template("{{ messages[0].content }}").unwrap(), &conversation).unwrap(), "a");
}

/// Meta's code encodes each turn by itself, between the begin and the end token.
#[test]
fn a_template_given_to_metas_tokenizer_has_special_tokens() {
    let tokenizer = open_meta("meta_llama").with_chat_template(&published("llama-2")).unwrap();
    let conversation = Conversation::new(messages(&json!([
        {"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4"}, {"role": "user", "content": "Thanks"},
    ])));
    let text = render(&tokenizer, &conversation).unwrap();
    assert_eq!(text, "<s>[INST] What is 2+2? [/INST] 4 </s><s>[INST] Thanks [/INST]");
    let encode = |text: &str| tokenizer.encode(text, Special::Add).unwrap();
    let mut expected = encode("[INST] What is 2+2? [/INST] 4 ");
    expected.extend(tokenizer.eos_token_id());
    expected.extend(encode("[INST] Thanks [/INST]"));
    assert_eq!(tokenizer.encode(&text, Special::Rendered).unwrap(), expected);
    assert_eq!(tokenizer.encode("<", Special::Rendered).unwrap(), tokenizer.encode("<", Special::Skip).unwrap());
    // transformers' semantics have them in any text.
    let other = with_template("");
    assert_eq!(other.encode(&text, Special::Rendered).unwrap(), other.encode(&text, Special::Skip).unwrap());
    assert_eq!(other.encode("<s>", Special::Rendered).unwrap(), other.bos_token_id().into_iter().collect::<Vec<_>>());
}

#[test]
fn the_variables_that_a_template_reads_are_known() {
    for (template, variable, reads) in [
        ("mistral-v3-tools", "tools", true),
        ("hermes-tools", "tools", true),
        ("llama-3.1", "tools", true),
        ("llama-3.1", "date_string", true),
        ("qwen-3", "enable_thinking", true),
        ("command-r", "documents", true),
        ("llama-2", "tools", false),
        ("phi-3", "tools", false),
        ("falcon", "tools", false),
        ("llama-2", "messages", true),
        ("llama-2", "message", false),
        ("llama-2", "loop", false),
        ("llama-2", "raise_exception", false),
    ] {
        let source = published(template);
        assert_eq!(with_template(&source).chat_template_names(variable), reads, "{template}: {variable}");
        let own = Conversation { template: Some(source), ..Conversation::default() };
        assert_eq!(open_meta("meta_llama").template_reads(&own, variable), reads, "{template}: {variable}");
    }
}

#[test]
fn what_can_not_be_rendered_has_a_sentence() {
    let user = json!([{"role": "user", "content": "a"}]);
    let plain = "{% for m in messages %}{{ m.content | trim | upper }}{% endfor %}";
    let conversation = |messages_: &Value| Conversation::new(messages(messages_));
    let continued = |last: Value| Conversation { ending: Ending::ContinueFinalMessage, ..conversation(&json!([last])) };
    let own = |template: &str| Conversation { template: Some(template.to_owned()), ..conversation(&user) };
    let with = |name: &str| {
        let variables = Map::from_iter([(name.to_owned(), json!(1))]);
        Conversation { variables, ..conversation(&user) }
    };
    for (conversation, sentence) in [
        (
            continued(json!({"role": "assistant", "content": "a"})),
            "the last message can't be continued: the chat template changes its text",
        ),
        (
            continued(json!({"role": "assistant", "content": null})),
            "the last message can't be continued: its content is no text",
        ),
        (continued(json!({"role": "assistant"})), "the last message can't be continued: its content is no text"),
        (
            Conversation { ending: Ending::ContinueFinalMessage, ..Conversation::default() },
            "the last message can't be continued: there is no message",
        ),
        (
            own("{% if %}"),
            "the request's chat template can't be used: line 1: Expected an expression, got 'end of statement block'",
        ),
        (
            own(&"x".repeat((1 << 20) + 1)),
            "the request's chat template can't be used: the template has 1048577 bytes, more than the 1048576 that it may have",
        ),
        (
            own("{{ messages[0].content + 1 }}"),
            "the chat template cannot render this conversation: line 1: unsupported operand type(s) for +: 'str' and 'int'",
        ),
        (own("{{ raise_exception('No.') }}"), "the model's chat template refuses these messages: No."),
        (
            with("messages"),
            "`messages` is a part of the conversation and can't be a variable of its own for the chat template",
        ),
        (
            with("add_generation_prompt"),
            "`add_generation_prompt` is a part of the conversation and can't be a variable of its own for the chat template",
        ),
    ] {
        assert_eq!(render(&with_template(plain), &conversation).unwrap_err().to_string(), sentence);
    }
    let error = Tokenizer::open(&fixture("llama2")).unwrap().with_chat_template("{{").unwrap_err();
    assert!(error.to_string().starts_with("the given chat template can't be used: line 1: "), "{error}");
}

#[test]
fn hostile_templates_and_conversations_are_bounded() {
    let user = json!([{"role": "user", "content": "a"}]);
    for template in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(t='aaaaaaaa') %}{% for i in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ] {
        let conversation = Conversation { template: Some(template.to_owned()), ..Conversation::new(messages(&user)) };
        let error = render(&with_template(""), &conversation).unwrap_err();
        assert!(matches!(error, TokenizerError::Unrenderable { .. }), "{error}");
    }
    // As deep as a body may nest.
    let mut deep = json!("x");
    for _ in 0..120 {
        deep = json!({ "a": [deep] });
    }
    let tools = |tool: Value| Conversation { tools: Some(vec![tool]), ..Conversation::new(messages(&user)) };
    let error = render(&with_template("{{ tools | tojson }}"), &tools(deep)).unwrap_err();
    assert!(matches!(error, TokenizerError::Unrenderable { .. }), "{error}");
    let mut deep = json!("x");
    for _ in 0..120 {
        deep = json!([deep]);
    }
    let rendered = render(&with_template("{{ tools | tojson }}"), &tools(deep)).unwrap();
    assert_eq!(rendered, format!("{}\"x\"{}", "[".repeat(121), "]".repeat(121)));
    // A long conversation may be copied.
    let long = json!([{"role": "user", "content": "word ".repeat(400_000)}]);
    let rendered = render(&with_template(&published("llama-2")), &Conversation::new(messages(&long))).unwrap();
    assert!(rendered.len() > 1_999_000);
}

#[test]
fn a_rendering_ends_with_its_request() {
    let endless = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    let conversation = Conversation { template: Some(endless.to_owned()), ..Conversation::default() };
    let asked = Cell::new(0);
    let cancelled = || {
        asked.set(asked.get() + 1);
        asked.get() == 3
    };
    let ended = with_template("").render(&conversation, &cancelled);
    assert!(matches!(ended, Err(TokenizerError::Cancelled)), "{ended:?}");
}
