//! Where a model's directory has its chat template.

use std::cell::Cell;
use std::fs;

use kaito_model::tokenizer::{ChatMessage, Tokenizer, TokenizerError};
use serde_json::json;

use crate::copy_of;
use crate::damage::edit_json;

/// Opens a copy of a tokenizer with some files beside it, and a template in tokenizer_config.json.
fn open(files: &[(&str, &str)], configured: serde_json::Value) -> Result<Tokenizer, TokenizerError> {
    let directory = copy_of("llama2");
    edit_json(directory.path(), "tokenizer_config.json", |json| json["chat_template"] = configured);
    for (name, contents) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    Tokenizer::open(directory.path())
}

fn rendered(files: &[(&str, &str)], configured: serde_json::Value) -> Result<String, String> {
    let tokenizer = open(files, configured).map_err(|error| error.to_string())?;
    tokenizer.apply_chat_template(&[], true).map_err(|error| error.to_string())
}

#[test]
fn a_template_in_a_file_goes_before_the_configuration() {
    let file = ("chat_template.jinja", "file {{ bos_token }}\r\n");
    let named = ("additional_chat_templates/tool_use.jinja", "tools");
    let default = ("additional_chat_templates/default.jinja", "folder");
    let list = || json!([{"name": "tool_use", "template": "a"}, {"name": "default", "template": "list"}]);
    let none = json!(null);
    assert_eq!(rendered(&[], json!("configured")).as_deref(), Ok("configured"));
    assert_eq!(rendered(&[], list()).as_deref(), Ok("list"));
    assert_eq!(rendered(&[file], json!("configured")).as_deref(), Ok("file <s>"));
    assert_eq!(rendered(&[file], list()).as_deref(), Ok("file <s>"));
    assert_eq!(rendered(&[file, named], none.clone()).as_deref(), Ok("file <s>"));
    assert_eq!(rendered(&[file, named, default], none.clone()).as_deref(), Ok("folder"));
    assert_eq!(rendered(&[("additional_chat_templates/README.md", "no template")], list()).as_deref(), Ok("list"));
    // Without a default there is nothing to take, as in the reference.
    let error = rendered(&[named], list()).unwrap_err();
    assert!(error.contains("(tool_use)") && error.contains("\"default\""), "{error}");
    let error = rendered(&[], json!([{"name": "rag", "template": "a"}])).unwrap_err();
    assert!(error.contains("(rag)"), "{error}");
    let error = rendered(&[], json!([{"name": "rag"}])).unwrap_err();
    assert!(error.contains("tokenizer_config.json"), "{error}");
}

#[test]
fn a_template_that_can_not_be_parsed_is_a_reason_and_no_failure_to_load() {
    for template in ["{% if %}".to_owned(), "{{ ".to_owned() + &"(".repeat(100_000), "x".repeat(2 << 20)] {
        let tokenizer = open(&[("chat_template.jinja", &template)], json!(null)).unwrap();
        assert!(!tokenizer.has_chat_template());
        assert!(matches!(tokenizer.apply_chat_template(&[], true), Err(TokenizerError::ChatTemplate { .. })));
    }
}

#[test]
fn a_rendering_ends_with_its_request() {
    let endless = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    let tokenizer = open(&[], json!(endless)).unwrap();
    let messages = [ChatMessage { role: "user".to_owned(), content: "Hello".to_owned() }];
    let asked = Cell::new(0);
    let cancelled = || {
        asked.set(asked.get() + 1);
        asked.get() == 3
    };
    let ended = tokenizer.apply_chat_template_unless(&cancelled, &messages, true);
    assert!(matches!(ended, Err(TokenizerError::Cancelled)), "{ended:?}");
}
