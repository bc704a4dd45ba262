#!/usr/bin/env python3
"""Writes expected.json: what transformers computes for the converted model, greedily and in 32 bits.

    reference.py DIRECTORY             all requests of prompts.json anew
    reference.py DIRECTORY --check N   N of them, spread over the list, must come out as they stand there

It needs the packages of tests/parity/requirements.txt.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from cases import HERE, expected, requests
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

NEW_TOKENS = 32
# Where the two best scores are as close as this, the order of additions decides; the first logits of a sum of 576 products in 32 bits
# are good for four digits.
TIE = 1e-3


class Reference:
    def __init__(self, directory: Path):
        settings = json.loads((directory / "tokenizer_config.json").read_text())
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(directory / "tokenizer.json"), clean_up_tokenization_spaces=False)
        self.tokenizer.chat_template = settings["chat_template"]
        self.model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32).eval()
        self.end = json.loads((directory / "config.json").read_text())["eos_token_id"]

    def answer(self, request: dict) -> dict:
        if "messages" in request:
            prompt = self.tokenizer.apply_chat_template(request["messages"], tokenize=False, add_generation_prompt=True)
            answer = {"prompt": prompt}
        else:
            prompt, answer = request["prompt"], {}
        ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            whole = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=self.end,
                pad_token_id=self.end, return_dict_in_generate=True, output_logits=True)
        new = whole.sequences[0, ids.shape[1]:].tolist()
        best = [self.best(logits[0], 5) for logits in whole.logits]
        return answer | {
            "prompt_ids": ids[0].tolist(),
            "new_ids": new,
            "text": self.tokenizer.decode(new, skip_special_tokens=True),
            "first_logprobs": best[0],
            "ties": {str(at): row[:2] for at, row in enumerate(best) if row[0][1] - row[1][1] < TIE},
        }

    def best(self, logits: torch.Tensor, count: int) -> list:
        """The likeliest tokens with their log-probabilities."""
        top = logits.float().log_softmax(-1).topk(count)
        return [[id, round(logprob, 5)] for id, logprob in zip(top.indices.tolist(), top.values.tolist(), strict=True)]


def check(name: str, stands: dict, made: dict) -> None:
    exact = [key for key in stands if key not in ("first_logprobs", "ties")]
    # Another processor adds up in another order: what comes behind a tie may be another text.
    ties = [int(at) for at in (stands["ties"] | made["ties"])]
    if any(stands[key] != made[key] for key in exact) and not ties:
        raise SystemExit(f"{name}: transformers answers {made['text']!r}, expected.json has {stands['text']!r}")
    for (_, was), (_, now) in zip(stands["first_logprobs"], made["first_logprobs"], strict=True):
        if abs(was - now) > TIE:
            raise SystemExit(f"{name}: transformers gives {made['first_logprobs']}, expected.json has {stands['first_logprobs']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--check", type=int, metavar="N")
    arguments = parser.parse_args()
    reference, asked = Reference(arguments.directory), requests()
    if arguments.check:
        stands = expected()
        for request in asked[:: len(asked) // arguments.check]:
            check(request["name"], stands[request["name"]], reference.answer(request))
            print(f"{request['name']}: as it stands in expected.json")
        return
    made_by = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0], "new_tokens": NEW_TOKENS, "tie": TIE}
    rows = [f"  {json.dumps(row['name'])}: {json.dumps(reference.answer(row), ensure_ascii=False)}" for row in asked]
    (HERE / "expected.json").write_text(f'{{\n "made_by": {json.dumps(made_by)},\n "answers": {{\n' + ",\n".join(rows) + "\n }\n}\n")


if __name__ == "__main__":
    main()
