use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use kaito_net::RetryPolicy;

use crate::Error;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Where models come from, and where they are kept.
#[derive(Clone)]
pub struct HubOptions {
    /// The hub's address, without a slash at the end.
    pub endpoint: String,
    /// The access token. It is sent to the hub and to no other host.
    pub token: Option<String>,
    /// The cache folder that holds `models--*`.
    pub cache: PathBuf,
    /// Use the cache only.
    pub offline: bool,
    /// When a request is made again.
    pub retry: RetryPolicy,
}

/// Somebody waits for a download at a terminal, so it is not given up at once, but not tried for long either.
const RETRY: RetryPolicy =
    RetryPolicy { attempts: 6, first_delay: Duration::from_millis(500), max_delay: Duration::from_secs(10) };

impl HubOptions {
    /// As the hub's own client reads its environment: `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_CACHE`,
    /// `HF_HOME`, `XDG_CACHE_HOME`, `HF_HUB_OFFLINE`, and the older names of two of them.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] where a value cannot be used; [`Error::Io`] for a token file that cannot be read.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_lookup(|name| env::var(name).ok())
    }

    /// [`Self::from_env`] over any source of variables.
    ///
    /// # Errors
    ///
    /// As [`Self::from_env`].
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let get = |name: &str| lookup(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let user_home = get("HOME").map(PathBuf::from);
        let path = |name: &str| get(name).map(|value| expand(&value, user_home.as_deref()));

        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| user_home.as_ref().map(|home| home.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| home.as_ref().map(|home| home.join("hub")))
            .ok_or_else(|| Error::InvalidSetting {
                name: "HF_HUB_CACHE",
                why: "neither it nor HF_HOME nor HOME is set, so there is no place for the cache".to_owned(),
            })?;

        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            return Err(Error::InvalidSetting {
                name: "HF_ENDPOINT",
                why: format!("{endpoint:?} does not begin with https:// or http://"),
            });
        }

        let token = match get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN")) {
            Some(token) => Some(token),
            None => match path("HF_TOKEN_PATH").or_else(|| home.as_ref().map(|home| home.join("token"))) {
                Some(file) => read_token(&file)?,
                None => None,
            },
        };
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::InvalidSetting {
                name: "HF_TOKEN",
                why: "the token has characters other than visible ASCII".to_owned(),
            });
        }

        let offline = get("HF_HUB_OFFLINE")
            .is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"));
        Ok(Self { endpoint, token, cache, offline, retry: RETRY })
    }
}

fn expand(value: &str, home: Option<&Path>) -> PathBuf {
    match (value.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(value),
    }
}

fn read_token(file: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|token| !token.is_empty())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { action: "read the hub token in", path: file.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> Result<HubOptions, Error> {
        let variables: Vec<(String, String)> =
            variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        HubOptions::from_lookup(move |name| variables.iter().find(|(known, _)| known == name).map(|(_, v)| v.clone()))
    }

    #[test]
    fn the_cache_is_where_the_hubs_own_client_has_it() {
        for (variables, cache) in [
            (&[("HOME", "/home/u")][..], "/home/u/.cache/huggingface/hub"),
            (&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")], "/h/hub"),
            (&[("HOME", "/home/u"), ("HF_HOME", "~/models")], "/home/u/models/hub"),
            (&[("HOME", "/home/u"), ("HF_HOME", "")], "/home/u/.cache/huggingface/hub"),
            (&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
        ] {
            assert_eq!(options(variables).unwrap().cache, Path::new(cache), "{variables:?}");
        }
        assert!(options(&[]).is_err_and(|error| error.to_string().contains("HF_HUB_CACHE")));
    }

    #[test]
    fn endpoint_and_offline() {
        let defaults = options(&[("HOME", "/nowhere")]).unwrap();
        assert_eq!((defaults.endpoint.as_str(), defaults.offline), ("https://huggingface.co", false));
        let mirror = options(&[("HOME", "/nowhere"), ("HF_ENDPOINT", "http://hub.test/"), ("HF_HUB_OFFLINE", "true")]);
        let mirror = mirror.unwrap();
        assert_eq!((mirror.endpoint.as_str(), mirror.offline), ("http://hub.test", true));
        assert!(!options(&[("HOME", "/nowhere"), ("HF_HUB_OFFLINE", "0")]).unwrap().offline);
        assert!(
            options(&[("HOME", "/h"), ("HF_ENDPOINT", "ftp://x")]).is_err_and(|e| e.to_string().contains("ftp://x"))
        );
    }

    #[test]
    fn the_token_is_the_variables_or_the_files() {
        let home = tempfile::tempdir().unwrap();
        let at = home.path().to_str().unwrap();
        assert_eq!(options(&[("HF_HOME", at)]).unwrap().token, None);
        fs::write(home.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(options(&[("HF_HOME", at)]).unwrap().token.as_deref(), Some("hf_file"));
        assert_eq!(options(&[("HF_HOME", at), ("HF_TOKEN", " hf_env ")]).unwrap().token.as_deref(), Some("hf_env"));
        assert!(
            options(&[("HF_HOME", at), ("HF_TOKEN", "hf\u{7f}")]).is_err_and(|e| !e.to_string().contains("hf\u{7f}"))
        );
    }
}
