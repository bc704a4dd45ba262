//! Adapters of a model that runs: many requests at once, the prefix cache, loading and unloading.

use std::{num::NonZeroUsize, time::Duration};

use kaito_engine::{
    Adapter, AdapterSource, DType, Decoding, GenerateOptions, LanguageModel, LoadOptions, Prepared, Quantization,
    StopStrings,
};

use crate::{MODELS, STRENGTHS, VARIANTS, adapter, cases, model};

fn source(name: &str, part: &str, called: &str, strength: f32) -> AdapterSource {
    AdapterSource { name: called.to_owned(), directory: adapter(name, part), strength }
}

/// One adapter under two names, and another.
fn alone(name: &str) -> Vec<AdapterSource> {
    vec![source(name, "one", "one", 1.0), source(name, "two", "two", 1.0), source(name, "one", "weaker", STRENGTHS[0])]
}

fn options(adapters: Vec<AdapterSource>, combine_adapters: bool) -> LoadOptions {
    LoadOptions {
        dtype: Some(DType::F32),
        threads: NonZeroUsize::new(2),
        max_seq_len: Some(96),
        max_batch_size: 12,
        kv_cache_memory: Some(16 << 20),
        adapters,
        combine_adapters,
        ..LoadOptions::default()
    }
}

fn load(name: &str, options: &LoadOptions) -> LanguageModel {
    LanguageModel::load(&model(name), options, &|_| ()).unwrap()
}

fn request(model: &LanguageModel, prompt: &[u32], new: usize, adapter: Option<Adapter>) -> Prepared {
    let end_tokens = Some(Vec::new());
    let options = GenerateOptions { max_new_tokens: Some(new), eos_token_id: end_tokens, ..GenerateOptions::default() };
    let context = model.context();
    let params = context.resolve(&options, prompt.len(), 0).unwrap();
    Prepared::new(context, prompt.to_vec(), params, Decoding::default(), StopStrings::default()).with_adapter(adapter)
}

/// The new tokens, and how many of the prompt were in the prefix cache.
async fn answer(model: &LanguageModel, request: Prepared) -> (Vec<u32>, usize) {
    let output = model.start(vec![request]).unwrap().output().await.unwrap();
    (output.sequences[0].tokens.clone(), output.usage.cached_tokens)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_those_of_peft_alone_and_all_at_once() {
    for name in MODELS {
        let model = load(name, &options(alone(name), false));
        let combined = load(
            name,
            &options(vec![source(name, "one", "one", STRENGTHS[0]), source(name, "two", "two", STRENGTHS[1])], true),
        );
        let cases = cases(name);
        let mut running = Vec::new();
        for together in [false, true] {
            for case in &cases {
                for variant in VARIANTS {
                    let expected = case.answers[variant].tokens.clone();
                    let (model, adapter) = match variant {
                        "both" => (&combined, combined.context().adapter.clone()),
                        variant => (&model, model.adapters().find(variant)),
                    };
                    assert_eq!(adapter.is_none(), variant == "none");
                    let (model, request) = (model.clone(), request(model, &case.prompt, expected.len(), adapter));
                    let check = async move {
                        assert_eq!(answer(&model, request).await.0, expected, "{name}, {variant}");
                    };
                    if together { running.push(tokio::spawn(check)) } else { check.await }
                }
            }
        }
        for one in running {
            one.await.unwrap();
        }
        // By its name an adapter of a combination has strength 1.
        let named = request(&combined, &cases[1].prompt, 12, combined.adapters().find("one"));
        assert_eq!(answer(&combined, named).await.0, cases[1].answers["one"].tokens, "{name}");
        assert!(model.context().adapter.is_none());
    }
}

#[tokio::test]
async fn the_prefix_cache_does_not_cross_adapters() {
    let name = "llama-grouped-sharded";
    let model = load(name, &options(alone(name), false));
    let prompt = &cases(name)[1].prompt;
    let find = |variant: &str| model.adapters().find(variant);
    for (variant, reused) in [("none", 0), ("one", 0), ("two", 0), ("one", 32), ("none", 32), ("two", 32)] {
        let (tokens, cached) = answer(&model, request(&model, prompt, 12, find(variant))).await;
        assert_eq!(cached, reused, "{variant}");
        assert_eq!(tokens, cases(name)[1].answers[variant].tokens, "{variant}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn quantised_models_have_adapters_too() {
    let name = "phi3-window";
    for quantize in [Quantization::Int8, Quantization::Int4] {
        let model = load(name, &LoadOptions { quantize: Some(quantize), ..options(alone(name), false) });
        let prompt = cases(name)[1].prompt.clone();
        let mut alone = Vec::new();
        for variant in ["none", "one", "two", "weaker"] {
            alone.push(answer(&model, request(&model, &prompt, 12, model.adapters().find(variant))).await.0);
        }
        assert!(alone[0] != alone[1] && alone[1] != alone[2], "{alone:?}");
        let together = ["none", "one", "two", "weaker"].map(|variant| {
            let (model, request) = (model.clone(), request(&model, &prompt, 12, model.adapters().find(variant)));
            tokio::spawn(async move { answer(&model, request).await.0 })
        });
        for (one, expected) in together.into_iter().zip(alone) {
            assert_eq!(one.await.unwrap(), expected);
        }
    }
}

/// Returns when the device holds so many adapters.
async fn holds(model: &LanguageModel, count: usize) {
    while model.stats().adapters != count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_goes_when_the_last_request_that_holds_it_ends() {
    let name = "llama-grouped-sharded";
    let model = load(name, &options(vec![source(name, "one", "one", 1.0)], false));
    let case = &cases(name)[0];
    holds(&model, 1).await;
    let long = || request(&model, &case.prompt, 60, model.adapters().find("one"));
    let expected = answer(&model, long()).await.0;
    let long = long();
    let running = tokio::spawn({
        let model = model.clone();
        async move { answer(&model, long).await.0 }
    });
    assert_eq!(model.adapters().remove("one").map(|adapter| adapter.name).as_deref(), Some("one"));
    assert!(model.adapters().find("one").is_none() && model.adapters().is_empty());
    assert_eq!(running.await.unwrap(), expected);
    holds(&model, 0).await;
    assert_eq!(answer(&model, request(&model, &case.prompt, 12, None)).await.0, case.answers["none"].tokens);
}

#[test]
fn what_cannot_be_loaded_is_refused_with_the_adapters_name() {
    let name = "llama-grouped-sharded";
    let refusal = |sources: Vec<AdapterSource>| {
        let error = LanguageModel::load(&model(name), &options(sources, false), &|_| ()).err().unwrap();
        assert_eq!(error.kind(), kaito_engine::ErrorKind::Load);
        error.to_string()
    };
    let one = || source(name, "one", "one", 1.0);
    assert_eq!(
        refusal(vec![AdapterSource { strength: f32::NAN, ..one() }]),
        "adapter \"one\": the strength is NaN, expected a finite number"
    );
    assert_eq!(refusal(vec![one(), one()]), "adapter \"one\": there is one of this name already");
    let missing = AdapterSource { directory: "/no/such/folder".into(), ..one() };
    assert_eq!(
        refusal(vec![missing]),
        "adapter \"one\": /no/such/folder holds no adapter: there is no adapter_config.json"
    );
    let other = refusal(vec![source("mistral-window", "one", "other", 1.0)]);
    assert!(other.contains("has shape [2, 64]") || other.contains("expected ["), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_are_loaded_and_replaced_within_the_memory_for_them() {
    let name = "llama-grouped-sharded";
    let bytes = load(name, &options(vec![source(name, "one", "one", 1.0)], false)).adapters().bytes();
    // Room for one of them, and a byte too little for it and the other.
    let two = load(name, &options(vec![source(name, "two", "two", 1.0)], false)).adapters().bytes();
    let model = load(name, &LoadOptions { adapter_memory: bytes + two - 1, ..options(Vec::new(), false) });
    let case = &cases(name)[1];
    let loaded = |called: &str, part: &str, replace: bool| model.load_adapter(called, &adapter(name, part), replace);
    let ask = |called: &str| answer(&model, request(&model, &case.prompt, 12, model.adapters().find(called)));

    loaded("mine", "one", false).unwrap();
    assert_eq!(ask("mine").await, (case.answers["one"].tokens.clone(), 0));
    assert_eq!(
        loaded("mine", "two", false).unwrap_err().to_string(),
        "adapter \"mine\": there is one of this name already"
    );
    assert_eq!(
        loaded("other", "two", false).unwrap_err().to_string(),
        format!(
            "adapter \"other\" takes {two} bytes, and {} of the memory for adapters are left (`adapter_memory`)",
            two - 1
        )
    );
    let error = loaded("other", "none", false).unwrap_err();
    assert_eq!(error.kind(), kaito_engine::ErrorKind::Load);
    assert_eq!(model.adapters().list().len(), 1);

    drop(model.adapters().remove("mine"));
    // The request that ran with it gives its memory back a moment after its last token.
    while loaded("mine", "two", false).is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Nothing of the one that had its name before is taken from the prefix cache.
    assert_eq!(ask("mine").await, (case.answers["two"].tokens.clone(), 0));
    holds(&model, 1).await;
    // What replaces another needs room beside it, since requests may still run with that one.
    assert!(loaded("mine", "one", true).is_err());
    let roomy = load(name, &LoadOptions { adapter_memory: bytes + two, ..options(Vec::new(), false) });
    roomy.load_adapter("mine", &adapter(name, "two"), false).unwrap();
    roomy.load_adapter("mine", &adapter(name, "one"), true).unwrap();
    let replaced = request(&roomy, &case.prompt, 12, roomy.adapters().find("mine"));
    assert_eq!(answer(&roomy, replaced).await.0, case.answers["one"].tokens);
    holds(&roomy, 1).await;
}

/// Requests that run with an adapter that is replaced or unloaded end as they began, and nothing is left of it.
#[tokio::test(flavor = "multi_thread")]
async fn loading_and_unloading_under_load_leaks_nothing() {
    let name = "llama-grouped-sharded";
    let model = load(name, &LoadOptions { adapter_memory: 1 << 20, ..options(alone(name), false) });
    let cases = cases(name);
    let mut running = Vec::new();
    for round in 0..40 {
        let part = ["one", "two"][round % 2];
        model.load_adapter("mine", &adapter(name, part), round % 3 == 1).unwrap();
        let case = &cases[round % 2 * round / 2 % 2];
        for (variant, adapter) in [(part, model.adapters().find("mine")), ("none", None)] {
            let expected = case.answers[variant].tokens.clone();
            let (model, request) = (model.clone(), request(&model, &case.prompt, expected.len(), adapter));
            running.push(tokio::spawn(async move { assert_eq!(answer(&model, request).await.0, expected) }));
        }
        if round % 3 != 0 {
            assert!(model.adapters().remove("mine").is_some());
        }
    }
    for one in running {
        one.await.unwrap();
    }
    drop(model.adapters().remove("mine"));
    holds(&model, 3).await;
    let stats = model.stats();
    assert_eq!((stats.pages_used, stats.running, stats.waiting), (0, 0, 0));
    // All of the memory is there again.
    let error = model.load_adapter("mine", &adapter("falcon-7b-type", "one"), false).unwrap_err().to_string();
    assert!(error.contains("belongs to no matrix"), "{error}");
    model.load_adapter("mine", &adapter(name, "one"), false).unwrap();
    holds(&model, 4).await;
}
