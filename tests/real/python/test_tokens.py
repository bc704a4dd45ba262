"""Token ids as the library `tokenizers` has them; prompts, tokens and log-probabilities as transformers has them."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cases
import pytest
from tokenizers import Tokenizer

CHECKS = "real/smollm2-135m/tokens"
NAME = "smollm2-135m-instruct"
MODEL = Path(os.environ["REAL_MODEL"])
REQUESTS, EXPECTED = cases.requests(), cases.expected()
CHATS = [request for request in REQUESTS if "messages" in request]
# One by one they would take the machine several times as long.
AT_A_TIME = 8
TEXTS = [
    "Hello, world!", " leading and trailing  ", "tabs\tand\n\nlines\r\n", "12345 3.14 2026-11-30", "don't can't I'll we've",
    "Grüße aus Köln, 東京とソウル 서울", "emoji 🙂👩‍👩‍👧 and \u202emarks‬", "def f(x):\n    return x ** 2  # square",
    "<|im_start|>user\nhi<|im_end|>\n", "a" * 300, "zero\u0000byte", "", "   ", "ÅÅ ﬁ ﬂ", "<|im_start|<|endoftext|>x",
    (Path(__file__).parents[3] / "README.md").read_text(),
]


def name_of(request: dict) -> str:
    return request["name"]


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


def test_prompts(server):
    for request in REQUESTS:
        expected = EXPECTED[request["name"]]
        if "messages" in request:
            body = {"messages": request["messages"]}
            assert server.post("/apply-template", body).json()["prompt"] == expected["prompt"], request["name"]
        else:
            body = {"prompt": request["prompt"], "add_special_tokens": False}
        assert server.post("/tokenize", body).json()["tokens"] == expected["prompt_ids"], request["name"]


def ask(client, request: dict) -> dict:
    """Text, token ids, and at each of them the two best scores, or more at the first."""
    common = {"model": NAME, "temperature": 0, "max_tokens": 32, "extra_body": {"return_token_ids": True}}
    if "messages" in request:
        choice = client.chat.completions.create(
            **common, messages=request["messages"], logprobs=True, top_logprobs=5).choices[0]
        text, scores = choice.message.content, [[top.logprob for top in token.top_logprobs] for token in choice.logprobs.content]
    else:
        # By their ids, since several tokens may be parts of characters, whose texts are the same.
        common["extra_body"] = common["extra_body"] | {"return_tokens_as_token_ids": True}
        choice = client.completions.create(**common, prompt=request["prompt"], logprobs=5).choices[0]
        text, scores = choice.text, [list(top.values()) for top in choice.logprobs.top_logprobs]
    return {"text": text, "ids": choice.token_ids, "scores": [sorted(row, reverse=True) for row in scores]}


@pytest.fixture(scope="module")
def answers(client) -> dict[str, dict]:
    with ThreadPoolExecutor(AT_A_TIME) as threads:
        return dict(zip(map(name_of, REQUESTS), threads.map(lambda request: ask(client, request), REQUESTS), strict=True))


# The first of them waits for all answers.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("request_", REQUESTS, ids=name_of)
def test_greedy_equals_transformers(answers, request_, ties):
    """The same tokens; but where transformers' two best scores are within the tie's margin, the second may be chosen, which is told,
    and the text behind it is another one."""
    expected, answer = EXPECTED[request_["name"]], answers[request_["name"]]
    first = [logprob for _, logprob in expected["first_logprobs"]]
    assert answer["scores"][0][:5] == pytest.approx(first, abs=1e-3)
    theirs, ours = expected["new_ids"], answer["ids"]
    at = next((at for at, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        assert (ours, answer["text"]) == (theirs, expected["text"])
        return
    tie = expected["ties"].get(str(at))
    assert tie and ours[at] in [id for id, _ in tie], f"at token {at}: {answer['text']!r}, transformers {expected['text']!r}"
    ties.append(f"{request_['name']} at token {at}: transformers {tie}, kaito {ours[at]} of {answer['scores'][at][:2]}")
