//! References to variables in a container's arguments, as the kubelet fills them in.

use std::collections::BTreeMap;

/// `$(NAME)` becomes the variable's value, or stays as it is where there is no such variable. `$$` is a dollar sign.
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        expanded.push_str(before);
        let after = from.get(1..).unwrap_or_default();
        rest = if let Some(escaped) = after.strip_prefix('$') {
            expanded.push('$');
            escaped
        } else if let Some((name, after)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match variables.get(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.push_str(&format!("$({name})")),
            }
            after
        } else {
            expanded.push('$');
            after
        };
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases of the reference: "Variable references $(VAR_NAME) are expanded using the container's environment. If a
    /// variable cannot be resolved, the reference in the input string will be unchanged. Double $$ are reduced to a
    /// single $ [...] i.e. "$$(VAR_NAME)" will produce the string literal "$(VAR_NAME)"."
    #[test]
    fn references_are_filled_in_as_the_api_reference_says() {
        let variables = BTreeMap::from([("RANK".to_owned(), "3".to_owned()), ("EMPTY".to_owned(), String::new())]);
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("$(RANK)", "3"),
            ("--rank=$(RANK)/$(RANK)", "--rank=3/3"),
            ("a$(EMPTY)b", "ab"),
            ("$(NOBODY)", "$(NOBODY)"),
            ("$$(RANK)", "$(RANK)"),
            ("$$$(RANK)", "$3"),
            ("$$$$", "$$"),
            ("$RANK", "$RANK"),
            ("$(RANK", "$(RANK"),
            ("cost: 5$", "cost: 5$"),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(text, &variables), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_without_dollars_stays(text in "[^$]*") {
            proptest::prop_assert_eq!(expand(&text, &BTreeMap::new()), text);
        }

        #[test]
        fn any_text_can_be_expanded(text in "[$()A]{0,20}") {
            let variables = BTreeMap::from([("A".to_owned(), "value".to_owned())]);
            expand(&text, &variables);
        }
    }
}
