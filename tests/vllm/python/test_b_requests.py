"""Parameters, streams, ends and log-probabilities through the front: as our own engine answers, or refused by name."""

import json
import re

import pytest
from engines import REPOSITORY
from serving import HTTP

CHECKS = "vllm/requests"
ASK = {"model": "demo", "prompt": "A workspace is", "temperature": 0, "max_tokens": 24}
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "What is a node?"}], "temperature": 0, "max_tokens": 24}
SCHEMA = {"type": "object", "properties": {"name": {"enum": ["node", "preset"]}}, "required": ["name"],
          "additionalProperties": False}

# Each is greedy, so that both runtimes have one answer.
SAME = {
    "completion": ("/v1/completions", {}),
    "chat": ("/v1/chat/completions", {}),
    "stop": ("/v1/completions", {"stop": [" model"]}),
    "stop_over_tokens": ("/v1/completions", {"stop": ["e a"], "include_stop_str_in_output": True}),
    "echo": ("/v1/completions", {"echo": True, "max_tokens": 4}),
    "logprobs": ("/v1/completions", {"logprobs": 5, "max_tokens": 4}),
    "chat_logprobs": ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 5, "max_tokens": 4}),
    "prompt_logprobs": ("/v1/completions", {"prompt_logprobs": 2, "max_tokens": 2}),
    "bad_words": ("/v1/completions", {"bad_words": [" model", " the"]}),
    "logit_bias": ("/v1/completions", {"logit_bias": {"300": 4, "310": -100}}),
    "repetition_penalty": ("/v1/completions", {"repetition_penalty": 1.3}),
    "presence_and_frequency": ("/v1/completions", {"presence_penalty": 0.7, "frequency_penalty": 0.4}),
    "min_tokens": ("/v1/completions", {"min_tokens": 20}),
    "ignore_eos": ("/v1/completions", {"ignore_eos": True, "max_tokens": 64}),
    "several_choices": ("/v1/completions", {"n": 3, "max_tokens": 6}),
    "several_prompts": ("/v1/completions", {"prompt": ["A node is", "A preset is"], "max_tokens": 6}),
    "anthropic": ("/v1/messages", {}),
    "responses": ("/v1/responses", {"input": "What is a node?", "max_output_tokens": 16}),
    "kaito": ("/chat", {"prompt": "What is a preset?", "do_sample": False, "max_new_tokens": 16}),
    "meta": ("/generate", {"prompts": ["What is a preset?"], "parameters": {"temperature": 0, "max_gen_len": 16}}),
    "ollama": ("/api/generate", {"prompt": "What is a node?", "stream": False, "options": {"temperature": 0, "num_predict": 8}}),
}
# vLLM compiles these itself: white space in JSON may differ, and it counts the end token.
STRUCTURED = {
    "json_schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}, "max_tokens": 40},
    "choice": {"guided_choice": ["a machine", "a model"]},
    "regex": {"guided_regex": "[a-c]{3,5}"},
}
# What differs from answer to answer, or tells the time.
VARYING = {"id", "system_fingerprint", "created", "created_at", "completed_at", "item_id", "prompt_tokens_details", "cached_tokens", "input_tokens_details",
           "cache_read_input_tokens", "cache_creation_input_tokens"} | {
           f"{of}_duration" for of in ("total", "load", "eval", "prompt_eval")}


def body_of(path: str, given: dict) -> dict:
    base = {"/v1/completions": ASK, "/v1/chat/completions": CHAT, "/v1/messages": CHAT,
            "/v1/responses": {"model": "demo", "temperature": 0}, "/api/generate": {"model": "demo"}}.get(path, {})
    return base | given


def plain(value):
    """An answer without what varies; numbers are compared as far as 32 bits tell."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if key not in VARYING}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return round(value, 2) if isinstance(value, float) else value


@pytest.mark.parametrize("case", SAME)
def test_same(reference, upstream, case):
    path, given = SAME[case]
    expected, answer = (server.post(path, body_of(path, given)) for server in (reference, upstream))
    assert expected.status_code == 200, expected.text
    assert answer.status_code == 200, answer.text
    assert plain(answer.json()) == plain(expected.json())


@pytest.mark.parametrize("case", STRUCTURED)
def test_structured(reference, upstream, case):
    answers = [server.post("/v1/chat/completions", CHAT | STRUCTURED[case]) for server in (reference, upstream)]
    assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
    expected, found = (answer.json()["choices"][0] for answer in answers)
    assert found["finish_reason"] == expected["finish_reason"] == "stop"
    texts = [choice["message"]["content"] for choice in (expected, found)]
    if case == "json_schema":
        texts = [json.loads(text) for text in texts]
    assert texts[0] == texts[1]


def events(server, path: str, body: dict) -> list[dict]:
    with HTTP.stream("POST", f"{server.url}{path}", json=body, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines[-1]
    return [json.loads(line) for line in lines[:-1]]


def test_stream(reference, upstream):
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}, "stop": ["e a"]}
    def whole(found):
        return "".join(choice["delta"].get("content") or "" for event in found for choice in event["choices"])
    expected, found = (events(server, "/v1/chat/completions", body) for server in (reference, upstream))
    assert whole(found) == whole(expected) != ""
    assert len([event for event in found if event["choices"]]) > 3, "it comes in pieces"
    assert found[-1]["usage"]["completion_tokens"] == expected[-1]["usage"]["completion_tokens"]


# Hot enough that the demo model, which knows its few texts well, says several things.
DRAWN = ASK | {"prompt": "The", "temperature": 2.0, "top_p": 1.0, "top_k": -1, "max_tokens": 16}


def test_seed(upstream):
    body = DRAWN | {"seed": 11}
    first, again, other = (upstream.post("/v1/completions", body | extra).json()["choices"][0]["text"]
                           for extra in ({}, {}, {"seed": 12}))
    assert first == again != other


def test_drawn_choices_differ(upstream):
    body = DRAWN | {"seed": 11, "n": 4}
    texts = [choice["text"] for choice in upstream.post("/v1/completions", body).json()["choices"]]
    assert len(set(texts)) > 1, texts


# A value of each parameter that docs/runtimes.md says to be refused, in Kaito's dialect.
REFUSED = {
    "use_beam_search": ("/v1/completions", {"use_beam_search": True, "n": 1, "best_of": 2}),
    "num_beams": ("/chat", {"num_beams": 2}),
    "num_beam_groups": ("/chat", {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}),
    "typical_p": ("/chat", {"do_sample": True, "typical_p": 0.5}),
    "no_repeat_ngram_size": ("/chat", {"no_repeat_ngram_size": 2}),
    "encoder_no_repeat_ngram_size": ("/chat", {"encoder_no_repeat_ngram_size": 2}),
    "forced_bos_token_id": ("/chat", {"forced_bos_token_id": 5}),
    "forced_eos_token_id": ("/chat", {"forced_eos_token_id": 5}),
    "remove_invalid_values": ("/chat", {"remove_invalid_values": True}),
    "output_scores": ("/chat", {"output_scores": True, "return_dict_in_generate": True}),
}
# Those that do nothing without another one of the table; and one that is a route.
WITH_ANOTHER = {"diversity_penalty", "early_stopping", "length_penalty", "embeddings"}


def test_every_refused_parameter_is_tried():
    rows = re.findall(r"^\| (.*) \| yes \| 400 \|$", (REPOSITORY / "docs/runtimes.md").read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == set(REFUSED) | WITH_ANOTHER


@pytest.mark.parametrize("name", REFUSED)
def test_refused(upstream, name):
    path, given = REFUSED[name]
    base = ASK if path == "/v1/completions" else {"prompt": "A node is", "max_new_tokens": 4}
    answer = upstream.post(path, base | given)
    assert answer.status_code == 400, answer.text
    assert name.split("_groups")[0] in answer.text or name in answer.text, answer.text
