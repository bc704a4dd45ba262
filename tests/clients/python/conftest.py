"""The servers that checks ask."""

import openai
import pytest
from serving import Server

pytest_plugins = ["checks"]


@pytest.fixture(scope="session")
def serve():
    """Starts a server with these flags, once for all checks that want the same."""
    started: dict[tuple[str, ...], Server] = {}

    def start(*arguments: str) -> Server:
        if arguments not in started:
            started[arguments] = Server(*arguments)
        return started[arguments]

    yield start
    for server in started.values():
        server.stop()


@pytest.fixture(scope="session")
def server(serve) -> Server:
    return serve()


@pytest.fixture(scope="session")
def client(server) -> openai.OpenAI:
    """OpenAI's client of the plain server; modules of other clients have their own."""
    return openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=120)


@pytest.fixture
def client_of(serve):
    """OpenAI's client of a server with these flags."""

    def make(*flags: str, **options) -> openai.OpenAI:
        options = {"api_key": "none", "max_retries": 0, "timeout": 120} | options
        return openai.OpenAI(base_url=serve(*flags).v1, **options)

    return make
