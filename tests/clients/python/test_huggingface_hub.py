"""The inference client of Hugging Face: chat as OpenAI has it, text generation as TGI has it."""

import pytest
from huggingface_hub import InferenceClient
from questions import WORKSPACE

CLIENT = ("huggingface_hub", "huggingface_hub")


def test_chat_completion(server):
    client = InferenceClient(base_url=server.v1, api_key="none")
    answer = client.chat_completion(WORKSPACE, model="demo", temperature=0, max_tokens=100)
    assert answer.choices[0].message.content == server.chat_text(WORKSPACE, 100)
    parts = client.chat_completion(WORKSPACE, model="demo", temperature=0, max_tokens=100, stream=True)
    joined = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert joined == server.chat_text(WORKSPACE, 100)


def test_text_generation(server):
    # The client asks the address that it is given, which is `POST /`.
    if server.post("/", {"inputs": "x", "parameters": {"max_new_tokens": 1}}).status_code == 405:
        pytest.skip("this kaito does not speak TGI's API")
    client = InferenceClient(model=server.url)
    text = client.text_generation("What is a preset?", max_new_tokens=12, do_sample=False)
    assert text == server.chat_text("What is a preset?", 12)
    parts = client.text_generation("What is a preset?", max_new_tokens=12, do_sample=False, stream=True)
    assert "".join(parts) == text
