"""The command `llm`, with the server as an extra model."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from llm.cli import cli
from questions import WORKSPACE

CLIENT = ("llm", "llm")


@pytest.fixture
def llm(server, tmp_path: Path):
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: kaito\n  model_name: demo\n  api_base: {server.v1}\n  supports_schema: true\n"
        f"- model_id: kaito-responses\n  model_name: demo\n  api_base: {server.v1}\n  responses: true\n"
    )

    def run(*arguments: str) -> str:
        done = CliRunner(env={"LLM_USER_PATH": str(tmp_path)}).invoke(cli, list(arguments))
        assert done.exit_code == 0, done.output
        return done.output.removesuffix("\n")

    return run


@pytest.mark.parametrize("model", ["kaito", "kaito-responses"])
def test_extra_model_chat(llm, server, model):
    expected = server.chat_text(WORKSPACE, 100)
    for flags in ([], ["--no-stream"]):
        assert llm("-m", model, "-o", "temperature", "0", *flags, "What is a workspace?").strip() == expected.strip()


def test_schema(llm):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
              "additionalProperties": False}
    answer = llm("-m", "kaito", "-o", "temperature", "0", "--schema", json.dumps(schema), "How many nodes?")
    assert isinstance(json.loads(answer)["n"], int)
