"""What vLLM does, in a process that stays: answers each line of JSON on stdin with one on stdout. Runs with vLLM, not with the
script."""

import argparse
import json
import os
import random
import sys
import time

# Whatever else is printed goes to stderr; answers have the first stdout for themselves.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import torch  # noqa: E402
import vllm  # noqa: E402


class Engine:
    def __init__(self, args):
        torch.set_num_threads(args.threads)
        self.model = vllm.LLM(args.weights, dtype=args.dtype, max_model_len=args.max_len, max_num_seqs=args.sequences,
                              enable_prefix_caching=False, skip_tokenizer_init=True, enforce_eager=args.eager)
        self.engine = self.model.llm_engine
        self.vocabulary = self.engine.model_config.get_vocab_size()
        self.random = random.Random(args.seed)
        self.requests = 0

    def add(self, prompt, new_tokens):
        self.requests += 1
        name = str(self.requests)
        params = vllm.SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        self.engine.add_request(name, {"prompt_token_ids": prompt}, params)
        return name

    def prompt(self, length):
        return [self.random.randrange(3, self.vocabulary) for _ in range(length)]

    def step(self, tokens):
        """One step; notes all tokens that each request has by now."""
        for output in self.engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)

    def prefill(self, length):
        """Tokens of a prompt a second, up to its first token."""
        tokens = {}
        began = time.perf_counter()
        self.add(self.prompt(length), 1)
        while not tokens:
            self.step(tokens)
        return {"tokens_per_second": length / (time.perf_counter() - began)}

    def decode(self, sequences, context, steps):
        """Tokens a second of all sequences, counted while all of them run."""
        tokens = {}
        names = [self.add(self.prompt(context), steps + 64) for _ in range(sequences)]
        while len(tokens) < sequences:
            self.step(tokens)
        before = sum(map(len, tokens.values()))
        began = time.perf_counter()
        for _ in range(steps):
            self.step(tokens)
        seconds = time.perf_counter() - began
        counted = sum(map(len, tokens.values())) - before
        self.engine.abort_request(names)
        while self.engine.has_unfinished_requests():
            self.step(tokens)
        return {"tokens_per_second": counted / seconds}

    def greedy(self, prompts, steps):
        """What follows each prompt, as token ids."""
        tokens = {}
        names = [self.add(prompt, steps) for prompt in prompts]
        while self.engine.has_unfinished_requests():
            self.step(tokens)
        return {"tokens": [tokens[name] for name in names]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("weights")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-len", type=int, default=1024)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eager", action="store_true")
    args = parser.parse_args()
    engine = Engine(args)
    versions = {"vllm": vllm.__version__, "torch": torch.__version__}
    print(json.dumps({"versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = getattr(engine, question.pop("measure"))(**question)
        except Exception as error:  # noqa: BLE001 - whatever went wrong is the answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
