"""The client of Ollama for Python."""

import json

import ollama
import pytest
from questions import WEATHER, WORKSPACE
from serving import Server

CLIENT = ("ollama", "ollama")


@pytest.fixture
def client(server: Server):
    if server.post("/api/show", {"model": "demo"}).status_code == 404:
        pytest.skip("this kaito does not speak Ollama's API")
    return ollama.Client(host=server.url)


def test_list(client):
    assert [model.model.removesuffix(":latest") for model in client.list().models] == ["demo"]


def test_chat(client, server):
    answer = client.chat("demo", WORKSPACE, options={"temperature": 0, "num_predict": 100})
    assert answer.message.content == server.chat_text(WORKSPACE, 100)
    assert answer.done and answer.done_reason == "stop" and answer.eval_count > 5 and answer.total_duration > 0
    assert client.generate("demo:latest", "What is a workspace?", options={"temperature": 0, "num_predict": 5}).response


def test_chat_stream(client, server):
    parts = list(client.chat("demo", WORKSPACE, stream=True, options={"temperature": 0, "num_predict": 100}))
    assert "".join(part.message.content for part in parts) == server.chat_text(WORKSPACE, 100)
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_generate_format_schema(client):
    answer = client.chat("demo", WORKSPACE, format=WEATHER, options={"temperature": 0})
    assert json.loads(answer.message.content)["city"] in WEATHER["properties"]["city"]["enum"]
    answer = client.generate("demo", "What is the weather?", format=WEATHER, options={"temperature": 0})
    assert json.loads(answer.response)["unit"] in WEATHER["properties"]["unit"]["enum"]


def test_show(client):
    shown = client.show("demo")
    assert "completion" in shown.capabilities and shown.modelinfo["llama.context_length"] == 2048
