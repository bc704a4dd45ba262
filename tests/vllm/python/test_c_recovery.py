"""Requests outlive the engine; one that hangs is noticed; an end leaves nothing behind."""

import json
import os
import signal
import threading

import httpx2
from engines import Engine, DEMO, front, prompts, wait_until

CHECKS = "vllm/recovery"
STREAMS = 8
TOKENS = 120


def body(prompt: str) -> dict:
    return {"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}


def texts_of(server) -> list[str]:
    """What undisturbed requests answer."""
    return [server.post("/v1/completions", body(prompt)).json()["choices"][0]["text"] for prompt in prompts(STREAMS)]


class Streams:
    """Eight streams at once, whose events are counted as they come."""

    def __init__(self, server):
        self.server = server
        self.texts = [""] * STREAMS
        self.begun = [threading.Event() for _ in range(STREAMS)]
        self.errors: list[str] = []
        self.threads = [threading.Thread(target=self.follow, args=(at, prompt), daemon=True)
                        for at, prompt in enumerate(prompts(STREAMS))]
        for thread in self.threads:
            thread.start()

    def follow(self, at: int, prompt: str) -> None:
        try:
            with httpx2.stream("POST", f"{self.server.url}/v1/completions", json=body(prompt) | {"stream": True},
                               timeout=700) as answer:
                for line in answer.iter_lines():
                    data = line.removeprefix("data: ")
                    if line.startswith("data: ") and data != "[DONE]":
                        event = json.loads(data)
                        assert "error" not in event, event
                        self.texts[at] += "".join(choice["text"] for choice in event["choices"])
                        self.begun[at].set()
        except Exception as error:
            self.errors.append(f"{prompt!r}: {error!r}")
            self.begun[at].set()

    def wait_until_all_have_begun(self) -> None:
        for begun in self.begun:
            assert begun.wait(120), "a stream has no token"
        assert not self.errors, self.errors

    def whole(self) -> list[str]:
        for thread in self.threads:
            thread.join(700)
            assert not thread.is_alive(), "a stream does not end"
        assert not self.errors, self.errors
        return self.texts


def test_the_engine_is_killed_in_eight_streams(engine, upstream):
    undisturbed = texts_of(upstream)
    streams = Streams(upstream)
    streams.wait_until_all_have_begun()
    engine.kill()
    wait_until(lambda: httpx2.get(f"{upstream.url}/healthz").status_code == 503, 60, "its absence is seen")
    engine.start().wait()
    assert streams.whole() == undisturbed
    wait_until(lambda: httpx2.get(f"{upstream.url}/healthz").status_code == 200, 60, "its return is seen")


def test_a_stopped_engine_is_named(engine, upstream):
    undisturbed = texts_of(upstream)
    streams = Streams(upstream)
    streams.wait_until_all_have_begun()
    engine.send(signal.SIGSTOP)
    try:
        def health():
            return httpx2.get(f"{upstream.url}/healthz")
        wait_until(lambda: health().status_code == 503, 60, "that no token comes is seen")
        # By a token that it owes, or by its own health, which it does not tell either: whichever is noticed first.
        words = health().text
        assert "no progress for" in words or f"{engine.url} does not say within" in words, words
    finally:
        engine.send(signal.SIGCONT)
    assert streams.whole() == undisturbed
    wait_until(lambda: health().status_code == 200, 60, "its progress is seen")


def test_the_front_drains(engine):
    server = front(DEMO, engine, "demo")
    streams = Streams(server)
    streams.wait_until_all_have_begun()
    server.process.send_signal(signal.SIGTERM)
    whole = streams.whole()
    assert server.process.wait(60) == 0
    assert all(whole), whole


def test_nothing_of_the_engine_is_left():
    engine = Engine(DEMO).start().wait()
    assert len(engine.running()) > 1, "vLLM computes in a process of its own"
    os.kill(engine.process.pid, signal.SIGTERM)
    engine.process.wait(60)
    wait_until(lambda: not engine.running(), 60, "all of its processes are gone")
