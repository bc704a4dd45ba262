//! What the metrics of a kaito server say about its model.

use crate::report::Model;

/// The model's name and what it is, as far as the metrics tell.
pub(crate) fn model(text: &str) -> (Option<String>, Option<Model>) {
    let Some(labels) = text.lines().find_map(|line| line.strip_prefix("kaito_model_info{")) else {
        return (None, None);
    };
    let label = |name: &str| {
        let value = labels.split_once(&format!("{name}=\""))?.1;
        value.split_once('"').map(|(value, _)| value.to_owned())
    };
    let gauge = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        value.trim().parse::<f64>().ok().map(|value| value as u64)
    };
    let facts = || {
        let precision = label("dtype")?;
        // Servers that do not say so compute exactly, or with 8 bits.
        let activations = || if precision.starts_with("int") { "int8" } else { "f32" }.to_owned();
        let parameters = label("parameters")?.parse().ok()?;
        Some(Model {
            family: label("family")?,
            // Servers that do not say what they multiply: at most all that they have.
            layer_parameters: gauge("kaito_model_layer_parameters").unwrap_or(parameters),
            head_parameters: gauge("kaito_model_head_parameters").unwrap_or(0),
            parameters,
            activations: label("activations").unwrap_or_else(activations),
            kernels: label("kernels").unwrap_or_default(),
            precision,
            weights_bytes: gauge("kaito_model_weights_bytes")?,
            step_bytes: gauge("kaito_model_step_bytes")?,
            kv_dtype: label("kv_dtype")?,
            kv_bytes_per_token: gauge("kaito_model_kv_bytes_per_token")?,
            attention_window: None,
            max_seq_len: label("max_seq_len")?.parse().ok()?,
            threads: gauge("kaito_engine_threads")? as usize,
        })
    };
    (label("name"), facts())
}
