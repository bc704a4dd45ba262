//! Model directories with one thing wrong, and the sentence that each of them gets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "damaged_checkpoints/configurations.rs"]
mod configurations;

use std::{
    fs,
    path::{Path, PathBuf},
};

use configurations::CONFIGURATIONS;
use kaito_model::family;
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
        expected: "{dir} is neither a directory nor a GGUF file",
    },
    Case {
        name: "no weights",
        fixture: "llama",
        damage: |dir| remove(dir, "model.safetensors"),
        expected: "{dir} holds no weights: expected model.safetensors, model.safetensors.index.json, \
                   pytorch_model.bin, pytorch_model.bin.index.json, consolidated.00.pth or a GGUF file",
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
        name: "index: a tensor that no file holds",
        fixture: "mistral",
        damage: |dir| {
            edit_bytes(dir, SHARD, |bytes| replace(bytes, b"layers.1.self_attn.k_proj", b"layers.1.self_attn.k_porj"));
        },
        expected: "{dir}/model.safetensors.index.json places tensor model.layers.1.self_attn.k_proj.weight in \
                   model-00003-of-00005.safetensors, but no file that it lists holds it",
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

const BEFORE_1_6: &str = "{dir}/pytorch_model.bin: written in the format of PyTorch before 1.6; convert it once with \
                          torch.save(torch.load(path, map_location=\"cpu\"), path) under a newer PyTorch";

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
        name: "torch: before version 1.6, by another protocol of pickles",
        fixture: "phi3",
        damage: |dir| {
            let magic = b"\x80\x04\x95\x0d\0\0\0\0\0\0\0\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
            fs::write(dir.join(BIN), magic).unwrap();
        },
        expected: BEFORE_1_6,
    },
    Case {
        name: "torch: the first versions' tar archive",
        fixture: "phi3",
        damage: |dir| fs::write(dir.join(BIN), [&b"sys_info"[..], &[0; 1016]].concat()).unwrap(),
        expected: BEFORE_1_6,
    },
    Case {
        name: "torch: a bare pickle",
        fixture: "phi3",
        damage: |dir| fs::write(dir.join(BIN), b"\x80\x02}q\0.").unwrap(),
        expected: "{dir}/pytorch_model.bin: not a PyTorch file: it does not begin as a zip archive (6 bytes)",
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
