//! Who is let in, and who is shown a password.

use std::{fs, num::NonZeroUsize, os::unix::fs::PermissionsExt};

use kaito_image::{
    Platform,
    registry::{Access as Wanted, Credentials, Error, Options, PushOptions, Repository, Secret, parse_reference},
};
use kaito_testing::registry::{Access, Config, Registry};
use oci_spec::image::{Arch, Os};

use super::images::{Recorder, options, password, random_image};

async fn registry(access: Access) -> std::sync::Arc<Registry> {
    Registry::start(Config { access, ..Config::default() }).await
}

async fn push(registry: &Registry, options: &Options, seed: u64) -> Result<(), Error> {
    let reference = parse_reference(&format!("{}/team/phi:1", registry.address)).unwrap();
    let repository = Repository::open(&reference, Wanted::Push, options).await?;
    let image = random_image(seed, &[700_000, 10]);
    repository.push(&image, &PushOptions::default(), &*Recorder::new()).await?;
    assert!(registry.manifest("team/phi", "1").is_some());
    Ok(())
}

/// Requests that a token is good for, where that does not matter.
const MANY: u64 = 10_000;

#[tokio::test]
async fn a_password_opens_registries_of_both_kinds() {
    for access in [Access::Basic("ada", "pass:word"), Access::Token("ada", "pass:word", MANY)] {
        let registry = registry(access.clone()).await;
        let right = Options { credentials: password("ada", "pass:word"), ..options() };
        push(&registry, &right, 1).await.unwrap();
        if matches!(access, Access::Token(..)) {
            // One for all blobs that travel at once.
            assert_eq!(registry.tokens_given.load(std::sync::atomic::Ordering::Relaxed), 1);
        }

        let wrong = Options { credentials: password("ada", "guess"), ..options() };
        let error = push(&registry, &wrong, 2).await.unwrap_err().to_string();
        for says in ["refuses user \"ada\"", "the command line", "docker login"] {
            assert!(error.contains(says), "{access:?}: {error}");
        }
        assert!(!error.contains("guess"), "{error}");

        let reference = parse_reference(&format!("{}/team/phi:1", registry.address)).unwrap();
        let repository = Repository::open(&reference, Wanted::Push, &wrong).await.unwrap();
        let error = repository.check_push(&*Recorder::new()).await.unwrap_err().to_string();
        assert!(error.contains("refuses user \"ada\""), "{access:?}: {error}");

        let error = push(&registry, &options(), 2).await.unwrap_err().to_string();
        let says = match access {
            Access::Basic(..) => "wants credentials",
            _ => "incorrect username or password",
        };
        assert!(error.contains(says) && error.contains("--password"), "{access:?}: {error}");
    }
}

#[tokio::test]
async fn a_token_that_ends_in_the_middle_is_fetched_again() {
    // The client is told that it lasts longer, so that only a refusal, with a chunk on its way, says otherwise.
    let registry = registry(Access::Token("ada", "x", 5)).await;
    let options =
        Options { credentials: password("ada", "x"), chunk_size: 20_000, jobs: NonZeroUsize::MIN, ..options() };
    push(&registry, &options, 3).await.unwrap();
    // 35 requests with content for the large layer alone.
    let tokens = registry.tokens_given.load(std::sync::atomic::Ordering::Relaxed);
    assert!(tokens >= 7, "{tokens} tokens");
    let layer = random_image(3, &[700_000, 10]).layers[0].clone();
    let (arrived, _) = registry.received("team/phi", layer.digest().as_ref()).await;
    assert_eq!(arrived, layer.size());
}

#[tokio::test]
async fn identity_tokens_are_exchanged() {
    let registry = registry(Access::Token("nobody", "x", MANY)).await;
    let identity =
        |token: &str| Options { credentials: Some(Credentials::IdentityToken(Secret::new(token))), ..options() };
    push(&registry, &identity("identity"), 4).await.unwrap();
    let error = push(&registry, &identity("old"), 5).await.unwrap_err().to_string();
    assert!(error.contains("refuses the token") && !error.contains("old"), "{error}");
}

#[tokio::test]
async fn credentials_come_from_dockers_files_and_helpers() {
    let registry = registry(Access::Basic("ada", "secret")).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let from = |config: serde_json::Value| {
        fs::write(&path, config.to_string()).unwrap();
        Options { credential_files: vec![path.clone()], ..options() }
    };
    let host = registry.address.to_string();
    // YWRhOnNlY3JldA== is "ada:secret".
    let auths = serde_json::json!({ "auths": { host.clone(): { "auth": "YWRhOnNlY3JldA==" } } });
    push(&registry, &from(auths), 6).await.unwrap();
    // YWRhOm5v is "ada:no".
    let wrong = serde_json::json!({ "auths": { host.clone(): { "auth": "YWRhOm5v" } } });
    let error = push(&registry, &from(wrong), 7).await.unwrap_err().to_string();
    assert!(error.contains(&format!("the password from {}", path.display())), "{error}");
}

/// Helpers are found in PATH, which belongs to the process; so a process of its own looks.
#[test]
fn helpers_are_asked_and_held_to_their_protocol() {
    const CHILD: &str = "KAITO_TEST_HELPERS";
    if std::env::var_os(CHILD).is_none() {
        let folder = tempfile::tempdir().unwrap();
        let helper = |name: &str, script: &str| {
            let path = folder.path().join(format!("docker-credential-{name}"));
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        helper(
            "right",
            "read server; [ \"$1\" = get ] && echo \"{\\\"ServerURL\\\":\\\"$server\\\",\\\"Username\\\":\\\"ada\\\",\\\"Secret\\\":\\\"secret\\\"}\"",
        );
        helper("empty", "echo 'credentials not found in native keychain'; exit 1");
        helper("locked", "echo 'the keychain is locked' >&2; exit 2");
        helper("chatty", "yes");
        helper("confused", "echo secret-but-no-json");
        helper("nobody", "echo '{\"ServerURL\":\"x\",\"Username\":\"\",\"Secret\":\"\"}'");
        helper("silent", ":");
        let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "registry::auth::helpers_are_asked_and_held_to_their_protocol", "--nocapture"])
            .env(CHILD, "1")
            .env("PATH", path)
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let registry = registry(Access::Basic("ada", "secret")).await;
        let folder = tempfile::tempdir().unwrap();
        let host = registry.address.to_string();
        let path = folder.path().join("config.json");
        for (config, says) in [
            (serde_json::json!({ "credsStore": "right" }), None),
            (serde_json::json!({ "credHelpers": { host.clone(): "right" }, "credsStore": "locked" }), None),
            (serde_json::json!({ "credHelpers": { "other.test": "locked" }, "credsStore": "right" }), None),
            (serde_json::json!({ "credsStore": "empty" }), Some("none are known")),
            (serde_json::json!({ "credsStore": "locked" }), Some("the keychain is locked")),
            (serde_json::json!({ "credsStore": "chatty" }), Some("more than 65536 bytes")),
            (serde_json::json!({ "credsStore": "confused" }), Some("not what helpers answer")),
        ] {
            fs::write(&path, config.to_string()).unwrap();
            let options = Options { credential_files: vec![path.clone()], ..options() };
            match (push(&registry, &options, 8).await, says) {
                (Ok(()), None) => {}
                (Err(error), Some(says)) => {
                    assert!(error.to_string().contains(says), "{config}: {error}");
                    assert!(!error.to_string().contains("secret-but"), "{error}");
                }
                (result, _) => panic!("{config}: {result:?}"),
            }
        }
        // It gives tokens to anybody, and none with a password, an empty one too.
        let open = Registry::start(Config { access: Access::AnonymousToken, ..Config::default() }).await;
        let host = open.address.to_string();
        for config in [
            serde_json::json!({ "credsStore": "nobody" }),
            serde_json::json!({ "credsStore": "silent" }),
            serde_json::json!({ "credHelpers": { host.clone(): "nobody" }, "auths": { host.clone(): {} } }),
            serde_json::json!({ "credHelpers": null, "auths": { host.clone(): null } }),
            // Og== is ":".
            serde_json::json!({ "auths": { host.clone(): { "auth": "Og==" } } }),
        ] {
            fs::write(&path, config.to_string()).unwrap();
            let options = Options { credential_files: vec![path.clone()], ..options() };
            push(&open, &options, 9).await.unwrap_or_else(|error| panic!("{config}: {error}"));
        }
    });
}

#[tokio::test]
async fn credentials_stay_with_their_registry() {
    let storage = Registry::start(Config::default()).await;
    let registry = registry(Access::Basic("ada", "secret")).await;
    let options = Options { credentials: password("ada", "secret"), ..options() };
    push(&registry, &options, 9).await.unwrap();
    let image = random_image(9, &[700_000, 10]);
    for blob in image.blobs() {
        storage.put_blob("team/phi", &blob.bytes(u64::MAX).unwrap());
    }
    registry.configure(|config| config.storage = Some(storage.address));
    let reference = parse_reference(&format!("{}/team/phi:1", registry.address)).unwrap();
    let repository = Repository::open(&reference, Wanted::Pull, &options).await.unwrap();
    let platform = Platform { os: Os::Linux, architecture: Arch::Amd64 };
    let found = repository.image(&platform).await.unwrap();
    let layer = found.layers[0].clone();
    let bytes = tokio::task::spawn_blocking(move || layer.bytes(u64::MAX).unwrap()).await.unwrap();
    assert!(bytes == image.layers[0].bytes(u64::MAX).unwrap());
    assert!(storage.requests("GET") > 0, "the redirect was not followed");
    assert!(storage.shown.lock().unwrap().is_empty(), "the storage was shown credentials");
    assert_eq!(registry.shown.lock().unwrap().len(), 1);
}
