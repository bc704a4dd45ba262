//! Every flag, its environment variable and its help: a file per subcommand.

mod access;
mod adapters;
mod api;
mod bench;
mod chat;
mod controller;
mod crd;
mod devices;
mod download;
mod image;
mod install;
mod instance_types;
mod logging;
mod model;
mod plan;
mod presets;
mod serve;
mod supervise;
mod up;
mod upstream;
mod validate;

pub use access::AccessArgs;
pub use adapters::{AdapterArgs, name as adapter_name, strength as adapter_strength};
pub use api::ApiArgs;
pub use bench::BenchArgs;
pub use chat::ChatArgs;
use clap::{Parser, Subcommand};
pub use controller::{ControllerArgs, NodeArgs, NodeProvisioner, RolloutArgs, WebhookArgs};
pub use crd::CrdArgs;
pub use devices::DevicesArgs;
pub use download::DownloadArgs;
pub use image::{
    ImageArgs, ImageBuildArgs, ImageCommand, ImageExtractArgs, ImageInspectArgs, ImageProgramArgs, ImagePushArgs,
    ImageVerifyArgs, PushingArgs, RegistryArgs,
};
pub use install::InstallArgs;
pub use instance_types::{CloudName, InstanceTypesArgs};
pub use logging::{LogFormat, LoggingArgs};
pub use model::ModelArgs;
pub use plan::PlanArgs;
pub use presets::PresetsArgs;
pub use serve::ServeArgs;
pub use supervise::SuperviseArgs;
pub use up::UpArgs;
pub use upstream::UpstreamArgs;
pub use validate::ValidateArgs;

const EXIT_STATUS: &str = "\
Exit status: 0 after success, 1 after a failure, 2 after wrong usage.
Every flag can be given as the environment variable named with it; a flag wins over its variable.";

/// Serve open language models yourself.
#[derive(Debug, Parser)]
#[command(name = "kaito", version, after_help = EXIT_STATUS, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub logging: LoggingArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP
    Serve(Box<ServeArgs>),
    /// Talk to a model in the terminal
    Chat(ChatArgs),
    /// Download a model from the hub, as `kaito serve` does at its start
    Download(DownloadArgs),
    /// List the presets, the models that kaito knows by name
    Presets(PresetsArgs),
    /// List what this machine can compute on
    Devices(DevicesArgs),
    /// Print the definition of the Workspace resource, for `kubectl apply`
    Crd(CrdArgs),
    /// Run models on Kubernetes: reconcile the cluster's workspaces
    Controller(ControllerArgs),
    /// Print what a cluster needs to run workspaces, for `kubectl apply`
    Install(InstallArgs),
    /// Run a Workspace manifest on this machine, without a cluster
    Up(UpArgs),
    /// Run the engine of one rank as a child, together with those of the other ranks
    Supervise(SuperviseArgs),
    /// Put models into container images
    Image(ImageArgs),
    /// List the clouds' machines with GPUs
    InstanceTypes(InstanceTypesArgs),
    /// Show what a model needs and which machines it fits on, or why it does not fit
    Plan(PlanArgs),
    /// Check manifests of workspaces, without a cluster
    Validate(ValidateArgs),
    /// Measure the speed of a model on this machine, or of a server
    Bench(Box<BenchArgs>),
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroUsize, path::Path, time::Duration};

    use clap::{CommandFactory, error::ErrorKind};
    use kaito_engine::{ComputeChoice, DeviceChoice, KernelLevel, KvDType, Quantization};
    use kaito_server::HostName;

    use super::{model::DType, *};

    fn serve(args: &[&str]) -> ServeArgs {
        match Cli::try_parse_from(["kaito", "serve"].iter().chain(args)).unwrap().command {
            Command::Serve(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let args = serve(&[]);
        assert_eq!((args.port, args.request_timeout, args.host), (5000, Duration::from_secs(180), None));
        assert_eq!((args.drain_limit, args.stall_limit, args.body_limit), (None, Duration::from_secs(60), 4 << 20));
        assert!(args.access.allowed_origin.is_empty());
        assert_eq!(args.model.device, DeviceChoice::Auto);
        assert_eq!((args.model.load_options().max_batch_size, args.model.max_batch_size), (32, None));
        assert_eq!((args.model.dtype, args.model.model), (DType::Auto, None));
        assert_eq!((args.upstream.upstream, args.upstream.upstream_wait), (None, Duration::from_secs(120)));
    }

    #[test]
    fn every_flag_has_an_environment_variable_named_after_it() {
        fn check(command: &clap::Command) {
            for arg in command.get_arguments() {
                let id = arg.get_id().as_str();
                if matches!(id, "help" | "version") {
                    continue;
                }
                let variable = arg.get_env().and_then(|name| name.to_str()).unwrap_or_default();
                let expected = EXCEPTIONS
                    .iter()
                    .find(|(exception, _)| *exception == id)
                    .map_or_else(|| format!("KAITO_{}", id.to_uppercase()), |(_, variable)| (*variable).to_owned());
                assert_eq!(variable, expected, "{} {id}", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        /// A name that says too little alone.
        const EXCEPTIONS: [(&str, &str); 1] = [("name", "KAITO_PRESET")];
        check(&Cli::command());
    }

    #[test]
    fn bad_values_are_refused_with_what_is_allowed() {
        for (args, parts) in [
            (&["--port", "70000"][..], &["70000", "--port", "65535"][..]),
            (
                &["--device", "cuda:0"],
                &["'cuda:0' for '--device", "this build computes on cpu only", "give auto or cpu"],
            ),
            (&["--device", ""], &["--device", "auto or cpu"]),
            (&["--dtype", "int8"], &["int8", "auto, f32, bf16, f16"]),
            (&["--compute", "f32"], &["f32", "auto, exact, bf16"]),
            (&["--kernels", "sse9"], &["sse9", "amx, avx512, avx2, neon and portable"]),
            (&["--quantize", "int2"], &["int2", "none, int8, int4"]),
            (&["--kv-dtype", "fp8"], &["fp8", "auto, f32, bf16, int8"]),
            (&["--kv-cache-memory", "4 elephants"], &["4 elephants", "4GiB"]),
            (&["--kv-cache-memory", "0"], &["--kv-cache-memory", "more than nothing"]),
            (&["--request-timeout", "soon"], &["soon", "180s"]),
            (&["--request-timeout", "0s"], &["--request-timeout", "more than nothing"]),
            (&["--max-batch-size", "0"], &["--max-batch-size", "0"]),
            (&["--threads", "-1"], &["-1"]),
            (&["--model-dir", "x"], &["--model-dir"]),
            (&["a", "b"], &["b"]),
            (&["--api-key", ""], &["--api-key", "no API key"]),
            (&["--allowed-host", "example.com:80"], &["example.com:80", "without a port"]),
            (&["--allowed-host", "*"], &["--allowed-host", "example.com"]),
            (&["--allowed-origin", "example.com"], &["example.com", "https://example.com"]),
            (&["--allowed-origin", "https://example.com/"], &["https://example.com/", "no path"]),
            (&["--request-timeout", "18446744073709551615"], &["--request-timeout", "365 days"]),
            (&["--drain-limit", "366d"], &["--drain-limit", "365 days"]),
            (&["--stall-limit", "0"], &["--stall-limit", "more than nothing"]),
            (&["--body-limit", "2GiB"], &["--body-limit", "1GiB"]),
            (&["--threads", "100000"], &["--threads", "from 1 to 1024"]),
            (&["--tls-certificate", "a"], &["--tls-key <FILE>"]),
            (&["--tls-key", "a"], &["--tls-certificate <FILE>"]),
            (&["--upstream", "127.0.0.1:8000"], &["--upstream", "http://127.0.0.1:8000"]),
            (&["--upstream", "http://user:secret@127.0.0.1"], &["--upstream", "http://127.0.0.1:8000"]),
            (&["--upstream", "http://a", "--quantize", "int8"], &["--upstream", "--quantize"]),
            (&["--upstream", "http://a", "--embeddings", "mean"], &["--upstream", "--embeddings"]),
            (&["--upstream-model", "a"], &["--upstream <URL>"]),
            (&["--upstream-supervisor", "http://a"], &["--upstream <URL>"]),
            (&["--upstream", "http://a", "--upstream-supervisor", "a:5001"], &["http://127.0.0.1:5001"]),
            (&["--max-batch-size", "18446744073709551615"], &["--max-batch-size", "from 1 to 4096"]),
        ] {
            let error = Cli::try_parse_from(["kaito", "serve"].iter().chain(args)).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            for part in parts {
                assert!(error.to_string().contains(part), "{args:?}: {error}");
            }
        }
        let error = Cli::try_parse_from(["kaito", "chat", "--temperature", "-1"]).unwrap_err();
        assert!(error.to_string().contains("-1"), "{error}");
        assert_eq!(
            Cli::try_parse_from(["kaito"]).unwrap_err().kind(),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        );
    }

    #[test]
    fn keys_hosts_and_origins_may_be_several() {
        let AccessArgs { api_key, api_key_file, tls_certificate, tls_key, allowed_host, allowed_origin } = serve(&[
            "--api-key",
            "old, new",
            "--api-key",
            "third\n",
            "--api-key-file",
            "keys",
            "--tls-certificate",
            "tls.crt",
            "--tls-key",
            "tls.key",
            "--allowed-host",
            "a.example,B.example.",
            "--allowed-host",
            "[::2]",
            "--allowed-origin",
            "https://a.example",
            "--allowed-origin",
            "http://localhost:3000,*",
        ])
        .access;
        assert_eq!(api_key.iter().map(|keys| keys.0.as_ref().unwrap().len()).sum::<usize>(), 3);
        assert_eq!(api_key_file.as_deref(), Some(Path::new("keys")));
        let tls = [tls_certificate, tls_key].map(Option::unwrap);
        assert_eq!(tls, ["tls.crt", "tls.key"].map(std::path::PathBuf::from));
        let shown = |hosts: Vec<HostName>| hosts.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown(allowed_host), ["a.example", "b.example", "::2"]);
        assert_eq!(allowed_origin, ["https://a.example", "http://localhost:3000", "*"]);
    }

    #[test]
    fn pods_are_given_the_time_that_the_end_of_a_server_takes() {
        // The limit for the end is the request's unless it is set, which no pod of ours does.
        let limit = serve(&[]).request_timeout;
        let given = Duration::from_secs(kaito_operator::decide::TERMINATION_GRACE_SECONDS.unsigned_abs());
        // Where an engine is behind it, the first rank's ends after it, and then those of the others.
        let engines = Duration::from_secs(2 * u64::from(kaito_operator::runtime::ENGINE_GRACE_SECONDS));
        assert!(given >= limit + engines + Duration::from_secs(10), "{given:?} for {limit:?} and {engines:?}");
    }

    #[test]
    fn options_reach_the_engine() {
        let options = serve(&[
            "--dtype",
            "bfloat16",
            "--threads",
            "3",
            "--max-seq-len",
            "1000",
            "--max-batch-size",
            "5",
            "--kv-cache-memory",
            "1.5GiB",
            "--quantize",
            "int4",
            "--quantize-cache",
            "/somewhere",
            "--chat-template",
            "/a/template.jinja",
            "--kv-dtype",
            "int8",
            "--device",
            "cpu",
            "--compute",
            "exact",
        ])
        .model
        .load_options();
        assert_eq!((options.dtype, options.device), (Some(kaito_engine::DType::Bf16), DeviceChoice::Cpu));
        assert_eq!(options.threads.map(NonZeroUsize::get), Some(3));
        assert_eq!((options.max_seq_len, options.max_batch_size), (Some(1000), 5));
        assert_eq!(options.kv_cache_memory, Some(3 << 29));
        assert_eq!((options.quantize, options.kv_dtype), (Some(Quantization::Int4), Some(KvDType::Int8)));
        assert_eq!(options.quantized_cache.as_deref(), Some(Path::new("/somewhere")));
        assert_eq!(options.chat_template.as_deref(), Some(Path::new("/a/template.jinja")));
        assert_eq!(options.compute, ComputeChoice::Exact);
        let options = serve(&[]).model.load_options();
        assert_eq!((options.quantize, options.compute), (None, ComputeChoice::Auto));
        assert_eq!(serve(&["--kernels", "avx2"]).model.kernels, Some(KernelLevel::Avx2));
    }
}
