"""The server of the real model, which the run started."""

import os

import cases
import openai
import pytest
from serving import Running

pytest_plugins = ["checks"]
TIES = pytest.StashKey[list]()


@pytest.fixture(scope="session")
def server() -> Running:
    return Running(os.environ["KAITO_URL"])


@pytest.fixture(scope="session")
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=800)


@pytest.fixture
def ties(pytestconfig) -> list[str]:
    """Places where another token than the reference's was chosen, at the same score; they are told at the end of the run."""
    return pytestconfig.stash.setdefault(TIES, [])


def pytest_terminal_summary(terminalreporter, config):
    chosen = config.stash.get(TIES, None)
    if chosen is None:
        return
    expected = cases.expected()
    places = [f"{name} at token {at}: {tie}" for name, answer in expected.items() for at, tie in answer["ties"].items()]
    terminalreporter.write_line(
        f"{len(expected)} greedy texts beside transformers'; its two best scores are a tie at {len(places)} places:")
    for line in places:
        terminalreporter.write_line(f"  {line}")
    terminalreporter.write_line(f"the other token was chosen at {len(chosen)} of them" + (":" if chosen else ""))
    for line in chosen:
        terminalreporter.write_line(f"  {line}")
