//! Rotary position embedding (RoPE) as configurations give it: in `rope_scaling` and beside it until transformers 4, in
//! `rope_parameters` since transformers 5.

use serde_json::Value;

use super::config_file::{ConfigFile, limits};
use crate::{
    checkpoint::CheckpointError,
    config::{Rope, RopePairing, RopeScaling},
};

const TYPE: &[&str] = &["rope_type", "type"];
const THETA: &str = "rope_theta";
const PARTIAL: &str = "partial_rotary_factor";
const ORIGINAL: &str = "original_max_position_embeddings";
/// What a rotary object may hold beside those above. `finetuned` only says how a YaRN model was made.
const KNOWN: [&str; 9] = [
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
    "finetuned",
];

/// What a configuration says of its rotary positions.
pub(super) struct Rotary<'a> {
    file: &'a ConfigFile,
    fields: Option<ConfigFile>,
    kind: &'static str,
    theta: f64,
}

impl<'a> Rotary<'a> {
    /// Reads it; `kinds` are the values of `rope_type` that the family has.
    pub fn read(file: &'a ConfigFile, kinds: &[&'static str]) -> Result<Self, CheckpointError> {
        let (old, new) = (file.object("rope_scaling")?, file.object("rope_parameters")?);
        let fields = match (new, old) {
            (Some(new), Some(old)) => Some(normalised(new)?.merged(normalised(old)?)?),
            (Some(one), None) | (None, Some(one)) => Some(normalised(one)?),
            (None, None) => None,
        };
        let kind = match &fields {
            Some(fields) => kind(fields, kinds)?,
            None => "default",
        };
        // Each of these may stand beside the object or in it.
        if let Some(fields) = &fields {
            for key in [THETA, PARTIAL, ORIGINAL] {
                fields.same_as(file, key)?;
            }
        }
        let place = |key: &str| fields.as_ref().filter(|fields| fields.value(&[key]).is_some()).unwrap_or(file);
        let theta = place(THETA).rope_theta()?;
        if place(PARTIAL).number(&[PARTIAL], Some(1.0), 0.0..=1e3)? != 1.0 {
            return Err(place(PARTIAL).wrong(&[PARTIAL], "1: these models rotate whole heads"));
        }
        Ok(Self { file, fields, kind, theta })
    }

    /// Refuses every scaling of RoPE, for a model that does not use RoPE: `reason` says why.
    pub fn refuse_scaling(&self, reason: &str) -> Result<(), CheckpointError> {
        match &self.fields {
            Some(fields) if self.kind != "default" => Err(fields.wrong(TYPE, format!("default: {reason}"))),
            _ => Ok(()),
        }
    }

    /// RoPE of heads of `head_dim`, and the length up to which it holds, of at most `max_positions` tokens.
    pub fn rope(&self, head_dim: usize, max_positions: usize) -> Result<(Rope, usize), CheckpointError> {
        let mut longest = max_positions;
        let scaling = match (&self.fields, self.kind) {
            (Some(fields), "linear") => RopeScaling::Linear { factor: factor(fields)? },
            (Some(fields), "dynamic") => {
                factor(fields)?;
                // The base grows with sequences beyond the trained length; up to there it is the base as pre-trained.
                longest = fields.count(&[ORIGINAL], Some(max_positions), limits::POSITIONS)?.min(max_positions);
                RopeScaling::None
            }
            (Some(fields), "llama3") => llama3(fields)?,
            (Some(fields), "yarn") => self.yarn(fields, max_positions)?,
            (Some(fields), "longrope") => self.long_rope(fields, head_dim, max_positions)?,
            _ => RopeScaling::None,
        };
        Ok((Rope { theta: self.theta, width: head_dim, pairing: RopePairing::Halves, scaling }, longest))
    }

    fn yarn(&self, fields: &ConfigFile, max_positions: usize) -> Result<RopeScaling, CheckpointError> {
        let factor = factor(fields)?;
        // transformers 4.46 takes the whole length for the trained one, later versions this key.
        if fields.count(&[ORIGINAL], Some(max_positions), limits::POSITIONS)? != max_positions {
            return Err(fields.wrong(
                &[ORIGINAL],
                format!("max_position_embeddings, {max_positions}: versions of transformers differ on YaRN otherwise"),
            ));
        }
        if self.theta <= 1.0 {
            return Err(self.file.wrong(&[THETA], "a number above 1 for YaRN"));
        }
        let beta = |key, default| fields.number(&[key], Some(default), 1e-3..=1e6);
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: beta("beta_fast", 32.0)?,
            beta_slow: beta("beta_slow", 1.0)?,
            max_position_embeddings: max_positions,
            attention_factor: attention_factor(fields, 0.1 * factor.ln() + 1.0)?,
        })
    }

    fn long_rope(
        &self,
        fields: &ConfigFile,
        head_dim: usize,
        max_positions: usize,
    ) -> Result<RopeScaling, CheckpointError> {
        let inside = fields.value(&[ORIGINAL]).map(|_| fields);
        let place = inside.unwrap_or(self.file);
        // ln(original) is a divisor, so it must not be 0.
        let original = place.count(&[ORIGINAL], Some(4096), limits::POSITIONS)?;
        if original < 2 {
            return Err(place.wrong(&[ORIGINAL], "at least 2"));
        }
        let extension = max_positions as f64 / original as f64;
        if let Some(value) = fields.value(&["factor"])
            && !value.as_f64().is_some_and(|factor| (factor - extension).abs() <= 1e-6 * extension)
        {
            let expected = format!("{extension}, max_position_embeddings divided by {ORIGINAL}");
            return Err(fields.wrong(&["factor"], expected));
        }
        let computed = if extension <= 1.0 { 1.0 } else { (1.0 + extension.ln() / (original as f64).ln()).sqrt() };
        Ok(RopeScaling::LongRope {
            short_factor: fields.factors("short_factor", head_dim / 2)?,
            long_factor: fields.factors("long_factor", head_dim / 2)?,
            original_max_position_embeddings: original,
            attention_factor: attention_factor(fields, computed)?,
        })
    }
}

/// Checks that the fields are one set for all layers and each is known, and gives each type its present name.
fn normalised(fields: ConfigFile) -> Result<ConfigFile, CheckpointError> {
    for (key, value) in fields.entries() {
        if value.is_object() && crate::json::non_finite(value).is_none() {
            return Err(fields.wrong(&[key], "a number: one set of rotary parameters for all layers"));
        }
        let neutral = key == "truncate" && *value == Value::Bool(true);
        if !neutral && !TYPE.contains(&key) && ![THETA, PARTIAL, ORIGINAL].contains(&key) && !KNOWN.contains(&key) {
            return Err(fields.wrong(&[key], "nothing: this rotary parameter is not supported"));
        }
    }
    // "su" is the first name of LongRoPE.
    Ok(fields.renamed(TYPE, "su", "longrope"))
}

fn kind(fields: &ConfigFile, kinds: &[&'static str]) -> Result<&'static str, CheckpointError> {
    let there: Vec<&str> = TYPE.iter().copied().filter(|key| fields.value(&[key]).is_some()).collect();
    if there.is_empty() {
        return match fields.entries().find(|(key, _)| KNOWN.contains(key)) {
            Some(_) => Err(fields.wrong(&["rope_type"], kinds.join(" or "))),
            None => Ok("default"),
        };
    }
    fields.choice(&there, kinds)
}

fn factor(fields: &ConfigFile) -> Result<f64, CheckpointError> {
    fields.number(&["factor"], None, 1.0..=1e6)
}

fn attention_factor(fields: &ConfigFile, silent: f64) -> Result<f64, CheckpointError> {
    fields.number(&["attention_factor"], Some(silent), 0.0..=1e3)
}

fn llama3(fields: &ConfigFile) -> Result<RopeScaling, CheckpointError> {
    let bound = |key| fields.number(&[key], None, 1e-3..=1e6);
    let (low_freq_factor, high_freq_factor) = (bound("low_freq_factor")?, bound("high_freq_factor")?);
    if high_freq_factor <= low_freq_factor {
        return Err(fields.wrong(&["high_freq_factor"], format!("a number above low_freq_factor, {low_freq_factor}")));
    }
    Ok(RopeScaling::Llama3 {
        factor: factor(fields)?,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: fields.count(&[ORIGINAL], None, limits::POSITIONS)?,
    })
}
