//! Checkpoints that transformers, safetensors and torch wrote (`fixtures/checkpoint/make.py`), read by our readers.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use kaito_model::{
    checkpoint::{Checkpoint, CheckpointError, Tensor, TensorSet},
    config::{
        AttentionSpec, DialogFormat, LayerSpec, Mlp, MlpSpec, ModelConfig, Norm, Positions, QkvOrder, Residual, Rope,
        RopePairing, RopeScaling,
    },
    family,
    weights::{Linear, ModelWeights, NormWeights},
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoint").join(name)
}

/// A tensor as torch itself saw it.
#[derive(serde::Deserialize)]
struct Expected {
    shape: Vec<usize>,
    dtype: String,
    first: Vec<f64>,
    last: Vec<f64>,
}

fn expected(name: &str) -> BTreeMap<String, Expected> {
    serde_json::from_slice(&std::fs::read(fixture(name).join("expected.json")).unwrap()).unwrap()
}

#[track_caller]
fn check_elements(name: &str, elements: &[f32], expected: &Expected) {
    assert_eq!(elements.len(), expected.shape.iter().product::<usize>(), "{name}");
    let elements: Vec<f64> = elements.iter().map(|&e| e.into()).collect();
    let edge = expected.first.len();
    assert_eq!(elements[..edge], expected.first, "{name}");
    assert_eq!(elements[elements.len() - edge..], expected.last, "{name}");
}

fn check_tensor(tensor: &Tensor, expected: &Expected) {
    let name = tensor.name();
    let dtype = match tensor.dtype().to_string().as_str() {
        "f32" => "float32",
        "bf16" => "bfloat16",
        _ => "float16",
    };
    assert_eq!((tensor.shape(), dtype), (expected.shape.as_slice(), expected.dtype.as_str()), "{name}");
    check_elements(name, &tensor.to_f32(), expected);
}

/// Every matrix, norm and bias of a model with the name that its family gives it.
fn check_weights(fixture_name: &str, weights: &ModelWeights, layer: &LayerNames, outside: [&str; 3]) {
    let expected = expected(fixture_name);
    let mut seen = BTreeSet::new();
    let mut linear = |linear: &Linear, names: &[String]| {
        assert_eq!(linear.parts.len(), names.len(), "{names:?}");
        let mut biases = Vec::new();
        let mut rows = 0;
        for (part, name) in linear.parts.iter().zip(names) {
            let weight = format!("{name}.weight");
            assert_eq!(part.weight.name(), weight);
            assert_eq!((part.output_offset, part.input_offset), (rows, 0), "{name}");
            assert!(part.weight.plain().unwrap().is_mapped(), "{name} was copied");
            check_tensor(part.weight.plain().unwrap(), &expected[&weight]);
            rows += part.weight.plain().unwrap().shape()[0];
            seen.insert(weight);
            if linear.bias.is_some() {
                let bias = format!("{name}.bias");
                biases.push(&expected[&bias]);
                seen.insert(bias);
            }
        }
        assert_eq!(linear.out_features, rows);
        let mut bias = linear.bias.as_deref().unwrap_or_default();
        for expected in biases {
            let (head, rest) = bias.split_at(expected.shape[0]);
            check_elements("bias", head, expected);
            bias = rest;
        }
        assert!(bias.is_empty());
    };
    let [embedding, final_norm, head] = outside.map(str::to_owned);
    linear(&weights.embedding, &[embedding]);
    linear(&weights.head, &[head]);
    let mut norms = vec![(final_norm, &weights.final_norm)];
    for (number, weights) in weights.layers.iter().enumerate() {
        let name = |name: &&str| format!("{}{number}.{name}", layer.prefix);
        let names = |names: &[&str]| names.iter().map(name).collect::<Vec<_>>();
        linear(&weights.qkv, &names(layer.qkv));
        linear(&weights.attention_output, &names(&[layer.attention_output]));
        linear(&weights.mlp_in, &names(layer.mlp_in));
        linear(&weights.mlp_out, &names(&[layer.mlp_out]));
        let attention_norm = (name(&layer.norms[0]), &weights.attention_norm);
        let mlp_norm = layer.norms.get(1).map(|norm| (name(norm), weights.mlp_norm.as_ref().unwrap()));
        norms.extend([attention_norm].into_iter().chain(mlp_norm));
    }
    for (name, NormWeights { weight, bias }) in norms {
        let (weight_name, bias_name) = (format!("{name}.weight"), format!("{name}.bias"));
        check_elements(&name, weight, &expected[&weight_name]);
        seen.insert(weight_name);
        if let Some(bias) = bias {
            check_elements(&name, bias, &expected[&bias_name]);
            seen.insert(bias_name);
        }
    }
    // A tied head is in torch's state, but not in the file.
    let all: BTreeSet<String> =
        expected.into_keys().filter(|name| outside[2] == "lm_head" || name != "lm_head.weight").collect();
    assert_eq!(seen, all, "{fixture_name}: weights that the model does not use, or the other way round");
}

struct LayerNames {
    prefix: &'static str,
    norms: &'static [&'static str],
    qkv: &'static [&'static str],
    attention_output: &'static str,
    mlp_in: &'static [&'static str],
    mlp_out: &'static str,
}

const LLAMA: LayerNames = LayerNames {
    prefix: "model.layers.",
    norms: &["input_layernorm", "post_attention_layernorm"],
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    attention_output: "self_attn.o_proj",
    mlp_in: &["mlp.gate_proj", "mlp.up_proj"],
    mlp_out: "mlp.down_proj",
};
const PHI3: LayerNames = LayerNames { qkv: &["self_attn.qkv_proj"], mlp_in: &["mlp.gate_up_proj"], ..LLAMA };
const FALCON: LayerNames = LayerNames {
    prefix: "transformer.h.",
    norms: &["input_layernorm"],
    qkv: &["self_attention.query_key_value"],
    attention_output: "self_attention.dense",
    mlp_in: &["mlp.dense_h_to_4h"],
    mlp_out: "mlp.dense_4h_to_h",
};

fn rope(theta: f64, pairing: RopePairing, scaling: RopeScaling) -> Positions {
    Positions::Rotary(Rope { theta, width: 4, pairing, scaling })
}

fn base() -> ModelConfig {
    ModelConfig {
        family: "llama",
        vocab_size: 24,
        hidden_size: 16,
        num_layers: 2,
        layer: LayerSpec {
            attention: AttentionSpec {
                num_heads: 4,
                num_kv_heads: 2,
                head_dim: 4,
                soft_cap: None,
                query_key_norm: None,
                scale: 0.5,
                sliding_window: None,
                qkv_order: QkvOrder::Blocks,
                qkv_bias: false,
                output_bias: false,
            },
            mlp: MlpSpec { kind: Mlp::SwiGlu, width: 20, bias: false },
            norm: Norm::Rms { eps: 1e-5 },
            residual: Residual::Sequential,
        },
        final_norm: Norm::Rms { eps: 1e-5 },
        positions: rope(1e4, RopePairing::Halves, RopeScaling::None),
        max_position_embeddings: 64,
        dialog_format: Some(DialogFormat::Llama2),
    }
}

/// With all its norms of another kind.
fn with_norm(config: ModelConfig, norm: Norm) -> ModelConfig {
    ModelConfig { layer: LayerSpec { norm, ..config.layer }, final_norm: norm, ..config }
}

/// With another number of key-value heads.
fn with_kv_heads(config: ModelConfig, num_kv_heads: usize, qkv_order: QkvOrder) -> ModelConfig {
    let attention = AttentionSpec { num_kv_heads, qkv_order, ..config.layer.attention };
    ModelConfig { layer: LayerSpec { attention, ..config.layer }, ..config }
}

/// Another family that keeps to Llama's form.
fn llama_like(family: &'static str) -> ModelConfig {
    ModelConfig { family, dialog_format: None, ..base() }
}

/// With a bias in each linear map of its layers.
fn with_biases(mut config: ModelConfig) -> ModelConfig {
    config.layer.attention.qkv_bias = true;
    config.layer.attention.output_bias = true;
    config.layer.mlp.bias = true;
    config
}

fn falcon(residual: Residual, mlp_width: usize) -> ModelConfig {
    let attention = AttentionSpec { num_kv_heads: 1, ..base().layer.attention };
    let mlp = MlpSpec { kind: Mlp::Gelu, width: mlp_width, bias: false };
    let layer = LayerSpec { attention, mlp, residual, ..base().layer };
    with_norm(ModelConfig { layer, ..llama_like("falcon") }, Norm::Layer { eps: 1e-5 })
}

#[test]
fn families_as_transformers_saves_them() {
    let rope = |theta, scaling| rope(theta, RopePairing::Halves, scaling);
    let llama_outside = ["model.embed_tokens", "model.norm", "lm_head"];
    let llama_tied = ["model.embed_tokens", "model.norm", "model.embed_tokens"];
    let falcon_tied = ["transformer.word_embeddings", "transformer.ln_f", "transformer.word_embeddings"];
    let cases = [
        (
            "llama",
            ModelConfig { positions: rope(1e4, RopeScaling::Linear { factor: 2.0 }), ..with_biases(base()) },
            LLAMA,
            llama_outside,
        ),
        (
            "llama-tied",
            {
                let mut config = with_norm(with_kv_heads(base(), 4, QkvOrder::Blocks), Norm::Rms { eps: 1e-6 });
                config.layer.attention.head_dim = 6;
                config.layer.attention.scale = 1.0 / 6f32.sqrt();
                let pairing = RopePairing::Halves;
                config.positions =
                    Positions::Rotary(Rope { theta: 1e4, width: 6, pairing, scaling: RopeScaling::None });
                config
            },
            LLAMA,
            llama_tied,
        ),
        (
            "mistral",
            with_norm(
                ModelConfig { positions: rope(1e6, RopeScaling::None), ..llama_like("mistral") },
                Norm::Rms { eps: 1e-6 },
            ),
            LLAMA,
            llama_outside,
        ),
        ("falcon-7b", falcon(Residual::ParallelSharedNorm, 64), FALCON, falcon_tied),
        (
            "falcon-40b",
            with_kv_heads(falcon(Residual::Parallel, 24), 2, QkvOrder::Groups),
            LayerNames { norms: &["ln_attn", "ln_mlp"], ..FALCON },
            falcon_tied,
        ),
        (
            "falcon-heads",
            with_biases(with_kv_heads(falcon(Residual::Sequential, 64), 4, QkvOrder::Groups)),
            LayerNames { norms: &["input_layernorm", "post_attention_layernorm"], ..FALCON },
            falcon_tied,
        ),
        (
            "phi3",
            {
                let mut config = with_kv_heads(llama_like("phi3"), 4, QkvOrder::Blocks);
                config.layer.attention.sliding_window = Some(7);
                config
            },
            PHI3,
            llama_outside,
        ),
        (
            "phi3-long",
            ModelConfig {
                positions: rope(
                    1e4,
                    RopeScaling::LongRope {
                        short_factor: vec![1.0, 1.25],
                        long_factor: vec![2.0, 4.5],
                        original_max_position_embeddings: 16,
                        // sqrt(1 + ln(64 / 16) / ln(16))
                        attention_factor: 1.5f64.sqrt(),
                    },
                ),
                ..with_kv_heads(llama_like("phi3"), 4, QkvOrder::Blocks)
            },
            PHI3,
            llama_outside,
        ),
    ];
    for (name, expected, layer, outside) in cases {
        let (config, weights) = family::load(&fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(config, expected, "{name}");
        check_weights(name, &weights, &layer, outside);
    }
}

/// The whole matrix that a [`Linear`] stands for.
fn dense(linear: &Linear) -> Vec<f32> {
    let mut matrix = vec![0.0; linear.out_features * linear.in_features];
    for part in &linear.parts {
        let &[rows, cols] = part.weight.plain().unwrap().shape() else { panic!("{:?}", part.weight) };
        let elements = part.weight.plain().unwrap().to_f32();
        for row in 0..rows {
            let start = (part.output_offset + row) * linear.in_features + part.input_offset;
            for (sum, element) in matrix[start..start + cols].iter_mut().zip(&elements[row * cols..]) {
                *sum += element;
            }
        }
    }
    matrix
}

#[test]
fn metas_shards_add_up_to_the_whole_model() {
    for (name, ranks, theta) in [("meta-1", 1, 1e4), ("meta-2", 2, 1e6)] {
        let (config, weights) = family::load(&fixture(name)).unwrap();
        let positions = rope(theta, RopePairing::Interleaved, RopeScaling::None);
        // The inner width is int(2 * 4 * 16 / 3) = 42, rounded up to a multiple of 16.
        let mut expected = ModelConfig { max_position_embeddings: 4096, positions, ..base() };
        expected.layer.mlp.width = 48;
        assert_eq!(config, expected, "{name}");
        let whole = whole(name);
        let matrix = |names: &[&str]| -> Vec<f32> { names.iter().flat_map(|name| whole(name)).collect() };
        let check = |linear: &Linear, matrices: usize, names: &[&str]| {
            assert_eq!(linear.parts.len(), ranks * matrices, "{names:?}");
            assert!(linear.parts.iter().all(|part| part.weight.plain().unwrap().is_mapped()), "{names:?}");
            assert_eq!(dense(linear), matrix(names), "{names:?}");
        };
        check(&weights.embedding, 1, &["tok_embeddings.weight"]);
        check(&weights.head, 1, &["output.weight"]);
        assert_eq!(weights.final_norm.weight, matrix(&["norm.weight"]));
        assert_eq!(weights.layers.len(), 2);
        for (number, layer) in weights.layers.iter().enumerate() {
            let name = |name: &str| format!("layers.{number}.{name}.weight");
            let [q, k, v, o] = ["wq", "wk", "wv", "wo"].map(|w| name(&format!("attention.{w}")));
            let [gate, down, up] = ["w1", "w2", "w3"].map(|w| name(&format!("feed_forward.{w}")));
            check(&layer.qkv, 3, &[&q, &k, &v]);
            check(&layer.attention_output, 1, &[&o]);
            check(&layer.mlp_in, 2, &[&gate, &up]);
            check(&layer.mlp_out, 1, &[&down]);
            assert_eq!(layer.attention_norm.weight, matrix(&[&name("attention_norm")]));
            assert_eq!(layer.mlp_norm.as_ref().unwrap().weight, matrix(&[&name("ffn_norm")]));
        }
    }
}

/// Reads a tensor of the uncut model, which the safetensors library saved.
fn whole(fixture_name: &str) -> impl Fn(&str) -> Vec<f32> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture(fixture_name).join("whole.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let set = hugging_face(dir.path());
    move |name| set.tensor(name, set.shape(name).unwrap()).unwrap().to_f32()
}

fn hugging_face(dir: &Path) -> TensorSet {
    match Checkpoint::open(dir).unwrap() {
        Checkpoint::HuggingFace(set) => set,
        Checkpoint::Meta(_) | Checkpoint::Gguf(_) => panic!("another layout"),
    }
}

fn torch_file(name: &str) -> Result<TensorSet, CheckpointError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("torch").join(name), dir.path().join("pytorch_model.bin")).unwrap();
    match Checkpoint::open(dir.path())? {
        Checkpoint::HuggingFace(set) => Ok(set),
        Checkpoint::Meta(_) | Checkpoint::Gguf(_) => panic!("another layout"),
    }
}

#[test]
fn views_of_shared_storages_are_read_in_place_where_they_can_be() {
    let copied = ["every_other", "columns", "transposed"];
    for file in ["views.pth", "protocol4.pth"] {
        let set = torch_file(file).unwrap();
        let expected = expected("torch");
        assert_eq!(set.names().collect::<BTreeSet<_>>(), expected.keys().map(String::as_str).collect(), "{file}");
        for (name, expected) in &expected {
            let tensor = set.tensor(name, &expected.shape);
            if ["int64", "bool", "float64"].contains(&expected.dtype.as_str()) {
                assert!(matches!(tensor, Err(CheckpointError::ElementType { .. })), "{name}");
                continue;
            }
            let tensor = tensor.unwrap();
            check_tensor(&tensor, expected);
            assert_eq!(tensor.is_mapped(), !copied.contains(&name.as_str()), "{name}");
        }
        let transposed: Vec<f32> = (0..24).map(|i| (i % 4 * 6 + i / 4) as f32).collect();
        assert_eq!(set.tensor("transposed", &[6, 4]).unwrap().to_f32(), transposed);
    }
}

#[test]
fn a_modules_state_with_its_metadata() {
    let set = torch_file("module.pth").unwrap();
    assert_eq!(set.tensor("weight", &[2, 3]).unwrap().to_f32(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(set.tensor("bias", &[2]).unwrap().to_f32(), [0.5, -0.5]);
}

#[test]
fn other_files_of_torch_are_refused_by_name() {
    let cases = [
        (
            "legacy.pth",
            "written in the format of PyTorch before 1.6; convert it once with \
             torch.save(torch.load(path, map_location=\"cpu\"), path) under a newer PyTorch",
        ),
        ("script.pth", "a TorchScript archive, which holds a program; save its state_dict() instead"),
        ("list.pth", "the pickle holds no dictionary of tensors"),
        (
            "module_object.pth",
            "the pickle names torch.nn.modules.linear.Linear, which is refused: only tensors and dictionaries of them \
             are read",
        ),
        ("evil.pth", "the pickle names posix.system, which is refused: only tensors and dictionaries of them are read"),
        ("repeated.pth", "tensor repeated: shape [1000] with strides [0] repeats elements of its storage"),
        (
            "compressed.pth",
            "zip entry views/byteorder: is compressed (method 8); weights are used in place, so they must be stored \
             uncompressed",
        ),
    ];
    for (file, expected) in cases {
        let Err(error) = torch_file(file) else { panic!("{file} was read") };
        let message = error.to_string();
        let (path, reason) = message.split_once(": ").unwrap();
        assert!(path.ends_with("pytorch_model.bin"), "{message}");
        assert_eq!(reason, expected, "{file}");
    }
}
