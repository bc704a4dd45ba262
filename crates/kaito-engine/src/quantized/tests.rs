use std::{
    fs::{self, File},
    num::NonZeroUsize,
    ops::Deref,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use super::*;
use kaito_model::{checkpoint::Tensor, family};

pub(super) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures").join(name)
}

/// Weights, and the attention that says where values are among them.
struct Loaded {
    attention: AttentionSpec,
    weights: ModelWeights,
}

impl Deref for Loaded {
    type Target = ModelWeights;

    fn deref(&self) -> &ModelWeights {
        &self.weights
    }
}

fn load(name: &str) -> Loaded {
    let (config, weights) = family::load(&fixture(name)).unwrap();
    Loaded { attention: config.layer.attention, weights }
}

/// Quantises `weights` and returns the bytes of all matrices that are quantised then.
fn apply(loaded: &mut Loaded, quantization: Quantization, cache: Option<&Path>) -> Vec<Vec<u8>> {
    let heard = Mutex::new(Vec::new());
    let plan = Plan::new(quantization, &loaded.attention, &mut loaded.weights).unwrap();
    let bytes = plan.bytes();
    let quantize = Quantize {
        plan,
        cache,
        family: "llama",
        pool: &ThreadPool::new(NonZeroUsize::new(2).unwrap()),
        fits: true,
        progress: &|part| heard.lock().unwrap().push(part),
    };
    quantize.apply(&mut loaded.weights);
    assert_eq!(heard.into_inner().unwrap().into_iter().fold(0.0, f32::max), 1.0);
    let matrices = quantised_bytes(loaded);
    assert_eq!(matrices.iter().map(|matrix| matrix.len() as u64).sum::<u64>(), bytes);
    matrices
}

/// The bytes of all matrices that are quantised where anything is.
fn quantised_bytes(weights: &ModelWeights) -> Vec<Vec<u8>> {
    let linears = weights.linears().filter(|(kind, _)| *kind != LinearKind::Embedding);
    linears.flat_map(|(_, linear)| &linear.parts).map(|part| part.weight.bytes().to_vec()).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

const MODEL: &str = "llama-grouped-sharded";

#[test]
fn the_second_start_maps_what_the_first_one_made() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("of/folders");
    for quantization in [Quantization::Int8, Quantization::Int4] {
        let in_memory = apply(&mut load(MODEL), quantization, None);
        let mut weights = load(MODEL);
        assert!(apply(&mut weights, quantization, Some(&cache)) == in_memory);
        let made = files(&cache);
        let times = || made.iter().map(|file| file.metadata().unwrap().modified().unwrap()).collect::<Vec<_>>();
        let before = times();
        let mut weights = load(MODEL);
        assert!(apply(&mut weights, quantization, Some(&cache)) == in_memory);
        assert_eq!((files(&cache), times()), (made.clone(), before));
    }
    let names: Vec<_> =
        files(&cache).iter().map(|file| file.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(names.len(), 2);
    assert!(names[0].starts_with("llama-int4-") && names[1].starts_with("llama-int8-"), "{names:?}");
}

#[test]
fn a_damaged_file_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path();
    let expected = apply(&mut load(MODEL), Quantization::Int4, Some(cache));
    let file = files(cache).remove(0);
    let sound = fs::read(&file).unwrap();
    let flipped = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    // A header that is whole, but another program's or another model's.
    let with_header = |at: usize, value: u8| {
        let mut bytes = sound.clone();
        bytes[at] = value;
        let end = 8 + 4 + 4 + 32 + 4 * expected.len();
        let sum = crc32fast::hash(&bytes[..end]);
        bytes[end..end + 4].copy_from_slice(&sum.to_le_bytes());
        bytes
    };
    let cases = [
        ("empty", Vec::new()),
        ("cut in its header", sound[..40].to_vec()),
        ("cut", sound[..sound.len() - 1].to_vec()),
        ("too long", [&sound[..], &[0]].concat()),
        ("zeros", vec![0; sound.len()]),
        ("magic", flipped(0)),
        ("key", flipped(20)),
        ("checksum of a matrix", flipped(50)),
        ("first matrix", flipped(4096)),
        ("last matrix", flipped(sound.len() - 1)),
        ("another version", with_header(8, 77)),
        ("another key", with_header(17, sound[17] ^ 1)),
        ("another count", with_header(12, sound[12] ^ 1)),
    ];
    for (name, bytes) in cases {
        assert!(bytes != sound, "{name}");
        fs::write(&file, bytes).unwrap();
        assert!(apply(&mut load(MODEL), Quantization::Int4, Some(cache)) == expected, "{name}");
        assert!(fs::read(&file).unwrap() == sound, "{name}: the file was not made again");
        assert_eq!(files(cache), std::slice::from_ref(&file), "{name}");
    }
}

/// Containers that share a folder have equal process ids; threads of this process have them too.
#[test]
fn programs_with_one_process_id_that_write_at_once_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let expected = apply(&mut load(MODEL), Quantization::Int8, None);
    for round in 0..8 {
        let all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6)
                .map(|_| scope.spawn(|| apply(&mut load(MODEL), Quantization::Int8, Some(folder.path()))))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|made| *made == expected), "round {round}");
        // One file with its own name, whole, and nothing beside it.
        let left = files(folder.path());
        assert_eq!(left.len(), 1, "{left:?}");
        let before = fs::metadata(&left[0]).unwrap().modified().unwrap();
        assert!(apply(&mut load(MODEL), Quantization::Int8, Some(folder.path())) == expected);
        assert_eq!(fs::metadata(&left[0]).unwrap().modified().unwrap(), before, "the file was not used");
        fs::remove_file(&left[0]).unwrap();
    }
}

/// The file of a writer is gone before it is whole, and its name is taken.
#[test]
fn a_writer_whose_file_is_taken_away_has_its_weights_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path();
    let expected = apply(&mut load(MODEL), Quantization::Int8, None);
    apply(&mut load(MODEL), Quantization::Int8, Some(cache));
    let file = files(cache).remove(0);
    fs::remove_file(&file).unwrap();
    let mut weights = load(MODEL);
    let pool = ThreadPool::new(NonZeroUsize::MIN);
    // As soon as the first matrix is written, every temporary file goes, and the name is that of a folder.
    let taken = || {
        for temporary in files(cache).iter().filter(|path| path.is_file()) {
            fs::remove_file(temporary).unwrap();
        }
        fs::create_dir_all(file.join("in the way")).unwrap();
    };
    let quantize = Quantize {
        plan: Plan::new(Quantization::Int8, &weights.attention, &mut weights.weights).unwrap(),
        cache: Some(cache),
        family: "llama",
        pool: &pool,
        fits: true,
        progress: &|_| taken(),
    };
    quantize.apply(&mut weights.weights);
    let made: Vec<_> = quantised_bytes(&weights);
    assert!(made == expected);
    assert_eq!(files(cache), std::slice::from_ref(&file));
}

#[test]
fn without_a_place_for_the_file_the_weights_are_made_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let expected = apply(&mut load(MODEL), Quantization::Int8, None);
    let no_folder = folder.path().join("file");
    fs::write(&no_folder, "no folder").unwrap();
    assert!(apply(&mut load(MODEL), Quantization::Int8, Some(&no_folder)) == expected);
    assert!(apply(&mut load(MODEL), Quantization::Int8, Some(&no_folder.join("in it"))) == expected);
    assert_eq!(files(folder.path()), [no_folder]);
}

#[test]
fn what_an_ended_program_was_writing_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    apply(&mut load(MODEL), Quantization::Int8, Some(folder.path()));
    let file = files(folder.path()).remove(0);
    let name = file.file_name().unwrap().to_str().unwrap();
    let (old, new) = (folder.path().join(format!(".{name}.1")), folder.path().join(format!(".{name}.2")));
    File::create(&new).unwrap();
    File::create(&old).unwrap().set_modified(SystemTime::now() - Duration::from_secs(2 * 3600)).unwrap();
    fs::remove_file(&file).unwrap();
    apply(&mut load(MODEL), Quantization::Int8, Some(folder.path()));
    assert_eq!(files(folder.path()), [new, file]);
}

#[test]
fn embeddings_stay_and_values_and_a_tied_head_get_8_bits() {
    let mut weights = load("llama-tied-bin-f16");
    let before = weights.embedding.parts[0].weight.bytes().as_ptr();
    apply(&mut weights, Quantization::Int4, None);
    assert_eq!(weights.embedding.parts[0].weight.precision(), "f16");
    assert_eq!(weights.embedding.parts[0].weight.bytes().as_ptr(), before);
    assert_eq!(weights.head.parts[0].weight.precision(), "int8");
    let qkv = &weights.layers[0].qkv.parts;
    assert_eq!(qkv.iter().map(|part| part.weight.precision()).collect::<Vec<_>>(), ["int4", "int4", "int8"]);
}

/// `(first output, outputs, precision)` of the matrices of a layer's queries, keys and values.
fn qkv_matrices(weights: &ModelWeights) -> Vec<(usize, usize, String)> {
    let parts = weights.layers[1].qkv.parts.iter();
    parts.map(|part| (part.output_offset, dims(&part.weight).unwrap().0, part.weight.precision())).collect()
}

/// Queries, keys and values in one matrix. Phi-3: 4 query, 4 key and 4 value heads of 16; Falcon 7B: 5 query heads, a key and a value of
/// 16; Falcon 40B: two groups of 4 query heads, a key and a value of 8.
#[test]
fn values_of_fused_projections_get_8_bits() {
    for (name, expected) in [
        ("phi3-window", vec![(0, 128, "int4"), (128, 64, "int8")]),
        ("falcon-7b-type", vec![(0, 96, "int4"), (96, 16, "int8")]),
        ("falcon-40b-type-bf16", vec![(0, 40, "int4"), (40, 8, "int8"), (48, 40, "int4"), (88, 8, "int8")]),
    ] {
        let expected: Vec<_> = expected.into_iter().map(|(at, rows, it)| (at, rows, it.to_owned())).collect();
        let published = load(name);
        let (source, outputs) = (&published.layers[1].qkv.parts, published.layers[1].qkv.out_features);
        let source = source[0].weight.plain().unwrap();
        assert_eq!(source.shape()[0], outputs, "{name} has one matrix");

        let mut weights = load(name);
        apply(&mut weights, Quantization::Int4, None);
        assert_eq!(qkv_matrices(&weights), expected, "{name}");
        // Each has what its rows are quantised to.
        for ((at, rows, precision), part) in expected.iter().zip(&weights.layers[1].qkv.parts) {
            let rows = source.rows(*at..at + rows).unwrap();
            let [count, cols] = *rows.shape() else { unreachable!() };
            let quantization = if precision == "int8" { Quantization::Int8 } else { Quantization::Int4 };
            let mut alone = vec![0; quantization.bytes(count, cols).unwrap()];
            let view = MatrixRef::new(rows.dtype(), count, cols, rows.bytes()).unwrap();
            kernels::quantize(&ThreadPool::new(NonZeroUsize::MIN), quantization, view, &mut alone);
            assert!(part.weight.bytes() == alone, "{name}: output {at}");
        }

        // Where all have 8 bits, nothing is divided.
        let mut weights = load(name);
        apply(&mut weights, Quantization::Int8, None);
        assert_eq!(qkv_matrices(&weights), [(0, outputs, "int8".to_owned())], "{name}");
    }
}

fn key_of(bytes: Vec<u8>, rows: usize, quantization: Quantization) -> [u8; key::KEY_BYTES] {
    let cols = bytes.len() / 2 / rows;
    let source = Tensor::from_bytes("m", DType::Bf16, vec![rows, cols], bytes).unwrap().into();
    key::of(&[Matrix { source, quantization, rows, cols, bytes: 0 }])
}

#[test]
fn other_weights_have_another_key() {
    for len in [1 << 12, 66 << 20] {
        let original = key_of(vec![1; len], 8, Quantization::Int8);
        assert_eq!(key_of(vec![1; len], 8, Quantization::Int8), original);
        assert_ne!(key_of(vec![1; len], 8, Quantization::Int4), original);
        assert_ne!(key_of(vec![1; len], 16, Quantization::Int8), original);
        assert_ne!(key_of(vec![2; len], 8, Quantization::Int8), original);
        // Both ends are among the samples of large ones.
        for at in [0, len - 1] {
            let mut bytes = vec![1; len];
            bytes[at] = 3;
            assert_ne!(key_of(bytes, 8, Quantization::Int8), original, "{len} {at}");
        }
    }
}
