//! Finds user names and passwords where Docker and Podman keep them.

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer};

use super::{
    Error, Reference,
    address::ipv6_registry,
    helper::{ask_helper, helper_name},
};

/// The name under which Docker keeps the credentials of its own registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// Instead of a user's name: what follows is no password but an identity token.
const TOKEN_USER: &str = "<token>";
const MAX_FILE: u64 = 1 << 20;

/// Something that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// How to make oneself known to a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user's name and password.
    Password {
        /// The name.
        user: String,
        /// The password, or what the registry gives out in its place.
        password: Secret,
    },
    /// A token that the registry's token service exchanges for others; Azure's registries give these.
    IdentityToken(Secret),
    /// A token for the registry itself.
    RegistryToken(Secret),
}

/// Credentials, and where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) credentials: Credentials,
    pub(super) from: String,
}

/// The files that Docker and Podman read, in the order in which they are asked.
pub fn credential_files() -> Vec<PathBuf> {
    files_from(&|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
}

fn files_from(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let home = variable("HOME");
    let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
    let docker = variable("DOCKER_CONFIG").or_else(|| in_home(".docker")).map(|folder| folder.join("config.json"));
    let runtime = variable("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json"));
    let config = variable("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
    let podman = config.map(|folder| folder.join("containers/auth.json"));
    [variable("REGISTRY_AUTH_FILE"), docker, runtime, podman].into_iter().flatten().collect()
}

/// The first credentials in `files` for the registry of `reference`.
///
/// # Errors
/// When a file or a helper's answer can't be read.
pub(super) async fn find(files: &[PathBuf], reference: &Reference) -> Result<Option<Found>, Error> {
    for path in files {
        let Some(text) = read(path)? else { continue };
        let config = Config::parse(&text)
            .map_err(|cause| Error::Credentials { from: path.display().to_string(), cause: cause.to_string() })?;
        if let Some(found) = config.find(path, reference).await? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    let error = |cause: String| Error::Credentials { from: path.display().to_string(), cause };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(cause) => return Err(error(cause.to_string())),
    };
    let mut text = String::new();
    let length = file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|cause| error(cause.to_string()))?;
    if length as u64 > MAX_FILE {
        return Err(error(format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(Some(text))
}

/// Docker's `config.json`, of which Podman's `auth.json` is a part. Tools in Go write `null` for what is empty.
#[derive(Debug, Default, Deserialize)]
struct Config {
    #[serde(default, deserialize_with = "null_is_nothing")]
    auths: BTreeMap<String, Option<Auth>>,
    #[serde(default, rename = "credsStore")]
    creds_store: Option<String>,
    #[serde(default, rename = "credHelpers", deserialize_with = "null_is_nothing")]
    cred_helpers: BTreeMap<String, Option<String>>,
}

fn null_is_nothing<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[derive(Debug, Default, Deserialize)]
struct Auth {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    identitytoken: Option<String>,
    #[serde(default)]
    registrytoken: Option<String>,
}

impl Config {
    fn parse(text: &str) -> Result<Self, serde_json::Error> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        Ok(serde_json::from_str::<Option<Self>>(text)?.unwrap_or_default())
    }

    async fn find(&self, path: &Path, reference: &Reference) -> Result<Option<Found>, Error> {
        let registry = reference.registry();
        let hub = is_docker_hub(registry);
        let helper =
            self.cred_helpers.iter().find(|(key, _)| is_registry(key, registry) || hub && is_docker_hub(host_of(key)));
        let helper = helper.and_then(|(_, helper)| helper.as_ref()).or(self.creds_store.as_ref());
        let helper = helper.filter(|helper| !helper.is_empty());
        if let Some(helper) = helper {
            let server = if hub { DOCKER_HUB } else { registry };
            if let Some(credentials) = ask_helper(helper, server).await? {
                return Ok(Some(Found { credentials, from: helper_name(helper) }));
            }
        }
        let Some((key, auth)) = self.auth(reference) else { return Ok(None) };
        let from = path.display().to_string();
        let credentials = auth
            .credentials()
            .map_err(|cause| Error::Credentials { from: from.clone(), cause: format!("auths: {key:?}: {cause}") })?;
        Ok(credentials.map(|credentials| Found { credentials, from }))
    }

    /// Podman's keys may name a repository or what lies above it, Docker's name a registry, perhaps as an address. The
    /// longest that fits counts.
    fn auth(&self, reference: &Reference) -> Option<(&str, &Auth)> {
        let whole = format!("{}/{}", reference.registry(), reference.repository());
        let fits = |key: &str| {
            let above = whole.strip_prefix(key).is_some_and(|rest| rest.starts_with('/') || rest.is_empty());
            let hub = is_docker_hub(reference.registry()) && is_docker_hub(host_of(key));
            if above && !key.is_empty() {
                Some(key.len())
            } else if hub || key.contains("://") && is_registry(key, reference.registry()) {
                Some(0)
            } else if !key.trim_end_matches('/').contains('/') && is_registry(key, reference.registry()) {
                Some(1)
            } else {
                None
            }
        };
        let fitting = self.auths.iter().filter_map(|(key, auth)| Some((fits(key)?, key, auth.as_ref()?)));
        fitting.max_by_key(|(length, ..)| *length).map(|(_, key, auth)| (key.as_str(), auth))
    }
}

impl Auth {
    fn credentials(&self) -> Result<Option<Credentials>, String> {
        let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Credentials::IdentityToken(Secret(token))));
        }
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Some(Credentials::RegistryToken(Secret(token))));
        }
        let (user, password) = match (given(&self.auth), given(&self.username)) {
            (Some(auth), _) => {
                let bytes = STANDARD.decode(auth.trim()).map_err(|cause| format!("auth is not base64: {cause}"))?;
                let text = String::from_utf8(bytes).map_err(|_| "auth is not text".to_owned())?;
                let (user, password) = text.split_once(':').ok_or("auth has no colon between user and password")?;
                (user.to_owned(), password.trim_end_matches('\0').to_owned())
            }
            (None, Some(user)) => (user, self.password.clone().unwrap_or_default()),
            // A registry that a helper knows has an empty entry.
            (None, None) => return Ok(None),
        };
        Ok(from_user(user, password))
    }
}

/// Neither a user nor a secret is how helpers and files say that nobody needs to be known.
pub(super) fn from_user(user: String, secret: String) -> Option<Credentials> {
    if secret.is_empty() && (user.is_empty() || user == TOKEN_USER) {
        return None;
    }
    let password = Secret(secret);
    Some(if user == TOKEN_USER {
        Credentials::IdentityToken(password)
    } else {
        Credentials::Password { user, password }
    })
}

fn is_docker_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// Whether a key names this registry, which may be written in several ways where it is an IPv6 address.
fn is_registry(key: &str, registry: &str) -> bool {
    let host = host_of(key);
    host == registry || host.starts_with('[') && ipv6_registry(host).is_ok_and(|host| host == registry)
}

/// The host of a key such as `https://r.test:5000/v1/`.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::parse_reference, *};

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password { user: user.to_owned(), password: Secret::new(password) }
    }

    fn known(config: &str, reference: &str) -> Result<Option<Credentials>, String> {
        let config = Config::parse(config).map_err(|error| error.to_string())?;
        let reference = parse_reference(reference).unwrap();
        config.auth(&reference).map_or(Ok(None), |(_, auth)| auth.credentials())
    }

    #[test]
    fn the_files_are_those_of_docker_and_podman() {
        let with = |variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, path)| PathBuf::from(path));
            files_from(&find).iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(with(&[]), [""; 0]);
        assert_eq!(with(&[("HOME", "/h")]), ["/h/.docker/config.json", "/h/.config/containers/auth.json"]);
        let all = [
            ("HOME", "/h"),
            ("DOCKER_CONFIG", "/d"),
            ("REGISTRY_AUTH_FILE", "/r.json"),
            ("XDG_RUNTIME_DIR", "/run/1"),
            ("XDG_CONFIG_HOME", "/c"),
        ];
        let files = ["/r.json", "/d/config.json", "/run/1/containers/auth.json", "/c/containers/auth.json"];
        assert_eq!(with(&all), files);
    }

    #[test]
    fn the_entry_for_a_registry_is_found() {
        // dXNlcjpwYXNzOndvcmQ= is "user:pass:word".
        let entry = r#"{"auth": "dXNlcjpwYXNzOndvcmQ="}"#;
        let user = password("user", "pass:word");
        for (keys, reference, found) in [
            (&["r.test:5000"][..], "r.test:5000/a", true),
            (&["https://r.test:5000"], "r.test:5000/a", true),
            (&["https://r.test:5000/v1/"], "r.test:5000/a", true),
            (&["r.test:5000/"], "r.test:5000/a", true),
            (&["[::1]:5000"], "[::1]:5000/a", true),
            (&["[0:0::1]:5000"], "[::1]:5000/a", true),
            (&["https://[::1]:5000/v1/"], "[::1]:5000/a", true),
            (&["[::1]:5000"], "[::1]:5001/a", false),
            (&["[::1]"], "[::1]:5000/a", false),
            (&["r.test:5000"], "r.test/a", false),
            (&["r.test"], "r.test.evil.test/a", false),
            (&["https://index.docker.io/v1/"], "phi-3", true),
            (&["docker.io"], "docker.io/team/phi-3", true),
            (&["docker.io/team"], "team/phi-3", true),
            (&["r.test/team"], "r.test/team/phi-3", true),
            (&["r.test/team"], "r.test/teams/phi-3", false),
            (&["r.test/team"], "r.test/other", false),
            (&["https://r.test/team"], "r.test/other", true),
            (&[], "r.test/a", false),
        ] {
            let auths: Vec<_> = keys.iter().map(|key| format!("{key:?}: {entry}")).collect();
            let config = format!(r#"{{"auths": {{{}}}}}"#, auths.join(","));
            assert_eq!(known(&config, reference).unwrap(), found.then(|| user.clone()), "{keys:?} {reference}");
        }
        let nested = r#"{"auths": {"r.test": {"username": "all", "password": "1"}, "r.test/team": {"auth": "YTpi"}}}"#;
        assert_eq!(known(nested, "r.test/team/x").unwrap(), Some(password("a", "b")));
        assert_eq!(known(nested, "r.test/x").unwrap(), Some(password("all", "1")));
    }

    #[test]
    fn an_entry_has_a_password_or_a_token() {
        let of = |entry: &str| known(&format!(r#"{{"auths": {{"r.test": {entry}}}}}"#), "r.test/a");
        assert_eq!(of("{}").unwrap(), None);
        // Og== is ":".
        for nothing in [
            r#"{"auth": ""}"#,
            r#"{"auth": "Og=="}"#,
            r#"{"username": "", "password": ""}"#,
            r#"{"auth": null, "username": null, "password": null, "identitytoken": null, "registrytoken": null}"#,
            "null",
        ] {
            assert_eq!(of(nothing).unwrap(), None, "{nothing}");
        }
        let token = Credentials::IdentityToken(Secret::new("t"));
        // MDA6 is "0:"; Azure's client writes a user of zeros beside its token.
        assert_eq!(of(r#"{"auth": "MDA6", "identitytoken": "t"}"#).unwrap(), Some(token.clone()));
        // PHRva2VuPjp0 is "<token>:t".
        assert_eq!(of(r#"{"auth": "PHRva2VuPjp0"}"#).unwrap(), Some(token));
        assert_eq!(of(r#"{"registrytoken": "t"}"#).unwrap(), Some(Credentials::RegistryToken(Secret::new("t"))));
        for (entry, says) in [
            (r#"{"auth": "%%%"}"#, "not base64"),
            (r#"{"auth": "YWJj"}"#, "no colon"),
            (r#"{"auth": "/zp/"}"#, "not text"),
            (r#"{"auth": 5}"#, "invalid type"),
        ] {
            let error = of(entry).unwrap_err();
            assert!(error.contains(says), "{entry}: {error}");
        }
    }

    #[tokio::test]
    async fn null_in_dockers_configuration_is_nothing() {
        let reference = parse_reference("r.test/a").unwrap();
        for config in [
            "null",
            "{}",
            r#"{"auths": null, "credHelpers": null, "credsStore": null}"#,
            r#"{"auths": {"r.test": null}, "credHelpers": {"r.test": null}}"#,
            r#"{"auths": {"r.test": {}}, "credHelpers": {"r.test": ""}, "credsStore": ""}"#,
        ] {
            let config = Config::parse(config).unwrap_or_else(|error| panic!("{config}: {error}"));
            assert_eq!(config.find(Path::new("c"), &reference).await.unwrap(), None, "{config:?}");
        }
        let beside = r#"{"auths": {"s.test": null, "r.test": {"auth": "YTpi"}}, "credHelpers": null}"#;
        assert_eq!(known(beside, "r.test/a").unwrap(), Some(password("a", "b")));
    }

    #[tokio::test]
    async fn files_are_asked_in_order_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let reference = parse_reference("r.test/a").unwrap();
        let missing = folder.path().join("missing/config.json");
        let empty = file("empty", "");
        let other = file("other", r#"{"auths": {"s.test": {"auth": "YTpi"}}, "HttpHeaders": {}, "psFormat": "x"}"#);
        let right = file("right", r#"{"auths": {"r.test": {"auth": "YTpi"}}}"#);
        let found = find(&[missing, empty, other, right.clone()], &reference).await.unwrap().unwrap();
        assert_eq!((found.credentials, found.from), (password("a", "b"), right.display().to_string()));
        let damaged = file("damaged", r#"{"auths": "#);
        let error = find(&[damaged.clone(), right], &reference).await.unwrap_err().to_string();
        assert!(error.contains(damaged.to_str().unwrap()) && error.contains("line 1"), "{error}");
        let large = file("large", &" ".repeat(MAX_FILE as usize + 1));
        let error = find(&[large], &reference).await.unwrap_err().to_string();
        assert!(error.contains("larger than 1048576 bytes"), "{error}");
    }

    #[test]
    fn secrets_are_not_printed() {
        let found = Found { credentials: password("user", "hidden"), from: "x".to_owned() };
        assert!(!format!("{found:?}").contains("hidden"));
    }

    proptest! {
        #[test]
        fn any_file_is_read_or_refused(text in ".{0,300}") {
            let _ = known(&text, "r.test/a");
        }

        #[test]
        fn near_configurations_too(
            key in "(https://)?[a-z./:]{0,20}", auth in "[A-Za-z0-9+/=]{0,30}", repository in "[a-z]{1,5}(/[a-z]{1,5})?",
        ) {
            let config = serde_json::json!({ "auths": { key: { "auth": auth } }, "credHelpers": {} }).to_string();
            let _ = known(&config, &format!("r.test/{repository}"));
        }

        #[test]
        fn passwords_come_back(user in "[^:<\\x00]{1,20}", secret in "[^\\x00]{0,20}") {
            let auth = STANDARD.encode(format!("{user}:{secret}"));
            let config = serde_json::json!({ "auths": { "r.test": { "auth": auth } } }).to_string();
            prop_assert_eq!(known(&config, "r.test/a").unwrap(), Some(password(&user, &secret)));
        }
    }
}
