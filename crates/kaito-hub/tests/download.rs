//! Downloads from a hub that the test itself serves.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing helper fails its test")]

use std::{
    fs::{self, File},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kaito_hub::{Error, Event, Hub, HubOptions, Repo, RetryPolicy, Snapshot};
use kaito_testing::hub::{COMMIT, Fault, TestHub, sha256};

const SHARD_1: &str = "model-00001-of-00002.safetensors";
const SHARD_2: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A sharded repository in both formats, with a README beside.
fn sharded() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"# model".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", bytes(1, 5_000)),
        (INDEX, format!(r#"{{"weight_map":{{"a":"{SHARD_1}","b":"{SHARD_2}"}}}}"#).into_bytes()),
        (SHARD_1, bytes(2, 700_001)),
        (SHARD_2, bytes(3, 600_000)),
        ("pytorch_model.bin", bytes(4, 2_000)),
    ]
}

fn repo() -> Repo {
    "test/model".parse().unwrap()
}

/// A client that fails fast.
fn client(hub: &TestHub, cache: &Path) -> Hub {
    Hub::new(options(hub, cache))
}

fn options(hub: &TestHub, cache: &Path) -> HubOptions {
    HubOptions {
        endpoint: hub.url.clone(),
        token: None,
        cache: cache.to_owned(),
        offline: false,
        retry: RetryPolicy { attempts: 3, first_delay: Duration::from_millis(1), max_delay: Duration::from_millis(5) },
    }
}

fn quiet(_: Event<'_>) {}

fn download(hub: &Hub) -> Result<Snapshot, Error> {
    hub.download(&repo(), &quiet)
}

fn assert_same(directory: &Path, files: &[(&str, Vec<u8>)], names: &[&str]) {
    for name in names {
        let expected = &files.iter().find(|(file, _)| file == name).unwrap().1;
        assert_eq!(&fs::read(directory.join(name)).unwrap(), expected, "{name}");
    }
}

#[test]
fn what_is_beside_the_weights_comes_alone_and_is_no_whole_model() {
    let files = sharded();
    let hub = TestHub::start(&files);
    let cache = tempfile::tempdir().unwrap();
    let without = || client(&hub, cache.path()).without_weights();
    let snapshot = download(&without()).unwrap();
    let names = ["config.json", "tokenizer.json"];
    assert_same(&snapshot.directory, &files, &names);
    assert_eq!(fs::read_dir(&snapshot.directory).unwrap().count(), names.len());
    assert_eq!(download(&without()).unwrap(), snapshot);
    // With its weights it is still to be fetched.
    assert_eq!(download(&client(&hub, cache.path())).unwrap(), snapshot);
    assert_same(&snapshot.directory, &files, &[SHARD_1, SHARD_2]);
}

#[test]
fn a_sharded_repository_lands_in_the_usual_layout_and_is_not_fetched_again() {
    let files = sharded();
    let hub = TestHub::start(&files);
    let cache = tempfile::tempdir().unwrap();
    let finished = Mutex::new(Vec::new());
    let snapshot = client(&hub, cache.path())
        .download(&repo(), &|event: Event<'_>| match event {
            Event::Planned { files } => {
                let planned: Vec<_> = files.iter().map(|file| (file.name.as_str(), file.size)).collect();
                assert_eq!(
                    planned,
                    [
                        ("config.json", Some(2)),
                        (SHARD_1, Some(700_001)),
                        (SHARD_2, Some(600_000)),
                        (INDEX, Some(files[3].size.unwrap())),
                        ("tokenizer.json", Some(5_000)),
                    ]
                );
            }
            Event::Finished { file } => finished.lock().unwrap().push(file),
            _ => {}
        })
        .unwrap();

    let root = cache.path().join("models--test--model");
    let directory = root.join("snapshots").join(COMMIT);
    assert_eq!(snapshot, Snapshot { directory, commit: COMMIT.to_owned(), gguf: None });
    let names = ["config.json", "tokenizer.json", INDEX, SHARD_1, SHARD_2];
    assert_same(&snapshot.directory, &files, &names);
    assert_eq!(fs::read_dir(&snapshot.directory).unwrap().count(), names.len());
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let blob = sha256(&files[4].1);
    assert_eq!(fs::read_link(snapshot.directory.join(SHARD_1)).unwrap(), Path::new("../../blobs").join(&blob));
    assert!(root.join("blobs").join(&blob).is_file());
    let mut finished = finished.into_inner().unwrap();
    finished.sort_unstable();
    assert_eq!(finished, [0, 1, 2, 3, 4]);

    let before = hub.seen().len();
    assert_eq!(download(&client(&hub, cache.path())).unwrap(), snapshot);
    let again: Vec<_> = hub.seen().drain(before..).map(|seen| seen.path).collect();
    assert_eq!(again, ["/api/models/test/model/revision/main"]);
}

#[test]
fn named_chat_templates_come_along_in_their_folder() {
    const NAME: &str = "additional_chat_templates/tool_use.jinja";
    let mut files = sharded();
    files.extend([(NAME, b"{{ messages }}".to_vec()), ("additional_chat_templates/notes.txt", b"none".to_vec())]);
    let hub = TestHub::start(&files);
    let cache = tempfile::tempdir().unwrap();
    let snapshot = download(&client(&hub, cache.path())).unwrap();
    assert_same(&snapshot.directory, &files, &[NAME, "config.json", SHARD_1]);
    assert_eq!(fs::read_dir(snapshot.directory.join("additional_chat_templates")).unwrap().count(), 1);
    let link = fs::read_link(snapshot.directory.join(NAME)).unwrap();
    assert!(link.starts_with("../../../blobs"), "{}", link.display());
    let before = hub.seen().len();
    assert_eq!(download(&client(&hub, cache.path())).unwrap(), snapshot);
    assert_eq!(hub.seen().len(), before + 1, "nothing is fetched again");
}

#[test]
fn one_gguf_model_of_several_comes_alone_with_its_parts_and_is_found_offline() {
    const PARTS: [&str; 2] = ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"];
    let mut files =
        vec![("config.json", b"{}".to_vec()), ("m.Q4_K_M.gguf", bytes(7, 9_000)), ("m.Q8_0.gguf", bytes(8, 10))];
    files.extend(PARTS.map(|part| (part, bytes(part.len() as u64, 3_000))));
    let hub = TestHub::start(&files);
    let cache = tempfile::tempdir().unwrap();
    let get = |offline: bool, variant: &str| {
        let hub = Hub::new(HubOptions { offline, ..options(&hub, cache.path()) });
        hub.download(&format!("test/model{variant}").parse().unwrap(), &quiet)
    };
    let snapshot = get(false, ":q4_k_m").unwrap();
    assert_eq!(snapshot.gguf.as_deref(), Some("m.Q4_K_M.gguf"));
    assert_eq!(fs::read(snapshot.model()).unwrap(), files[1].1);
    assert_eq!(fs::read_dir(&snapshot.directory).unwrap().count(), 1);
    assert_eq!(get(true, ":Q4_K_M").unwrap(), snapshot);
    assert!(get(true, ":Q8_0").unwrap_err().to_string().contains("none of its GGUF models is Q8_0: m.Q4_K_M"));
    let parts = get(false, ":BF16").unwrap();
    assert_eq!(parts.gguf.as_deref(), Some(PARTS[0]));
    assert_same(&parts.directory, &files, &PARTS);
    assert_eq!(get(true, ":BF16").unwrap(), parts);
    let error = get(false, "").unwrap_err().to_string();
    assert!(error.contains("it has 3 models in GGUF files (BF16/m-BF16, m.Q4_K_M, m.Q8_0): name one"), "{error}");
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let hub = TestHub::start(&sharded());
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions { token: Some("hf_secret".to_owned()), ..options(&hub, cache.path()) };
    download(&Hub::new(options)).unwrap();
    let seen = hub.seen();
    assert!(seen.iter().any(|seen| !seen.on_hub), "the storage was asked");
    for seen in seen {
        let expected = seen.on_hub.then_some("Bearer hf_secret");
        assert_eq!(seen.authorization.as_deref(), expected, "{seen:?}");
    }
}

#[test]
fn a_broken_connection_is_resumed_where_it_broke() {
    let files = sharded();
    let hub = TestHub::start(&files);
    hub.fault(SHARD_1, &[Fault::BreakAfter(300_000), Fault::BreakAfter(200_000)]);
    let cache = tempfile::tempdir().unwrap();
    let snapshot = download(&client(&hub, cache.path())).unwrap();
    assert_same(&snapshot.directory, &files, &[SHARD_1, SHARD_2]);
    let ranges: Vec<_> = hub.fetches(SHARD_1).into_iter().map(|seen| seen.range).collect();
    // Not one byte is sent twice.
    assert_eq!(ranges, [None, Some("bytes=300000-".to_owned()), Some("bytes=500000-".to_owned())]);
    assert_eq!(hub.fetches(SHARD_2).len(), 1);
}

#[test]
fn a_later_download_goes_on_where_an_earlier_one_gave_up() {
    let files = sharded();
    let hub = TestHub::start(&files);
    hub.fault(SHARD_1, &[Fault::BreakAfter(400_000)]);
    let cache = tempfile::tempdir().unwrap();
    let mut options = options(&hub, cache.path());
    options.retry.attempts = 1;
    let error = download(&Hub::new(options)).unwrap_err();
    assert!(matches!(error, Error::Unreachable { attempts: 1, .. }), "{error}");
    let incomplete = cache.path().join(format!("models--test--model/blobs/{}.incomplete", sha256(&files[4].1)));
    assert_eq!(fs::metadata(&incomplete).unwrap().len(), 400_000);
    assert!(!cache.path().join("models--test--model/refs/main").exists());

    let positions = Mutex::new(Vec::new());
    let progress = |event: Event<'_>| {
        if let Event::Position { bytes, .. } = event {
            positions.lock().unwrap().push(bytes);
        }
    };
    let snapshot = client(&hub, cache.path()).download(&repo(), &progress).unwrap();
    assert_same(&snapshot.directory, &files, &[SHARD_1]);
    assert!(positions.into_inner().unwrap().contains(&400_000), "progress begins at what was there");
    assert_eq!(hub.fetches(SHARD_1).last().unwrap().range.as_deref(), Some("bytes=400000-"));
    assert!(!incomplete.exists());
}

#[test]
fn a_server_that_ignores_the_range_sends_the_file_anew() {
    let files = sharded();
    let hub = TestHub::start(&files);
    hub.fault(SHARD_1, &[Fault::BreakAfter(100_000), Fault::IgnoreRange]);
    let cache = tempfile::tempdir().unwrap();
    let snapshot = download(&client(&hub, cache.path())).unwrap();
    assert_same(&snapshot.directory, &files, &[SHARD_1]);
}

#[test]
fn a_leftover_that_is_too_long_is_thrown_away() {
    let files = sharded();
    let hub = TestHub::start(&files);
    let cache = tempfile::tempdir().unwrap();
    let blobs = cache.path().join("models--test--model/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", sha256(&files[4].1))), vec![0; 800_000]).unwrap();
    let snapshot = download(&client(&hub, cache.path())).unwrap();
    assert_same(&snapshot.directory, &files, &[SHARD_1]);
}

#[test]
fn damaged_contents_are_fetched_again_and_refused_the_second_time() {
    let files = sharded();
    let hub = TestHub::start(&files);
    let cache = tempfile::tempdir().unwrap();
    hub.set(|contents| {
        contents.always.insert(SHARD_2.to_owned(), Fault::Corrupt);
    });
    let error = download(&client(&hub, cache.path())).unwrap_err();
    let Error::Damaged { file, expected, actual, .. } = &error else { panic!("{error}") };
    assert_eq!((file.as_str(), expected), (SHARD_2, &sha256(&files[5].1)));
    assert_ne!(actual, expected);
    assert_eq!(hub.fetches(SHARD_2).len(), 2);
    let blob = cache.path().join("models--test--model/blobs").join(expected);
    assert!(!blob.exists(), "damaged contents never get their name");

    hub.set(|contents| contents.always.clear());
    hub.fault(SHARD_2, &[Fault::Corrupt]);
    let snapshot = download(&client(&hub, cache.path())).unwrap();
    assert_same(&snapshot.directory, &files, &[SHARD_2]);
}

#[test]
fn passing_refusals_are_waited_out() {
    let files = sharded();
    let hub = TestHub::start(&files);
    hub.fault(SHARD_1, &[Fault::Status(503), Fault::Status(500)]);
    hub.fault(SHARD_2, &[Fault::RetryAfter(1), Fault::Status(403), Fault::TooMuch]);
    let cache = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let mut options = options(&hub, cache.path());
    options.retry.attempts = 4;
    let snapshot = Hub::new(options).download(&repo(), &quiet).unwrap();
    assert_same(&snapshot.directory, &files, &[SHARD_1, SHARD_2]);
    assert!(began.elapsed() >= Duration::from_secs(1), "Retry-After is honoured");
    assert_eq!((hub.fetches(SHARD_1).len(), hub.fetches(SHARD_2).len()), (3, 4));
}

#[test]
fn a_refusal_that_does_not_pass_ends_after_the_attempts() {
    let hub = TestHub::start(&sharded());
    hub.set(|contents| {
        contents.always.insert(SHARD_1.to_owned(), Fault::Status(503));
    });
    let cache = tempfile::tempdir().unwrap();
    let error = download(&client(&hub, cache.path())).unwrap_err().to_string();
    assert!(error.contains("in 3 attempts: status 503"), "{error}");
    assert_eq!(hub.fetches(SHARD_1).len(), 3);
}

#[test]
fn a_failure_does_not_wait_for_the_patience_of_other_files() {
    let hub = TestHub::start(&sharded());
    hub.fault(SHARD_1, &[Fault::RetryAfter(120)]);
    hub.set(|contents| {
        contents.always.insert(SHARD_2.to_owned(), Fault::Status(418));
    });
    let cache = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let error = download(&client(&hub, cache.path())).unwrap_err().to_string();
    assert!(error.contains("status 418"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(60));
}

/// A server that never gets further than the middle and cannot resume must not be asked for ever.
#[test]
fn a_file_that_breaks_at_the_same_place_every_time_ends_after_the_attempts() {
    let hub = TestHub::start(&sharded());
    let faults: Vec<Fault> = (0..20).flat_map(|_| [Fault::BreakAfter(300_000), Fault::Status(416)]).collect();
    hub.fault(SHARD_1, &faults);
    let cache = tempfile::tempdir().unwrap();
    let error = download(&client(&hub, cache.path())).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(hub.fetches(SHARD_1).len() < 8, "{:?}", hub.fetches(SHARD_1));
}

#[test]
fn refusals_are_explained() {
    for (status, code, token, parts) in [
        (401, Some("GatedRepo"), false, &["test/model is gated", "accept its terms at http://", "HF_TOKEN"][..]),
        (403, Some("GatedRepo"), true, &["test/model is gated", "account of the given token"]),
        (401, Some("RepoNotFound"), false, &["has no model repository test/model", "set HF_TOKEN"]),
        (404, Some("RepoNotFound"), true, &["has no model repository test/model", "given token may read it"]),
        (404, Some("RevisionNotFound"), false, &["test/model has no revision \"main\""]),
        (404, None, false, &["has no model repository test/model"]),
        (401, None, true, &["refuses the given token", "HF_TOKEN"]),
        (418, None, false, &["/api/models/test/model/revision/main", "status 418"]),
    ] {
        let hub = TestHub::start(&sharded());
        hub.set(|contents| contents.refusal = Some((status, code)));
        let cache = tempfile::tempdir().unwrap();
        let token = token.then(|| "hf_secret".to_owned());
        let error = download(&Hub::new(HubOptions { token, ..options(&hub, cache.path()) })).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{status} {code:?}: {error}");
        }
        assert!(!error.contains("hf_secret"), "{error}");
        assert_eq!(hub.seen().len(), 1, "a refusal is no reason to try again");
    }
}

#[test]
fn without_the_hub_the_cache_serves() {
    let files = sharded();
    let hub = TestHub::start(&files);
    let cache = tempfile::tempdir().unwrap();
    let offline = Hub::new(HubOptions { offline: true, ..options(&hub, cache.path()) });
    let error = download(&offline).unwrap_err().to_string();
    assert!(error.contains("test/model is not in the cache") && error.contains("HF_HUB_OFFLINE"), "{error}");
    assert!(hub.seen().is_empty(), "offline asks nobody");

    let snapshot = download(&client(&hub, cache.path())).unwrap();
    assert_eq!(download(&offline).unwrap(), snapshot);
    let client = client(&hub, cache.path());
    hub.stop();
    assert_eq!(download(&client).unwrap(), snapshot, "a hub that is away is no obstacle");

    fs::remove_file(snapshot.directory.join(SHARD_2)).unwrap();
    let error = download(&offline).unwrap_err().to_string();
    assert!(error.contains(&format!("{SHARD_2} is missing")), "{error}");
    let error = download(&client).unwrap_err();
    assert!(matches!(error, Error::Unreachable { attempts: 3, .. }), "{error}");
}

#[test]
fn a_commit_that_is_in_the_cache_needs_no_hub() {
    let hub = TestHub::start(&sharded());
    let cache = tempfile::tempdir().unwrap();
    let repo: Repo = format!("test/model@{COMMIT}").parse().unwrap();
    let client = client(&hub, cache.path());
    let snapshot = client.download(&repo, &quiet).unwrap();
    let before = hub.seen().len();
    assert_eq!(client.download(&repo, &quiet).unwrap(), snapshot);
    assert_eq!(hub.seen().len(), before);
    assert!(!cache.path().join("models--test--model/refs").exists());
}

#[test]
fn two_processes_do_not_fetch_the_same_file_twice() {
    let files = sharded();
    let hub = TestHub::start(&files);
    let cache = tempfile::tempdir().unwrap();
    let snapshots: Vec<Snapshot> = thread::scope(|scope| {
        let clients: Vec<_> = (0..3).map(|_| scope.spawn(|| download(&client(&hub, cache.path())).unwrap())).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    for snapshot in snapshots {
        assert_same(&snapshot.directory, &files, &[SHARD_1, SHARD_2, "tokenizer.json"]);
    }
    assert_eq!((hub.fetches(SHARD_1).len(), hub.fetches(SHARD_2).len()), (1, 1));
}

#[test]
fn a_file_locked_by_another_process_is_waited_for() {
    let files = sharded();
    let hub = TestHub::start(&files);
    let cache = tempfile::tempdir().unwrap();
    let locks = cache.path().join(".locks/models--test--model");
    fs::create_dir_all(&locks).unwrap();
    let lock = File::create(locks.join(format!("{}.lock", sha256(&files[4].1)))).unwrap();
    lock.lock().unwrap();
    let waits = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let progress = |event: Event<'_>| {
                if matches!(event, Event::Waiting { .. }) {
                    waits.fetch_add(1, Ordering::SeqCst);
                }
            };
            client(&hub, cache.path()).download(&repo(), &progress).unwrap();
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        while waits.load(Ordering::SeqCst) == 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(hub.fetches(SHARD_1).is_empty(), "nothing is written while the lock is held");
        lock.unlock().unwrap();
    });
    assert_eq!((waits.into_inner(), hub.fetches(SHARD_1).len()), (1, 1));
}

#[test]
fn a_disk_too_small_is_seen_before_anything_is_fetched() {
    let hub = TestHub::start(&sharded());
    hub.set(|contents| {
        contents.sizes.insert(SHARD_1.to_owned(), 1 << 60);
    });
    let cache = tempfile::tempdir().unwrap();
    let error = download(&client(&hub, cache.path())).unwrap_err();
    let Error::DiskFull { needed, available, .. } = error else { panic!("{error}") };
    assert!(needed > 1 << 60 && available < 1 << 60);
    assert!(hub.fetches(SHARD_1).is_empty() && hub.fetches(SHARD_2).is_empty());
}

#[test]
fn names_from_the_hub_cannot_leave_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let attempt = |change: &dyn Fn(&TestHub)| {
        let hub = TestHub::start(&sharded());
        change(&hub);
        download(&client(&hub, cache.path())).unwrap_err().to_string()
    };
    let error = attempt(&|hub| {
        hub.set(|contents| {
            contents.listed_as = Some(
                ["../../config.json", "/etc/model.safetensors", "model-1-of-../x.safetensors"]
                    .map(String::from)
                    .to_vec(),
            );
        });
    });
    assert!(error.contains("holds no model"), "{error}");
    let error = attempt(&|hub| hub.set(|contents| contents.commit = Some("../../../tmp/x".to_owned())));
    assert!(error.contains("is not a commit"), "{error}");
    let error = attempt(&|hub| {
        hub.set(|contents| {
            contents.etags.insert(SHARD_1.to_owned(), "../../../evil".to_owned());
        });
    });
    assert!(error.contains("cannot name a file of the cache"), "{error}");
}

#[test]
fn a_repository_of_something_else_is_named_with_what_it_has() {
    let hub = TestHub::start(&[("README.md", b"#".to_vec()), ("model.onnx", bytes(9, 2_000))]);
    let cache = tempfile::tempdir().unwrap();
    let error = download(&client(&hub, cache.path())).unwrap_err().to_string();
    assert!(error.contains("model.onnx"), "{error}");
}
