//! Every fixture of `tests/parity`: tiny models of all families, and what the reference implementations answer for them.
//!
//! `tests/parity/generate.py` makes the fixtures. Each case is checked alone, then all cases of a model at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "parity/case.rs"]
mod case;
#[path = "parity/dialogs.rs"]
mod dialogs;
#[path = "parity/hidden_states.rs"]
mod hidden_states;
#[path = "parity/nucleus.rs"]
mod nucleus;
#[path = "parity/text_generation.rs"]
mod text_generation;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use case::Case;
use kaito_engine::{
    DType, KvDType, LanguageModel, LoadOptions,
    testing::{CPU_PAGE_SIZE, bytes_per_token},
};
use kaito_model::family;

/// Enough for the longest sequence of any case and for its beams, but for few requests at once.
const FEW_PAGES: u64 = 14;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures")
}

/// Checks one case, and says what is wrong.
async fn check(model: &LanguageModel, case: &Case) -> Result<(), String> {
    if case.is_meta() { dialogs::check(model, case).await } else { text_generation::check(model, case).await }
}

/// Checks all cases one after the other, then all at once, then all at once with so little memory that requests must wait
/// for each other's pages or lose them.
fn check_model(name: &str) {
    let directory = fixtures().join(name);
    let cases: Vec<Arc<Case>> = Case::read_all(&directory.join("cases.json")).into_iter().map(Arc::new).collect();
    let options = LoadOptions {
        threads: NonZeroUsize::new(2),
        max_seq_len: cases[0].max_seq_len(),
        max_batch_size: 256,
        max_waiting: 10_000,
        // The references compute in f32.
        dtype: Some(DType::F32),
        ..LoadOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let failures = runtime.block_on(async {
        let model = LanguageModel::load(&directory, &options, &|_| ()).unwrap();
        let mut failures = Vec::new();
        for case in &cases {
            failures.extend(check(&model, case).await.err().map(|failure| format!("{:?}: {failure}", case.name)));
        }
        failures.extend(hidden_states::check(&model, &directory, &cases).await.err());
        failures.extend(check_together(&model, &cases, "beside all others").await);
        if cases[0].is_meta() {
            let engine = nucleus::engine(&directory);
            for case in &cases {
                failures.extend(nucleus::check(&engine, case).await.err().map(|f| format!("{:?}: {f}", case.name)));
            }
        }
        assert_eq!(model.stats().pages_used, 0, "{name}: pages are still used when nothing runs");
        failures.extend(check_loaded_otherwise(&directory, options, &cases).await);
        failures
    });
    assert!(failures.is_empty(), "{name}: {} failures\n{}", failures.len(), failures.join("\n"));
}

async fn check_together(model: &LanguageModel, cases: &[Arc<Case>], how: &str) -> Vec<String> {
    let check = |case: &Arc<Case>| {
        let (model, case, how) = (model.clone(), case.clone(), how.to_owned());
        tokio::spawn(async move { check(&model, &case).await.map_err(|f| format!("{:?}, {how}: {f}", case.name)) })
    };
    let tasks: Vec<_> = cases.iter().map(check).collect();
    let mut failures = Vec::new();
    for task in tasks {
        failures.extend(task.await.unwrap().err());
    }
    failures
}

/// With few pages and a single thread, everything must come out the same.
async fn check_loaded_otherwise(directory: &Path, options: LoadOptions, cases: &[Arc<Case>]) -> Vec<String> {
    let (config, _) = family::load(directory).unwrap();
    let page_bytes = bytes_per_token(&config, KvDType::F32) * CPU_PAGE_SIZE as u64;
    let options = LoadOptions {
        threads: NonZeroUsize::new(1),
        kv_dtype: Some(KvDType::F32),
        kv_cache_memory: Some(FEW_PAGES * page_bytes),
        ..options
    };
    let model = LanguageModel::load(directory, &options, &|_| ()).unwrap();
    // Hundreds of draws at once do not fit.
    let cases: Vec<_> = cases.iter().filter(|case| !case.is_draw()).cloned().collect();
    let failures = check_together(&model, &cases, "loaded otherwise").await;
    assert_eq!(model.stats().pages_used, 0, "pages are still used when nothing runs");
    failures
}

macro_rules! models {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                check_model($name);
            }
        )*

        const NAMES: &[&str] = &[$($name),*];
    };
}

models! {
    falcon_40b_type_bf16: "falcon-40b-type-bf16",
    falcon_7b_type: "falcon-7b-type",
    falcon_rw_type: "falcon-rw-type",
    llama_bin_sharded_bf16: "llama-bin-sharded-bf16",
    llama_grouped_sharded: "llama-grouped-sharded",
    llama_multi_head: "llama-multi-head",
    llama_tied_bin_f16: "llama-tied-bin-f16",
    meta_llama_70b_type_2_shards: "meta-llama-70b-type-2-shards",
    meta_llama_7b_type: "meta-llama-7b-type",
    mistral_full_bf16: "mistral-full-bf16",
    mistral_window: "mistral-window",
    phi3_longrope: "phi3-longrope",
    phi3_su_bf16: "phi3-su-bf16",
    phi3_window: "phi3-window",
}

#[test]
fn every_fixture_is_checked() {
    let found: BTreeSet<String> =
        fixtures().read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, NAMES.iter().map(|name| (*name).to_owned()).collect());
}
