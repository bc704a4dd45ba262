//! The phases of an engine's start, by what it logs.

/// What a phrase of vLLM's log says about its start, in the order in which it comes there.
const PHASES: [(&str, &str); 16] = [
    ("Initializing a V1 LLM engine", "starting its processes"),
    ("distributed_init_method=", "joining the other ranks"),
    ("Starting to load model", "loading weights"),
    ("checkpoint shards:", "loading weights"),
    ("Loading weights took", "weights are loaded"),
    ("Model loading took", "weights are loaded"),
    ("Dynamo bytecode transform", "compiling"),
    ("Warming up model for the compilation", "compiling"),
    ("torch.compile", "compiling"),
    ("Available KV cache memory", "allocating the KV cache"),
    ("KV cache size", "allocating the KV cache"),
    ("Capturing CUDA graph", "capturing graphs"),
    ("Graph capturing finished", "graphs are captured"),
    ("init engine (profile", "starting its server"),
    ("Starting vLLM", "starting its server"),
    ("Application startup complete", STARTED),
];

/// What is said of an engine that has started.
pub(crate) const STARTED: &str = "started";

/// How far the start is of which this line tells, with the percentage of a progress bar; `None` where it tells of none.
pub(crate) fn phase(line: &str) -> Option<String> {
    let (at, phase) = PHASES.iter().find_map(|(phrase, phase)| line.find(phrase).map(|at| (at, phase)))?;
    let percentage = line.get(at..).and_then(percentage);
    Some(percentage.map_or_else(|| (*phase).to_owned(), |percentage| format!("{phase}, {percentage} %")))
}

/// The whole number before the first percent sign.
fn percentage(text: &str) -> Option<u8> {
    let (before, _) = text.split_once('%')?;
    let digits = before.len() - before.bytes().rev().take_while(u8::is_ascii_digit).count();
    before.get(digits..)?.parse().ok().filter(|percentage| *percentage <= 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as vLLM logs them.
    #[test]
    fn phases_are_known_by_vllms_log() {
        for (line, expected) in [
            (
                "(EngineCore pid=1) INFO 10-28 13:27:40 [core.py:93] Initializing a V1 LLM engine (v0.32.0) with config: ...",
                "starting its processes",
            ),
            (
                "INFO [parallel_state.py:1203] world_size=2 rank=1 local_rank=0 distributed_init_method=tcp://192.0.2.1:29500 backend=gloo",
                "joining the other ranks",
            ),
            ("INFO [gpu_model_runner.py:5037] Starting to load model google/gemma-4-E4B-it...", "loading weights"),
            (
                "Loading safetensors checkpoint shards:  43% Completed | 3/7 [00:01<00:02,  1.99it/s]",
                "loading weights, 43 %",
            ),
            ("INFO [default_loader.py:267] Loading weights took 31.27 seconds", "weights are loaded"),
            ("INFO [backends.py:559] Dynamo bytecode transform time: 12.02 s", "compiling"),
            ("INFO [cpu_model_runner.py:77] Warming up model for the compilation...", "compiling"),
            ("INFO [kv_cache_utils.py:2235] GPU KV cache size: 2,252,970 tokens", "allocating the KV cache"),
            (
                "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  50%|#####     | 1/2 [00:05, 5.53s/it]",
                "capturing graphs, 50 %",
            ),
            (
                "INFO [core.py:240] init engine (profile, create kv cache, warmup model) took 2.67 seconds",
                "starting its server",
            ),
            ("INFO:     Application startup complete.", STARTED),
        ] {
            assert_eq!(phase(line).as_deref(), Some(expected), "{line}");
        }
        for line in ["", "INFO: 127.0.0.1 - \"GET /health HTTP/1.1\" 200 OK", "100%"] {
            assert_eq!(phase(line), None, "{line}");
        }
    }

    #[test]
    fn what_is_no_percentage_is_none() {
        for (text, expected) in
            [("7%", Some(7)), ("a 100 %", None), ("100%", Some(100)), ("101%", None), ("%", None), ("", None)]
        {
            assert_eq!(percentage(text), expected, "{text}");
        }
    }
}
