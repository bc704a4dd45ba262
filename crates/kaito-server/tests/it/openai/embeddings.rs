//! Embeddings, on a server that is told to make them.

use kaito_engine::{Cancel, LoadOptions, Pooling, Prepared, Special};
use kaito_server::ServerOptions;
use kaito_testing::server::{CHAT_MODEL, TestServer, load, options};
use serde_json::{Value, json};

const EMBEDDINGS: &str = "/v1/embeddings";

async fn serve(pooling: Pooling) -> TestServer {
    let options = ServerOptions { embeddings: Some(pooling), ..options() };
    TestServer::with(load(CHAT_MODEL, &LoadOptions::default()), options).await
}

/// The vectors of an answer.
fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap();
    let vector = |item: &Value| serde_json::from_value(item["embedding"].clone()).unwrap();
    data.iter().map(vector).collect()
}

/// What the engine pools, which `crates/kaito-engine/tests/parity.rs` compares with transformers, in length 1.
async fn expected(server: &TestServer, tokens: &[u32], pooling: Pooling) -> Vec<f32> {
    let prepared = Prepared::pooled(server.model.context(), tokens.to_vec(), pooling).unwrap();
    let output = server.model.start(vec![prepared]).unwrap().output().await.unwrap();
    let pooled = output.prompts[0].pooled.clone().unwrap();
    let length = pooled.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    pooled.iter().map(|&x| (f64::from(x) / length) as f32).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_and_tokens_become_vectors_of_length_one() {
    for pooling in [Pooling::Mean, Pooling::Last] {
        let server = serve(pooling).await;
        let context = server.model.context();
        let texts = ["A workspace.", "What is a node?", "A"];
        let ids = texts.map(|text| context.encode(text, Special::Add, 512, &Cancel::default()).unwrap());
        let answer = server.ask(EMBEDDINGS, &json!({ "input": texts })).await;
        assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("tiny")));
        let count: usize = ids.iter().map(Vec::len).sum();
        assert_eq!(answer["usage"], json!({ "prompt_tokens": count, "total_tokens": count }));
        for (index, item) in answer["data"].as_array().unwrap().iter().enumerate() {
            assert_eq!((&item["object"], &item["index"]), (&json!("embedding"), &json!(index)));
        }
        let found = vectors(&answer);
        assert_eq!(found.len(), 3);
        for (vector, ids) in found.iter().zip(&ids) {
            assert_eq!(vector, &expected(&server, ids, pooling).await, "{pooling:?}");
            let length: f32 = vector.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
        // All shapes of the same input, and the same text alone.
        let tokens = server.ask(EMBEDDINGS, &json!({ "input": ids, "model": "tiny", "user": "u" })).await;
        assert_eq!(vectors(&tokens), found);
        for input in [json!(texts[1]), json!(ids[1])] {
            assert_eq!(vectors(&server.ask("/embeddings", &json!({ "input": input })).await), [found[1].clone()]);
        }
        // As vLLM has it.
        let bare = json!({ "input": texts[0], "add_special_tokens": false });
        let ids = context.encode(texts[0], Special::Skip, 512, &Cancel::default()).unwrap();
        assert_eq!(vectors(&server.ask(EMBEDDINGS, &bare).await)[0], expected(&server, &ids, pooling).await);
        let cut = json!({ "input": ids, "truncate_prompt_tokens": 2 });
        let last = &ids[ids.len() - 2..];
        assert_eq!(vectors(&server.ask(EMBEDDINGS, &cut).await)[0], expected(&server, last, pooling).await);
        server.all_pages_free().await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn base64_holds_the_bytes_of_the_numbers() {
    let server = serve(Pooling::Mean).await;
    let ask = |format: Value| json!({ "input": ["Hello", "A node."], "encoding_format": format });
    let floats = vectors(&server.ask(EMBEDDINGS, &ask(json!("float"))).await);
    assert_eq!(vectors(&server.ask(EMBEDDINGS, &ask(Value::Null)).await), floats);
    let coded = server.ask(EMBEDDINGS, &ask(json!("base64"))).await;
    for (item, vector) in coded["data"].as_array().unwrap().iter().zip(&floats) {
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(item["embedding"].as_str().unwrap(), base64(&bytes));
    }
    server.stop().await;
}

/// By its definition, RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().enumerate().fold(0u32, |bits, (i, &byte)| bits | u32::from(byte) << (16 - 8 * i));
        for digit in 0..4 {
            let letter = ALPHABET[(bits >> (18 - 6 * digit)) as usize % 64];
            text.push(if digit <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn more_texts_than_the_queue_takes_requests() {
    let loading = LoadOptions { max_waiting: 4, max_batch_size: 2, ..LoadOptions::default() };
    let options = ServerOptions { embeddings: Some(Pooling::Last), ..options() };
    let server = TestServer::with(load(CHAT_MODEL, &loading), options).await;
    let texts: Vec<String> = (0..50).map(|i| format!("Text {i}")).collect();
    let found = vectors(&server.ask(EMBEDDINGS, &json!({ "input": texts })).await);
    assert_eq!(found.len(), 50);
    let one = server.ask(EMBEDDINGS, &json!({ "input": texts[49] })).await;
    assert_eq!(vectors(&one)[0], found[49]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_in_openais_shape() {
    let server = serve(Pooling::Mean).await;
    let long = Some("context_length_exceeded");
    let most = server.model.info().max_seq_len;
    for (body, code, param, start) in [
        (json!({}), None, "input", "`input` is missing"),
        (json!({ "input": "" }), None, "input", "`input` is \"\""),
        (json!({ "input": ["a", ""] }), None, "input[1]", "`input[1]` is \"\""),
        (json!({ "input": [] }), None, "input", "`input` is []"),
        (json!({ "input": [[]] }), None, "input[0]", "`input[0]`"),
        (json!({ "input": { "a": 1 } }), None, "input", "`input` is"),
        (json!({ "input": [1, "a"] }), None, "input[1]", "`input[1]`"),
        (json!({ "input": [[1], [99_999_999]] }), None, "input[1][0]", "`input[1][0]` is 99999999"),
        (json!({ "input": vec!["a"; 2049] }), None, "input", "`input` is a list of 2049 inputs"),
        (json!({ "input": vec![5; most + 1] }), long, "input", "This model's maximum context length is 512 tokens"),
        (json!({ "input": "word ".repeat(9000) }), long, "input", ""),
        (json!({ "input": "a", "encoding_format": "int8" }), None, "encoding_format", "`encoding_format` is \"int8\""),
        (json!({ "input": "a", "encoding_format": 5 }), None, "encoding_format", "`encoding_format` is 5"),
        (json!({ "input": "a", "truncate_prompt_tokens": 0 }), None, "truncate_prompt_tokens", "`truncate_prompt"),
        (json!({ "input": "a", "dimensions": 8 }), Some("unsupported_parameter"), "dimensions", "`dimensions` is not"),
    ] {
        let response = server.post(EMBEDDINGS, &body).await;
        assert_eq!(response.status(), 400, "{body}");
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with(start) && message.ends_with('.'), "{message}");
        assert_eq!((&error["code"], &error["param"]), (&json!(code), &json!(param)), "{message}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let unknown = server.post(EMBEDDINGS, &json!({ "input": "a", "model": "no-such-model" })).await;
    assert_eq!(unknown.status(), 404);
    // As long as a sequence may be: nothing follows it.
    let longest = server.ask(EMBEDDINGS, &json!({ "input": vec![5; most] })).await;
    assert_eq!(longest["usage"]["total_tokens"], most);
    server.stop().await;
}
