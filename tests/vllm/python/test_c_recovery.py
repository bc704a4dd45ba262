"""Requests outlive the engine; one that hangs is noticed; the front drains."""

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from engines import DEMO, front, prompts, wait_until
from serving import HTTP

CHECKS = "vllm/recovery"
STREAMS = 8
TOKENS = 120


def body(prompt: str) -> dict:
    return {"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}


def texts_of(server) -> list[str]:
    """What undisturbed requests answer, all at once."""
    def text(prompt: str) -> str:
        return server.post("/v1/completions", body(prompt)).json()["choices"][0]["text"]

    with ThreadPoolExecutor(STREAMS) as threads:
        return list(threads.map(text, prompts(STREAMS)))


@pytest.fixture(scope="module")
def undisturbed(upstream) -> list[str]:
    return texts_of(upstream)


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
            with HTTP.stream("POST", f"{self.server.url}/v1/completions", json=body(prompt) | {"stream": True},
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


def test_the_engine_is_killed_in_eight_streams(engine, upstream, undisturbed):
    streams = Streams(upstream)
    streams.wait_until_all_have_begun()
    engine.kill()
    wait_until(lambda: HTTP.get(f"{upstream.url}/healthz").status_code == 503, 60, "its absence is seen")
    engine.start().wait()
    assert streams.whole() == undisturbed
    wait_until(lambda: HTTP.get(f"{upstream.url}/healthz").status_code == 200, 60, "its return is seen")


def test_a_stopped_engine_is_named(engine, upstream, undisturbed):
    streams = Streams(upstream)
    streams.wait_until_all_have_begun()
    engine.send(signal.SIGSTOP)
    try:
        def health():
            return HTTP.get(f"{upstream.url}/healthz")
        wait_until(lambda: health().status_code == 503, 60, "that no token comes is seen")
        # By a token that it owes, or by its own health, which it does not tell either: whichever is noticed first.
        words = health().text
        assert "no progress for" in words or f"{engine.url} does not say within" in words, words
    finally:
        engine.send(signal.SIGCONT)
    assert streams.whole() == undisturbed
    wait_until(lambda: health().status_code == 200, 60, "its progress is seen")


def test_the_front_drains(engine, undisturbed):
    server = front(DEMO, engine, "demo")
    streams = Streams(server)
    streams.wait_until_all_have_begun()
    server.process.send_signal(signal.SIGTERM)
    assert streams.whole() == undisturbed
    assert server.process.wait(60) == 0
