"""The SDK of OpenAI for Python: completions, responses and embeddings."""

import json
import math
import struct
from base64 import b64decode

import openai
import pytest
from pydantic import BaseModel, ConfigDict
from questions import CONVERSATIONS, GREEDY, OPEN_PROMPT, WEATHER, WORKSPACE

CLIENT = ("openai-python", "openai")
PROMPTS = ["What is a preset?", "What is a node?", "A workspace is"]
RESPONSES_TOOL = {
    "type": "function", "name": "get_weather", "description": "The weather of a city", "parameters": WEATHER,
    "strict": True,
}


def ids_of(server, prompt: str) -> list[int]:
    return server.post("/tokenize", {"prompt": prompt}).json()["tokens"]


def test_completions_prompt_shapes(client, server):
    ask = GREEDY | {"max_tokens": 12}
    expected = [server.chat_text(prompt, 12) for prompt in PROMPTS]
    ids = [ids_of(server, prompt) for prompt in PROMPTS]
    for one in (PROMPTS[0], [PROMPTS[0]], ids[0], [ids[0]]):
        answer = client.completions.create(**ask, prompt=one)
        assert [choice.text for choice in answer.choices] == expected[:1], one
        assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
        assert answer.usage.prompt_tokens == len(ids[0])
    for several in (PROMPTS, ids):
        answer = client.completions.create(**ask, prompt=several, n=2)
        assert [choice.index for choice in answer.choices] == list(range(6))
        assert [choice.text for choice in answer.choices] == [text for text in expected for _ in range(2)]
        assert answer.usage.prompt_tokens == sum(map(len, ids))
    for bad in ([], "", [[]], [1, "x"], [100000]):
        if bad == "":
            continue
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(**ask, prompt=bad)
        assert refused.value.param.startswith("prompt"), bad


def test_completions_default_16_tokens(client, server):
    answer = client.completions.create(**GREEDY, prompt=PROMPTS[0])
    assert answer.usage.completion_tokens == 16 and answer.choices[0].finish_reason == "length"
    assert answer.choices[0].text == server.chat_text(PROMPTS[0], 16)


def test_completions_stream(client):
    ask = GREEDY | {"prompt": PROMPTS, "max_tokens": 12}
    whole = [choice.text for choice in client.completions.create(**ask).choices]
    chunks = list(client.completions.create(**ask, stream=True))
    texts = dict.fromkeys(range(3), "")
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == whole
    for index in range(3):
        mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert mine[0].text and [it.finish_reason for it in mine[:-1]] == [None] * (len(mine) - 1)
        assert (mine[-1].text, mine[-1].finish_reason) == ("", "length")
    assert all("usage" not in chunk.to_dict() for chunk in chunks)


def test_completions_logprobs(client):
    ask = GREEDY | {"prompt": PROMPTS[0], "max_tokens": 8}
    choice = client.completions.create(**ask, logprobs=5).choices[0]
    listed = choice.logprobs
    assert "".join(listed.tokens) == choice.text
    assert listed.text_offset == [len("".join(listed.tokens[:place])) for place in range(len(listed.tokens))]
    for token, logprob, top in zip(listed.tokens, listed.token_logprobs, listed.top_logprobs, strict=True):
        assert len(top) == 5 and top[token] == logprob == max(top.values()) and logprob <= 0
    # The chosen token is among them even where it is not one of the likeliest.
    for seed in range(3):
        hot = client.completions.create(
            model="demo", prompt=OPEN_PROMPT, max_tokens=12, temperature=2, top_p=1, seed=seed, logprobs=1
        ).choices[0].logprobs
        assert all(token in top for token, top in zip(hot.tokens, hot.top_logprobs, strict=True))
    none = client.completions.create(**ask).choices[0].logprobs
    assert none is None


@pytest.mark.parametrize("new", [0, 1], ids=["score_only", "one_more"])
def test_completions_echo_logprobs(client, server, new):
    """What evaluation harnesses ask: the log-probabilities of a text."""
    prompt = "A workspace is a Kubernetes resource"
    ids = ids_of(server, prompt)
    answer = client.completions.create(**GREEDY, prompt=ids, echo=True, max_tokens=new, logprobs=1)
    choice, listed = answer.choices[0], answer.choices[0].logprobs
    assert len(listed.tokens) == len(listed.token_logprobs) == len(listed.top_logprobs) == len(ids) + new
    assert listed.token_logprobs[0] is None and listed.top_logprobs[0] is None
    assert all(logprob <= 0 for logprob in listed.token_logprobs[1:])
    assert prompt in choice.text and listed.text_offset[0] == 0
    assert listed.text_offset == sorted(listed.text_offset)
    # Each prefix scores the next token the same when it is generated.
    for place in (3, len(ids) - 1):
        after = client.completions.create(
            **GREEDY, prompt=ids[:place], max_tokens=1, logprobs=20, extra_body={"allowed_token_ids": [ids[place]]}
        ).choices[0].logprobs.token_logprobs[0]
        assert math.isclose(after, listed.token_logprobs[place], abs_tol=1e-3)


def test_completions_echo_text(client, server):
    for prompt in PROMPTS:
        answer = client.completions.create(**GREEDY, prompt=prompt, echo=True, max_tokens=5).choices[0]
        assert answer.text == prompt + server.chat_text(prompt, 5)


def test_completions_best_of(client):
    ask = {"model": "demo", "prompt": OPEN_PROMPT, "temperature": 2, "top_p": 1, "seed": 3, "max_tokens": 12}
    ask |= {"logprobs": 0}

    def mean(choice) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    drawn = client.completions.create(**ask, n=6).choices
    assert len({choice.text for choice in drawn}) > 2
    best = client.completions.create(**ask, n=2, best_of=6).choices
    expected = sorted(drawn, key=mean, reverse=True)[:2]
    assert [choice.text for choice in best] == [choice.text for choice in expected]
    for change, param in [({"best_of": 2, "n": 3}, "best_of"), ({"best_of": 2, "stream": True}, "best_of"),
                          ({"suffix": "x"}, "suffix")]:
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(**(ask | change))
        assert refused.value.param == param


def test_completions_token_lists(client, server):
    """vLLM's further parameters."""
    ask = GREEDY | {"prompt": PROMPTS[0], "max_tokens": 6}
    ids = ids_of(server, PROMPTS[0])
    answer = client.completions.create(**ask, extra_body={"return_token_ids": True}).choices[0]
    assert answer.token_ids == server.chat(PROMPTS[0], 6, return_dict_in_generate=True)["sequences"][0][len(ids):]
    only = client.completions.create(**ask, extra_body={"allowed_token_ids": ids[-2:], "return_token_ids": True})
    assert set(only.choices[0].token_ids) <= set(ids[-2:])
    banned = server.chat_text(PROMPTS[0], 6).split()[0]
    assert banned not in client.completions.create(**ask, extra_body={"bad_words": [banned]}).choices[0].text.split()
    short = client.completions.create(**ask, extra_body={"truncate_prompt_tokens": 3})
    assert short.usage.prompt_tokens == 3
    least = client.completions.create(**GREEDY, prompt=PROMPTS[0], max_tokens=90, extra_body={"min_tokens": 80})
    assert least.usage.completion_tokens >= 80


def test_detokenize(client, server):
    ids = ids_of(server, PROMPTS[0])
    back = server.post("/detokenize", {"tokens": ids[1:]}).json()
    assert back["prompt"].strip() == PROMPTS[0]
    pieces = server.post("/tokenize", {"content": PROMPTS[0], "with_pieces": True}).json()["tokens"]
    assert [piece["id"] for piece in pieces] == ids[1:]
    assert server.post("/detokenize", {"content": "", "tokens": ids[1:]}).status_code in (200, 400)


# Responses


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["question", "models", "system", "turns"])
def test_responses_create(client, server, conversation):
    answer = client.responses.create(**GREEDY, input=conversation, max_output_tokens=100)
    assert answer.output_text == server.chat_text(conversation, 100)
    assert (answer.object, answer.status) == ("response", "completed") and answer.id.startswith("resp_")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    [message] = answer.output
    assert (message.type, message.role, message.content[0].annotations) == ("message", "assistant", [])
    assert not answer.store


def test_responses_text_and_instructions(client, server):
    answer = client.responses.create(**GREEDY, input="What is a workspace?", instructions="Answer briefly.",
                                     max_output_tokens=20)
    system = [{"role": "system", "content": "Answer briefly."}, *WORKSPACE]
    assert answer.output_text == server.chat_text(system, 20)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    for change, param in [({"previous_response_id": "resp_1"}, "previous_response_id"),
                          ({"background": True}, "background"), ({"tools": [{"type": "web_search"}]}, "tools")]:
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(**GREEDY, input="x", **change)
        assert refused.value.param.startswith(param)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


def test_responses_stream(client):
    whole = client.responses.create(**GREEDY, input=WORKSPACE, max_output_tokens=100)
    events = list(client.responses.create(**GREEDY, input=WORKSPACE, max_output_tokens=100, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]
    assert kinds[4:4 + len(deltas)] == ["response.output_text.delta"] * len(deltas)
    assert kinds[4 + len(deltas):] == ["response.output_text.done", "response.content_part.done",
                                       "response.output_item.done", "response.completed"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    with client.responses.stream(**GREEDY, input=WORKSPACE, max_output_tokens=100) as stream:
        assert stream.get_final_response().output_text == whole.output_text


class Node(BaseModel):
    model_config = ConfigDict(extra="forbid")
    ready: bool
    count: int


def test_responses_parse(client):
    answer = client.responses.parse(**GREEDY, input=WORKSPACE, text_format=Node, max_output_tokens=100)
    assert isinstance(answer.output_parsed, Node)


def test_responses_tools(client):
    ask = GREEDY | {"input": "What is the weather in Oslo?", "tools": [RESPONSES_TOOL], "tool_choice": "required",
                    "parallel_tool_calls": False, "max_output_tokens": 200}
    answer = client.responses.create(**ask)
    [call] = answer.output
    assert (call.type, call.name) == ("function_call", "get_weather") and call.call_id
    assert json.loads(call.arguments)["city"] in WEATHER["properties"]["city"]["enum"]
    events = list(client.responses.create(**ask, stream=True))
    joined = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert joined == call.arguments
    [added] = [event.item for event in events if event.type == "response.output_item.added"]
    assert (added.type, added.name) == ("function_call", "get_weather")
    [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert done.arguments == call.arguments
    history = [
        {"role": "user", "content": "What is the weather in Oslo?"}, call.to_dict(),
        {"type": "function_call_output", "call_id": call.call_id, "output": '{"degrees": 4}'},
    ]
    assert client.responses.create(**(ask | {"input": history, "tool_choice": "none"})).output_text


# Embeddings


def test_embeddings_refused_unless_asked(client):
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
        client.embeddings.create(model="demo", input="a")
    assert "embeddings" in refused.value.message


def test_embeddings_base64_equals_float(serve):
    server = serve("--embeddings", "mean")
    client = openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0)
    texts = ["A workspace.", "A node."]
    decoded = client.embeddings.create(model="demo", input=texts)  # the SDK asks for base64 unasked
    floats = client.embeddings.create(model="demo", input=texts, encoding_format="float")
    raw = client.embeddings.create(model="demo", input=texts, encoding_format="base64")
    for index in range(2):
        vector = floats.data[index].embedding
        assert len(vector) == 256 and math.isclose(math.hypot(*vector), 1, abs_tol=1e-4)
        assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(vector, decoded.data[index].embedding, strict=True))
        spelled = raw.data[index].embedding
        if isinstance(spelled, str):
            spelled = struct.unpack(f"<{len(vector)}f", b64decode(spelled))
        assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(vector, spelled, strict=True))
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="demo", input="a", dimensions=8)
