//! The HTTP server: routes, request dialects, streaming, health and metrics.
#![forbid(unsafe_code)]
