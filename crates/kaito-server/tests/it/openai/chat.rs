//! Chat completions that do not stream.

use kaito_server::ServerOptions;
use kaito_testing::server::{CHAT_MODEL, TestServer, load, options};
use serde_json::{Value, json};

use super::{CHAT, hello, keys, stream, with};

/// What Kaito's own dialect answers with the likeliest tokens, and its prompt.
async fn kaito(server: &TestServer, messages: &Value, tokens: usize) -> String {
    let body = json!({ "messages": messages, "do_sample": false, "max_new_tokens": tokens, "return_full_text": false });
    server.ask("/chat", &body).await["Result"].as_str().unwrap().to_owned()
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().expect("a text")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_all_fields() {
    let server = TestServer::start(CHAT_MODEL).await;
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let answer = server.ask(CHAT, &hello(json!({}))).await;
    assert_eq!(keys(&answer), ["choices", "created", "id", "model", "object", "system_fingerprint", "usage"]);
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert!((before..before + 600).contains(&answer["created"].as_u64().unwrap()));
    assert_eq!(answer["model"], "tiny");
    let fingerprint = format!("kaito-{}-{}", env!("CARGO_PKG_VERSION"), server.model.info().precision());
    assert_eq!(answer["system_fingerprint"], fingerprint);

    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 1);
    assert_eq!(keys(&choices[0]), ["finish_reason", "index", "logprobs", "message", "stop_reason"]);
    assert_eq!(keys(&choices[0]["message"]), ["content", "refusal", "role"]);
    assert_eq!(choices[0]["message"]["role"], "assistant");
    assert_eq!(choices[0]["logprobs"], Value::Null);
    assert_eq!(choices[0]["finish_reason"], "length");
    assert_eq!(choices[0]["stop_reason"], Value::Null);

    let usage = &answer["usage"];
    let of = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(of("completion_tokens"), 24);
    assert_eq!(of("total_tokens"), of("prompt_tokens") + 24);
    assert_eq!(keys(&usage["prompt_tokens_details"]), ["cached_tokens"]);
    assert_eq!(
        usage["completion_tokens_details"],
        json!({ "reasoning_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0 })
    );
    server.stop().await;
}

/// The reference of [`kaito`] is compared with transformers elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn the_likeliest_text_is_that_of_kaitos_own_dialect() {
    for model in [CHAT_MODEL, "mistral-full-bf16", "phi3-longrope"] {
        let server = TestServer::start(model).await;
        if !server.model.info().chat_template {
            server.stop().await;
            continue;
        }
        for messages in [
            json!([{ "role": "user", "content": "Hello" }]),
            json!([
                { "role": "user", "content": "One?" },
                { "role": "assistant", "content": "Two." },
                { "role": "user", "content": "Three?" },
            ]),
        ] {
            let answer = server.ask(CHAT, &hello(json!({ "messages": messages, "ignore_eos": false }))).await;
            assert_eq!(content(&answer), kaito(&server, &messages, 24).await, "{model} {messages}");
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_may_come_in_parts() {
    let server = TestServer::start(CHAT_MODEL).await;
    let whole = server.ask(CHAT, &hello(json!({}))).await;
    let parts = json!([{ "role": "user", "content": [
        { "type": "text", "text": "He" }, { "type": "text", "text": "llo" },
    ] }]);
    let parted = server.ask(CHAT, &hello(json!({ "messages": parts }))).await;
    assert_eq!(content(&whole), content(&parted));
    assert_eq!(whole["usage"]["prompt_tokens"], parted["usage"]["prompt_tokens"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_decides_all_choices() {
    let server = TestServer::start(CHAT_MODEL).await;
    let texts = async |seed: i64, n: usize| {
        let more = json!({ "temperature": 1, "seed": seed, "n": n });
        let answer = server.ask(CHAT, &hello(more)).await;
        let choices = answer["choices"].as_array().unwrap();
        let texts: Vec<_> = choices.iter().map(|choice| choice["message"]["content"].clone()).collect();
        assert!(choices.iter().enumerate().all(|(i, choice)| choice["index"] == i));
        (texts, answer["usage"]["completion_tokens"].as_u64().unwrap())
    };
    for seed in [7, -7, i64::MIN] {
        let (first, tokens) = texts(seed, 3).await;
        assert_eq!(first.len(), 3);
        assert!(first[0] != first[1] && first[1] != first[2], "{first:?}");
        assert_eq!(tokens, 72, "all choices count");
        assert_eq!(texts(seed, 3).await.0, first, "the same seed, the same texts");
        assert_eq!(texts(seed, 1).await.0, first[..1], "the first choice is that of one alone");
    }
    assert_ne!(texts(7, 1).await, texts(-7, 1).await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_beyond_the_room_is_cut_to_it() {
    let server = TestServer::start(CHAT_MODEL).await;
    let room = server.model.info().max_seq_len;
    for limit in
        [json!({ "max_tokens": 4096 }), json!({ "max_tokens": null }), json!({ "max_completion_tokens": 100_000 })]
    {
        let answer = server.ask(CHAT, &with(hello(json!({})), limit)).await;
        assert_eq!(answer["usage"]["total_tokens"], room);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_ends_the_text_before_itself() {
    let server = TestServer::start(CHAT_MODEL).await;
    let whole = server.ask(CHAT, &hello(json!({}))).await;
    let whole = content(&whole);
    let characters: Vec<char> = whole.chars().collect();
    let stop: String = characters[8..12].iter().collect();
    let at = whole.find(&stop).unwrap();
    let answer = server.ask(CHAT, &hello(json!({ "stop": ["never in this text", stop] }))).await;
    let choice = &answer["choices"][0];
    assert_eq!(content(&answer), &whole[..at]);
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(stop)));
    let answer = server.ask(CHAT, &hello(json!({ "stop": stop, "include_stop_str_in_output": true }))).await;
    assert_eq!(content(&answer), &whole[..at + stop.len()]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bias_bans_and_a_stop_token_ends() {
    let server = TestServer::start(CHAT_MODEL).await;
    let ids = async |more: Value| {
        let answer = server.ask(CHAT, &hello(with(more, json!({ "return_token_ids": true })))).await;
        let ids: Vec<u64> = serde_json::from_value(answer["choices"][0]["token_ids"].clone()).unwrap();
        (ids, answer["choices"][0].clone())
    };
    let (plain, _) = ids(json!({})).await;
    let banned = plain[0];
    for bias in [json!({ banned.to_string(): -100 }), json!([[banned, -100]])] {
        let (others, _) = ids(json!({ "logit_bias": bias })).await;
        assert!(!others.contains(&banned), "{others:?}");
    }
    let (only, _) = ids(json!({ "allowed_token_ids": [banned], "max_tokens": 4 })).await;
    assert_eq!(only, [banned; 4]);
    let (stopped, choice) = ids(json!({ "stop_token_ids": [banned] })).await;
    assert_eq!(stopped, [banned]);
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(banned)));
    assert_eq!(choice["message"]["content"], "", "a token that stops has no text");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_penalties_change_what_repeats() {
    let server = TestServer::start(CHAT_MODEL).await;
    let text = async |more: Value| {
        content(&server.ask(CHAT, &hello(with(json!({ "max_tokens": 64 }), more))).await).to_owned()
    };
    let plain = text(json!({})).await;
    assert_ne!(text(json!({ "frequency_penalty": 2 })).await, plain);
    assert_eq!(text(json!({ "frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1 })).await, plain);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_can_be_continued() {
    let server = TestServer::start(CHAT_MODEL).await;
    let messages = json!([{ "role": "user", "content": "Hello" }, { "role": "assistant", "content": "I am" }]);
    let continued = hello(json!({ "messages": messages, "continue_final_message": true, "ignore_eos": false }));
    let answer = server.ask(CHAT, &continued).await;
    assert_eq!(content(&answer), kaito(&server, &messages, 24).await);
    let echoed = with(continued.clone(), json!({ "echo": true }));
    let expected = format!("I am{}", content(&answer));
    assert_eq!(content(&server.ask(CHAT, &echoed).await), expected);
    let streamed = stream(&server, CHAT, &echoed).await;
    let text: String = streamed.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, expected);
    let turn = server.ask(CHAT, &hello(json!({ "messages": messages }))).await;
    let echoed = server.ask(CHAT, &hello(json!({ "messages": messages, "echo": true }))).await;
    assert_eq!(content(&echoed), content(&turn), "nothing is continued");
    assert_ne!(turn["usage"]["prompt_tokens"], answer["usage"]["prompt_tokens"], "a finished turn is not continued");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_request_brings_its_own_template() {
    let trusting = ServerOptions { trust_request_chat_template: true, ..options() };
    let server = TestServer::with(load(CHAT_MODEL, &kaito_engine::LoadOptions::default()), trusting).await;
    let more = json!({
        "chat_template": "{{ messages[0].content }}{{ mark }}{{ documents[0].text }}",
        "chat_template_kwargs": { "mark": "!" },
        "documents": [{ "text": "?" }],
    });
    let written = server.ask("/apply-template", &hello(more.clone())).await;
    assert_eq!(written, json!({ "prompt": "Hello!?" }));
    let chat = server.ask(CHAT, &hello(more)).await;
    let completion = json!({ "prompt": "Hello!?", "add_special_tokens": false, "temperature": 0, "max_tokens": 24, "ignore_eos": true });
    let completion = server.ask("/v1/completions", &completion).await;
    assert_eq!(chat["choices"][0]["message"]["content"], completion["choices"][0]["text"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_prompt_may_be_cut_to_its_end() {
    let server = TestServer::start(CHAT_MODEL).await;
    let messages = json!([{ "role": "user", "content": "word ".repeat(600) }]);
    let answer = server.ask(CHAT, &hello(json!({ "messages": messages, "truncate_prompt_tokens": 100 }))).await;
    assert_eq!(answer["usage"]["prompt_tokens"], 100);
    let answer = server.ask(CHAT, &hello(json!({ "messages": messages, "truncate_prompt_tokens": -1 }))).await;
    assert_eq!(answer["usage"]["total_tokens"], server.model.info().max_seq_len);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_long_a_prompt_gives_both_numbers() {
    let server = TestServer::start(CHAT_MODEL).await;
    let body = hello(json!({ "messages": [{ "role": "user", "content": "word ".repeat(600) }] }));
    let error = server.post(CHAT, &body).await.json::<Value>().await.unwrap()["error"].clone();
    let counted = server.ask("/tokenize", &body).await["count"].as_u64().unwrap();
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("512") && message.contains(&counted.to_string()), "{message}");
    assert_eq!(error["code"], "context_length_exceeded");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_send_beside_the_request_changes_nothing() {
    let server = TestServer::start(CHAT_MODEL).await;
    let plain = server.ask(CHAT, &hello(json!({}))).await;
    let more = json!({
        "store": true, "metadata": { "a": "b" }, "user": "me", "service_tier": "auto", "reasoning_effort": "low",
        "prompt_cache_key": "k", "safety_identifier": "s", "max_retries": 2, "parallel_tool_calls": null, "logit_bias": null,
        "stream_options": null, "modalities": ["text"], "priority": 0, "suffix": null, "response_format": { "type": "text" },
    });
    assert_eq!(content(&server.ask(CHAT, &hello(more)).await), content(&plain));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_path_without_v1_answers_too() {
    let server = TestServer::start(CHAT_MODEL).await;
    let [own, alias] =
        [server.ask(CHAT, &hello(json!({}))).await, server.ask("/chat/completions", &hello(json!({}))).await];
    assert_eq!(content(&own), content(&alias));
    let refused = server.post("/chat/completions", &json!({})).await.json::<Value>().await.unwrap();
    assert_eq!(refused["error"]["param"], "messages");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_salt_keeps_the_prefix_cache_apart() {
    let server = TestServer::start(CHAT_MODEL).await;
    let messages = json!([{ "role": "user", "content": "a text of some length, ".repeat(8) }]);
    let cached = async |more: Value| {
        let answer = server.ask(CHAT, &with(hello(json!({ "messages": messages })), more)).await;
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(json!({})).await, 0);
    assert!(cached(json!({})).await > 0);
    assert_eq!(cached(json!({ "cache_salt": "mine" })).await, 0);
    assert!(cached(json!({ "cache_salt": "mine" })).await > 0);
    assert_eq!(cached(json!({ "cache_salt": "yours" })).await, 0);
    server.stop().await;
}
