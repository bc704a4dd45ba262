#!/usr/bin/env python3
"""Writes expected.json: what transformers computes for the converted model, greedily and in 32 bits.

    reference.py DIRECTORY

It needs the packages of tests/parity/requirements.txt.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

QUESTIONS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "List three fruits."}],
    [{"role": "user", "content": "Translate to French: Good morning, my friend! 🙂"}],
    [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Who are you?"}],
    [
        {"role": "user", "content": "My name is Anna."},
        {"role": "assistant", "content": "Hello Anna!"},
        {"role": "user", "content": "What is my name?"},
    ],
]
NEW_TOKENS = 32

directory = Path(sys.argv[1])
tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
tokenizer.chat_template = json.loads((directory / "tokenizer_config.json").read_text())["chat_template"]
model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32).eval()
end = json.loads((directory / "config.json").read_text())["eos_token_id"]
cases = []
for messages in QUESTIONS:
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS,
                               eos_token_id=end, pad_token_id=end)[0].tolist()
        first = model(ids).logits[0, -1].log_softmax(-1)
    top = first.topk(5)
    cases.append({
        "messages": messages,
        "prompt": prompt,
        "prompt_ids": ids[0].tolist(),
        "new_ids": whole[ids.shape[1]:],
        "text": tokenizer.decode(whole[ids.shape[1]:], skip_special_tokens=True),
        "first_logprobs": [[id, round(logprob, 5)] for id, logprob in zip(top.indices.tolist(), top.values.tolist())],
    })
Path(__file__).with_name("expected.json").write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")
