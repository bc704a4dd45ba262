//! What a program that saves a model drops, moves or adds: the model stays the same.

use std::{fs, path::Path};

use serde_json::json;

use crate::{
    Case, LENGTH, TOLERANCE, cases,
    changes::{
        FALCON_EMBEDDING, INDEX, LLAMA_EMBEDDING, NORM, ONE, TWO, copy_of, edit, edit_config, renamed, replace_in,
        shard, with_head, write_index,
    },
    difference, logits,
    safetensors_file::{Entry, Tensors},
};

/// A change to the weights or files of a model that changes nothing of what it computes.
struct SameModel {
    name: &'static str,
    /// The case that it is to equal.
    model: &'static str,
    change: fn(&Path),
}

const SAME: &[SameModel] = &[
    SameModel {
        name: "tied, both names stored",
        model: "llama-tied",
        change: |dir| edit(dir, |tensors| with_head(tensors, LLAMA_EMBEDDING, "lm_head.weight")),
    },
    SameModel {
        name: "tied, the head's name alone",
        model: "llama-tied",
        change: |dir| renamed(dir, |name| name.replace(LLAMA_EMBEDDING, "lm_head.weight")),
    },
    SameModel {
        name: "tied by default, both names stored",
        model: "falcon",
        change: |dir| edit(dir, |tensors| with_head(tensors, FALCON_EMBEDDING, "lm_head.weight")),
    },
    SameModel {
        name: "tied by default, the head's name alone",
        model: "falcon",
        change: |dir| renamed(dir, |name| name.replace(FALCON_EMBEDDING, "lm_head.weight")),
    },
    SameModel {
        name: "a tied model saved without its head",
        model: "llama-tied",
        change: |dir| {
            renamed(dir, |name| name.replacen("model.", "", 1));
            edit_config(dir, |config| drop(config.insert("architectures".into(), json!(["LlamaModel"]))));
        },
    },
    SameModel { name: "no prefix", model: "llama", change: |dir| renamed(dir, |name| name.replacen("model.", "", 1)) },
    SameModel {
        name: "no prefix, tied by default, the head's name alone",
        model: "falcon",
        change: |dir| {
            renamed(dir, |name| name.replace(FALCON_EMBEDDING, "lm_head.weight").replacen("transformer.", "", 1));
        },
    },
    SameModel {
        name: "a wrapper's prefix",
        model: "llama",
        change: |dir| renamed(dir, |name| format!("module.{name}")),
    },
    SameModel {
        name: "a compiled model's prefix, tied",
        model: "falcon",
        change: |dir| renamed(dir, |name| format!("_orig_mod.{name}")),
    },
    SameModel {
        name: "a doubled prefix",
        model: "llama",
        change: |dir| renamed(dir, |name| name.replacen("model.", "model.model.", 1)),
    },
    SameModel {
        name: "buffers, and parameters that nobody needs",
        model: "llama",
        change: |dir| {
            edit(dir, |tensors| {
                for name in [
                    "model.layers.0.self_attn.rotary_emb.inv_freq",
                    "model.layers.7.mlp.up_proj.weight",
                    "lm_head.bias",
                ] {
                    tensors.0.push(Entry::zeros(name, "F32", &[4]));
                }
                tensors.0.push(Entry::zeros("quantised", "F8_E4M3", &[3, 2]));
                tensors.0.push(Entry::zeros("exponents", "F8_E8M0", &[3]));
                tensors.0.push(Entry::zeros("empty", "F16", &[0, 3]));
                tensors.0.push(Entry::zeros("also empty", "BF16", &[2, 0]));
                tensors.0.push(Entry::zeros("scalar", "I64", &[]));
            });
        },
    },
    SameModel { name: "no metadata in the header", model: "llama", change: |dir| edit(dir, |_| ()) },
    SameModel {
        name: "index: lists a buffer that no file holds",
        model: "llama",
        change: |dir| {
            let mut index = shard(dir, |name| name.contains("layers.0"));
            index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = json!(ONE);
            write_index(dir, &index);
        },
    },
    SameModel {
        name: "index: places tensors in the wrong file",
        model: "llama",
        change: |dir| {
            let mut index = shard(dir, |name| name.contains("layers.0"));
            index["weight_map"][NORM] = json!(ONE);
            index["weight_map"]["model.layers.0.mlp.up_proj.weight"] = json!(TWO);
            write_index(dir, &index);
        },
    },
    SameModel {
        name: "index: does not list a tensor",
        model: "llama",
        change: |dir| {
            let mut index = shard(dir, |name| name.contains("layers.0"));
            index["weight_map"].as_object_mut().unwrap().remove(NORM);
            write_index(dir, &index);
        },
    },
    SameModel {
        name: "index: a tensor in two files, the first counts",
        model: "llama",
        change: |dir| {
            let index = shard(dir, |name| name == NORM);
            let mut two = Tensors::read(&dir.join(TWO));
            two.0.push(Entry::zeros(NORM, "F32", &[99]));
            two.write(&dir.join(TWO));
            write_index(dir, &index);
        },
    },
    SameModel {
        name: "index: a tensor in two files, the second counts",
        model: "llama",
        change: |dir| {
            let index = shard(dir, |name| name != NORM);
            let mut one = Tensors::read(&dir.join(ONE));
            one.0.push(Entry::zeros(NORM, "BF16", &[32]));
            one.write(&dir.join(ONE));
            write_index(dir, &index);
        },
    },
    SameModel {
        name: "index: an equal tensor in two files, and it lists neither",
        model: "llama",
        change: |dir| {
            let mut index = shard(dir, |name| name != NORM);
            let mut one = Tensors::read(&dir.join(ONE));
            one.0.push(Tensors::read(&dir.join(TWO)).get(NORM).clone());
            one.write(&dir.join(ONE));
            index["weight_map"]["of another model"] = json!(TWO);
            index["weight_map"].as_object_mut().unwrap().remove(NORM);
            write_index(dir, &index);
        },
    },
    SameModel {
        name: "index: numbers that JSON has not, and a path with a dot",
        model: "llama",
        change: |dir| {
            write_index(dir, &shard(dir, |name| name == NORM));
            replace_in(&dir.join(INDEX), "\"total_size\":1", "\"total_size\":NaN,\"more\":[-Infinity]");
            replace_in(&dir.join(INDEX), ONE, &format!("./{ONE}"));
        },
    },
    SameModel {
        name: "a stale index and PyTorch's file beside the weights",
        model: "llama",
        change: |dir| {
            write_index(dir, &json!({ "weight_map": { NORM: "gone.safetensors" } }));
            fs::write(dir.join("pytorch_model.bin"), "damaged").unwrap();
        },
    },
    SameModel {
        name: "config.json: numbers that JSON has not, and text with their names",
        model: "llama",
        change: |dir| {
            let more =
                "{\"range\": [0.0, Infinity], \"a\": {\"b\": -Infinity}, \"NaN\": \"a \\\"NaN, Infinity\", \"c\":NaN,";
            replace_in(&dir.join("config.json"), "{", more);
        },
    },
];

#[test]
fn what_a_program_that_saves_drops_or_moves_is_found() {
    let cases = cases();
    let mut wrong = Vec::new();
    for SameModel { name, model, change } in SAME {
        let Case { model, logits: expected, .. } = cases.iter().find(|case| case.name == *model).unwrap();
        let dir = copy_of(model);
        change(dir.path());
        match logits(dir.path(), LENGTH) {
            Ok(found) if difference(&found, expected) <= TOLERANCE => {}
            Ok(found) => wrong.push(format!("{name}: off by {}", difference(&found, expected))),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
