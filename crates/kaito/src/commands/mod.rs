//! A file per subcommand.

pub mod chat;
pub mod controller;
pub mod crd;
pub mod image;
pub mod install;
pub mod presets;
pub mod serve;
pub mod up;
