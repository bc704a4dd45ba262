//! A file per subcommand.

pub mod chat;
pub mod crd;
pub mod presets;
pub mod serve;
