"""What transformers does, measured in a process of its own. Prints JSON. Runs with torch, not with the script."""

import argparse
import json
import sys
import time

started = time.perf_counter()

import torch  # noqa: E402
import transformers  # noqa: E402

imported = time.perf_counter()


def load(args):
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[args.dtype]
    model = transformers.AutoModelForCausalLM.from_pretrained(args.weights, torch_dtype=dtype)
    return model.eval()


def random_tokens(model, sequences, length):
    generator = torch.Generator().manual_seed(sequences * 1000 + length)
    return torch.randint(3, model.config.vocab_size, (sequences, length), generator=generator)


def prefill(model, tokens):
    began = time.perf_counter()
    # As generate does: scores of the last position alone.
    model(tokens, use_cache=True, num_logits_to_keep=1)
    return tokens.numel() / (time.perf_counter() - began)


def decode(model, sequences, context, steps):
    answer = model(random_tokens(model, sequences, context), use_cache=True, num_logits_to_keep=1)
    began = None
    # One step that is not counted.
    for step in range(steps + 1):
        if step == 1:
            began = time.perf_counter()
        chosen = answer.logits[:, -1:].argmax(-1)
        answer = model(chosen, past_key_values=answer.past_key_values, use_cache=True)
    return sequences * steps / (time.perf_counter() - began)


def measure(args):
    model = load(args)
    loaded = time.perf_counter()
    model(random_tokens(model, 1, 8), use_cache=True).logits[:, -1].argmax(-1)
    found = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "import_seconds": imported - started,
        "load_seconds": loaded - imported,
        "first_token_seconds": time.perf_counter() - started,
        "rates": {},
        "left_out": {},
    }
    figures = {"prefill": (args.prompt, lambda: prefill(model, random_tokens(model, 1, args.prompt)))}
    for count in args.sequences:
        figures[f"decode {count}"] = (count * (args.context + args.steps),
                                      lambda count=count: decode(model, count, args.context, args.steps))
    # Where torch has no kernel for a type, a few tokens tell that many would take an hour.
    quick = prefill(model, random_tokens(model, 1, 16))
    for figure, (tokens, rate) in figures.items():
        expected = tokens / quick
        if expected <= args.patience:
            found["rates"][figure] = rate()
        else:
            found["left_out"][figure] = expected
    json.dump(found, sys.stdout)


def greedy(args):
    """Token ids of what follows each prompt of token ids, chosen greedily."""
    model = load(args)
    found = []
    for prompt in json.loads(args.prompts):
        ids = torch.tensor([prompt])
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=args.steps,
                                min_new_tokens=args.steps, pad_token_id=0)
        found.append(answer[0, ids.shape[1]:].tolist())
    json.dump(found, sys.stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=("measure", "greedy"))
    parser.add_argument("weights")
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="f32")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--sequences", type=int, nargs="*", default=[1, 8, 16])
    parser.add_argument("--patience", type=float, default=120.0, help="seconds that a figure may be expected to take")
    parser.add_argument("--prompts", default="[]", help="lists of token ids, as JSON")
    args = parser.parse_args()
    with torch.inference_mode():
        {"measure": measure, "greedy": greedy}[args.job](args)


if __name__ == "__main__":
    main()
