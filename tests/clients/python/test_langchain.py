"""LangChain's chat model for OpenAI, and an agent that calls tools."""

import json
from typing import Literal

import openai
import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field
from questions import WORKSPACE

CLIENT = ("langchain-openai", "langchain-openai")


class Node(BaseModel):
    """A node of a cluster."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["cpu", "gpu"] = Field(description="what computes")
    count: int


@pytest.fixture
def model(server):
    return ChatOpenAI(model="demo", base_url=server.v1, api_key="none", temperature=0, max_retries=0, max_tokens=100)


def test_invoke(model, server):
    answer = model.invoke("What is a workspace?")
    assert answer.content == server.chat_text(WORKSPACE, 100)
    assert answer.usage_metadata["total_tokens"] > 0 and answer.response_metadata["finish_reason"] == "stop"
    listed = [SystemMessage("Answer briefly."), HumanMessage([{"type": "text", "text": "What is a workspace?"}])]
    expected = server.chat_text([{"role": "system", "content": "Answer briefly."}, *WORKSPACE], 100)
    assert model.invoke(listed).content == expected
    generated = model.model_copy(update={"n": 2}).generate([[HumanMessage("What is a workspace?")]])
    assert [it.text for it in generated.generations[0]] == [answer.content] * 2


def test_stream_usage(model, server):
    chunks = list(model.stream("What is a workspace?", stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == server.chat_text(WORKSPACE, 100)
    counted = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert len(counted) == 1
    whole = model.invoke("What is a workspace?").usage_metadata
    assert (counted[0]["input_tokens"], counted[0]["output_tokens"]) == (whole["input_tokens"], whole["output_tokens"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_with_structured_output(model, method):
    asked = model.with_structured_output(Node, method=method, include_raw=True)
    answer = asked.invoke("Describe a node as JSON with kind and count.")
    assert isinstance(answer["parsed"], Node) and answer["parsing_error"] is None


def test_with_structured_output_json_mode(model):
    """An object that no schema binds: the demo model writes one of its own, or is cut."""
    try:
        answer = model.with_structured_output(Node, method="json_mode", include_raw=True).invoke("A node as JSON?")
    except openai.LengthFinishReasonError as cut:
        text = cut.completion.choices[0].message.content
    else:
        text = answer["raw"].content
        json.loads(text)
    assert text.lstrip().startswith("{")


def test_completions(server):
    model = OpenAI(model="demo", base_url=server.v1, api_key="none", temperature=0, max_tokens=12, max_retries=0)
    assert model.invoke("What is a preset?") == server.chat_text("What is a preset?", 12)


@tool
def get_weather(city: Literal["Berlin", "Oslo", "Quito"]) -> str:
    """The weather of a city."""
    return f"4 degrees in {city}"


def test_bind_tools_agent_loop(model):
    """The first step must call the tool, the second must answer in words; then an agent does as it likes."""
    first = model.bind_tools([get_weather], tool_choice="get_weather", parallel_tool_calls=False)
    history = [HumanMessage("What is the weather in Oslo?")]
    call = first.invoke(history)
    assert isinstance(call, AIMessage) and [it["name"] for it in call.tool_calls] == ["get_weather"]
    result = get_weather.invoke(call.tool_calls[0])
    assert isinstance(result, ToolMessage) and result.content.startswith("4 degrees in")
    answer = model.bind_tools([get_weather], tool_choice="none").invoke([*history, call, result])
    assert answer.content and not answer.tool_calls
    agent = create_agent(model, [get_weather])
    messages = agent.invoke({"messages": history}, {"recursion_limit": 8})["messages"]
    assert isinstance(messages[-1], AIMessage) and messages[-1].content


def test_streamed_tool_call(model):
    asked = model.bind_tools([get_weather], tool_choice="get_weather")
    whole = asked.invoke("What is the weather in Oslo?")
    chunks = list(asked.stream("What is the weather in Oslo?"))
    together = chunks[0]
    for chunk in chunks[1:]:
        together += chunk
    assert [(it["name"], it["args"]) for it in together.tool_calls] == [
        (it["name"], it["args"]) for it in whole.tool_calls
    ]


def test_responses(server):
    model = ChatOpenAI(model="demo", base_url=server.v1, api_key="none", temperature=0, max_tokens=100,
                       use_responses_api=True, max_retries=0)
    assert model.invoke("What is a workspace?").text == server.chat_text(WORKSPACE, 100)
