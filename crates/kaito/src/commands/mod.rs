//! A file per subcommand.

pub mod chat;
pub mod presets;
pub mod serve;
