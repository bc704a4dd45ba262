//! Adapters that PEFT wrote (`tests/parity/adapters.py`), and what is refused of those that others might.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use kaito_kernels::DType;
use kaito_model::{
    adapter::{AdapterWeights, LowRank},
    checkpoint::CheckpointError,
    config::{LinearKind, ModelConfig},
    family,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const MODEL: &str = "llama-grouped-sharded";
const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
const Q_PROJ: &str = "base_model.model.model.layers.0.self_attn.q_proj";

fn parity(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity").join(part)
}

fn config(model: &str) -> ModelConfig {
    family::load(&parity("fixtures").join(model)).unwrap().0
}

fn adapter(model: &str, adapter: &str) -> PathBuf {
    parity("adapters").join(model).join(adapter)
}

/// A tensor of a safetensors file.
#[derive(Clone)]
struct Entry {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Entry {
    fn zeros(name: &str, shape: &[usize]) -> Self {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        Self { name: name.to_owned(), dtype: "F32", shape: shape.to_vec(), bytes }
    }
}

fn read(dir: &Path) -> Vec<Entry> {
    let file = fs::read(dir.join(WEIGHTS)).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let entry = |(name, value): (String, Value)| {
        let offsets: (usize, usize) = serde_json::from_value(value["data_offsets"].clone()).unwrap();
        assert_eq!(value["dtype"], "F32");
        Entry {
            name,
            dtype: "F32",
            shape: serde_json::from_value(value["shape"].clone()).unwrap(),
            bytes: file[8 + length + offsets.0..8 + length + offsets.1].to_vec(),
        }
    };
    header.into_iter().filter(|(name, _)| name != "__metadata__").map(entry).collect()
}

fn write(dir: &Path, entries: &[Entry]) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for Entry { name, dtype, shape, bytes } in entries {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
        data.extend_from_slice(bytes);
    }
    let header = Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(dir.join(WEIGHTS), [&length[..], header.as_bytes(), &data].concat()).unwrap();
}

fn copy() -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    for file in [CONFIG, WEIGHTS] {
        fs::copy(adapter(MODEL, "one").join(file), temp.path().join(file)).unwrap();
    }
    temp
}

fn edit_config(dir: &Path, key: &str, value: Value) {
    let path = dir.join(CONFIG);
    let mut config: Map<String, Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config.insert(key.to_owned(), value);
    fs::write(path, Value::Object(config).to_string()).unwrap();
}

fn edit_weights(dir: &Path, edit: impl FnOnce(&mut Vec<Entry>)) {
    let mut entries = read(dir);
    edit(&mut entries);
    write(dir, &entries);
}

fn renamed(dir: &Path, from: &str, to: &str) {
    edit_weights(dir, |entries| entries.iter_mut().for_each(|entry| entry.name = entry.name.replace(from, to)));
}

fn set(key: &'static str, value: Value) -> Box<dyn Fn(&Path)> {
    Box::new(move |dir| edit_config(dir, key, value.clone()))
}

fn with(name: &'static str) -> Box<dyn Fn(&Path)> {
    Box::new(move |dir| edit_weights(dir, |entries| entries.push(Entry::zeros(name, &[2, 64]))))
}

/// What is done to an adapter's folder.
type Change = Box<dyn Fn(&Path)>;

fn change(edit: impl Fn(&Path) + 'static) -> Change {
    Box::new(edit)
}

#[test]
fn each_fault_is_named() {
    let model = config(MODEL);
    let faults: Vec<(Change, &str)> = vec![
        (
            change(|dir| fs::remove_file(dir.join(CONFIG)).unwrap()),
            "{dir} holds no adapter: there is no adapter_config.json",
        ),
        (
            change(|dir| fs::remove_file(dir.join(WEIGHTS)).unwrap()),
            "{dir} holds no adapter: there is no adapter_model.safetensors or adapter_model.bin",
        ),
        (
            change(|dir| fs::write(dir.join(CONFIG), "{").unwrap()),
            "{config}: not valid JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            change(|dir| fs::write(dir.join(WEIGHTS), "short").unwrap()),
            "{weights}: the file is truncated: expected 8 bytes, has 5",
        ),
        (set("peft_type", json!("LOHA")), "{config}: peft_type is \"LOHA\", expected LORA"),
        (set("bias", json!("lora_only")), "{config}: bias is \"lora_only\", expected none"),
        (set("use_dora", json!(true)), "{config}: use_dora is true, expected none: DoRA is not supported"),
        (
            set("fan_in_fan_out", json!(true)),
            "{config}: fan_in_fan_out is true, expected none: the models here store no transposed matrices",
        ),
        (
            set("modules_to_save", json!(["lm_head"])),
            "{config}: modules_to_save is [\"lm_head\"], expected none: whole modules in adapters are not supported",
        ),
        (
            set("layer_replication", json!([[0, 3], [1, 3]])),
            "{config}: layer_replication is [[0,3],[1,3]], expected none: adapters that repeat layers are not supported",
        ),
        (
            set("lora_bias", json!(true)),
            "{config}: lora_bias is true, expected none: biases in adapters are not supported",
        ),
        (
            set("target_parameters", json!(["experts.down_proj"])),
            "{config}: target_parameters is [\"experts.down_proj\"], expected none: adapters of parameters that are no linear maps are \
             not supported",
        ),
        (
            set("arrow_config", json!({ "top_k": 2 })),
            "{config}: arrow_config is {\"top_k\":2}, expected none: routing among adapters (Arrow) is not supported",
        ),
        (
            set("kasa_config", json!({ "beta": 1 })),
            "{config}: kasa_config is {\"beta\":1}, expected none: KaSA is not supported",
        ),
        (
            set("monteclora_config", json!({ "samples": 4 })),
            "{config}: monteclora_config is {\"samples\":4}, expected none: MonteCLoRA is not supported",
        ),
        (
            set("use_bdlora", json!({ "nblocks": 2 })),
            "{config}: use_bdlora is {\"nblocks\":2}, expected none: block-diagonal adapters (BD-LoRA) are not supported",
        ),
        (
            set("init_lora_weights", json!("pissa")),
            "{config}: init_lora_weights is \"pissa\", expected a beginning that leaves the model's weights as they are: adapters \
             that change them must be converted when they are saved",
        ),
        (set("r", json!(0)), "{config}: r is 0, expected a whole number from 1 to 4096"),
        (set("r", json!(1_000_000)), "{config}: r is 1000000, expected a whole number from 1 to 4096"),
        (set("r", Value::Null), "{config}: r is missing, expected a whole number from 1 to 4096"),
        (
            set("lora_alpha", json!("16")),
            "{config}: lora_alpha is \"16\", expected a number from -1000000000 to 1000000000",
        ),
        (
            set("lora_alpha", json!(1e300)),
            "{config}: lora_alpha is 1e+300, expected a number from -1000000000 to 1000000000",
        ),
        (
            change(|dir| {
                let text = fs::read_to_string(dir.join(CONFIG)).unwrap();
                fs::write(dir.join(CONFIG), text.replace("\"lora_alpha\": 4", "\"lora_alpha\": NaN")).unwrap();
            }),
            "{config}: lora_alpha is NaN, expected a number from -1000000000 to 1000000000",
        ),
        (set("use_rslora", json!("yes")), "{config}: use_rslora is \"yes\", expected true or false"),
        (set("rank_pattern", json!([])), "{config}: rank_pattern is [], expected an object"),
        (
            set("rank_pattern", json!({ "q_proj": -1 })),
            "{config}: rank_pattern.q_proj is -1, expected a whole number from 1 to 4096",
        ),
        (
            set("alpha_pattern", json!({ "(q_proj": 1 })),
            "{config}: alpha_pattern.(q_proj is 1, expected under a regular expression",
        ),
        (
            set("alpha_pattern", json!({ "(.{1000}){1000}": 1 })),
            "{config}: alpha_pattern.(.{1000}){1000} is 1, expected under a regular expression",
        ),
        (
            set("rank_pattern", Value::Object((0..65).map(|i| (format!("[{i}]"), json!(1))).collect())),
            "{config}: rank_pattern is more, expected at most 16384 patterns, 64 of them more than names",
        ),
        (
            set("rank_pattern", json!({ "layers.0.self_attn.q_proj": 5 })),
            "{weights}: tensor base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight has shape [2, 64], expected [5, 64]",
        ),
        (
            change(|dir| edit_weights(dir, Vec::clear)),
            "{weights}: tensor lora_A.weight is nowhere: the file holds no tensors",
        ),
        (
            change(|dir| edit_weights(dir, |entries| entries.retain(|e| e.name != format!("{Q_PROJ}.lora_B.weight")))),
            "{weights} holds no tensor base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight (expected shape [64, 2])",
        ),
        (
            change(|dir| {
                edit_weights(dir, |entries| {
                    let entry = entries.iter_mut().find(|e| e.name == format!("{Q_PROJ}.lora_B.weight")).unwrap();
                    *entry = Entry::zeros(&entry.name, &[32, 2]);
                });
            }),
            "{weights}: tensor base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight has shape [32, 2], expected [64, 2]",
        ),
        (
            change(|dir| edit_weights(dir, |entries| entries[0].dtype = "I32")),
            "{weights}: tensor base_model.model.model.layers.0.mlp.down_proj.lora_A.weight has element type I32, expected F32, BF16 or \
             F16",
        ),
        (
            change(|dir| edit_weights(dir, |entries| entries[0].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes()))),
            "{weights}: tensor base_model.model.model.layers.0.mlp.down_proj.lora_A.weight holds NaN",
        ),
        (
            change(|dir| renamed(dir, "layers.2.", "layers.3.")),
            "{weights}: tensor base_model.model.model.layers.3.mlp.down_proj.lora_A.weight belongs to layer 3, but the model's 3 layers \
             end at 2",
        ),
        (
            change(|dir| renamed(dir, "o_proj", "dense")),
            "{weights}: tensor base_model.model.model.layers.0.self_attn.dense.lora_A.weight belongs to no matrix of a llama model's \
             layers; those have q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        ),
        (
            change(|dir| renamed(dir, "base_model.model.", "")),
            "{weights}: tensor model.layers.0.mlp.down_proj.lora_A.weight does not begin with base_model.model.",
        ),
        (
            with("base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight"),
            "{weights}: tensor base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight is neither a lora_A.weight nor a \
             lora_B.weight",
        ),
        (
            with("base_model.model.layers.0.self_attn.q_proj.lora_A.weight"),
            "{weights}: tensor base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight belongs to the same matrix as those of \
             layers.0.self_attn.q_proj",
        ),
        (
            with("base_model.model.lm_head.lora_A.weight"),
            "{weights}: tensor base_model.model.lm_head.lora_A.weight is an adapter of the embedding or the output head, which is not \
             supported",
        ),
        (
            with("base_model.model.model.embed_tokens.lora_embedding_A"),
            "{weights}: tensor base_model.model.model.embed_tokens.lora_embedding_A is an adapter of the embedding, which is not supported",
        ),
        (
            with("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"),
            "{weights}: tensor base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector belongs to DoRA (use_dora), which \
             is not supported",
        ),
        (
            with("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias"),
            "{weights}: tensor base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias is a bias of an adapter (lora_bias), which is \
             not supported",
        ),
    ];
    let mut wrong = Vec::new();
    for (edit, expected) in faults {
        let temp = copy();
        let dir = temp.path();
        AdapterWeights::open(dir, &model).unwrap();
        edit(dir);
        let found = match AdapterWeights::open(dir, &model) {
            Ok(_) => "(read)".to_owned(),
            Err(error) => error.to_string(),
        };
        let path = |file: &str| dir.join(file).display().to_string();
        let found = found.replace(&path(CONFIG), "{config}").replace(&path(WEIGHTS), "{weights}");
        let found = found.replace(dir.to_str().unwrap(), "{dir}");
        if found != expected {
            wrong.push(format!("expected {expected}\n  got    {found}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_adapter_of_another_models_shape_is_refused() {
    let error = AdapterWeights::open(&adapter("falcon-7b-type", "one"), &config(MODEL)).unwrap_err().to_string();
    assert!(error.contains("belongs to no matrix of a llama model's layers"), "{error}");
}

fn term(weights: &AdapterWeights, layer: usize, kind: LinearKind, offset: usize) -> &LowRank {
    let mut found =
        weights.terms.iter().filter(|term| (term.layer, term.kind, term.output_offset) == (layer, kind, offset));
    let term = found.next().unwrap();
    assert!(found.next().is_none());
    term
}

/// `two` has rank 3 and alpha 3 with rslora; rank 2 for `v_proj`, and alpha 5 for what `1\.\w+\.q_proj` matches.
#[test]
fn ranks_and_scales_are_those_of_the_patterns() {
    let model = config(MODEL);
    let weights = AdapterWeights::open(&adapter(MODEL, "two"), &model).unwrap();
    let (query, value) = (0, model.layer.attention.query_width() + model.layer.attention.kv_width());
    let expected = |alpha: f64, rank: f64| (alpha / rank.sqrt()) as f32;
    for (layer, kind, offset, rank, scale) in [
        (0, LinearKind::Qkv, query, 3, expected(3.0, 3.0)),
        (1, LinearKind::Qkv, query, 3, expected(5.0, 3.0)),
        (2, LinearKind::Qkv, query, 3, expected(3.0, 3.0)),
        (1, LinearKind::Qkv, value, 2, expected(3.0, 2.0)),
        (1, LinearKind::MlpOut, 0, 3, expected(3.0, 3.0)),
    ] {
        let term = term(&weights, layer, kind, offset);
        assert_eq!((term.rank(), term.scale), (rank, scale), "{layer} {kind:?} {offset}");
    }
    assert_eq!(weights.terms.len(), 9);
    assert_eq!(weights.rank(), 3);
    // Q, V and down of three layers: 3 x 64 and 64 x 3, 2 x 64 and 16 x 2, 3 x 112 and 64 x 3, in 16 bits.
    assert_eq!(weights.bytes(), 3 * 2 * (2 * 3 * 64 + 2 * 64 + 2 * 16 + 3 * 112 + 3 * 64));
}

/// Numbers of 16 bits stay so, and are those that 32 bits would have.
#[test]
fn matrices_keep_the_element_type_of_their_file() {
    let (model, temp) = (config(MODEL), copy());
    // Every number with the bits that bf16 has, first in 32 and then in 16 of them.
    edit_weights(temp.path(), |entries| {
        entries.iter_mut().for_each(|entry| entry.bytes.chunks_exact_mut(4).for_each(|bytes| bytes[..2].fill(0)));
    });
    let wide = AdapterWeights::open(temp.path(), &model).unwrap();
    edit_weights(temp.path(), |entries| {
        for entry in entries {
            entry.dtype = "BF16";
            entry.bytes = entry.bytes.chunks_exact(4).flat_map(|bytes| [bytes[2], bytes[3]]).collect();
        }
    });
    let narrow = AdapterWeights::open(temp.path(), &model).unwrap();
    assert_eq!(wide.bytes(), 2 * narrow.bytes());
    assert_eq!(wide.terms.len(), narrow.terms.len());
    for (wide, narrow) in wide.terms.iter().zip(&narrow.terms) {
        assert_eq!((narrow.down.dtype(), narrow.up.dtype()), (DType::Bf16, DType::Bf16));
        assert!(wide.down.to_f32() == narrow.down.to_f32() && wide.up.to_f32() == narrow.up.to_f32());
    }
    let bytes = narrow.bytes();
    assert!(AdapterWeights::open_within(temp.path(), &model, bytes).is_ok());
    let error = AdapterWeights::open_within(temp.path(), &model, bytes - 1).unwrap_err();
    assert!(matches!(error, CheckpointError::AdapterTooLarge { found, .. } if found == bytes), "{error}");
}

/// A base class saves without the prefix of its own.
#[test]
fn the_prefix_of_the_base_may_be_left_out() {
    let (model, temp) = (config(MODEL), copy());
    let plain = AdapterWeights::open(temp.path(), &model).unwrap();
    renamed(temp.path(), "base_model.model.model.", "base_model.model.");
    let bare = AdapterWeights::open(temp.path(), &model).unwrap();
    assert_eq!(plain.terms.len(), bare.terms.len());
    for (plain, bare) in plain.terms.iter().zip(&bare.terms) {
        assert_eq!((plain.down.bytes(), plain.up.bytes()), (bare.down.bytes(), bare.up.bytes()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever bytes change, the files are read or refused.
    #[test]
    fn damaged_bytes_are_read_or_refused(
        in_config in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        kept in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let (model, temp) = (config(MODEL), copy());
        let path = temp.path().join(if in_config { CONFIG } else { WEIGHTS });
        let mut bytes = fs::read(&path).unwrap();
        // What describes the tensors is a small part of the file.
        let described = bytes.len().min(2500);
        for (at, byte) in changes {
            bytes[at.index(described)] = byte;
        }
        if cut {
            bytes.truncate(kept.index(bytes.len()));
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(weights) = AdapterWeights::open(temp.path(), &model) {
            prop_assert!(weights.terms.iter().all(|term| term.scale.is_finite() && term.rank() > 0));
        }
    }
}
