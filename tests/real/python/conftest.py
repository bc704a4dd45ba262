"""The server of the real model, which the run started."""

import os

import openai
import pytest
from serving import Running

pytest_plugins = ["checks"]


@pytest.fixture(scope="session")
def server() -> Running:
    return Running(os.environ["KAITO_URL"])


@pytest.fixture(scope="session")
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=280)
