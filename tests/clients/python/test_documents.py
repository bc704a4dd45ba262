"""The examples in docs/clients.md: each block of Python prints what stands below it."""

import contextlib
import io
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else LiteLLM asks a host on the internet for prices

import pytest
from serving import REPOSITORY

CHECKS = "clients/docs-clients"
BLOCKS = [block.split("\n", 1) for block in (REPOSITORY / "docs/clients.md").read_text().split("```")[1::2]]
EXAMPLES = [
    (code, BLOCKS[place + 1][1]) for place, (language, code) in enumerate(BLOCKS) if language == "python"
]


@pytest.mark.parametrize("code, printed", EXAMPLES, ids=range(1, len(EXAMPLES) + 1))
def test_python(server, code, printed):
    assert "http://localhost:5000" in code
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        # In this process: what most examples take is to import their client.
        exec(compile(code.replace("http://localhost:5000", server.url), "docs/clients.md", "exec"), {"__name__": "example"})
    assert out.getvalue().rstrip().splitlines() == printed.rstrip().splitlines()
