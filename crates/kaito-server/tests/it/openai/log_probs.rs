//! Log-probabilities.

use kaito_testing::server::{CHAT_MODEL, TestServer};
use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, hello, keys, of_choice, stream, text, with};

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

/// The tokens' bytes, one after the other.
fn bytes(tokens: &[Value]) -> Vec<u8> {
    tokens
        .iter()
        .flat_map(|token| list(&token["bytes"]))
        .map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_likely_tokens_come_with_each_token_of_a_chat() {
    let server = TestServer::start(CHAT_MODEL).await;
    // No end token is chosen, which would have a name and no text; it may still be the likeliest.
    let body = hello(json!({ "logprobs": true, "top_logprobs": 20, "ignore_eos": false, "min_tokens": 24 }));
    let answer = server.ask(CHAT, &body).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["logprobs"]["refusal"], Value::Null);
    let tokens = list(&choice["logprobs"]["content"]);
    assert_eq!(tokens.len(), 24);
    let content = choice["message"]["content"].as_str().unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes(tokens)), content, "bytes join to the text");
    for token in tokens {
        assert_eq!(keys(token), ["bytes", "logprob", "token", "top_logprobs"]);
        let own = token["logprob"].as_f64().unwrap();
        let top = list(&token["top_logprobs"]);
        assert_eq!(top.len(), 20);
        let likely: Vec<f64> = top.iter().map(|likely| likely["logprob"].as_f64().unwrap()).collect();
        assert!(likely.is_sorted_by(|a, b| a >= b) && own <= 0.0);
        let best = usize::from(top[0]["token"] == "</s>");
        assert_eq!(likely[best], own, "the likeliest token but the end was chosen");
        assert!(likely.iter().map(|log_prob| log_prob.exp()).sum::<f64>() <= 1.0 + 1e-4);
    }
    if content.is_ascii() {
        let joined: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
        assert_eq!(joined, content);
    }
    server.stop().await;
}

/// Penalties, bias, temperature: none of them changes what the model itself gives a token.
#[tokio::test(flavor = "multi_thread")]
async fn they_are_those_of_the_raw_scores() {
    let server = TestServer::start(CHAT_MODEL).await;
    let first = async |more: Value| {
        let body = hello(with(json!({ "logprobs": true, "top_logprobs": 20, "max_tokens": 1 }), more));
        server.ask(CHAT, &body).await["choices"][0]["logprobs"]["content"][0].clone()
    };
    let plain = first(json!({})).await;
    let warm =
        first(json!({ "temperature": 1.7, "top_p": 0.9, "top_k": 3, "seed": 1, "repetition_penalty": 1.5 })).await;
    assert_eq!(plain["top_logprobs"], warm["top_logprobs"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_ones_join_to_those_of_the_whole() {
    let server = TestServer::start(CHAT_MODEL).await;
    let body = hello(json!({ "logprobs": true, "top_logprobs": 2, "temperature": 1, "seed": 5, "n": 2 }));
    let whole = server.ask(CHAT, &body).await;
    let chunks = stream(&server, CHAT, &body).await;
    for index in 0..2 {
        let mut joined = Vec::new();
        for choice in of_choice(&chunks, index) {
            joined.extend(choice["logprobs"]["content"].as_array().cloned().unwrap_or_default());
        }
        assert_eq!(joined, *list(&whole["choices"][index]["logprobs"]["content"]));
    }

    let body = text(json!({ "logprobs": 2 }));
    let whole = server.ask(COMPLETIONS, &body).await;
    let chunks = stream(&server, COMPLETIONS, &body).await;
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let mut joined = Vec::new();
        for choice in of_choice(&chunks, 0) {
            joined.extend(choice["logprobs"][name].as_array().cloned().unwrap_or_default());
        }
        assert_eq!(joined, *list(&whole["choices"][0]["logprobs"][name]), "{name}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_has_four_lists_side_by_side() {
    let server = TestServer::start(CHAT_MODEL).await;
    let answer = server.ask(COMPLETIONS, &text(json!({ "logprobs": 3, "ignore_eos": false, "min_tokens": 24 }))).await;
    let choice = &answer["choices"][0];
    let probs = &choice["logprobs"];
    assert_eq!(keys(probs), ["text_offset", "token_logprobs", "tokens", "top_logprobs"]);
    for i in 0..24 {
        let token = probs["tokens"][i].as_str().unwrap();
        let likely = probs["top_logprobs"][i].as_object().unwrap();
        assert!((1..=4).contains(&likely.len()), "{likely:?}");
        assert_eq!(likely[token], probs["token_logprobs"][i], "the chosen one is among them");
    }
    // Each token's text stands where its offset says, as far as characters are whole.
    let whole: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    for (token, offset) in list(&probs["tokens"]).iter().zip(list(&probs["text_offset"])) {
        let token: Vec<char> = token.as_str().unwrap().chars().collect();
        let at = usize::try_from(offset.as_u64().unwrap()).unwrap();
        if !token.contains(&'\u{fffd}') {
            assert_eq!(whole.get(at..at + token.len()), Some(token.as_slice()), "{probs}");
        }
    }
    server.stop().await;
}

/// What evaluation harnesses ask for: the log-probabilities of a text that is given.
#[tokio::test(flavor = "multi_thread")]
async fn an_echoed_prompt_has_them_too() {
    let server = TestServer::start(CHAT_MODEL).await;
    for limit in [0, 1] {
        let body =
            json!({ "prompt": "Hello world", "echo": true, "max_tokens": limit, "logprobs": 1, "temperature": 0 });
        let answer = server.ask(COMPLETIONS, &body).await;
        let choice = &answer["choices"][0];
        assert!(choice["text"].as_str().unwrap().starts_with("Hello world"));
        let (prompt, generated) = (&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]);
        assert_eq!(generated, limit);
        let probs = &choice["logprobs"];
        let expected = usize::try_from(prompt.as_u64().unwrap()).unwrap() + limit;
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(list(&probs[name]).len(), expected, "{name}");
        }
        assert_eq!((&probs["token_logprobs"][0], &probs["top_logprobs"][0]), (&Value::Null, &Value::Null));
        assert!(list(&probs["token_logprobs"])[1..].iter().all(|log_prob| log_prob.as_f64().unwrap() <= 0.0));
        assert!(list(&probs["text_offset"]).is_sorted_by(|a, b| a.as_u64() <= b.as_u64()));
    }
    server.stop().await;
}

/// Whole and streamed, also of several prompts and choices; that of the prompt comes in one piece.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_echoes_a_prompt_with_its_log_probabilities() {
    let server = TestServer::start(CHAT_MODEL).await;
    let one_token = server.ask("/tokenize", &json!({ "prompt": "" })).await["tokens"].clone();
    for more in [
        json!({ "prompt": "Hello world", "max_tokens": 6 }),
        json!({ "prompt": "Hello world", "max_tokens": 0 }),
        json!({ "prompt": ["Hello", "One model, one server"], "n": 2, "temperature": 1, "seed": 3, "max_tokens": 5 }),
        json!({ "prompt": one_token, "max_tokens": 2 }),
    ] {
        let body = text(with(more.clone(), json!({ "echo": true, "logprobs": 2 })));
        let whole = server.ask(COMPLETIONS, &body).await;
        let chunks = stream(&server, COMPLETIONS, &body).await;
        for (index, expected) in list(&whole["choices"]).iter().enumerate() {
            let choices = of_choice(&chunks, index);
            let joined: String = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
            assert_eq!(joined, expected["text"].as_str().unwrap(), "{more}");
            for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let parts = choices.iter().filter_map(|choice| choice["logprobs"][name].as_array());
                let joined: Vec<Value> = parts.flatten().cloned().collect();
                assert_eq!(&joined, list(&expected["logprobs"][name]), "{name} {more}");
            }
            assert_eq!(choices[0]["logprobs"]["token_logprobs"][0], Value::Null);
        }
    }
    server.stop().await;
}

/// A token that was generated has the log-probability that it has as part of a prompt.
#[tokio::test(flavor = "multi_thread")]
async fn those_of_a_prompt_are_those_of_a_text() {
    let server = TestServer::start(CHAT_MODEL).await;
    let body = text(json!({ "logprobs": 0, "max_tokens": 8, "return_token_ids": true }));
    let generated = server.ask(COMPLETIONS, &body).await["choices"][0].clone();
    let ids = [list(&generated["prompt_token_ids"]).as_slice(), list(&generated["token_ids"])].concat();
    let given = json!({ "prompt": ids, "echo": true, "max_tokens": 0, "logprobs": 0, "temperature": 0 });
    let given = server.ask(COMPLETIONS, &given).await["choices"][0].clone();
    let of_given = list(&given["logprobs"]["token_logprobs"]);
    for (a, b) in list(&generated["logprobs"]["token_logprobs"]).iter().zip(&of_given[of_given.len() - 8..]) {
        assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-4, "{a} {b}");
    }
    let asked = json!({ "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 0 });
    let asked = server.ask(COMPLETIONS, &asked).await["choices"][0]["prompt_logprobs"].clone();
    assert_eq!(list(&asked).len(), ids.len());
    assert_eq!(asked[0], Value::Null);
    for (i, id) in ids.iter().enumerate().skip(1) {
        assert_eq!(asked[i][id.to_string()]["logprob"], of_given[i]);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_may_be_named_by_ids() {
    let server = TestServer::start(CHAT_MODEL).await;
    let more = json!({ "logprobs": true, "return_tokens_as_token_ids": true, "return_token_ids": true });
    let answer = server.ask(CHAT, &hello(more)).await;
    let choice = &answer["choices"][0];
    for (token, id) in list(&choice["logprobs"]["content"]).iter().zip(list(&choice["token_ids"])) {
        assert_eq!(token["token"], format!("token_id:{id}"));
        assert_eq!(token["top_logprobs"], json!([]));
    }
    assert_eq!(list(&answer["prompt_token_ids"]).len() as u64, answer["usage"]["prompt_tokens"].as_u64().unwrap());
    server.stop().await;
}
