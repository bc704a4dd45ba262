"""Whether everyone computes the same model: what each says after the same prompts, greedily and in 32 bits."""

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


def check(release, source, python, kaito, llama, transformers, folder, say):
    """Lines that say how far everyone agrees. Raises when somebody computes another model."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        checkpoint, gguf = Path(temporary) / "checkpoint", Path(temporary) / "f32.gguf"
        say(f"checking that all compute the same: tinyllama-1.1b with {LAYERS} layers in f32")
        prepare.random_checkpoint(release, "tinyllama-1.1b", checkpoint, "--layers", LAYERS)
        prepare.to_gguf(python, source, checkpoint, gguf, "f32")
        expected = transformers.greedy(checkpoint, PROMPTS, STEPS)
        ours = [ours_says(kaito, checkpoint, "f32")]
        ours.append(ours_says(kaito, checkpoint, "bf16"))
        theirs = llama_says(llama, gguf, [answer["prompt"] for answer in expected])
    texts = [answer["text"] for answer in expected]
    tokens = [answer["tokens"] for answer in expected]
    results = [
        ("kaito f32", agreement(ours[0], texts)),
        ("kaito bf16", agreement(ours[1], texts)),
        ("llama.cpp f32", agreement(theirs, tokens)),
    ]
    for name, share in results:
        if share < LEAST:
            raise Failed(f"{name} and transformers f32 agree in {share:.0%} of the text after {len(PROMPTS)} prompts: "
                         "they do not compute the same model, and nothing can be compared")
    return [f"{name}: {share:.0%} of what transformers says in f32" for name, share in results]


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
    command = [kaito.binary, "serve", "--weights", checkpoint, "--dtype", dtype, "--threads", str(kaito.settings.threads),
               "--port", "{port}", "--max-seq-len", "512"]
    with Server(command, "/healthz", 300.0) as server:
        request = {"do_sample": False, "max_new_tokens": STEPS, "return_full_text": False}
        return [server.ask("/chat", {"prompt": prompt, **request})["Result"].strip() for prompt in PROMPTS]


def llama_says(llama, gguf, prompts):
    with llama.server_of(gguf, 512, 1) as server:
        request = {"n_predict": STEPS, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        return [server.ask("/completion", {"prompt": prompt, **request})["tokens"] for prompt in prompts]
