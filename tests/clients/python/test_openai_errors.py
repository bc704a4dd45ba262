"""The SDK of OpenAI for Python: what is refused and how, and what is ignored."""

import json
import re
import threading
import time

import openai
import pytest
from questions import GREEDY, OPEN, WORKSPACE
from serving import Beside

CLIENT = ("openai-python", "openai")


def test_logprobs_refused(client):
    ask = GREEDY | {"messages": WORKSPACE, "max_tokens": 1}
    for change, param in [
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ]:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**ask, **change)
        assert refused.value.param == param
    plain = client.chat.completions.create(**ask, logprobs=True).choices[0].logprobs.content
    assert [entry.top_logprobs for entry in plain] == [[]]


def test_prompt_too_long_code(client, client_of):
    long = [{"role": "user", "content": "workspace " * 3000}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**GREEDY, messages=long)
    error = refused.value
    assert (error.code, error.type) == ("context_length_exceeded", "invalid_request_error")
    # Both numbers: what fits, and what came.
    numbers = [int(number) for number in re.findall(r"\d+", error.message)]
    assert 2048 in numbers and any(number > 3000 for number in numbers), error.message


@pytest.mark.parametrize("change, param", [
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [*WORKSPACE, {"role": "user"}]}, "messages[1].content"),
], ids=["temperature", "top_p", "n_0", "n_1000", "presence_penalty", "frequency_penalty", "stop", "max_tokens", "messages",
        "content_type", "content_missing"])
def test_range(client, change, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**(GREEDY | {"messages": WORKSPACE, "max_tokens": 1} | change))
    error = refused.value
    assert (error.type, error.param) == ("invalid_request_error", param)
    assert param.split(".")[-1] in error.message


def test_unknown_model_404_lists_names(client):
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-4o", messages=WORKSPACE)
    assert refused.value.code == "model_not_found"
    assert "gpt-4o" in refused.value.message and "demo" in refused.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")
    # No name and the name `default` are the base model.
    for model in ("", "default"):
        answer = client.chat.completions.create(model=model, messages=WORKSPACE, max_tokens=1)
        assert answer.model == "demo"


def test_wrong_key_401(serve, client_of):
    flags = ("--api-key", "right")
    for key in ("wrong", "rightt"):
        with pytest.raises(openai.AuthenticationError) as refused:
            client_of(*flags, api_key=key).models.list()
        assert (refused.value.code, refused.value.type) == ("invalid_api_key", "authentication_error")
    right = client_of(*flags, api_key="right")
    assert right.models.list().data[0].id == "demo"
    assert right.chat.completions.create(**GREEDY, messages=WORKSPACE, max_tokens=1).choices
    url = serve(*flags).url
    for headers, status in [({"x-api-key": "right"}, 200), ({"api-key": "right"}, 200), ({"api-key": "left"}, 401)]:
        assert right._client.get(f"{url}/v1/models", headers=headers).status_code == status
    for path in ("/health", "/healthz", "/ping", "/version", "/metrics"):
        assert right._client.get(f"{url}{path}").status_code == 200, path


def test_queue_full_429_is_retried(serve, client_of):
    flags = ("--max-batch-size", "1", "--max-waiting", "1")
    serve(*flags)
    impatient, patient = client_of(*flags), client_of(*flags, max_retries=60)
    seen = threading.Event()

    def fill():
        """Keeps one place taken, for as long as nobody was refused."""
        while not seen.is_set():
            answer = patient.chat.completions.create(
                **GREEDY, messages=WORKSPACE, max_tokens=500, extra_body={"ignore_eos": True}
            )
            assert answer.usage.completion_tokens == 500

    def refused():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                impatient.chat.completions.create(**GREEDY, messages=WORKSPACE, max_tokens=1)
            except openai.RateLimitError as error:
                return error
        raise AssertionError("nobody was refused in 60 s")

    # One runs, one waits, and one is for the moment in which a place is free.
    with Beside(fill), Beside(fill), Beside(fill):
        try:
            error = refused()
        finally:
            seen.set()
        assert (error.code, error.type) == ("queue_full", "rate_limit_error")
        assert int(error.response.headers["retry-after"]) >= 1
        answer = patient.chat.completions.create(**GREEDY, messages=WORKSPACE, max_tokens=5)
        assert answer.usage.completion_tokens == 5


def test_error_in_stream_raises(client_of):
    client = client_of("--request-timeout", "5s")
    stream = client.chat.completions.create(
        model="demo", messages=OPEN, temperature=2, seed=1, n=32, max_tokens=1900, stream=True,
        extra_body={"ignore_eos": True},
    )
    received = 0
    with pytest.raises(openai.APIError) as raised:
        for chunk in stream:
            received += len(chunk.choices)
    assert received > 0, "the error must come after the head of the stream"
    assert (raised.value.code, raised.value.type) == ("timeout", "server_error")


def test_unknown_fields_ignored(client, server):
    answer = client.chat.completions.create(
        **GREEDY, messages=WORKSPACE, max_tokens=20, store=True, metadata={"a": "b"}, user="someone",
        service_tier="auto", reasoning_effort="low", prompt_cache_key="x", safety_identifier="y",
        parallel_tool_calls=True, extra_headers={"OpenAI-Organization": "org", "x-anything": "1"},
        extra_query={"beta": "true"}, extra_body={"max_retries": 3, "no_such_field": {"deep": [1]}},
    )
    assert [choice.message.content for choice in answer.choices] == [server.chat_text(WORKSPACE, 20)]


@pytest.mark.parametrize("field, value", [
    ("functions", [{"name": "f", "parameters": {}}]),
    ("function_call", "auto"),
    ("audio", {"voice": "alloy", "format": "wav"}),
    ("prediction", {"type": "content", "content": "x"}),
    ("modalities", ["text", "audio"]),
    ("logits_processors", ["x"]),
    ("priority", 1),
], ids=["functions", "function_call", "audio", "prediction", "modalities", "logits_processors", "priority"])
def test_refused(client, field, value):
    """What cannot be honoured is refused, never dropped."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**GREEDY, messages=WORKSPACE, max_tokens=1, extra_body={field: value})
    assert refused.value.param == field and field in refused.value.message


def test_image_part_400(client):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            **GREEDY, messages=[{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]
        )
    assert refused.value.param.startswith("messages[0].content[1]") and "image_url" in refused.value.message


def test_request_id(client):
    raw = client.chat.completions.with_raw_response.create(**GREEDY, messages=WORKSPACE, max_tokens=1)
    assert raw.headers["x-request-id"] and raw.parse()._request_id == raw.headers["x-request-id"]
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("nothing")
    assert refused.value.request_id


def test_raw_bodies(client, server):
    """What no SDK sends: each is a 400 in the shape of OpenAI's errors, since there is no 422 under /v1."""
    for body in (b"{", b"[]", b'"x"', b'{"messages":"hello"}', b'{"messages":[1]}', b'{"messages":null}'):
        answer = client._client.post(
            f"{server.v1}/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (400, "invalid_request_error"), body
        assert set(error) == {"message", "type", "param", "code"}
    answer = client._client.get(f"{server.v1}/chat/completions")
    assert answer.status_code == 405 and answer.json()["error"]["type"] == "invalid_request_error"


def test_beta_assistants_404(client):
    with pytest.raises(openai.NotFoundError) as refused:
        client.beta.assistants.list()
    assert "/v1/chat/completions" in json.dumps(refused.value.body), "the sentence lists the routes"
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a cat")
