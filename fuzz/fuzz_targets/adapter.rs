//! A file of an adapter (LoRA) of any bytes: an error, or matrices that fit the model. What begins as JSON is its configuration, with its
//! weights behind a zero byte if there is one; anything else is its weights. What is not given is that of an adapter by PEFT.
#![no_main]
#![allow(clippy::expect_used, reason = "without its files there is nothing to fuzz")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::OnceLock,
};

use kaito_model::{adapter::AdapterWeights, config::ModelConfig, family};
use libfuzzer_sys::fuzz_target;

/// Most bytes that the matrices may take.
const LIMIT: u64 = 64 << 20;

struct Sound {
    model: ModelConfig,
    config: Vec<u8>,
    weights: Vec<u8>,
    /// Where files are written: the reader maps them.
    folder: PathBuf,
}

fn sound() -> &'static Sound {
    static SOUND: OnceLock<Sound> = OnceLock::new();
    SOUND.get_or_init(|| {
        let parity = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity");
        let model =
            family::describe(&parity.join("fixtures/llama-grouped-sharded")).expect("the model's configuration");
        let read = |name: &str| fs::read(parity.join("adapters/llama-grouped-sharded/one").join(name)).expect(name);
        Sound {
            model: model.config,
            config: read("adapter_config.json"),
            weights: read("adapter_model.safetensors"),
            folder: env::temp_dir().join(format!("kaito-fuzz-adapter-{}", process::id())),
        }
    })
}

fuzz_target!(|file: &[u8]| {
    let Sound { model, config, weights, folder } = sound();
    let (config, weights) = match file.first() {
        Some(b'{') => match file.iter().position(|byte| *byte == 0) {
            Some(end) => (&file[..end], &file[end + 1..]),
            None => (file, weights.as_slice()),
        },
        _ => (config.as_slice(), file),
    };
    fs::create_dir_all(folder).expect("a folder for temporary files");
    fs::write(folder.join("adapter_config.json"), config).expect("room for the configuration");
    fs::write(folder.join("adapter_model.safetensors"), weights).expect("room for the weights");
    let opened = AdapterWeights::open_within(folder, model, LIMIT);
    fs::remove_dir_all(folder).expect("what was written can be removed");

    let Ok(adapter) = opened else { return };
    assert!(!adapter.terms.is_empty() && adapter.bytes() <= LIMIT, "{} bytes", adapter.bytes());
    let linears = model.layer.linears(model.hidden_size);
    for term in &adapter.terms {
        let linear = linears.iter().find(|linear| linear.kind == term.kind).expect("a linear map of the layers");
        assert!(term.layer < model.num_layers && term.scale.is_finite(), "{term:?}");
        assert!(term.output_offset + term.outputs <= linear.out_features, "{term:?}");
        assert_eq!(term.down.shape(), [term.rank(), linear.in_features], "{term:?}");
        // In panels, the last of which may have more rows than there are.
        assert!(term.up.elements() >= term.outputs * term.rank(), "{term:?}");
        let is_finite = |value: &f32| value.is_finite();
        assert!(term.down.to_f32().iter().all(is_finite) && term.up.to_f32().iter().all(is_finite), "{term:?}");
    }
});
