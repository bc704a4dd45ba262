//! The names that a request may call the model and its adapters by.

use axum::http::StatusCode;
use kaito_engine::{Adapter, Adapters};

use crate::error::ApiError;
use crate::options::ServerOptions;

/// Names whatever model is served.
const DEFAULT: &str = "default";
/// What stands behind the name of a model that is asked for without its adapters.
pub(crate) const ALONE: &str = "-base";
/// How many names a refusal lists.
const LISTED: usize = 20;

/// The names under which the model is listed, the canonical one first.
pub(crate) fn served(options: &ServerOptions) -> &[String] {
    match options.served_model_names.as_slice() {
        [] => std::slice::from_ref(&options.model_name),
        names => names,
    }
}

/// The name that answers carry.
pub(crate) fn canonical(options: &ServerOptions) -> &str {
    served(options).first().map_or(DEFAULT, String::as_str)
}

/// Whether the model itself goes by `name`.
pub(crate) fn is_base(options: &ServerOptions, name: &str) -> bool {
    name == DEFAULT
        || served(options).iter().any(|served| served == name)
        || options.repository.as_deref() == Some(name)
}

/// What a request asks for by a name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Served {
    /// The name that answers carry.
    pub(crate) name: String,
    /// The adapter that the model answers with.
    pub(crate) adapter: Option<Adapter>,
}

/// All names that a model is served by, its own and those of its adapters.
#[derive(Clone, Copy)]
pub(crate) struct Names<'a> {
    options: &'a ServerOptions,
    adapters: &'a Adapters,
    /// What the model answers with by its own name.
    base: Option<&'a Adapter>,
}

impl<'a> Names<'a> {
    /// Those of a model with these adapters, which answers with `base` by its own name.
    pub(crate) fn new(options: &'a ServerOptions, adapters: &'a Adapters, base: Option<&'a Adapter>) -> Self {
        Self { options, adapters, base }
    }

    /// The name of the model without its adapters, where its own name stands for it with them.
    pub(crate) fn alone(&self) -> Option<String> {
        self.base.map(|_| format!("{}{ALONE}", canonical(self.options)))
    }

    /// What goes by `name`.
    pub(crate) fn find(&self, name: &str) -> Option<Served> {
        let plain = name.strip_suffix(ALONE).filter(|_| self.base.is_some());
        if is_base(self.options, name) {
            Some(self.own())
        } else if plain.is_some_and(|plain| is_base(self.options, plain)) {
            Some(Served { name: self.alone()?, adapter: None })
        } else {
            self.adapters.find(name).map(|adapter| Served { name: name.to_owned(), adapter: Some(adapter) })
        }
    }

    /// What a request asks for. No name, or an empty one, asks for the model.
    ///
    /// # Errors
    /// 404 for a name that is not served, with those that are.
    pub(crate) fn resolve(&self, asked: Option<&str>) -> Result<Served, ApiError> {
        let Some(name) = asked.filter(|name| !name.is_empty()) else { return Ok(self.own()) };
        match self.find(name) {
            Some(served) => Ok(served),
            None if self.options.any_model_name => Ok(self.own()),
            None => Err(self.unknown(name)),
        }
    }

    /// 404 for a name that is not served.
    pub(crate) fn unknown(&self, name: &str) -> ApiError {
        let shown: String = name.chars().take(100).collect();
        let adapters = self.adapters.list();
        let own = served(self.options).iter().map(String::as_str);
        let alone = self.alone();
        let names = own.chain(alone.as_deref()).chain(adapters.iter().map(|adapter| adapter.name.as_str()));
        let names: Vec<_> = names.take(LISTED).map(|name| format!("`{name}`")).collect();
        ApiError::new(
            StatusCode::NOT_FOUND,
            format!("The model `{shown}` does not exist; this server has {}.", names.join(", ")),
        )
        .with_code("model_not_found")
        .with_param("model")
    }

    /// The model as its own name stands for it.
    fn own(&self) -> Served {
        Served { name: canonical(self.options).to_owned(), adapter: self.base.cloned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ServerOptions {
        ServerOptions { model_name: "tiny".to_owned(), ..ServerOptions::default() }
    }

    #[test]
    fn a_model_has_several_names_and_one_answers() {
        let own = options();
        let named = ServerOptions {
            served_model_names: vec!["gpt-4o".to_owned(), "other".to_owned()],
            repository: Some("org/tiny-1b".to_owned()),
            ..options()
        };
        let any = ServerOptions { any_model_name: true, ..options() };
        for (options, asked, answers) in [
            (&own, None, Some("tiny")),
            (&own, Some(""), Some("tiny")),
            (&own, Some("tiny"), Some("tiny")),
            (&own, Some("default"), Some("tiny")),
            (&own, Some("Tiny"), None),
            (&own, Some("org/tiny-1b"), None),
            (&named, None, Some("gpt-4o")),
            (&named, Some("other"), Some("gpt-4o")),
            (&named, Some("org/tiny-1b"), Some("gpt-4o")),
            (&named, Some("tiny"), None),
            (&any, Some("gpt-3.5-turbo"), Some("tiny")),
            // Without adapters nothing is there without them.
            (&own, Some("tiny-base"), None),
        ] {
            let found = Names::new(options, &Adapters::default(), None).resolve(asked).ok();
            assert_eq!(found.as_ref().map(|served| served.name.as_str()), answers, "{asked:?}");
            assert!(found.is_none_or(|served| served.adapter.is_none()));
        }
        let error = Names::new(&named, &Adapters::default(), None).resolve(Some("tiny")).unwrap_err();
        assert_eq!(error.detail(), "The model `tiny` does not exist; this server has `gpt-4o`, `other`.");
        assert_eq!(error.status(), 404);
    }
}
