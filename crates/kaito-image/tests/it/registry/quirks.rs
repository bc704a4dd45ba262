//! Registries that take blobs otherwise than most. What they do is what their users report; the image has to arrive.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use kaito_image::registry::{Access, Options, PushOptions, PushReport, Repository, parse_reference};
use kaito_testing::{
    proxy::{Fault, Proxy},
    registry::{Broken, Config, LastChunk, Located, Registry, Told},
};

use super::{
    images::{Recorder, options, random_image},
    push::assert_there,
};

/// Larger than a chunk three times, twice and not at all.
const SIZES: [usize; 4] = [1_000_000, 600_000, 5, 0];
const CHUNK: u64 = 256 << 10;
async fn push_to(
    host: std::net::SocketAddr,
    seed: u64,
    options: &Options,
) -> (Result<PushReport, kaito_image::registry::Error>, Arc<Recorder>) {
    let reference = parse_reference(&format!("{host}/a:{seed}")).unwrap();
    let repository = Repository::open(&reference, Access::Push, options).await.unwrap();
    let recorder = Recorder::new();
    (repository.push(&random_image(seed, &SIZES), &PushOptions::default(), &*recorder).await, recorder)
}

/// What it may cost to find out what a registry is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Price {
    /// Nothing: no byte is sent again, and nothing fails.
    Free,
    /// Bytes that were refused, without a wait.
    Refused,
    /// Bytes, and a wait.
    Retried,
}
use Price::{Free, Refused, Retried};

#[tokio::test]
async fn a_push_arrives_whatever_a_registry_does_otherwise() {
    let with = |change: fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        config
    };
    const GITHUB: (u16, &str, &str) = (
        416,
        "REQUESTED_RANGE_NOT_SATISFIABLE",
        "the request body is too large and exceeds the maximum permissible limit of 4.00MiB",
    );
    for (what, config, price) in [
        ("takes no chunks", with(|config| config.takes_chunks = false), Refused),
        (
            "keeps every chunk while its range stays where the first ended",
            with(|config| (config.tells, config.chunk_status) = (Told::FirstChunk, 201)),
            Free,
        ),
        ("says that it has nothing", with(|config| config.tells = Told::Zero), Free),
        ("does not say how much it has", with(|config| config.tells = Told::Nothing), Free),
        ("writes a unit before its range", with(|config| config.tells = Told::WithUnit), Free),
        ("keeps a part of each chunk and says so", with(|config| config.keeps_of_chunk = 100_000), Refused),
        ("has no status of uploads", with(|config| config.status_refused = Some(405)), Free),
        ("answers chunks with 200", with(|config| config.chunk_status = 200), Free),
        ("answers chunks with 204", with(|config| config.chunk_status = 204), Free),
        ("answers the last request with 202", with(|config| config.end_status = 202), Free),
        ("answers the last request with 204", with(|config| config.end_status = 204), Free),
        ("gives whole addresses", with(|config| config.located = Located::WholeAddress), Free),
        ("gives addresses relative to uploads", with(|config| config.located = Located::Relative), Free),
        ("gives an address once", with(|config| config.located = Located::Once), Free),
        ("gives the id of an upload and no address", with(|config| config.located = Located::ByUuid), Free),
        ("does not say digests", with(|config| config.tells_digests = false), Free),
        ("wants larger chunks", with(|config| config.min_chunk = 300_000), Free),
        ("limits requests", with(|config| config.max_request = Some(70_000)), Refused),
        ("limits requests to a fraction of the chunk", with(|config| config.max_request = Some(3000)), Refused),
        (
            "limits requests, and calls that a range",
            with(|config| (config.max_request, config.too_large) = (Some(70_000), GITHUB)),
            Refused,
        ),
        (
            "limits requests, calls that a range and says no more",
            with(|config| (config.max_request, config.too_large) = (Some(70_000), (416, "RANGE_INVALID", ""))),
            Refused,
        ),
        (
            "limits requests, and calls them bad",
            with(|config| {
                (config.max_request, config.too_large) = (Some(70_000), (400, "UNKNOWN", "request body too large"));
            }),
            Refused,
        ),
        ("takes one chunk of a blob", with(|config| config.most_chunks = 1), Retried),
        (
            "takes one chunk of a blob and has no status",
            with(|config| (config.most_chunks, config.status_refused) = (1, Some(404))),
            Retried,
        ),
        ("wants the upload ended without content", with(|config| config.last_chunk = LastChunk::Refused), Retried),
        ("passes over content at the end", with(|config| config.last_chunk = LastChunk::PassedOver), Retried),
        (
            "passes over content at the end, always",
            with(|config| config.last_chunk = LastChunk::AlwaysPassedOver),
            Retried,
        ),
        (
            "stores a blob without the content at the end",
            with(|config| config.last_chunk = LastChunk::StoredWithout),
            Retried,
        ),
        (
            "stores a blob without the content at the end and does not say digests",
            with(|config| (config.last_chunk, config.tells_digests) = (LastChunk::StoredWithout, false)),
            Retried,
        ),
        ("needs a moment to know its blobs", with(|config| config.lacking = 2), Retried),
    ] {
        let registry = Registry::start(config).await;
        let (report, recorder) = push_to(registry.address, 1, &options()).await;
        let report = report.unwrap_or_else(|error| panic!("{what}: {error}; {:?}", recorder.causes()));
        assert_there(&registry, "a", "1", &random_image(1, &SIZES));
        let bound = if price == Free { 0 } else { 3 * report.blobs.iter().map(|blob| blob.size).sum::<u64>() };
        assert!(report.resent() <= bound, "{what}: {} of {bound} resent", report.resent());
        if price != Retried {
            assert_eq!(recorder.causes(), [""; 0], "{what}");
            assert_eq!(registry.requests("GET /v2/a/blobs/uploads/"), 0, "{what}: asked for a status without a break");
        }
        let (repeated, _) = push_to(registry.address, 1, &options()).await;
        assert!(repeated.unwrap().unchanged, "{what}");
    }
}

/// What the first blob has found out the others know: one refusal for each size of request, not for each request.
#[tokio::test]
async fn a_limit_of_requests_is_found_once() {
    let registry = Registry::start(Config { max_request: Some(70_000), ..Config::default() }).await;
    let options = Options { jobs: std::num::NonZeroUsize::MIN, ..options() };
    push_to(registry.address, 2, &options).await.0.unwrap();
    // 1.6 MB in requests of 65536 bytes, after those of 262144 and of 131072 were refused.
    let requests = registry.requests("PATCH") + registry.requests("PUT /v2/a/blobs/");
    assert!(requests <= 25 + 2 + 6, "{requests} requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_break_costs_no_blob_whatever_the_registry_knows_of_an_upload() {
    let known = [
        (Told::FirstChunk, None),
        (Told::Zero, None),
        (Told::Nothing, None),
        (Told::WithUnit, None),
        (Told::All, Some(404)),
        (Told::All, Some(405)),
        (Told::All, Some(500)),
        (Told::All, Some(401)),
        (Told::Nothing, Some(403)),
    ];
    let cases = known
        .into_iter()
        .flat_map(|known| [Broken::Kept, Broken::Dropped, Broken::GivenUp].map(|broken| (known, broken)));
    let breaking = stream::iter(cases).map(|((tells, status_refused), broken)| async move {
        let what = format!("tells {tells:?}, status {status_refused:?}, broken chunks are {broken:?}");
        let registry = Registry::start(Config { tells, status_refused, broken, ..Config::default() }).await;
        let cuts = vec![(300_000, Fault::Reset), (900_000, Fault::Reset), (1_300_000, Fault::LostAnswer)];
        let proxy = Proxy::start(registry.address, cuts).await;
        let mut options = options();
        options.retry.attempts = 20;
        let (report, recorder) = push_to(proxy.address, 3, &options).await;
        let report = report.unwrap_or_else(|error| panic!("{what}: {error}; {:?}", recorder.causes()));
        assert_eq!(proxy.left(), 0, "{what}");
        assert_there(&registry, "a", "3", &random_image(3, &SIZES));
        // What arrived does not come again where the registry says what that is.
        if (tells, broken) == (Told::WithUnit, Broken::Kept) {
            let bound = CHUNK * recorder.retries.lock().unwrap().len() as u64;
            assert!(report.resent() <= bound, "{what}: {} of {bound} resent", report.resent());
        }
    });
    breaking.buffer_unordered(9).collect::<Vec<_>>().await;
}
