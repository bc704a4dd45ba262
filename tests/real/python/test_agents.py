"""Agents that call a tool and answer from what it gave."""

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field

CHECKS = "real/smollm2-135m/langchain"


class Person(BaseModel):
    """A person."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=24)
    age: int


@tool
def get_weather(city: str) -> str:
    """Get the current weather of a city."""
    return f"It is 21 degrees and sunny in {city}."


@pytest.fixture
def model(server):
    return ChatOpenAI(model="smollm2-135m-instruct", base_url=server.v1, api_key="none", temperature=0, max_retries=0,
                      max_tokens=120, timeout=280)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured(model, method):
    person = model.with_structured_output(Person, method=method).invoke("Anna is 30 years old. Give her name and age.")
    assert person == Person(name="Anna", age=30)


def test_two_steps(model):
    """The first step must call, the second answers from the result."""
    history = [HumanMessage("What is the weather in Paris?")]
    call = model.bind_tools([get_weather], tool_choice="get_weather").invoke(history)
    assert call.tool_calls[0]["args"] == {"city": "Paris"}
    result = get_weather.invoke(call.tool_calls[0])
    assert isinstance(result, ToolMessage)
    answer = model.bind_tools([get_weather], tool_choice="none").invoke([*history, call, result])
    assert "21" in answer.content or "sunny" in answer.content, answer.content


def test_agent_ends(model):
    agent = create_agent(model, [get_weather])
    messages = agent.invoke({"messages": [HumanMessage("What is the weather in Paris?")]}, {"recursion_limit": 8})["messages"]
    assert messages[-1].content and not messages[-1].tool_calls
