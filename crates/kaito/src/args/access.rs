//! Who may ask the server for what.

use std::path::PathBuf;

use clap::Args;
use kaito_server::{ApiKey, HeaderValue, HostName, KeyError};
use url::Url;

#[derive(Debug, Args)]
#[command(next_help_heading = "Access")]
pub struct AccessArgs {
    /// Key that clients must send, as `Authorization: Bearer KEY`, `x-api-key: KEY` or `api-key: KEY`. Of several keys, separated
    /// by commas or given by repeating the flag, each is accepted. Prefer the variable or a file: every user of this machine
    /// can read a command line
    #[arg(long, env = "KAITO_API_KEY", value_name = "KEY", hide_env_values = true, value_parser = keys)]
    pub api_key: Vec<Keys>,
    /// File of further keys, one per line; it is read again whenever it changes
    #[arg(long, env = "KAITO_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Certificate of the server in PEM, with those between it and its authority behind it: the server speaks HTTPS then, HTTP/2
    /// included. It is read again whenever it or the key changes
    #[arg(long, env = "KAITO_TLS_CERTIFICATE", value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// Private key of that certificate, in PEM
    #[arg(long, env = "KAITO_TLS_KEY", value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Further host name that requests may be addressed to. Without a key, a server on a loopback address answers only for
    /// localhost, loopback addresses and its own host name, so that web pages cannot reach it by host names of their own
    /// (DNS rebinding)
    #[arg(long, env = "KAITO_ALLOWED_HOST", value_name = "HOST", value_delimiter = ',', value_parser = host)]
    pub allowed_host: Vec<HostName>,
    /// Web origin whose pages may call the API from a browser, like https://example.com; * allows all
    #[arg(long, env = "KAITO_ALLOWED_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    pub allowed_origin: Vec<HeaderValue>,
}

/// The keys of one flag or of the variable. What is wrong with one is told later, since the parser of the command line
/// shows the value that it refuses.
#[derive(Debug, Clone)]
pub struct Keys(pub Result<Vec<ApiKey>, KeyError>);

fn keys(text: &str) -> Result<Keys, String> {
    match ApiKey::parse_all(text) {
        Err(KeyError::Empty) => Err(KeyError::Empty.to_string()),
        parsed => Ok(Keys(parsed)),
    }
}

fn host(text: &str) -> Result<HostName, String> {
    HostName::parse(text.trim()).ok_or_else(|| {
        "expected the name or address of a host without a port, like example.com or 192.0.2.1".to_owned()
    })
}

/// What a browser would send as the origin of a page.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let text = text.trim();
    let expected =
        || "expected an origin like https://example.com or http://localhost:3000, with no path, or *".to_owned();
    let is_origin = |url: Url| url.has_host() && url.origin().ascii_serialization() == text;
    if text != "*" && !Url::parse(text).is_ok_and(is_origin) {
        return Err(expected());
    }
    HeaderValue::from_str(text).map_err(|_| expected())
}
