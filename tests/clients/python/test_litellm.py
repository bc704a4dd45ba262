"""LiteLLM, by each of its ways to a server of this kind."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks a host on the internet for prices

import litellm
import pytest
from questions import TOOLS, WEATHER, WORKSPACE

CLIENT = ("litellm", "litellm")
litellm.telemetry = False


def ask(server, provider: str, **parameters):
    base = server.url if provider == "ollama_chat" else server.v1
    return litellm.completion(
        model=f"{provider}/demo", api_base=base, api_key="none", messages=WORKSPACE, temperature=0, max_tokens=100,
        num_retries=0, **parameters,
    )


def joined(stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "ollama_chat"])
def test(server, provider):
    if provider == "ollama_chat" and server.post("/api/show", {"model": "demo"}).status_code == 404:
        pytest.skip("this kaito does not speak Ollama's API")
    expected = server.chat_text(WORKSPACE, 100)
    answer = ask(server, provider)
    assert answer.choices[0].message.content.strip() == expected.strip()
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens > 5
    assert joined(ask(server, provider, stream=True)).strip() == expected.strip()


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_stream_usage(server, provider):
    chunks = list(ask(server, provider, stream=True, stream_options={"include_usage": True}))
    counted = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    assert counted and counted[-1].total_tokens == ask(server, provider).usage.total_tokens


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_tools(server, provider):
    answer = ask(server, provider, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "get_weather"}})
    [call] = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in WEATHER["properties"]["city"]["enum"]


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_json_schema(server, provider):
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": WEATHER, "strict": True}}
    answer = json.loads(ask(server, provider, response_format=format).choices[0].message.content)
    assert list(answer) == ["city", "unit"]


def test_text_completion(server):
    answer = litellm.text_completion(
        model="text-completion-openai/demo", api_base=server.v1, api_key="none", prompt="What is a preset?",
        temperature=0, max_tokens=12,
    )
    assert answer.choices[0].text == server.chat_text("What is a preset?", 12)


def test_errors(server):
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/gpt", api_base=server.v1, api_key="none", messages=WORKSPACE)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(
            model="openai/demo", api_base=server.v1, api_key="none",
            messages=[{"role": "user", "content": "workspace " * 3000}],
        )


def test_router_streams_usage(server):
    """The router is what LiteLLM's proxy calls; the proxy's own packages are not on the registry in this version."""
    router = litellm.Router(model_list=[{
        "model_name": "kaito",
        "litellm_params": {"model": "hosted_vllm/demo", "api_base": server.v1, "api_key": "none"},
    }], num_retries=0)
    stream = router.completion(
        model="kaito", messages=WORKSPACE, temperature=0, max_tokens=100, stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert joined(chunks) == server.chat_text(WORKSPACE, 100)
    assert [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
