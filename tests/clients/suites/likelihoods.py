#!/usr/bin/env python3
"""Log-likelihoods as lm-evaluation-harness asks for them, beside those that transformers computes in 32 bits.

    likelihoods.py reference MODEL-DIRECTORY FILE.json     by transformers
    likelihoods.py compare URL MODEL-DIRECTORY FILE.json   by lm_eval's local-completions, which must agree to 1e-4
"""

import json
import random
import sys
from pathlib import Path


def requests() -> list[tuple[str, str]]:
    """Fifty contexts and continuations, cut at spaces from a text about Kaito."""
    text = (Path(__file__).resolve().parents[3] / "README.md").read_text()
    words = [word for word in text.split() if word.isascii()]
    draw = random.Random(0)
    found = []
    for _ in range(50):
        start, length, ending = draw.randrange(len(words) - 60), draw.randint(1, 40), draw.randint(1, 8)
        context = " ".join(words[start : start + length])
        found.append((context, " " + " ".join(words[start + length : start + length + ending])))
    return found


def reference(directory: str, path: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32).eval()
    scores = []
    for context, continuation in requests():
        before, whole = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, context + continuation)
        )
        with torch.no_grad():
            logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        picked = [(place, whole[place]) for place in range(len(before), len(whole))]
        score = sum(logprobs[place - 1, token].item() for place, token in picked)
        greedy = all(int(logprobs[place - 1].argmax()) == token for place, token in picked)
        scores.append([score, greedy])
    Path(path).write_text(json.dumps(scores))
    print(f"{len(scores)} log-likelihoods by transformers")


def compare(url: str, directory: str, path: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        base_url=f"{url}/v1/completions", model="demo", tokenizer=directory, tokenizer_backend="huggingface",
        num_concurrent=1, max_length=2048, max_retries=1,
    )
    asked = requests()
    instances = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index) for index, pair in enumerate(asked)
    ]
    expected, worst = json.loads(Path(path).read_text()), 0.0
    failed = 0
    for (score, greedy), (wanted, wanted_greedy), pair in zip(model.loglikelihood(instances), expected, asked, strict=True):
        difference = abs(score - wanted)
        worst = max(worst, difference)
        # A log-likelihood is a sum over tokens; each may be off by 1e-4.
        if difference > 1e-4 * max(1, abs(wanted)) or greedy != wanted_greedy:
            failed += 1
            print(f"{pair}: {score} {greedy}, not {wanted} {wanted_greedy}")
    print(f"largest difference {worst:.2e}")
    print(f"{len(asked) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


{"reference": reference, "compare": compare}[sys.argv[1]](*sys.argv[2:])
