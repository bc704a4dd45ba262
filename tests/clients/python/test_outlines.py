"""Outlines, by its back end for vLLM, which sends `structured_outputs`."""

import re
from typing import Literal

import openai
import outlines
import pytest
from pydantic import BaseModel
from outlines.types import Regex

CLIENT = ("outlines", "outlines")


class Node(BaseModel):
    kind: Literal["cpu", "gpu"]
    count: int


@pytest.fixture
def model(server):
    return outlines.from_vllm(openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0), "demo")


def test_vllm_json(model):
    Node.model_validate_json(model("Describe a node.", Node, temperature=0, max_tokens=200))
    joined = "".join(model.stream("Describe a node.", Node, temperature=0, max_tokens=200))
    Node.model_validate_json(joined)


def test_vllm_regex(model):
    assert re.fullmatch(r"[a-f]{4}[0-9]{2}", model("An identifier?", Regex(r"[a-f]{4}[0-9]{2}"), temperature=0))


def test_vllm_choice(model):
    assert model("Is a node a machine?", Literal["yes", "no"], temperature=0) in ("yes", "no")


def test_openai_json(server):
    model = outlines.from_openai(openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0), "demo")
    Node.model_validate_json(model("Describe a node.", Node, temperature=0, max_tokens=200))
