//! The forms of names in Kubernetes.

/// Longest DNS label, and longest value of a label.
pub const LABEL: usize = 63;
/// Longest DNS subdomain: names of most objects.
pub const SUBDOMAIN: usize = 253;

/// What a DNS label is.
pub const A_DNS_LABEL: &str = "lower-case letters, digits and hyphens, beginning and ending with a letter or digit";
/// What the name of an object is.
pub const AN_OBJECT_NAME: &str = "at most 253 lower-case letters, digits, hyphens and dots, each part between dots \
                                  beginning and ending with a letter or digit";
/// What the value of a label is.
pub const A_LABEL_VALUE: &str =
    "at most 63 letters, digits, hyphens, underscores and dots, beginning and ending with a letter or digit";
/// What the key of a label is.
pub const A_LABEL_KEY: &str = "a name of at most 63 letters, digits, hyphens, underscores and dots, beginning and ending \
                               with a letter or digit, after an optional DNS name and a slash";

/// Whether this is a DNS label of at most `most` characters.
pub fn is_dns_label(text: &str, most: usize) -> bool {
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| *byte != b'-');
    let bytes = text.as_bytes();
    bytes.len() <= most && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}

/// Whether an object can have this name.
pub fn is_object_name(text: &str) -> bool {
    text.len() <= SUBDOMAIN && text.split('.').all(|part| is_dns_label(part, SUBDOMAIN))
}

/// Whether a label can have this value.
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_qualified_part(text)
}

/// Whether a label can have this key.
pub fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        None => is_qualified_part(text),
        Some((domain, name)) => is_object_name(domain) && is_qualified_part(name),
    }
}

fn is_qualified_part(text: &str) -> bool {
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= LABEL && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keys_and_values() {
        let long = "a".repeat(63);
        for (text, label, object, value, key) in [
            ("a", true, true, true, true),
            ("gpu-1", true, true, true, true),
            (&*long, true, true, true, true),
            (&*format!("{long}a"), false, true, false, false),
            ("a.b", false, true, true, true),
            ("a..b", false, false, true, true),
            ("A_b", false, false, true, true),
            ("-a", false, false, false, false),
            ("a-", false, false, false, false),
            ("", false, false, true, false),
            ("a b", false, false, false, false),
            ("ä", false, false, false, false),
            ("example.com/gpu", false, false, false, true),
            ("Example.com/gpu", false, false, false, false),
            ("example.com/", false, false, false, false),
            ("/gpu", false, false, false, false),
            ("a/b/c", false, false, false, false),
        ] {
            assert_eq!(
                (is_dns_label(text, LABEL), is_object_name(text), is_label_value(text), is_label_key(text)),
                (label, object, value, key),
                "{text:?}"
            );
        }
    }
}
