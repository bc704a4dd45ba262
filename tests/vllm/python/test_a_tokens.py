"""Greedy tokens through the front are those of our own engine in 32 bits, of the demo model and of a real one."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engines import Engine, assert_same_tokens, front, greedy, own, prompts

CHECKS = "vllm/tokens"
# Requests at a time: a step of several costs little more than one of one.
TOGETHER = 8


def compare(reference, upstream, model: str) -> None:
    def tie(prompt: str) -> str | None:
        return assert_same_tokens(greedy(reference, model, prompt, 16), greedy(upstream, model, prompt, 16), prompt)

    with ThreadPoolExecutor(TOGETHER) as threads:
        for found in filter(None, threads.map(tie, prompts(50))):
            print(found)


def test_demo(reference, upstream):
    compare(reference, upstream, "demo")


def test_smollm2_135m():
    model, name = Path(os.environ["REAL_MODEL"]), "smollm2"
    engine = Engine(model, name=name).start()
    reference = own(model, name)
    upstream = front(model, engine.wait(), name)
    try:
        compare(reference, upstream, name)
    finally:
        upstream.stop()
        reference.stop()
        engine.close()
