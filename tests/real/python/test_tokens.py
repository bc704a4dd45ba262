"""Token ids as the library `tokenizers` has them; prompts, tokens and log-probabilities as transformers has them."""

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer

CHECKS = "real/smollm2-135m/tokens"
MODEL = Path(os.environ["REAL_MODEL"])
CASES = json.loads((Path(__file__).parents[1] / "expected.json").read_text())
TEXTS = [
    "Hello, world!", " leading and trailing  ", "tabs\tand\n\nlines\r\n", "12345 3.14 2026-11-30", "don't can't I'll we've",
    "Grüße aus Köln, 東京とソウル 서울", "emoji 🙂👩‍👩‍👧 and \u202emarks‬", "def f(x):\n    return x ** 2  # square",
    "<|im_start|>user\nhi<|im_end|>\n", "a" * 300, "zero\u0000byte", "", "   ", "ÅÅ ﬁ ﬂ", "<|im_start|<|endoftext|>x",
    (Path(__file__).parents[3] / "README.md").read_text(),
]
IDS = [str(case["messages"][-1]["content"])[:12].strip().replace(" ", "_") for case in CASES]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def test_ids(server, tokenizer):
    for text in TEXTS:
        ids = server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()["tokens"]
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids, repr(text[:60])
        if text:
            back = server.post("/detokenize", {"tokens": ids}).json()["prompt"]
            assert back == tokenizer.decode(ids, skip_special_tokens=False), repr(text[:60])


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_prompt(server, case):
    body = {"messages": case["messages"]}
    assert server.post("/apply-template", body).json()["prompt"] == case["prompt"]
    assert server.post("/tokenize", body).json()["tokens"] == case["prompt_ids"]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_greedy_equals_transformers(client, case):
    answer = client.chat.completions.create(
        model="smollm2-135m-instruct", messages=case["messages"], temperature=0, max_tokens=32, logprobs=True,
        top_logprobs=5, extra_body={"return_token_ids": True},
    ).choices[0]
    assert answer.message.content == case["text"]
    assert answer.token_ids == case["new_ids"]
    first = answer.logprobs.content[0].top_logprobs
    expected = [logprob for _, logprob in case["first_logprobs"]]
    assert [top.logprob for top in first] == pytest.approx(expected, abs=1e-3)
