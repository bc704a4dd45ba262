"""Every request that the documents print, through the front: greedy ones get the answer of our own engine, drawn ones one of its form.

Those of the Kaito project's documents lie in `documented/`, byte for byte; the others are the `curl` lines of our own documents.
"""

import json
import re
import subprocess

import pytest
from engines import REPOSITORY
from test_b_requests import plain

CHECKS = "vllm/documents"

DOCUMENTED = {file.stem: file.read_bytes() for file in sorted((REPOSITORY / "crates/kaito-server/tests/documented").glob("*.json"))}
# What a file's name begins with, and where its request goes.
ROUTES = {"completion": "/generate", "dialog": "/chat", "prompt": "/chat"}
# Of pages whose requests any model answers. docs/adapters.md asks for adapters, which the front leaves to vLLM.
PAGES = ("README.md", *(f"docs/{page}.md" for page in ("api", "openai", "anthropic", "ollama", "clients", "serving", "gguf", "kubernetes")))
# 8081 is the controller's, not a server's.
CURL = re.compile(r"^curl .*localhost:(?:5000|8080)\b.*$", re.MULTILINE)
LINES = {line: page for page in PAGES for line in CURL.findall((REPOSITORY / page).read_text())}
# Requests for what vLLM lacks, by what is in them; docs/runtimes.md says that they are refused, by these names.
REFUSED = {'"num_beams":4': "num_beams", "/v1/embeddings": "embeddings"}


def greedy(body: dict) -> dict:
    """The same request, but for the likeliest tokens, and few of them."""
    if "prompt" in body:
        given = body.get("generate_kwargs", body)
        given |= {"do_sample": False, "max_length": 64}
    else:
        around = body.get("input_data", body)
        around["parameters"] = around.get("parameters", {}) | {"temperature": 0, "max_gen_len": 32}
    return body


def form(value):
    """The names and types of an answer, without its values."""
    if isinstance(value, dict):
        return {key: form(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(form(inner), sort_keys=True) for inner in value})
    return type(value).__name__


def answers_of(servers, case: str, body: bytes) -> list[dict]:
    path = next(path for begin, path in ROUTES.items() if case.startswith(begin))
    answers = [server.post(path, json.loads(body)) for server in servers]
    assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
    return [answer.json() for answer in answers]


@pytest.mark.parametrize("case", DOCUMENTED)
def test_as_documented(reference, upstream, case):
    expected, found = answers_of((reference, upstream), case, DOCUMENTED[case])
    assert form(found) == form(expected)


@pytest.mark.parametrize("case", DOCUMENTED)
def test_greedy(reference, upstream, case):
    body = json.dumps(greedy(json.loads(DOCUMENTED[case]))).encode()
    expected, found = answers_of((reference, upstream), case, body)
    assert found == expected


def curl(line: str, server) -> tuple[str, str]:
    """What a line of a document prints, and the status of the answer, which is empty where something else reads it."""
    line = re.sub(r"localhost:\d+", server.url.removeprefix("http://"), line)
    line = line.replace("curl ", r"curl --silent --show-error --write-out '\nstatus %{http_code}' ", 1)
    output = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120, check=True).stdout
    body, _, status = output.rpartition("\nstatus ")
    return (body, status) if status.strip().isdecimal() else (output, "")


def read(body: str):
    """JSON, lines or events of JSON, or text."""
    try:
        return json.loads(body)
    except ValueError:
        lines = [line.removeprefix("data: ") for line in body.splitlines() if line]
        try:
            return [json.loads(line) for line in lines if line != "[DONE]" and not line.startswith("event: ")]
        except ValueError:
            return body


@pytest.mark.parametrize("line", LINES, ids=[f"{LINES[line].removesuffix('.md')}-{at}" for at, line in enumerate(LINES, 1)])
def test_line(reference, upstream, line):
    (expected, status_expected), (found, status) = curl(line, reference), curl(line, upstream)
    refused = [name for part, name in REFUSED.items() if part in line]
    if refused:
        assert status == "400" and refused[0] in found, found
        return
    assert status == status_expected, found
    if line.endswith("/metrics"):
        # vLLM's own metrics stand there too.
        assert "\nkaito_requests_total" in found, found
    elif '"do_sample":false' in line or re.search(r'"temperature":0[,}]', line) or " -d " not in line:
        assert plain(read(found)) == plain(read(expected))
    else:
        assert form(read(found)) == form(read(expected))
