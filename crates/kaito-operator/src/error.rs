/// What can fail here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text is no YAML.
    #[error("not YAML: {0}")]
    ReadYaml(String),
    /// A value cannot be written as YAML.
    #[error("cannot write YAML: {0}")]
    WriteYaml(String),
}
