//! Model directories with one thing wrong, and the sentence that each of them gets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use kaito_engine::family;
use serde_json::{Value, json};

struct Case {
    name: &'static str,
    /// The sound directory to start from.
    fixture: &'static str,
    damage: fn(&Path),
    /// The whole message; `{dir}` is the directory.
    expected: &'static str,
}

#[test]
fn each_damage_is_named() {
    let mut wrong = Vec::new();
    for case in WEIGHT_FILES.iter().chain(TORCH_FILES).chain(CONFIGURATIONS) {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("model");
        fs::create_dir(&dir).unwrap();
        for entry in fs::read_dir(fixture(case.fixture)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
        }
        family::load(&dir).unwrap_or_else(|error| panic!("{} is not sound: {error}", case.fixture));
        (case.damage)(&dir);
        let message = match family::load(&dir) {
            Ok(_) => "(loaded)".to_owned(),
            Err(error) => error.to_string().replace(dir.to_str().unwrap(), "{dir}"),
        };
        if message != case.expected {
            wrong.push(format!("{}\n  expected {}\n  got      {message}", case.name, case.expected));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoint").join(name)
}

fn remove(dir: &Path, file: &str) {
    fs::remove_file(dir.join(file)).unwrap();
}

fn edit_bytes(dir: &Path, file: &str, edit: impl FnOnce(&mut Vec<u8>)) {
    let path = dir.join(file);
    let mut bytes = fs::read(&path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn cut(dir: &Path, file: &str, keep: impl FnOnce(usize) -> usize) {
    edit_bytes(dir, file, |bytes| bytes.truncate(keep(bytes.len())));
}

/// Replaces every occurrence of `from`, of which there must be one at least.
fn replace(bytes: &mut Vec<u8>, from: &[u8], to: &[u8]) {
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at..].starts_with(from) {
            out.extend_from_slice(to);
            at += from.len();
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    assert_ne!(&out, bytes, "nothing to replace");
    *bytes = out;
}

/// Edits the text of a safetensors header and sets its length anew.
fn edit_header(dir: &Path, edit: impl FnOnce(String) -> String) {
    edit_bytes(dir, "model.safetensors", |bytes| {
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let before = String::from_utf8(bytes[8..end].to_vec()).unwrap();
        let header = edit(before.clone());
        assert_ne!(header, before, "nothing was edited");
        let mut edited = (header.len() as u64).to_le_bytes().to_vec();
        edited.extend_from_slice(header.as_bytes());
        edited.extend_from_slice(&bytes[end..]);
        *bytes = edited;
    });
}

fn edit_json(dir: &Path, file: &str, edit: impl FnOnce(&mut Value)) {
    edit_bytes(dir, file, |bytes| {
        let mut value = serde_json::from_slice(bytes).unwrap();
        edit(&mut value);
        *bytes = serde_json::to_vec(&value).unwrap();
    });
}

fn set(dir: &Path, key: &str, value: Value) {
    let file = if dir.join("config.json").is_file() { "config.json" } else { "params.json" };
    edit_json(dir, file, |config| config[key] = value);
}

const SHARD: &str = "model-00003-of-00005.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const NORM: &str = r#""model.norm.weight":{"dtype":"BF16","shape":[16],"data_offsets":[8992,9024]}"#;

const WEIGHT_FILES: &[Case] = &[
    Case {
        name: "no directory",
        fixture: "llama",
        damage: |dir| fs::remove_dir_all(dir).unwrap(),
        expected: "{dir} is not a directory",
    },
    Case {
        name: "no weights",
        fixture: "llama",
        damage: |dir| remove(dir, "model.safetensors"),
        expected: "{dir} holds no weights: expected model.safetensors, model.safetensors.index.json, \
                   pytorch_model.bin, pytorch_model.bin.index.json or consolidated.00.pth",
    },
    Case {
        name: "safetensors: empty file",
        fixture: "llama",
        damage: |dir| cut(dir, "model.safetensors", |_| 0),
        expected: "{dir}/model.safetensors: the file is truncated: expected 8 bytes, has 0",
    },
    Case {
        name: "safetensors: cut within the header",
        fixture: "llama",
        damage: |dir| cut(dir, "model.safetensors", |_| 100),
        expected: "{dir}/model.safetensors: the file is truncated: expected 3392 bytes, has 100",
    },
    Case {
        name: "safetensors: cut within the data",
        fixture: "llama",
        damage: |dir| cut(dir, "model.safetensors", |len| len - 100),
        expected: "{dir}/model.safetensors: the file is truncated: expected 12416 bytes, has 12316",
    },
    Case {
        name: "safetensors: bytes after the last tensor",
        fixture: "llama",
        damage: |dir| edit_bytes(dir, "model.safetensors", |bytes| bytes.extend([0; 3])),
        expected: "{dir}/model.safetensors: the file has 12419 bytes, but its tensors end at 12416",
    },
    Case {
        name: "safetensors: a web page instead",
        fixture: "llama",
        damage: |dir| fs::write(dir.join("model.safetensors"), "<!DOCTYPE html><html>Not found</html>").unwrap(),
        expected: "{dir}/model.safetensors: not a safetensors file: its first 8 bytes announce a header of \
                   5789751444030890300 bytes, at most 100000000 are possible",
    },
    Case {
        name: "safetensors: a pointer of Git LFS instead",
        fixture: "llama",
        damage: |dir| {
            let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12416\n";
            fs::write(dir.join("model.safetensors"), pointer).unwrap();
        },
        expected: "{dir}/model.safetensors: this is a pointer of Git LFS, not the file itself: fetch it with git lfs \
                   pull",
    },
    Case {
        name: "safetensors: a header that is no JSON",
        fixture: "llama",
        damage: |dir| edit_header(dir, |header| header.replacen('{', "[", 1)),
        expected: "{dir}/model.safetensors: the safetensors header is not valid: invalid type: sequence, expected an \
                   object of tensors by name at line 1 column 0",
    },
    Case {
        name: "safetensors: one name twice",
        fixture: "llama",
        damage: |dir| edit_header(dir, |header| header.replace("model.norm.weight", "lm_head.weight")),
        expected: "{dir}/model.safetensors: the safetensors header is not valid: lm_head.weight occurs twice at line \
                   1 column 3320",
    },
    Case {
        name: "safetensors: unknown element type",
        fixture: "llama",
        damage: |dir| edit_header(dir, |header| header.replace(NORM, &NORM.replace("BF16", "Q4"))),
        expected: "{dir}/model.safetensors: tensor model.norm.weight: unknown element type \"Q4\"",
    },
    Case {
        name: "safetensors: offsets that do not fit the shape",
        fixture: "llama",
        damage: |dir| edit_header(dir, |header| header.replace(NORM, &NORM.replace("[16]", "[17]"))),
        expected: "{dir}/model.safetensors: tensor model.norm.weight: data offsets 8992..9024 do not hold its 34 bytes \
                   (BF16 of shape [17])",
    },
    Case {
        name: "safetensors: offsets the wrong way round",
        fixture: "llama",
        damage: |dir| edit_header(dir, |header| header.replace("[8992,9024]", "[9024,8992]")),
        expected: "{dir}/model.safetensors: tensor model.norm.weight: data offsets 9024..8992 do not hold its 32 bytes \
                   (BF16 of shape [16])",
    },
    Case {
        name: "safetensors: a shape beyond 64 bits",
        fixture: "llama",
        damage: |dir| edit_header(dir, |header| header.replace(NORM, &NORM.replace("[16]", "[4294967296,4294967296]"))),
        expected: "{dir}/model.safetensors: tensor model.norm.weight: shape [4294967296, 4294967296] is too large",
    },
    Case {
        name: "safetensors: too many dimensions",
        fixture: "llama",
        damage: |dir| edit_header(dir, |header| header.replace(NORM, &NORM.replace("[16]", "[1,1,1,1,1,1,1,1,16]"))),
        expected: "{dir}/model.safetensors: tensor model.norm.weight: 9 dimensions, at most 8",
    },
    Case {
        name: "safetensors: overlapping tensors",
        fixture: "llama",
        damage: |dir| edit_header(dir, |header| header.replace("[8992,9024]", "[8960,8992]")),
        expected: "{dir}/model.safetensors: tensor model.norm.weight: begins at data offset 8960, which overlaps the \
                   tensor before it (it ends at 8992)",
    },
    Case {
        name: "safetensors: a gap between tensors",
        fixture: "llama",
        damage: |dir| edit_header(dir, |header| header.replace("[8992,9024]", "[9000,9032]")),
        expected: "{dir}/model.safetensors: tensor model.norm.weight: begins at data offset 9000, which leaves a gap \
                   before it (it ends at 8992)",
    },
    Case {
        name: "a weight that is missing",
        fixture: "llama",
        damage: |dir| edit_header(dir, |header| header.replace("model.norm.weight", "model.morn.weight")),
        expected: "{dir}/model.safetensors holds no tensor model.norm.weight (expected shape [16])",
    },
    Case {
        name: "a weight of another shape",
        fixture: "llama",
        damage: |dir| edit_header(dir, |header| header.replace(NORM, &NORM.replace("[16]", "[4,4]"))),
        expected: "{dir}/model.safetensors: tensor model.norm.weight has shape [4, 4], expected [16]",
    },
    Case {
        name: "a weight of whole numbers",
        fixture: "llama",
        damage: |dir| edit_header(dir, |header| header.replace(NORM, &NORM.replace("BF16", "I16"))),
        expected: "{dir}/model.safetensors: tensor model.norm.weight has element type I16, expected F32, BF16 or F16",
    },
    Case {
        name: "index: a file that is missing",
        fixture: "mistral",
        damage: |dir| remove(dir, SHARD),
        expected: "{dir}/model.safetensors.index.json lists model-00003-of-00005.safetensors, which is missing (it \
                   should hold 6 tensors)",
    },
    Case {
        name: "index: a truncated file",
        fixture: "mistral",
        damage: |dir| cut(dir, SHARD, |len| len - 1),
        expected: "{dir}/model-00003-of-00005.safetensors: the file is truncated: expected 2360 bytes, has 2359",
    },
    Case {
        name: "index: a file outside the directory",
        fixture: "mistral",
        damage: |dir| edit_json(dir, INDEX, |index| index["weight_map"]["lm_head.weight"] = json!("../secret")),
        expected: "{dir}/model.safetensors.index.json names the file \"../secret\": only files inside the model \
                   directory are read",
    },
    Case {
        name: "index: an absolute path",
        fixture: "mistral",
        damage: |dir| edit_json(dir, INDEX, |index| index["weight_map"]["lm_head.weight"] = json!("/etc/passwd")),
        expected: "{dir}/model.safetensors.index.json names the file \"/etc/passwd\": only files inside the model \
                   directory are read",
    },
    Case {
        name: "index: a tensor in the wrong file",
        fixture: "mistral",
        damage: |dir| edit_json(dir, INDEX, |index| index["weight_map"]["lm_head.weight"] = json!(SHARD)),
        expected: "{dir}/model.safetensors.index.json places tensor lm_head.weight in \
                   model-00003-of-00005.safetensors, which does not hold it",
    },
    Case {
        name: "index: one tensor in two files",
        fixture: "mistral",
        damage: |dir| {
            fs::copy(dir.join(SHARD), dir.join("again.safetensors")).unwrap();
            edit_json(dir, INDEX, |index| {
                index["weight_map"]["model.layers.0.input_layernorm.weight"] = json!("again.safetensors");
                // One tensor of each file is enough to have both opened.
                for tensor in ["self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"] {
                    index["weight_map"].as_object_mut().unwrap().remove(&format!("model.layers.1.{tensor}.weight"));
                }
                let map = index["weight_map"].as_object_mut().unwrap();
                map.remove("model.layers.0.mlp.down_proj.weight");
            });
        },
        expected: "tensor model.layers.0.input_layernorm.weight is in both {dir}/again.safetensors and \
                   {dir}/model-00003-of-00005.safetensors",
    },
    Case {
        name: "index: no files",
        fixture: "mistral",
        damage: |dir| edit_json(dir, INDEX, |index| index["weight_map"] = json!({})),
        expected: "{dir}/model.safetensors.index.json: weight_map is empty, expected the file of every tensor",
    },
    Case {
        name: "index: no weight_map",
        fixture: "mistral",
        damage: |dir| fs::write(dir.join(INDEX), "{}").unwrap(),
        expected: "{dir}/model.safetensors.index.json: not valid JSON: missing field `weight_map` at line 1 column 2",
    },
];

const BIN: &str = "pytorch_model.bin";

const TORCH_FILES: &[Case] = &[
    Case {
        name: "torch: empty file",
        fixture: "phi3",
        damage: |dir| cut(dir, BIN, |_| 0),
        expected: "{dir}/pytorch_model.bin: not a PyTorch file: it does not begin as a zip archive (0 bytes)",
    },
    Case {
        name: "torch: cut within the data",
        fixture: "phi3",
        damage: |dir| cut(dir, BIN, |_| 9000),
        expected: "{dir}/pytorch_model.bin: the file is truncated: it begins as a zip archive, but none ends in its \
                   9000 bytes",
    },
    Case {
        name: "torch: bytes lost in the middle",
        fixture: "phi3",
        damage: |dir| edit_bytes(dir, BIN, |bytes| drop(bytes.drain(4000..5000))),
        expected: "{dir}/pytorch_model.bin: the zip64 end record at offset 14713 leaves the file of 13811 bytes",
    },
    Case {
        name: "torch: fewer entries than announced",
        fixture: "phi3",
        damage: |dir| {
            edit_bytes(dir, BIN, |bytes| {
                let record = bytes.windows(4).rposition(|window| window == b"PK\x06\x06").unwrap();
                bytes[record + 32] += 1;
            });
        },
        expected: "{dir}/pytorch_model.bin: the zip directory announces 20 entries, but number 19 is not there",
    },
    Case {
        name: "torch: more entries than the directory has room for",
        fixture: "phi3",
        damage: |dir| {
            edit_bytes(dir, BIN, |bytes| {
                let record = bytes.windows(4).rposition(|window| window == b"PK\x06\x06").unwrap();
                bytes[record + 32..record + 40].fill(0xff);
            });
        },
        expected: "{dir}/pytorch_model.bin: a zip directory of 1281 bytes cannot hold 18446744073709551615 entries",
    },
    Case {
        name: "torch: no pickle",
        fixture: "phi3",
        damage: |dir| edit_bytes(dir, BIN, |bytes| replace(bytes, b"data.pkl", b"data.old")),
        expected: "{dir}/pytorch_model.bin: a zip archive without data.pkl: not a PyTorch file",
    },
    Case {
        name: "torch: a storage that is missing",
        fixture: "phi3",
        damage: |dir| edit_bytes(dir, BIN, |bytes| replace(bytes, b"model/data/11", b"model/data/xx")),
        expected: "{dir}/pytorch_model.bin: tensor model.layers.1.input_layernorm.weight: its storage \
                   pytorch_model/data/11 is not in the archive",
    },
    Case {
        name: "torch: a storage of another size",
        fixture: "phi3",
        damage: |dir| edit_bytes(dir, BIN, |bytes| replace(bytes, b"q\x06M\x80\x01t", b"q\x06M\x81\x01t")),
        expected: "{dir}/pytorch_model.bin: tensor model.embed_tokens.weight: its storage of 385 BF16 elements should \
                   have 770 bytes, has 768",
    },
    Case {
        name: "torch: a view that leaves its storage",
        fixture: "phi3",
        damage: |dir| edit_bytes(dir, BIN, |bytes| replace(bytes, b"QK\x00K\x18K\x10\x86", b"QK\x01K\x18K\x10\x86")),
        expected: "{dir}/pytorch_model.bin: tensor model.embed_tokens.weight: shape [24, 16] with strides [16, 1] at \
                   offset 1 leaves its storage of 384 elements",
    },
    Case {
        name: "torch: a pickle that would run a command",
        fixture: "phi3",
        damage: |dir| {
            let call: &[u8] = b"cposix\nsystem\n(X\x04\x00\x00\x00bootR.";
            edit_bytes(dir, BIN, |bytes| {
                let start = bytes.windows(4).position(|window| window == b"\x80\x02}q").unwrap();
                bytes[start + 2..start + 2 + call.len()].copy_from_slice(call);
            });
        },
        expected: "{dir}/pytorch_model.bin: the pickle names posix.system, which is refused: only tensors and \
                   dictionaries of them are read",
    },
    Case {
        name: "torch: an opcode that torch.save does not write",
        fixture: "phi3",
        damage: |dir| edit_bytes(dir, BIN, |bytes| replace(bytes, b"\x80\x02}q", b"\x80\x02iq")),
        expected: "{dir}/pytorch_model.bin: the pickle has opcode 0x69 at offset 2, which torch.save does not write",
    },
    Case {
        name: "torch: big-endian bytes",
        fixture: "phi3",
        damage: |dir| edit_bytes(dir, BIN, |bytes| replace(bytes, b"little", b"bigbig")),
        expected: "{dir}/pytorch_model.bin: byte order \"bigbig\", expected \"little\"",
    },
    Case {
        name: "torch: a shard that is missing",
        fixture: "phi3-long",
        damage: |dir| remove(dir, "pytorch_model-00007-of-00007.bin"),
        expected: "{dir}/pytorch_model.bin.index.json lists pytorch_model-00007-of-00007.bin, which is missing (it \
                   should hold 2 tensors)",
    },
    Case {
        name: "Meta: a rank that is missing",
        fixture: "meta-2",
        damage: |dir| remove(dir, "consolidated.00.pth"),
        expected: "{dir} holds 1 consolidated.NN.pth files, but not consolidated.00.pth",
    },
    Case {
        name: "Meta: the last rank is missing",
        fixture: "meta-2",
        damage: |dir| remove(dir, "consolidated.01.pth"),
        expected: "{dir} holds 1 consolidated.NN.pth files, but not consolidated.01.pth",
    },
    Case {
        name: "Meta: no params.json",
        fixture: "meta-2",
        damage: |dir| remove(dir, "params.json"),
        expected: "{dir} holds consolidated.00.pth but no params.json, which describes them",
    },
];

const CONFIGURATIONS: &[Case] = &[
    Case {
        name: "no config.json",
        fixture: "llama",
        damage: |dir| remove(dir, "config.json"),
        expected: "{dir} holds model.safetensors but no config.json, which describes them",
    },
    Case {
        name: "config.json is cut",
        fixture: "llama",
        damage: |dir| cut(dir, "config.json", |_| 30),
        expected: "{dir}/config.json: not valid JSON: EOF while parsing a string at line 3 column 7",
    },
    Case {
        name: "config.json is no object",
        fixture: "llama",
        damage: |dir| fs::write(dir.join("config.json"), "[]").unwrap(),
        expected: "{dir}/config.json: not valid JSON: invalid type: sequence, expected a map at line 1 column 0",
    },
    Case {
        name: "config.json is huge",
        fixture: "llama",
        damage: |dir| {
            fs::File::options().write(true).open(dir.join("config.json")).unwrap().set_len(1 << 32).unwrap();
        },
        expected: "{dir}/config.json has 4294967296 bytes; such files are read up to 16777216 bytes",
    },
    Case {
        name: "another architecture",
        fixture: "llama",
        damage: |dir| set(dir, "architectures", json!(["GPT2LMHeadModel"])),
        expected: "{dir}/config.json: architecture GPT2LMHeadModel is not supported; supported are LlamaForCausalLM, \
                   MistralForCausalLM, FalconForCausalLM, RWForCausalLM, Phi3ForCausalLM",
    },
    Case {
        name: "no architecture",
        fixture: "llama",
        damage: |dir| fs::write(dir.join("config.json"), "{}").unwrap(),
        expected: "{dir}/config.json: architecture missing is not supported; supported are LlamaForCausalLM, \
                   MistralForCausalLM, FalconForCausalLM, RWForCausalLM, Phi3ForCausalLM",
    },
    Case {
        name: "a negative width",
        fixture: "llama",
        damage: |dir| set(dir, "hidden_size", json!(-16)),
        expected: "{dir}/config.json: hidden_size is -16, expected a whole number from 1 to 1048576",
    },
    Case {
        name: "a key that is missing",
        fixture: "llama",
        damage: |dir| set(dir, "num_hidden_layers", Value::Null),
        expected: "{dir}/config.json: num_hidden_layers is missing, expected a whole number from 1 to 4096",
    },
    Case {
        name: "a number as text",
        fixture: "llama",
        damage: |dir| set(dir, "vocab_size", json!("24")),
        expected: "{dir}/config.json: vocab_size is \"24\", expected a whole number from 1 to 8388608",
    },
    Case {
        name: "more layers than the file holds",
        fixture: "llama",
        damage: |dir| set(dir, "num_hidden_layers", json!(3)),
        expected: "{dir}/model.safetensors holds no tensor model.layers.2.input_layernorm.weight (expected shape [16])",
    },
    Case {
        name: "another vocabulary",
        fixture: "llama",
        damage: |dir| set(dir, "vocab_size", json!(32000)),
        expected: "{dir}/model.safetensors: tensor model.embed_tokens.weight has shape [24, 16], expected [32000, 16]",
    },
    Case {
        name: "heads that do not divide the width",
        fixture: "falcon-7b",
        damage: |dir| set(dir, "num_attention_heads", json!(5)),
        expected: "{dir}/config.json: num_attention_heads is 5, expected a divisor of hidden_size 16",
    },
    Case {
        name: "an odd width of heads",
        fixture: "falcon-7b",
        damage: |dir| set(dir, "num_attention_heads", json!(16)),
        expected: "{dir}/config.json: num_attention_heads is 16, expected a count that makes the width of a head even \
                   (it is 1)",
    },
    Case {
        name: "groups that do not divide the heads",
        fixture: "llama",
        damage: |dir| set(dir, "num_key_value_heads", json!(3)),
        expected: "{dir}/config.json: num_key_value_heads is 3, expected a divisor of the 4 heads",
    },
    Case {
        name: "another activation",
        fixture: "llama",
        damage: |dir| set(dir, "hidden_act", json!("gelu")),
        expected: "{dir}/config.json: hidden_act is \"gelu\", expected silu or swish",
    },
    Case {
        name: "an epsilon that is no number",
        fixture: "llama",
        damage: |dir| set(dir, "rms_norm_eps", json!(true)),
        expected: "{dir}/config.json: rms_norm_eps is true, expected a number from 0 to 1",
    },
    Case {
        name: "scaled positions of an unknown kind",
        fixture: "llama",
        damage: |dir| set(dir, "rope_scaling", json!({ "type": "dynamic", "factor": 2.0 })),
        expected: "{dir}/config.json: rope_scaling.rope_type is \"dynamic\", expected default or linear",
    },
    Case {
        name: "scaled positions without a factor",
        fixture: "llama",
        damage: |dir| set(dir, "rope_scaling", json!({ "type": "linear" })),
        expected: "{dir}/config.json: rope_scaling.factor is missing, expected a number from 1 to 1000000",
    },
    Case {
        name: "scaled positions that are no object",
        fixture: "llama",
        damage: |dir| set(dir, "rope_scaling", json!(2)),
        expected: "{dir}/config.json: rope_scaling is 2, expected an object",
    },
    Case {
        name: "a window of nothing",
        fixture: "mistral",
        damage: |dir| set(dir, "sliding_window", json!(0)),
        expected: "{dir}/config.json: sliding_window is 0, expected a whole number from 1 to 134217728",
    },
    Case {
        name: "long-rope with too few factors",
        fixture: "phi3-long",
        damage: |dir| edit_json(dir, "config.json", |config| config["rope_scaling"]["long_factor"] = json!([1.0])),
        expected: "{dir}/config.json: rope_scaling.long_factor is a list of 1 numbers, expected 2 numbers, one for each \
                   rotated pair of a head",
    },
    Case {
        name: "long-rope with a factor of 0",
        fixture: "phi3-long",
        damage: |dir| edit_json(dir, "config.json", |config| config["rope_scaling"]["short_factor"] = json!([1.0, 0])),
        expected: "{dir}/config.json: rope_scaling.short_factor is [1.0,0], expected a list of 2 positive numbers",
    },
    Case {
        name: "long-rope of an unknown kind",
        fixture: "phi3-long",
        damage: |dir| edit_json(dir, "config.json", |config| config["rope_scaling"]["type"] = json!("yarn")),
        expected: "{dir}/config.json: rope_scaling.type is \"yarn\", expected longrope or su",
    },
    Case {
        name: "Falcon with biases of attention for positions",
        fixture: "falcon-heads",
        damage: |dir| set(dir, "alibi", json!(true)),
        expected: "{dir}/config.json: alibi is true, expected false: positions by attention bias (the RW models) are \
                   not supported, only rotary ones",
    },
    Case {
        name: "Falcon with two norms in the old architecture",
        fixture: "falcon-7b",
        damage: |dir| set(dir, "num_ln_in_parallel_attn", json!(2)),
        expected: "{dir}/config.json: num_ln_in_parallel_attn is 2, expected 1 without the new decoder architecture",
    },
    Case {
        name: "Meta: heads that the ranks cannot share",
        fixture: "meta-2",
        damage: |dir| set(dir, "n_kv_heads", json!(1)),
        expected: "{dir}/params.json: n_kv_heads is 1, expected what 2 shards can divide (1 comes of it)",
    },
    Case {
        name: "Meta: another vocabulary",
        fixture: "meta-2",
        damage: |dir| set(dir, "vocab_size", json!(32000)),
        expected: "{dir}/consolidated.00.pth: tensor tok_embeddings.weight has shape [24, 8], expected [32000, 8]",
    },
];
