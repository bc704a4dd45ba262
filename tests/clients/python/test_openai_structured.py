"""The SDK of OpenAI for Python: structured output and tools."""

import enum
import json
import re
from typing import Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field
from questions import CLOCK, GREEDY, TOOLS, WEATHER, WORKSPACE
from serving import Beside

CLIENT = ("openai-python", "openai")
SCHEMAS = {"get_weather": WEATHER, "get_time": CLOCK}
QUESTION = [{"role": "user", "content": "What is the weather in Oslo?"}]


class Colour(enum.Enum):
    red = "red"
    blue = "blue"


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Literal["node", "pod", "workspace"]
    count: int = Field(ge=0, le=99)
    ready: bool


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: Colour
    size: int | None = Field(ge=1, le=9)


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str = Field(max_length=12)
    parts: list[Part] = Field(min_length=1, max_length=2)
    best: Part


def schema_format(schema: dict, strict: bool = True) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": strict}}


def content(client, **ask) -> str:
    return client.chat.completions.create(**(GREEDY | {"messages": WORKSPACE, "max_tokens": 200} | ask)).choices[
        0
    ].message.content


def test_parse_pydantic(client):
    answer = client.chat.completions.parse(
        **GREEDY, messages=[{"role": "user", "content": "Describe a node as JSON."}], response_format=Item
    )
    choice = answer.choices[0]
    assert isinstance(choice.message.parsed, Item) and choice.finish_reason == "stop"
    assert json.loads(choice.message.content).keys() == {"name", "count", "ready"}


def test_parse_nested_defs(client):
    answer = client.chat.completions.parse(**GREEDY, messages=WORKSPACE, response_format=Whole)
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Whole) and 1 <= len(parsed.parts) <= 2
    assert "$defs" in Whole.model_json_schema(), "the check needs a schema with definitions"
    # Keys come in the order of the schema.
    assert list(json.loads(answer.choices[0].message.content)) == ["title", "parts", "best"]


def test_parse_stream(client):
    with client.chat.completions.stream(**GREEDY, messages=WORKSPACE, response_format=Whole) as stream:
        final = stream.get_final_completion()
    whole = client.chat.completions.parse(**GREEDY, messages=WORKSPACE, response_format=Whole)
    assert final.choices[0].message.parsed == whole.choices[0].message.parsed


def test_json_object(client):
    for seed in range(5):
        text = content(client, response_format={"type": "json_object"}, temperature=1, seed=seed, max_tokens=400)
        try:
            assert isinstance(json.loads(text), dict)
        except json.JSONDecodeError:
            assert text.startswith("{"), "an answer that its limit cut begins an object all the same"


def test_schema_sampled(client):
    """Hot sampling, sixteen answers: the grammar holds in each."""
    schema = Whole.model_json_schema()
    answer = client.chat.completions.create(
        model="demo", messages=WORKSPACE, temperature=2, top_p=1, seed=1, n=16, max_tokens=400,
        response_format=schema_format(schema, strict=False),
    )
    assert len(answer.choices) == 16
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), schema)
        assert len(re.findall(r"\s{21,}", choice.message.content)) == 0


def test_schema_cut_by_length(client):
    answer = client.chat.completions.create(
        **GREEDY, messages=WORKSPACE, max_tokens=5, response_format=schema_format(Item.model_json_schema())
    ).choices[0]
    assert answer.finish_reason == "length" and answer.message.content.lstrip().startswith("{")


@pytest.mark.parametrize("field", ["structured_outputs", "guided"])
def test_regex_and_choice(client, field):
    def body(kind, value):
        return {"structured_outputs": {kind: value}} if field == "structured_outputs" else {f"guided_{kind}": value}

    assert re.fullmatch(r"[0-9]{3}-[a-f]{2}", content(client, extra_body=body("regex", r"[0-9]{3}-[a-f]{2}")))
    assert content(client, extra_body=body("choice", ["maybe", "never"])) in ("maybe", "never")
    jsonschema.validate(json.loads(content(client, extra_body=body("json", WEATHER))), WEATHER)
    jsonschema.validate(json.loads(content(client, extra_body=body("json", json.dumps(WEATHER)))), WEATHER)
    lark = 'start: "a" NUMBER "z"\nNUMBER: /[0-9]{2}/'
    assert re.fullmatch(r"a[0-9]{2}z", content(client, extra_body=body("grammar", lark)))


def test_strict_unsupported_keyword_400(client):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}, "contains": {"const": 3}}},
        "required": ["a"],
        "additionalProperties": False,
    }
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**GREEDY, messages=WORKSPACE, response_format=schema_format(schema))
    assert refused.value.code == "invalid_json_schema"
    assert "contains" in refused.value.message and "a" in refused.value.message
    lenient = content(client, response_format=schema_format(schema, strict=False), max_tokens=300)
    assert lenient.lstrip().startswith("{")


@pytest.mark.parametrize("format, param", [
    ({"type": "json_schema"}, "response_format"),
    ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format"),
    ({"type": "xml"}, "response_format"),
    ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}, "response_format"),
], ids=["no_schema", "empty_schema", "unknown_type", "invalid_schema"])
def test_format_400(client, format, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**GREEDY, messages=WORKSPACE, response_format=format)
    assert refused.value.param.startswith(param)


def test_schema_bomb_400_within_5s_others_stream_on(serve):
    server = serve()
    client = openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=120)
    one_of = [
        {"anyOf": [{"type": "object", "properties": {f"{at}-{i}": {"type": "integer"}}} for i in range(8)]}
        for at in range(40)
    ]
    bombs = [
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20_000)}},
        {"allOf": one_of},
        {"type": "string", "pattern": "(" * 5000 + "a" + ")" * 5000},
    ]

    def stream_on():
        stream = client.chat.completions.create(
            **GREEDY, messages=WORKSPACE, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    alone = stream_on()
    with Beside(stream_on) as beside:
        for bomb in bombs:
            with pytest.raises(openai.BadRequestError) as refused:
                client.chat.completions.create(**GREEDY, messages=WORKSPACE, response_format=schema_format(bomb))
            assert refused.value.code == "invalid_json_schema"
            # The limit is 5 s; the rest is what a busy machine takes.
            assert refused.value.response.elapsed.total_seconds() < 20
    assert beside.result == alone


def called(message) -> list[tuple[str, dict]]:
    """The calls of a message, each checked against its tool's parameters."""
    calls = []
    for call in message.tool_calls or []:
        assert call.type == "function" and re.fullmatch(r"call_[A-Za-z0-9]{24}|[A-Za-z0-9]{9}", call.id), call
        arguments = json.loads(call.function.arguments)
        jsonschema.validate(arguments, SCHEMAS[call.function.name])
        calls.append((call.function.name, arguments))
    assert len({call.id for call in message.tool_calls or []}) == len(calls)
    return calls


def ask_tools(client, **ask):
    return client.chat.completions.create(
        **(GREEDY | {"messages": QUESTION, "tools": TOOLS, "max_tokens": 300} | ask)
    ).choices[0]


def test_tools_auto(client):
    texts = 0
    for seed in range(8):
        choice = ask_tools(client, temperature=1.5, seed=seed)
        if calls := called(choice.message):
            assert choice.finish_reason == "tool_calls" and choice.message.content is None and calls
        else:
            texts += 1
            assert choice.message.content and choice.finish_reason in ("stop", "length")
            assert "tool_calls" not in choice.message.to_dict()
            assert not choice.message.content.lstrip().startswith("{"), "a text does not look like a call"
    assert texts > 0, "the demo model was taught to answer in words"


def test_tools_required(client):
    for seed in range(4):
        choice = ask_tools(client, tool_choice="required", temperature=1.5, seed=seed, max_tokens=600)
        assert choice.finish_reason == "tool_calls" and called(choice.message)
        assert choice.message.content is None


@pytest.mark.parametrize("name", SCHEMAS)
def test_tools_named(client, name):
    choice = ask_tools(client, tool_choice={"type": "function", "function": {"name": name}})
    assert [call for call, _ in called(choice.message)] == [name]
    assert choice.finish_reason == "tool_calls"


def test_tools_none(client):
    choice = ask_tools(client, tool_choice="none")
    assert choice.message.content and "tool_calls" not in choice.message.to_dict()
    assert choice.finish_reason in ("stop", "length")


def test_tools_empty(client):
    choice = ask_tools(client, tools=[])
    assert choice.message.content and "tool_calls" not in choice.message.to_dict()


def test_tools_400(client):
    for change, param in [
        ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]}, "tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "nothing"}}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, None),
    ]:
        with pytest.raises(openai.BadRequestError) as refused:
            ask_tools(client, **change)
        assert param is None or refused.value.param.startswith(param), (change, refused.value.body)


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_tools_stream_equals_whole(client, choice):
    ask = GREEDY | {"messages": QUESTION, "tools": TOOLS, "max_tokens": 300, "tool_choice": choice}
    whole = client.chat.completions.create(**ask).choices[0]
    text, calls, finish = "", [], None
    for chunk in client.chat.completions.create(**ask, stream=True):
        [part] = chunk.choices
        finish = part.finish_reason or finish
        text += part.delta.content or ""
        for call in part.delta.tool_calls or []:
            assert "content" not in part.delta.to_dict()
            if call.index == len(calls):
                assert call.id and call.type == "function" and call.function.arguments == ""
                calls.append([call.function.name, ""])
            else:
                assert call.id is None and call.function.name is None
            calls[call.index][1] += call.function.arguments
    assert finish == whole.finish_reason
    assert text == (whole.message.content or "")
    assert calls == [[it.function.name, it.function.arguments] for it in whole.message.tool_calls or []]
    assert choice == "auto" or calls


def test_tools_truncated(client):
    choice = ask_tools(client, tool_choice={"type": "function", "function": {"name": "get_weather"}}, max_tokens=14)
    assert choice.finish_reason == "length"


def test_tool_round_trip(client):
    choice = ask_tools(client, tool_choice={"type": "function", "function": {"name": "get_weather"}})
    [call] = choice.message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 4}'}
    history = [*QUESTION, choice.message.to_dict(), result]
    answer = ask_tools(client, messages=history, tool_choice="none")
    assert answer.message.content
    # A whole second question after the round, without tools, as agents' summaries ask it.
    later = [*history, {"role": "assistant", "content": answer.message.content}, *WORKSPACE]
    assert client.chat.completions.create(**GREEDY, messages=later, max_tokens=20).choices[0].message.content


def test_parallel_tool_calls_false(client):
    for seed in range(4):
        choice = ask_tools(client, tool_choice="required", parallel_tool_calls=False, temperature=2, seed=seed)
        assert len(called(choice.message)) == 1


def test_tools_with_format(client):
    """With a format a text answer follows it."""
    choice = ask_tools(client, response_format=schema_format(Item.model_json_schema()), max_tokens=300)
    if not called(choice.message):
        Item.model_validate_json(choice.message.content)


def test_pydantic_function_tool(client):
    tool = openai.pydantic_function_tool(Item)
    answer = client.chat.completions.parse(
        **GREEDY, messages=WORKSPACE, tools=[tool], max_tokens=300,
        tool_choice={"type": "function", "function": {"name": "Item"}},
    )
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Item)
