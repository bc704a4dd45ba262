"""Instructor, which asks by a named tool or by a schema and checks what comes back."""

from typing import Literal

import instructor
import openai
import pytest
from pydantic import BaseModel, Field

CLIENT = ("instructor", "instructor")


class Node(BaseModel):
    kind: Literal["cpu", "gpu"]
    count: int = Field(ge=0, le=9)


ASK = {
    "model": "demo", "temperature": 0, "max_tokens": 200, "max_retries": 1, "response_model": Node,
    "messages": [{"role": "user", "content": "Describe a node."}],
}


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=120)


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"])
def test(client, mode):
    answer = instructor.from_openai(client, mode=instructor.Mode[mode]).chat.completions.create(**ASK)
    assert isinstance(answer, Node)


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_partial_stream(client, mode):
    parts = list(instructor.from_openai(client, mode=instructor.Mode[mode]).chat.completions.create_partial(**ASK))
    assert len(parts) > 1 and parts[-1].kind in ("cpu", "gpu") and 0 <= parts[-1].count <= 9
