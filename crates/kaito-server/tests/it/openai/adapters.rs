//! Adapters: which of them answers to which name. What they must answer, PEFT has said (`tests/parity/adapters.py`).

use kaito_engine::{AdapterSource, DType, LanguageModel, LoadOptions};
use kaito_server::ServerOptions;
use kaito_testing::files::parity_adapter;
use kaito_testing::server::{TestServer, keys, load, options, parity_adapter_cases};
use serde_json::{Value, json};

use super::{COMPLETIONS, with};

const MODEL: &str = "llama-grouped-sharded";

fn model(combine_adapters: bool) -> LanguageModel {
    // As the combination is made in the cases.
    let strength = if combine_adapters { 0.75 } else { 1.0 };
    let source = |part: &str, strength: f32| AdapterSource {
        name: part.to_owned(),
        directory: parity_adapter(MODEL, part),
        strength,
    };
    let adapters = vec![source("one", strength), source("two", 1.0)];
    load(MODEL, &LoadOptions { dtype: Some(DType::F32), adapters, combine_adapters, ..LoadOptions::default() })
}

/// The case with this number, as a request for completions.
fn request(case: usize, more: Value) -> Value {
    let prompt = &parity_adapter_cases(MODEL)[case]["prompt"];
    let greedy = json!({ "temperature": 0, "max_tokens": 12, "ignore_eos": true, "return_token_ids": true });
    with(with(json!({ "prompt": prompt }), greedy), more)
}

fn expected(case: usize, variant: &str) -> Value {
    parity_adapter_cases(MODEL)[case]["answers"][variant]["tokens"].clone()
}

async fn check(server: &TestServer, asked: Value, answers: &str, variant: &str) {
    for case in [0, 1] {
        let answer = server.ask(COMPLETIONS, &request(case, asked.clone())).await;
        assert_eq!(answer["choices"][0]["token_ids"], expected(case, variant), "{asked}");
        assert_eq!(answer["model"], answers, "{asked}");
    }
}

async fn ids(server: &TestServer) -> Vec<String> {
    let list: Value = server.get("/v1/models").await.json().await.unwrap();
    list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_answers_by_its_name_and_the_model_by_its_own() {
    let server = TestServer::with(model(false), options()).await;
    for (asked, answers, variant) in [
        (json!({}), "tiny", "none"),
        (json!({ "model": "tiny" }), "tiny", "none"),
        (json!({ "model": "default" }), "tiny", "none"),
        (json!({ "model": "one" }), "one", "one"),
        (json!({ "model": "two" }), "two", "two"),
    ] {
        check(&server, asked, answers, variant).await;
    }
    assert_eq!(ids(&server).await, ["tiny", "one", "two"]);
    let adapter: Value = server.get("/v1/models/two").await.json().await.unwrap();
    assert_eq!((&adapter["id"], &adapter["parent"]), (&json!("two"), &json!("tiny")));
    assert_eq!(adapter["root"], parity_adapter(MODEL, "two").display().to_string());
    for name in ["three", "tiny-base"] {
        let refused = server.post(COMPLETIONS, &request(0, json!({ "model": name }))).await;
        assert_eq!(refused.status(), 404, "{name}");
        let error = refused.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!(error["code"], "model_not_found");
        let sentence = format!("The model `{name}` does not exist; this server has `tiny`, `one`, `two`.");
        assert_eq!(error["message"], sentence);
        assert_eq!(server.get(&format!("/v1/models/{name}")).await.status(), 404);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_all_of_them_run_together() {
    let server = TestServer::with(model(false), options()).await;
    let asked: Vec<(usize, &str)> = (0..24).map(|i| (i % 2, ["none", "one", "two"][i % 3])).collect();
    let answers = asked.iter().map(|&(case, variant)| {
        let name = if variant == "none" { "tiny" } else { variant };
        let request = server.request(COMPLETIONS, &request(case, json!({ "model": name })));
        tokio::spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() })
    });
    for (answer, (case, variant)) in answers.collect::<Vec<_>>().into_iter().zip(asked) {
        assert_eq!(answer.await.unwrap()["choices"][0]["token_ids"], expected(case, variant), "{case} {variant}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_not_shared_with_an_adapter() {
    let server = TestServer::with(model(false), options()).await;
    for (name, cached) in [("one", 0), ("tiny", 0), ("two", 0), ("one", 32), ("tiny", 32)] {
        let answer = server.ask(COMPLETIONS, &request(1, json!({ "model": name }))).await;
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], cached, "{name}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn combined_adapters_answer_by_the_models_own_name() {
    let server = TestServer::with(model(true), options()).await;
    for (asked, answers, variant) in [
        (json!({}), "tiny", "both"),
        (json!({ "model": "tiny" }), "tiny", "both"),
        (json!({ "model": "default" }), "tiny", "both"),
        (json!({ "model": "tiny-base" }), "tiny-base", "none"),
        (json!({ "model": "default-base" }), "tiny-base", "none"),
        (json!({ "model": "one" }), "one", "one"),
        (json!({ "model": "two" }), "two", "two"),
    ] {
        check(&server, asked, answers, variant).await;
    }
    assert_eq!(ids(&server).await, ["tiny", "tiny-base", "one", "two"]);
    let alone: Value = server.get("/v1/models/tiny-base").await.json().await.unwrap();
    assert_eq!((&alone["root"], &alone["parent"]), (&json!("tiny"), &Value::Null));
    server.stop().await;
}

/// Dialects that name no model answer as the model's own name does, and those that name one as that does.
#[tokio::test(flavor = "multi_thread")]
async fn all_dialects_answer_with_the_adapters() {
    let server = TestServer::with(model(true), options()).await;
    let text = |name: &'static str| {
        let body = json!({ "model": name, "prompt": "Hello", "temperature": 0, "max_tokens": 12, "ignore_eos": true });
        let server = &server;
        async move { server.ask(COMPLETIONS, &body).await["choices"][0]["text"].as_str().unwrap().to_owned() }
    };
    let (both, one, none) = (text("tiny").await, text("one").await, text("tiny-base").await);
    assert!(both != one && one != none && both != none);
    let chat = json!({ "prompt": "Hello", "do_sample": false, "max_new_tokens": 12, "return_full_text": false, "eos_token_id": 511 });
    assert_eq!(server.ask("/chat", &chat).await["Result"], both);
    let generate = json!({ "prompts": ["Hello"], "parameters": { "temperature": 0, "max_gen_len": 12 } });
    let response = server.ask("/generate", &generate).await["results"][0]["response"].clone();
    assert!(
        both.starts_with(response.as_str().unwrap()) && !none.starts_with(response.as_str().unwrap()),
        "{response}"
    );
    for (name, expected) in [("tiny", &both), ("one", &one), ("one:latest", &one), ("tiny-base", &none)] {
        let options = json!({ "temperature": 0, "num_predict": 12 });
        let ask = json!({ "model": name, "prompt": "Hello", "raw": true, "stream": false, "options": options });
        let answer = server.ask("/api/generate", &ask).await;
        assert_eq!(answer["model"], name.trim_end_matches(":latest"));
        assert!(expected.starts_with(answer["response"].as_str().unwrap()), "{name}: {answer} {expected}");
    }
    let tags: Value = server.get("/api/tags").await.json().await.unwrap();
    let names: Vec<_> = tags["models"].as_array().unwrap().iter().map(|model| model["name"].clone()).collect();
    assert_eq!(names, ["tiny:latest", "tiny-base:latest", "one:latest", "two:latest"]);
    server.stop().await;
}

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";

/// A server that loads adapters of the model at run time, for who has its key.
async fn runtime_server() -> TestServer {
    let folder = parity_adapter(MODEL, "one").parent().unwrap().to_owned();
    let load_options = LoadOptions { dtype: Some(DType::F32), adapter_memory: 1 << 20, ..LoadOptions::default() };
    let options = ServerOptions { runtime_adapters: Some(folder), api_keys: keys("secret"), ..options() };
    TestServer::with(load(MODEL, &load_options), options).await
}

/// The status and the body of an answer to who has the key.
async fn send(server: &TestServer, path: &str, body: &Value) -> (u16, String) {
    let answer = server.request(path, body).bearer_auth("secret").send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// The same for an answer that must be an error: its status and its sentence.
async fn refused(server: &TestServer, path: &str, body: &Value) -> (u16, String) {
    let (status, text) = send(server, path, body).await;
    let error: Value = serde_json::from_str(&text).unwrap();
    (status, error["error"]["message"].as_str().unwrap().to_owned())
}

async fn tokens(server: &TestServer, case: usize, name: &str) -> Value {
    let (status, text) = send(server, COMPLETIONS, &request(case, json!({ "model": name }))).await;
    assert_eq!(status, 200, "{text}");
    serde_json::from_str::<Value>(&text).unwrap()["choices"][0]["token_ids"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_come_and_go_while_the_server_runs() {
    let server = runtime_server().await;
    let added = send(&server, LOAD, &json!({ "lora_name": "mine", "lora_path": "one" })).await;
    assert_eq!(added, (200, "Success: LoRA adapter 'mine' added successfully.".to_owned()));
    assert_eq!(tokens(&server, 1, "mine").await, expected(1, "one"));
    assert_eq!(tokens(&server, 1, "tiny").await, expected(1, "none"));
    let in_place = json!({ "lora_name": "mine", "lora_path": "./two", "load_inplace": true });
    assert_eq!(send(&server, LOAD, &in_place).await.0, 200);
    assert_eq!(tokens(&server, 1, "mine").await, expected(1, "two"));
    let removed = send(&server, UNLOAD, &json!({ "lora_name": "mine", "lora_int_id": 1 })).await;
    assert_eq!(removed, (200, "Success: LoRA adapter 'mine' removed successfully.".to_owned()));
    let (status, sentence) = refused(&server, COMPLETIONS, &request(0, json!({ "model": "mine" }))).await;
    assert_eq!((status, sentence.as_str()), (404, "The model `mine` does not exist; this server has `tiny`."));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_loaded_at_run_time_is_refused_in_a_sentence() {
    let server = runtime_server().await;
    let named = json!({ "lora_name": "mine", "lora_path": "one" });
    assert_eq!(send(&server, LOAD, &named).await.0, 200);
    let config = parity_adapter(MODEL, "one");
    let other = parity_adapter("falcon-7b-type", "one");
    for (path, body, status, sentence) in [
        (LOAD, named, 400, "There is an adapter \"mine\" already; `load_inplace` replaces it."),
        (LOAD, json!({ "lora_name": "x", "lora_path": "three" }), 404, "There is no adapter at `lora_path` \"three\"."),
        (
            LOAD,
            json!({ "lora_name": "x", "lora_path": "cases.json" }),
            404,
            "There is no adapter at `lora_path` \"cases.json\".",
        ),
        (
            LOAD,
            json!({ "lora_name": "x", "lora_path": "../mistral-window/one" }),
            400,
            "`lora_path` \"../mistral-window/one\" leads out of the folder that this server loads adapters from.",
        ),
        (
            LOAD,
            json!({ "lora_name": "x", "lora_path": other.to_str().unwrap() }),
            400,
            &format!("`lora_path` {other:?} leads out of the folder that this server loads adapters from."),
        ),
        (
            LOAD,
            json!({ "lora_name": "x", "lora_path": "." }),
            400,
            &format!(
                "Adapter \"x\": {} holds no adapter: there is no adapter_config.json.",
                config.parent().unwrap().display()
            ),
        ),
        (
            LOAD,
            json!({ "lora_name": "tiny", "lora_path": "one" }),
            400,
            "`lora_name` \"tiny\" stands for the model itself; give the adapter another name.",
        ),
        (LOAD, json!({ "lora_path": "one" }), 400, "`lora_name` is missing: it must be a string."),
        (LOAD, json!({ "lora_name": "x" }), 400, "`lora_path` is missing: it must be the folder of an adapter."),
        (
            LOAD,
            json!({ "lora_name": " ", "lora_path": "one" }),
            400,
            "`lora_name` is \" \": it must be a name of 1 to 200 characters.",
        ),
        (UNLOAD, json!({ "lora_name": "x" }), 404, "There is no adapter \"x\"."),
    ] {
        assert_eq!(refused(&server, path, &body).await, (status, sentence.to_owned()), "{path} {body}");
    }
    assert_eq!(server.post(UNLOAD, &json!({ "lora_name": "mine" })).await.status(), 401);
    assert_eq!(tokens(&server, 0, "mine").await, expected(0, "one"));
    server.stop().await;

    // Without a folder, or without a key, nothing is loaded.
    let folder = parity_adapter(MODEL, "one").parent().unwrap().to_owned();
    for options in [
        ServerOptions { api_keys: keys("secret"), ..options() },
        ServerOptions { runtime_adapters: Some(folder), ..options() },
    ] {
        let server = TestServer::with(model(false), options).await;
        for path in [LOAD, UNLOAD] {
            let refusal = refused(&server, path, &json!({ "lora_name": "one", "lora_path": "one" })).await;
            assert_eq!(
                refusal,
                (
                    404,
                    "This server loads no adapters while it runs; one that is started with --runtime-adapters DIR and an API key does."
                        .to_owned()
                )
            );
        }
        server.stop().await;
    }
}
