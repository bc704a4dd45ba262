//! What a workspace serves: looked up once a decision, and handed to all who need it.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use kaito_presets::Preset;

use super::{
    hosts::Hosts,
    observed::{Config, Observed},
    options::Options,
    weights,
};
use crate::{
    layout,
    reason::{Problem, Reason},
    runtime::{self, Circumstances, ServerConfig},
    workspace::{AdapterSpec, InferenceSpec, PresetSpec, Runtime, Workspace},
};

/// What a workspace serves.
#[derive(Debug)]
pub enum Model<'a> {
    /// A preset of the catalogue.
    Preset(Box<PresetModel<'a>>),
    /// Pods of the user's own.
    Template(&'a PodTemplateSpec),
}

/// A preset of the catalogue, as a workspace asks for it.
#[derive(Debug)]
pub struct PresetModel<'a> {
    /// The preset.
    pub preset: &'static Preset,
    /// Where its images are.
    pub spec: &'a PresetSpec,
    /// Adapters for it.
    pub adapters: &'a [AdapterSpec],
    /// What serves it, or why that cannot be told.
    pub runtime: Result<Runtime, Problem>,
    /// What the workspace's ConfigMap says for that runtime, or why it says nothing.
    pub config: Result<ServerConfig, Problem>,
    /// Whether images of weights are mounted rather than copied.
    pub mounts_weights: bool,
    /// Why the volume for the weights cannot be used, if it cannot.
    pub claim_problem: Option<Problem>,
}

impl<'a> Model<'a> {
    /// What the workspace with this inference serves.
    ///
    /// # Errors
    ///
    /// Where the preset does not exist, or neither preset nor template is given.
    pub fn of(
        workspace: &Workspace,
        inference: &'a InferenceSpec,
        observed: &Observed,
        options: &Options,
    ) -> Result<Self, Problem> {
        let spec = match (&inference.preset, &inference.template) {
            (Some(spec), _) => spec,
            (None, Some(template)) => return Ok(Self::Template(template)),
            (None, None) => {
                return Err(Problem {
                    reason: Reason::InferenceEmpty,
                    message: "inference has neither preset nor template; set one of them".to_owned(),
                });
            }
        };
        let preset = kaito_presets::find(&spec.name).map_err(|unknown| Problem {
            reason: Reason::PresetUnknown,
            message: format!("{unknown}; see `kaito presets`"),
        })?;
        let hosts = Hosts::of(workspace, observed, options);
        let circumstances = Circumstances {
            preset,
            adapters: &inference.adapters,
            ranks: layout::ranks(workspace, preset).unwrap_or(1),
            gpus: hosts.gpus.filter(|_| hosts.have_gpus).unwrap_or(0),
            gpu_memory: hosts.hardware.map(|hardware| hardware.gpu_memory),
        };
        let runtime = workspace
            .runtime()
            .map(|choice| runtime::choose(choice, circumstances).runtime)
            .map_err(|unknown| Problem { reason: Reason::RuntimeUnknown, message: unknown.to_string() });
        let config = runtime.clone().and_then(|runtime| config(workspace, inference, runtime, preset, observed));
        let adapters = &inference.adapters;
        Ok(Self::Preset(Box::new(PresetModel {
            preset,
            spec,
            adapters,
            runtime,
            config,
            mounts_weights: weights::are_mounted(observed),
            claim_problem: weights::claim_problem(workspace, spec, observed),
        })))
    }

    /// The preset, if it is one.
    pub fn as_preset(&self) -> Option<&PresetModel<'a>> {
        match self {
            Self::Preset(model) => Some(model.as_ref()),
            Self::Template(_) => None,
        }
    }
}

fn config(
    workspace: &Workspace,
    inference: &InferenceSpec,
    runtime: Runtime,
    preset: &Preset,
    observed: &Observed,
) -> Result<ServerConfig, Problem> {
    match &observed.config {
        Config::NotRead => Ok(ServerConfig::default()),
        Config::Data(data) => runtime::config(runtime, preset, data),
        Config::Missing => Err(Problem {
            reason: Reason::ConfigMissing,
            message: format!(
                "there is no ConfigMap {} in namespace {}, which inference.config names",
                inference.config.as_deref().unwrap_or_default(),
                workspace.namespace()
            ),
        }),
    }
}
