"""The SDK of Anthropic for Python."""

import json

import anthropic
import pytest
from questions import CONVERSATIONS, WEATHER, WORKSPACE

CLIENT = ("anthropic", "anthropic")
TOOL = {"name": "get_weather", "description": "The weather of a city", "input_schema": WEATHER}
QUESTION = [{"role": "user", "content": "What is the weather in Oslo?"}]
# The SDK no longer has the parameter by name.
GREEDY = {"model": "demo", "extra_body": {"temperature": 0}}


@pytest.fixture(scope="module")
def client(server):
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=120)


def split(conversation: list[dict]) -> dict:
    """A conversation with its system text apart, as Anthropic has it."""
    system = [message["content"] for message in conversation if message["role"] == "system"]
    rest = [message for message in conversation if message["role"] != "system"]
    return {"messages": rest} | ({"system": system[0]} if system else {})


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["question", "models", "system", "turns"])
def test_create(client, server, conversation):
    answer = client.messages.create(**GREEDY, **split(conversation), max_tokens=100)
    [block] = answer.content
    assert (block.type, block.text) == ("text", server.chat_text(conversation, 100))
    assert (answer.type, answer.role, answer.stop_reason, answer.model) == ("message", "assistant", "end_turn", "demo")
    assert answer.usage.input_tokens > 5 and answer.usage.output_tokens > 5


def test_stop(client, server):
    text = server.chat_text(WORKSPACE, 100)
    stop = text[30:36]
    answer = client.messages.create(**GREEDY, messages=WORKSPACE, max_tokens=100, stop_sequences=[stop])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert answer.content[0].text == text[:text.index(stop)]
    short = client.messages.create(**GREEDY, messages=WORKSPACE, max_tokens=5)
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 5)


def test_blocks(client, server):
    blocks = [{"role": "user", "content": [
        {"type": "text", "text": "What is a workspace?", "cache_control": {"type": "ephemeral"}}]}]
    answer = client.messages.create(**GREEDY, messages=blocks, system=[{"type": "text", "text": "Answer briefly."}],
                                    max_tokens=20, metadata={"user_id": "x"}, extra_headers={"anthropic-beta": "a,b"})
    system = [{"role": "system", "content": "Answer briefly."}, *WORKSPACE]
    assert answer.content[0].text == server.chat_text(system, 20)


def test_stream(client):
    ask = GREEDY | {"messages": WORKSPACE, "max_tokens": 100}
    whole = client.messages.create(**ask)
    with client.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert (final.usage.input_tokens, final.usage.output_tokens) == (
        whole.usage.input_tokens, whole.usage.output_tokens)
    kinds = [event.type for event in client.messages.create(**ask, stream=True) if event.type != "ping"]
    deltas = len(kinds) - 5
    assert kinds == ["message_start", "content_block_start", *["content_block_delta"] * deltas, "content_block_stop",
                     "message_delta", "message_stop"]


def test_tools(client):
    ask = GREEDY | {"messages": QUESTION, "tools": [TOOL], "max_tokens": 200,
                    "tool_choice": {"type": "tool", "name": "get_weather"}}
    answer = client.messages.create(**ask)
    [call] = answer.content
    assert (call.type, call.name, answer.stop_reason) == ("tool_use", "get_weather", "tool_use")
    assert call.input["city"] in WEATHER["properties"]["city"]["enum"]
    with client.messages.stream(**ask) as stream:
        [streamed] = stream.get_final_message().content
    assert (streamed.name, streamed.input) == (call.name, call.input)
    parts = [event.delta.partial_json for event in client.messages.create(**ask, stream=True)
             if event.type == "content_block_delta" and event.delta.type == "input_json_delta"]
    assert json.loads("".join(parts)) == call.input
    history = [*QUESTION, {"role": "assistant", "content": [call.to_dict()]},
               {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "4 degrees"}]}]
    after = client.messages.create(**(ask | {"messages": history, "tool_choice": {"type": "none"}}))
    assert after.content[0].type == "text" and after.content[0].text
    required = client.messages.create(**(ask | {"tool_choice": {"type": "any"}}))
    assert required.stop_reason == "tool_use"


def test_count_tokens_exact(client):
    for conversation in CONVERSATIONS:
        counted = client.messages.count_tokens(model="demo", **split(conversation))
        cost = client.messages.create(**GREEDY, **split(conversation), max_tokens=1).usage
        assert counted.input_tokens == cost.input_tokens + (cost.cache_read_input_tokens or 0)
    counted = client.messages.count_tokens(model="demo", messages=QUESTION, tools=[TOOL], extra_query={"beta": "true"})
    cost = client.messages.create(**GREEDY, messages=QUESTION, tools=[TOOL], max_tokens=1).usage
    assert counted.input_tokens == cost.input_tokens + (cost.cache_read_input_tokens or 0)


def test_errors(client, serve):
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**GREEDY, messages=WORKSPACE, max_tokens=0)
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    assert "max_tokens" in refused.value.body["error"]["message"]
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="claude", messages=WORKSPACE, max_tokens=1)
    assert unknown.value.body["type"] == "error" and unknown.value.body["error"]["type"] == "not_found_error"
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**GREEDY, messages=[{"role": "user", "content": [image]}], max_tokens=1)
    keyed = serve("--api-key", "right")
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=keyed.url, api_key="wrong", max_retries=0).messages.create(
            **GREEDY, messages=WORKSPACE, max_tokens=1)
    right = anthropic.Anthropic(base_url=keyed.url, api_key="right", max_retries=0)
    assert right.messages.create(**GREEDY, messages=WORKSPACE, max_tokens=1).content
