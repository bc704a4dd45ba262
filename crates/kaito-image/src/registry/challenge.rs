//! Challenges: which kind of authentication a registry asks for (`WWW-Authenticate`).

use http_auth::parser::ChallengeParser;

/// How to make oneself known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from a service.
    Bearer {
        /// The address of the service.
        realm: String,
        /// The name by which the service knows the registry.
        service: Option<String>,
        /// What the token should allow.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The best of what the `WWW-Authenticate` headers offer: a token before a password. What can't be read is passed
    /// over, as RFC 9110 wants of schemes that are not known.
    pub(super) fn best<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut best = None;
        for header in headers {
            for challenge in ChallengeParser::new(header) {
                let Ok(challenge) = challenge else { break };
                let parameter = |name: &str| {
                    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped()).filter(|value| !value.is_empty())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    if let Some(realm) = parameter("realm") {
                        return Some(Self::Bearer { realm, service: parameter("service"), scope: parameter("scope") });
                    }
                } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                    best = Some(Self::Basic);
                }
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) })
    }

    #[test]
    fn challenges_are_read() {
        // The first is the example of the token specification of the distribution project.
        let documented = "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",\
                          scope=\"repository:samalba/my-app:pull,push\"";
        let token = "https://auth.docker.io/token";
        let scope = "repository:samalba/my-app:pull,push";
        for (headers, challenge) in [
            (&[documented][..], bearer(token, Some("registry.docker.io"), Some(scope))),
            (&["bearer realm=\"https://a/t\" , service=\"s\""], bearer("https://a/t", Some("s"), None)),
            (&["Basic realm=\"r\", Bearer realm=\"https://a/t\""], bearer("https://a/t", None, None)),
            (&["Basic realm=\"r\"", "Bearer realm=\"https://a/t\""], bearer("https://a/t", None, None)),
            (&["Bearer realm=\"https://a/\\\"t\""], bearer("https://a/\"t", None, None)),
            (&["Bearer service=\"s\"", "BASIC realm=\"r\""], Some(Challenge::Basic)),
            (&["Basic realm=\"Registry\""], Some(Challenge::Basic)),
            (&["Negotiate", "NTLM"], None),
            (&["Bearer realm=\"unfinished"], None),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(Challenge::best(headers.iter().copied()), challenge, "{headers:?}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_passed_over(header in "[ -~]{0,200}") {
            let _ = Challenge::best([header.as_str()]);
        }

        #[test]
        fn near_challenges_too(header in "(Bearer|Basic|x) (realm|service|scope|,|=|\"|\\\\| |a){0,20}") {
            let _ = Challenge::best([header.as_str()]);
        }

        #[test]
        fn what_is_quoted_is_read(realm in "[a-z:/?&=.]{1,40}", scope in "[a-z:,/ ]{1,40}") {
            let header = format!("Bearer realm=\"{realm}\",scope=\"{scope}\"");
            prop_assert_eq!(Challenge::best([header.as_str()]), bearer(&realm, None, Some(&scope)));
        }
    }
}
