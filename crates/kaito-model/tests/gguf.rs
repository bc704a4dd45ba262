//! GGUF files that are damaged, foreign or hostile: an error that names the place, or tensors that lie in the file.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{fs, path::Path};

use kaito_model::{
    checkpoint::gguf,
    family,
    tokenizer::{Special, Tokenizer},
};
use proptest::{collection::vec, prelude::*, sample::Index};

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/gguf/fixtures").join(name)).unwrap()
}

/// A file, written as the format prescribes.
#[derive(Clone)]
struct File {
    version: u32,
    entries: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    alignment: usize,
    data: usize,
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

const U32: u32 = 4;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const LIST: u32 = 9;

fn list(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), count.to_le_bytes().as_slice(), elements].concat()
}

impl File {
    /// A Llama with one layer of width 32, whose tensors are all zero.
    fn llama() -> Self {
        let mut file = Self { version: 3, entries: Vec::new(), tensors: Vec::new(), alignment: 32, data: 0 };
        file.set("general.architecture", TEXT, string("llama"));
        for (key, value) in [
            ("block_count", 1u32),
            ("context_length", 64),
            ("embedding_length", 32),
            ("feed_forward_length", 32),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("rope.dimension_count", 16),
        ] {
            file.set(&format!("llama.{key}"), U32, value.to_le_bytes().to_vec());
        }
        file.set("llama.attention.layer_norm_rms_epsilon", F32, 1e-5f32.to_le_bytes().to_vec());
        let tokens = ["<unk>", "<s>", "</s>", "a"];
        file.set("tokenizer.ggml.model", TEXT, string("llama"));
        file.set("tokenizer.ggml.tokens", LIST, list(TEXT, 4, &tokens.map(string).concat()));
        file.set("tokenizer.ggml.scores", LIST, list(F32, 4, &[0; 16]));
        file.set("tokenizer.ggml.token_type", LIST, list(5, 4, &[2, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0]));
        for (name, shape) in [
            ("token_embd", vec![32, 4]),
            ("output_norm", vec![32]),
            ("blk.0.attn_norm", vec![32]),
            ("blk.0.ffn_norm", vec![32]),
            ("blk.0.attn_q", vec![32, 32]),
            ("blk.0.attn_k", vec![32, 16]),
            ("blk.0.attn_v", vec![32, 16]),
            ("blk.0.attn_output", vec![32, 32]),
            ("blk.0.ffn_gate", vec![32, 32]),
            ("blk.0.ffn_up", vec![32, 32]),
            ("blk.0.ffn_down", vec![32, 32]),
        ] {
            // Matrices in Q8_0, which has 34 bytes for 32 weights, and vectors in f32.
            let (kind, bytes) = if shape.len() == 2 { (8, shape[1] as usize * 34) } else { (0, 128) };
            file.tensors.push((format!("{name}.weight"), shape, kind, file.data as u64));
            file.data += bytes.next_multiple_of(32);
        }
        file
    }

    fn set(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        self.entries.retain(|(known, ..)| known != key);
        self.entries.push((key.to_owned(), kind, value));
    }

    fn tensor(&mut self, name: &str) -> &mut (String, Vec<u64>, u32, u64) {
        self.tensors.iter_mut().find(|tensor| tensor.0 == format!("{name}.weight")).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.entries {
            out.extend([string(key), kind.to_le_bytes().to_vec(), value.clone()].concat());
        }
        for (name, shape, kind, offset) in &self.tensors {
            out.extend(string(name));
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|dimension| out.extend(dimension.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment) + self.data, 0);
        out
    }
}

/// What is wrong with a file: the first of configuration and weights, or of the tokenizer.
fn refusal(bytes: &[u8]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, bytes).unwrap();
    let error = family::load(&path).err().map(|error| error.to_string());
    let error = error.or_else(|| Tokenizer::open(&path).err().map(|error| error.to_string()));
    error.map(|error| error.replace(&folder.path().display().to_string(), "DIR"))
}

type Damage = fn(&mut File);

#[test]
fn what_is_wrong_is_named() {
    assert_eq!(refusal(&File::llama().bytes()), None);
    let cases: &[(Damage, &str)] = &[
        (|file| file.version = 1, "GGUF version 1 is not read; versions 2 and 3 are"),
        (|file| file.version = 3 << 24, "this GGUF file is big-endian"),
        (
            |file| file.set("general.alignment", U32, vec![3, 0, 0, 0]),
            "general.alignment is 3, expected a power of two",
        ),
        (|file| file.set("general.alignment", TEXT, string("32")), "general.alignment is \"32\""),
        (|file| file.set("x", 13, vec![]), "x: unknown type of value 13"),
        (|file| file.set("x", LIST, list(LIST, 1, &[])), "x: lists of lists are not read"),
        (
            |file| file.set("x", LIST, list(U32, 1 << 60, &[])),
            "x: a list of 1152921504606846976 elements is longer than the file",
        ),
        (|file| file.set("x", LIST, list(TEXT, 1 << 60, &[])), "x: a list of 1152921504606846976 elements is longer"),
        (|file| file.set("x", TEXT, u64::MAX.to_le_bytes().to_vec()), "the file is truncated: a string at byte"),
        (|file| file.entries.push(file.entries[0].clone()), "the metadata has general.architecture twice"),
        (|file| file.data -= 32, "the file is truncated: expected"),
        (
            |file| file.tensor("blk.0.attn_q").2 = 23,
            "tensor blk.0.attn_q.weight: type IQ4_XS is not read; F32, F16, BF16, Q4_0",
        ),
        (|file| file.tensor("blk.0.attn_q").2 = 99, "tensor blk.0.attn_q.weight: type 99 is not read"),
        (|file| file.tensor("blk.0.attn_q").3 += 8, "is no multiple of the alignment, 32"),
        (|file| file.tensor("blk.0.attn_q").3 = u64::MAX - 31, "is too large"),
        (|file| file.tensor("blk.0.attn_q").3 -= 32, "tensor blk.0.attn_q.weight: begins at data offset"),
        (|file| file.tensor("blk.0.attn_q").1 = vec![16, 64], "its rows are no multiples of 32"),
        (|file| file.tensor("blk.0.attn_q").1 = vec![1 << 62, 32], "is too large"),
        (|file| file.tensor("blk.0.attn_q").1 = vec![32; 5], "5 dimensions, at most 4"),
        (|file| file.tensor("blk.0.attn_q").1 = vec![32, 16], "has shape [16, 32], expected [32, 32]"),
        (|file| file.tensor("blk.0.attn_q").0 = "blk.0.ffn_up.weight".into(), "the file describes it twice"),
        (|file| file.tensor("blk.0.attn_q").0 = "x".repeat(65), "has 65 bytes, at most 64"),
        (|file| file.tensor("blk.0.attn_q").0 = "other".into(), "holds no tensor blk.0.attn_q.weight"),
        (|file| file.tensor("output_norm").2 = 26, "has element type I32, expected F32, BF16 or F16"),
        (
            |file| file.set("general.architecture", TEXT, string("gemma3")),
            "architecture gemma3 is not supported; supported are llama, falcon, phi3",
        ),
        (|file| file.set("general.type", TEXT, string("adapter")), "general.type is \"adapter\", expected model"),
        (
            |file| file.set("llama.embedding_length", U32, vec![0; 4]),
            "DIR/m.gguf: llama.embedding_length is 0, expected a whole number",
        ),
        (
            |file| file.set("llama.attention.head_count_kv", LIST, list(U32, 2, &[1, 0, 0, 0, 2, 0, 0, 0])),
            "llama.attention.head_count_kv is [1,2]",
        ),
        (|file| file.set("llama.expert_count", U32, vec![8, 0, 0, 0]), "llama.expert_count is 8, expected 0 or none"),
        (
            |file| file.set("llama.rope.scaling.type", TEXT, string("longrope")),
            "llama.rope.scaling.type is \"longrope\"",
        ),
        (|file| file.set("llama.rope.dimension_count", U32, vec![17, 0, 0, 0]), "llama.rope.dimension_count is 17"),
        (|file| file.set("llama.attention.value_length", U32, vec![8, 0, 0, 0]), "llama.attention.value_length is 8"),
        (|file| file.set("split.count", U32, vec![2, 0, 0, 0]), "split.count is 2, but by its name"),
        (
            |file| file.set("tokenizer.ggml.model", TEXT, string("t5")),
            "uses the tokenizer model \"t5\" (llama and gpt2 are read)",
        ),
        (|file| file.set("tokenizer.ggml.tokens", LIST, list(U32, 0, &[])), "has 4 elements, expected 0"),
        (
            |file| file.set("tokenizer.ggml.scores", LIST, list(F32, 3, &[0; 12])),
            "scores has 3 elements, expected 4, one for each token",
        ),
        (
            |file| file.set("tokenizer.ggml.scores", LIST, list(F32, 4, &[255; 16])),
            "scores[0] is NaN, expected a number",
        ),
        (|file| file.set("tokenizer.ggml.token_type", LIST, list(5, 4, &[9; 16])), "token_type[0] is 151587081"),
        (
            |file| file.set("tokenizer.ggml.eos_token_id", U32, vec![4, 0, 0, 0]),
            "eos_token_id is 4, but there are 4 tokens",
        ),
        (
            |file| file.set("tokenizer.ggml.add_bos_token", U32, vec![1, 0, 0, 0]),
            "add_bos_token is 1, expected true or false",
        ),
        (
            |file| file.set("tokenizer.ggml.tokens", LIST, list(TEXT, 4, &["a", "b", "c", "a"].map(string).concat())),
            "tokens[3] is \"a\", which an earlier token is already",
        ),
        (
            |file| {
                file.set("tokenizer.ggml.model", TEXT, string("gpt2"));
                file.set("tokenizer.ggml.pre", TEXT, string("tekken"));
            },
            "uses the pre-tokenizer \"tekken\" (llama-bpe, falcon, smollm, gpt-2, deepseek-coder, default are known), which is not supported",
        ),
        (
            |file| {
                file.set("tokenizer.ggml.model", TEXT, string("gpt2"));
                file.set("tokenizer.ggml.merges", LIST, list(TEXT, 1, &string("ab")));
            },
            "merges[0] is not two tokens with a space between",
        ),
    ];
    for (number, (damage, message)) in cases.iter().enumerate() {
        let mut file = File::llama();
        damage(&mut file);
        let error = refusal(&file.bytes()).unwrap_or_else(|| panic!("case {number}, {message}: nothing was refused"));
        assert!(error.contains(message), "case {number}: {error}\n  expected {message}");
    }
    assert!(refusal(b"tjgg....").unwrap().contains("a file of the formats before GGUF"));
    assert!(refusal(b"PK\x03\x04").unwrap().contains("it begins with PK\\x03\\x04, not with GGUF"));
    assert!(refusal(b"").unwrap().contains("the file is truncated"));
}

#[test]
fn what_may_differ_may() {
    let harmless: &[Damage] = &[
        |file| file.version = 2,
        |file| {
            file.set("general.alignment", U32, 64u32.to_le_bytes().to_vec());
            file.alignment = 64;
            file.tensors.iter_mut().for_each(|tensor| tensor.3 *= 2);
            file.data *= 2;
        },
        |file| file.set("llama.attention.head_count", LIST, list(U32, 2, &[2, 0, 0, 0, 2, 0, 0, 0])),
        |file| file.set("llama.attention.sliding_window", U32, vec![0; 4]),
        |file| file.set("tokenizer.ggml.padding_token_id", U32, vec![255; 4]),
        |file| file.set("tokenizer.chat_template", TEXT, string("{{ messages")),
        |file| file.set("tokenizer.ggml.add_bos_token", BOOL, vec![0]),
        |file| file.set("general.description", TEXT, [&2u64.to_le_bytes()[..], &[255, 254]].concat()),
    ];
    for (number, change) in harmless.iter().enumerate() {
        let mut file = File::llama();
        change(&mut file);
        assert_eq!(refusal(&file.bytes()), None, "case {number}");
    }
}

/// Opens whatever the bytes are, and uses what can be used.
fn open(bytes: &[u8]) -> Result<(), TestCaseError> {
    for tensor in gguf::parse(bytes).map(|contents| contents.tensors).unwrap_or_default() {
        prop_assert_eq!(bytes.get(tensor.range.clone()).map(<[u8]>::len), tensor.element.bytes_of(&tensor.shape));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, bytes).unwrap();
    if let Ok(tokenizer) = Tokenizer::open(&path)
        && let Ok(ids) = tokenizer.encode("a <s> 1é", Special::Add)
    {
        tokenizer.decode(
            &ids,
            kaito_model::tokenizer::DecodeOptions { skip_special_tokens: true, clean_up_tokenization_spaces: false },
        );
    }
    let _ = family::load(&path);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed_files(
        name in prop::sample::select(vec!["models/llama-q4_0.gguf", "models/phi3-q8_0.gguf", "tokenizers/falcon.gguf"]),
        changes in vec((any::<Index>(), vec(prop_oneof![Just(0u8), Just(0xff), Just(0x80), any::<u8>()], 1..9)), 1..4),
        cut in prop::option::weighted(0.1, any::<Index>()),
    ) {
        let mut bytes = fixture(name);
        for (at, new) in changes {
            // Most of the file is its head, so that is where most changes are.
            let at = at.index(bytes.len());
            for (old, new) in bytes[at..].iter_mut().zip(&new) {
                *old = *new;
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        open(&bytes)?;
    }

    #[test]
    fn random_files(tensors in 0u64..3, entries in 0u64..3, rest in vec(any::<u8>(), 0..200)) {
        let head = [b"GGUF".as_slice(), &3u32.to_le_bytes(), &tensors.to_le_bytes(), &entries.to_le_bytes()].concat();
        open(&[head, rest].concat())?;
    }
}
