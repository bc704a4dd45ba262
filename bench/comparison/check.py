"""Whether everyone computes the same model: which tokens each chooses after the same prompts, greedily and in 32 bits."""

import tempfile
from pathlib import Path

from . import prepare
from .processes import Failed, Server

PROMPTS = ("Hello world", "the quick brown fox jumps over the lazy dog", "Kaito", "a b c d e f g")
STEPS = 16
# A full-width model of few layers: everything that could be confused is in it, and it is small.
LAYERS = "2"
# With random weights the best two scores can be equal but for the order of summation.
LEAST = 0.9


def check(release, builds, llama, llama_build, others, folder, say):
    """Lines that say how far everyone agrees. Raises when somebody computes another model.

    `builds` are ours first; `llama` and each of `others`, which know how to say tokens greedily, may be missing. What all are
    compared with is the first of `others`, an engine that shares nothing with ours; else llama.cpp; else ours itself.
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        checkpoint, gguf = Path(temporary) / "checkpoint", Path(temporary) / "f32.gguf"
        say(f"checking that all compute the same: tinyllama-1.1b with {LAYERS} layers in f32")
        prepare.random_checkpoint(release, "tinyllama-1.1b", checkpoint, "--layers", LAYERS)
        said, prompts = {}, None
        for build in builds:
            for dtype in ("f32", "bf16"):
                prompts, said[f"{build.name} {dtype}"] = ours_says(build, checkpoint, dtype)
        for other in others:
            said[f"{other.name} f32"] = other.greedy(checkpoint, prompts, STEPS)
        if llama is not None:
            prepare.to_gguf(llama_build, checkpoint, gguf, "f32")
            said[f"{llama.name} f32"] = llama_says(llama, gguf, prompts)
    reference = next((f"{engine.name} f32" for engine in (*others, llama) if engine is not None), next(iter(said)))
    shares = {name: agreement(tokens, said[reference]) for name, tokens in said.items() if name != reference}
    for name, share in shares.items():
        if share < LEAST:
            raise Failed(f"{name} and {reference} agree in {share:.0%} of the tokens after {len(PROMPTS)} prompts: "
                         "they do not compute the same model, and nothing can be compared")
    return [f"{name}: {share:.0%} of what {reference} says" for name, share in shares.items()]


def agreement(answers, expected):
    """Share of the expected texts (or tokens) before the first difference."""
    same = sum(common_prefix(*pair) for pair in zip(answers, expected, strict=True))
    return same / sum(len(answer) for answer in expected)


def common_prefix(one, other):
    for place, pair in enumerate(zip(one, other)):
        if pair[0] != pair[1]:
            return place
    return min(len(one), len(other))


def ours_says(kaito, checkpoint, dtype):
    """Token ids of the prompts, and of what follows each."""
    # Activations in bf16 choose other tokens where random weights leave the best two scores close.
    flags = ("--compute", "exact") if dtype != "f32" else ()
    command = [kaito.binary, "serve", "--weights", checkpoint, "--dtype", dtype, "--threads", str(kaito.settings.threads),
               *flags, "--port", "{port}", "--max-seq-len", "512"]
    prompts, answers = [], []
    with Server(command, "/healthz", 300.0, environment=kaito.environment) as server:
        request = {"do_sample": False, "max_new_tokens": STEPS, "min_new_tokens": STEPS, "return_dict_in_generate": True}
        for prompt in PROMPTS:
            [tokens] = server.ask("/chat", {"prompt": prompt, **request})["sequences"]
            prompts.append(tokens[:-STEPS])
            answers.append(tokens[-STEPS:])
    return prompts, answers


def llama_says(llama, gguf, prompts):
    with llama.server_of(gguf, 512, 1) as server:
        request = {"n_predict": STEPS, "temperature": 0, "return_tokens": True, "cache_prompt": False, "ignore_eos": True}
        return [server.ask("/completion", {"prompt": prompt, **request})["tokens"] for prompt in prompts]
