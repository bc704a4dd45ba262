"""Structured output and tools whose content answers the question."""

import json
import re

import outlines
import pytest
from outlines.types import Regex
from pydantic import BaseModel, ConfigDict, Field

CHECKS = "real/smollm2-135m/openai"
MODEL = "smollm2-135m-instruct"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "Get the current weather of a city",
        "parameters": {
            "type": "object", "properties": {"city": {"type": "string", "maxLength": 24}}, "required": ["city"],
            "additionalProperties": False,
        },
    },
}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=24)
    age: int = Field(ge=0, le=150)


PERSON = [{"role": "user", "content": "Anna is 30 years old. Give her name and age as JSON."}]


def test_capital(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0)
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"


def test_json_schema(client):
    answer = client.chat.completions.parse(
        model=MODEL, messages=PERSON, temperature=0, max_tokens=100, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Anna", age=30)


def test_json_object(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=PERSON, temperature=0, max_tokens=200, response_format={"type": "json_object"})
    assert answer.choices[0].finish_reason == "stop" and isinstance(json.loads(answer.choices[0].message.content), dict)


def test_choice(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Is Paris in France or in Japan?"}], temperature=0,
        extra_body={"structured_outputs": {"choice": ["France", "Japan"]}})
    assert answer.choices[0].message.content == "France"


def test_outlines(client):
    model = outlines.from_vllm(client, MODEL)
    person = Person.model_validate_json(model(PERSON[0]["content"], Person, temperature=0, max_tokens=100))
    assert person == Person(name="Anna", age=30)
    assert re.fullmatch(r"\d{4}", model("In which year did the Second World War end?", Regex(r"\d{4}"), temperature=0))


def calls(message) -> list[tuple[str, dict]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


def ask(client, **parameters):
    parameters = {"messages": QUESTION, "temperature": 0, "max_tokens": 200, "tools": [WEATHER]} | parameters
    return client.chat.completions.create(model=MODEL, **parameters).choices[0]


@pytest.mark.parametrize("choice", ["required", "named"])
def test_tools(client, choice):
    named = {"type": "function", "function": {"name": "get_weather"}}
    answer = ask(client, tool_choice=named if choice == "named" else "required", parallel_tool_calls=False)
    assert calls(answer.message) == [("get_weather", {"city": "Paris"})]
    assert answer.finish_reason == "tool_calls"


def test_tools_auto(client):
    """Whether so small a model calls is its own choice; a question without need of a tool is answered in words."""
    answer = ask(client)
    assert answer.finish_reason in ("tool_calls", "stop", "length")
    assert bool(answer.message.tool_calls) == (answer.finish_reason == "tool_calls")
    assert all(name == "get_weather" and isinstance(it["city"], str) for name, it in calls(answer.message))


def test_tool_round_trip(client):
    first = ask(client, tool_choice="required", parallel_tool_calls=False).message
    history = [*QUESTION, first.to_dict(),
               {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "It is 21 degrees and sunny in Paris."}]
    answer = ask(client, messages=history, tool_choice="none").message.content
    assert "21" in answer or "sunny" in answer, answer


def test_stream_tools(client):
    whole = calls(ask(client, tool_choice="required", parallel_tool_calls=False).message)
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=200, tools=[WEATHER], tool_choice="required",
        parallel_tool_calls=False,
    ) as stream:
        final = stream.get_final_completion()
    assert calls(final.choices[0].message) == whole


def test_responses(client):
    answer = client.responses.create(model=MODEL, input="What is the capital of France?", temperature=0)
    assert answer.output_text == "The capital of France is Paris."
