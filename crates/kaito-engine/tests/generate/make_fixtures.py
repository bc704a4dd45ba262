"""Writes the fixtures of the generation tests with transformers 4.46.3 (and torch 2.5, on a CPU).

    python make_fixtures.py

A "model" is a table: the scores for the next token are row `(31 * a + 7 * b) % rows`, where `a` and `b` are the last
token and the one before it (0 where there is none). The searches run through transformers' own `generate`.
"""

import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import torch

torch.set_num_threads(1)
import transformers
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation import logits_process as lp
from transformers.modeling_outputs import CausalLMOutput

assert transformers.__version__ == "4.46.3", transformers.__version__
HERE = Path(__file__).parent
transformers.logging.set_verbosity_error()


def make_table(rows, vocab, seed, spread):
    # Two decimals more than f32 needs are cut, so that both sides read the very same numbers.
    return np.round(np.random.default_rng(seed).normal(0.0, spread, (rows, vocab)), 3).astype(np.float32)


TABLES = {
    "small": make_table(41, 24, 1, 2.0),
    "flat": make_table(37, 24, 2, 0.7),
    "wide": make_table(13, 700, 3, 1.5),
    "tiny": make_table(17, 6, 4, 1.0),
}


class TableConfig(PretrainedConfig):
    model_type = "table"


class TableModel(PreTrainedModel, GenerationMixin):
    config_class = TableConfig

    def __init__(self, table):
        super().__init__(TableConfig(vocab_size=table.shape[1]))
        self.table = torch.nn.Parameter(torch.from_numpy(table), requires_grad=False)

    def forward(self, input_ids, attention_mask=None, **_):
        last = input_ids[:, -1]
        before = input_ids[:, -2] if input_ids.shape[1] > 1 else torch.zeros_like(last)
        row = (31 * last + 7 * before) % self.table.shape[0]
        return CausalLMOutput(logits=self.table[row][:, None, :])

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        return {"input_ids": input_ids}


MODELS = {name: TableModel(table) for name, table in TABLES.items()}


def as_kwargs(params):
    """Some values must be floats in Python."""
    floats = {"temperature", "top_p", "typical_p", "repetition_penalty", "length_penalty", "diversity_penalty"}
    return {k: float(v) if k in floats else v for k, v in params.items()}


def ends(params):
    eos = params.get("eos_token_id", [])
    return eos if isinstance(eos, list) else [eos]


def strip(sequence, prompt_len, params):
    """Without padding: cut after the first end token."""
    for i in range(prompt_len, len(sequence)):
        if sequence[i] in ends(params):
            return sequence[: i + 1]
    return sequence


def search(table, prompt, params):
    model = MODELS[table]
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
        **as_kwargs(params),
    )
    beams = params.get("num_beams", 1) > 1
    sequences = [strip(s, len(prompt), params) for s in out.sequences.tolist()]
    case = {"table": table, "prompt": prompt, "params": params, "sequences": sequences}
    if beams:
        case["sequences_scores"] = [round(s, 6) for s in out.sequences_scores.tolist()]
    if params.get("num_beam_groups", 1) == 1:
        transitions = model.compute_transition_scores(
            out.sequences, out.scores, out.beam_indices if beams else None, normalize_logits=not beams
        ).tolist()
        case["log_probs"] = [
            [round(t, 5) for t in row[: len(s) - len(prompt)]] for row, s in zip(transitions, sequences)
        ]
    return case


def random_search(rng, kind):
    table = rng.choice(["small", "small", "flat", "wide"])
    vocab = TABLES[table].shape[1]
    token = lambda: rng.randrange(vocab)
    prompt = [token() for _ in range(rng.choice([1, 2, 3, 5, 9]))]
    params = {"do_sample": False}
    if rng.random() < 0.5:
        params["max_length"] = len(prompt) + rng.randint(1, 16)
    else:
        params["max_new_tokens"] = rng.randint(1, 16)
    limit = params.get("max_length", len(prompt) + params.get("max_new_tokens", 0))
    if rng.random() < 0.85:
        count = rng.choice([1, 1, 1, 2, 3])
        # End tokens must be likely enough to be chosen at times: take them from the heads of some rows.
        rows = TABLES[table]
        eos = [int(np.argsort(-rows[rng.randrange(rows.shape[0])])[rng.randrange(3)]) for _ in range(count)]
        eos = list(dict.fromkeys(eos))
        params["eos_token_id"] = eos[0] if len(eos) == 1 else eos
    maybe = lambda p: rng.random() < p
    if maybe(0.25):
        params["repetition_penalty"] = rng.choice([0.8, 1.1, 1.3, 1.7])
    if maybe(0.2):
        params["no_repeat_ngram_size"] = rng.choice([1, 2, 3])
    if maybe(0.15):
        params["encoder_no_repeat_ngram_size"] = rng.choice([1, 2, 3])
    if maybe(0.2):
        words = [[token() for _ in range(rng.choice([1, 1, 2, 3]))] for _ in range(rng.randint(1, 6))]
        params["bad_words_ids"] = words
    if maybe(0.25) and "eos_token_id" in params:
        if maybe(0.5):
            params["min_length"] = rng.randint(1, limit)
        else:
            params["min_new_tokens"] = rng.randint(1, limit - len(prompt))
    if maybe(0.15):
        params["forced_bos_token_id"] = token()
    if maybe(0.2):
        eos = ends(params)
        params["forced_eos_token_id"] = (
            eos if len(eos) > 1 and maybe(0.5) else eos[0] if eos and maybe(0.7) else token()
        )
    if maybe(0.1):
        params["remove_invalid_values"] = True
    if kind == "greedy":
        return table, prompt, params
    params["early_stopping"] = rng.choice([True, False, False, "never"])
    if maybe(0.6):
        params["length_penalty"] = rng.choice([-1.0, -0.3, 0.0, 0.5, 1.0, 1.5, 2.0, 4.0])
    if kind == "beams":
        params["num_beams"] = rng.choice([2, 3, 4, 5, 8])
    else:
        params["num_beams"], params["num_beam_groups"] = rng.choice([(2, 2), (4, 2), (6, 2), (6, 3), (4, 4), (8, 4)])
        params["diversity_penalty"] = rng.choice([0.3, 0.5, 1.0, 2.5, 5.0])
        if maybe(0.3) and "eos_token_id" in params:
            params["pad_token_id"] = token()
    params["num_return_sequences"] = rng.randint(1, params["num_beams"])
    return table, prompt, params


def searches():
    rng = random.Random(20)
    cases = []
    for kind, count in [("greedy", 60), ("beams", 130), ("groups", 90)]:
        while count:
            table, prompt, params = random_search(rng, kind)
            try:
                case = search(table, prompt, params)
            except (ValueError, RuntimeError) as error:
                print(f"left out: {params}: {error}", file=sys.stderr)
                continue
            scores = case.get("sequences_scores", []) + sum(case.get("log_probs", []), [])
            # What was ruled out altogether, or never left the start, is an accident of the sort order.
            if any(not math.isfinite(s) or s < -1e6 for s in scores):
                continue
            cases.append(case)
            count -= 1
    return cases


def number(x):
    return x if math.isfinite(x) else str(x)


def numbers(row):
    return [number(round(x, 6) if math.isfinite(x) else x) for x in row.tolist()]


def processors():
    """Every processor on its own and several together, on random scores."""
    rng = random.Random(30)
    cases = []
    for vocab in (24, 150):
        model = TableModel(np.zeros((1, vocab), dtype=np.float32))
        for index in range(50):
            prompt = [rng.randrange(vocab) for _ in range(rng.choice([1, 2, 6, 12]))]
            tokens = prompt + [rng.choice(prompt + [rng.randrange(vocab)]) for _ in range(rng.choice([0, 1, 4, 9]))]
            scores = torch.from_numpy(np.round(np.random.default_rng(index).normal(0, 3, vocab), 3).astype(np.float32))
            eos = rng.sample(range(vocab), rng.choice([1, 3]))
            options = {
                "repetition_penalty": rng.choice([0.7, 1.2, 2.0]),
                "no_repeat_ngram_size": rng.choice([1, 2, 3, 4]),
                "encoder_no_repeat_ngram_size": rng.choice([1, 2, 3, 4]),
                "bad_words_ids": [
                    [rng.randrange(vocab)],
                    eos[:1],
                    tokens[-1:] + [rng.randrange(vocab)],
                    tokens[-2:] + [rng.randrange(vocab)],
                    tokens[-3:-1] + [rng.randrange(vocab)],
                    tokens + [rng.randrange(vocab)],
                ],
                "min_length": len(tokens) + rng.choice([0, 1]),
                "min_new_tokens": max(0, len(tokens) - len(prompt) + rng.choice([0, 1])),
                "forced_bos_token_id": rng.randrange(vocab),
                "forced_eos_token_id": rng.choice([eos, eos[0]]),
                "remove_invalid_values": True,
            }
            names = list(options)
            chosen = [names[index % len(names)]] if index < 2 * len(names) else rng.sample(names, 3)
            params = {name: options[name] for name in names if name in chosen}
            params["eos_token_id"] = eos
            params["max_length"] = max(len(tokens) + rng.choice([1, 2, 5]), params.get("min_length", 0))
            if "min_new_tokens" in params:
                params["max_length"] = max(params["max_length"], len(prompt) + params["min_new_tokens"])
            if "remove_invalid_values" in params:
                scores[rng.randrange(vocab)] = math.nan
                scores[rng.randrange(vocab)] = math.inf
                scores[rng.randrange(vocab)] = -math.inf
            config = transformers.GenerationConfig(**as_kwargs(params))
            model._prepare_special_tokens(config, True, device="cpu")
            prompt_ids = torch.tensor([prompt])
            config = model._prepare_generated_length(config, False, False, "input_ids", len(prompt), prompt_ids)
            chain = model._get_logits_processor(config, len(prompt), prompt_ids, None, [], "cpu")
            out = chain(torch.tensor([tokens]), scores[None].clone())[0]
            cases.append(
                {
                    "prompt_len": len(prompt),
                    "tokens": tokens,
                    "params": params,
                    "scores": numbers(scores),
                    "expected": numbers(out),
                }
            )
    for index in range(12):
        beams, groups = rng.choice([(4, 2), (6, 3), (4, 4)])
        size, group = beams // groups, rng.randrange(1, groups)
        chosen = [rng.randrange(24) for _ in range(beams)]
        penalty = rng.choice([0.3, 0.7, 2.0])
        scores = torch.from_numpy(np.round(np.random.default_rng(index).normal(0, 3, 24), 3).astype(np.float32))
        out = lp.HammingDiversityLogitsProcessor(penalty, beams, groups)(
            torch.zeros(size, 1, dtype=torch.long), scores.repeat(size, 1), torch.tensor(chosen), group
        )[0]
        cases.append(
            {
                "prompt_len": 1,
                "tokens": [0],
                "chosen": chosen[: group * size],
                "params": {
                    "do_sample": False,
                    "num_beams": beams,
                    "num_beam_groups": groups,
                    "diversity_penalty": penalty,
                    "max_length": 9,
                },
                "scores": numbers(scores),
                "expected": numbers(out),
            }
        )
    return cases


def distributions():
    """The distribution of the next token under every warper: probabilities of the tokens that can be drawn."""
    rng = random.Random(40)
    cases = []
    for index in range(90):
        table = rng.choice(["small", "flat", "wide", "wide"])
        vocab = TABLES[table].shape[1]
        prompt = [rng.randrange(vocab) for _ in range(rng.choice([1, 3, 6]))]
        # Neutral values where none is drawn: transformers' own default is a top_k of 50.
        params = {"do_sample": True, "max_new_tokens": 1, "top_k": 0}
        picks = [["temperature"], ["top_k"], ["top_p"], ["typical_p"], ["temperature", "top_k", "top_p", "typical_p"]]
        for name in picks[index % 5]:
            params[name] = {
                "temperature": rng.choice([0.2, 0.7, 1.5, 3.0]),
                "top_k": rng.choice([1, 2, 5, 10, 50, 1000]),
                "top_p": rng.choice([0.0, 0.1, 0.5, 0.9, 0.97]),
                "typical_p": rng.choice([0.05, 0.2, 0.6, 0.95]),
            }[name]
        if rng.random() < 0.3:
            params["repetition_penalty"] = 1.3
        if rng.random() < 0.4:
            params["num_beams"] = 2
            params["eos_token_id"] = rng.sample(range(vocab), rng.choice([1, 2]))
        out = MODELS[table].generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            use_cache=False,
            return_dict_in_generate=True,
            output_scores=True,
            **as_kwargs(params),
        )
        probs = torch.softmax(out.scores[0][0].double(), -1).tolist()
        cases.append(
            {
                "table": table,
                "prompt": prompt,
                "params": params,
                "probs": {str(i): round(p, 8) for i, p in enumerate(probs) if p > 0},
            }
        )
    return cases


def beam_samples():
    """How often beam sampling returns each sequence, in many runs."""
    cases = []
    for prompt, params in [
        ([1], {"num_beams": 2, "max_new_tokens": 2, "eos_token_id": 3, "temperature": 4}),
        ([4, 2], {"num_beams": 3, "max_new_tokens": 3, "eos_token_id": [0, 5], "top_k": 4, "temperature": 3}),
        ([0, 5], {"num_beams": 2, "max_new_tokens": 3, "top_p": 0.8, "num_return_sequences": 2, "length_penalty": 0.5}),
    ]:
        torch.manual_seed(7)
        params = {"do_sample": True, "top_k": 0, **params}
        counts = {}
        keep = params.get("num_return_sequences", 1)
        for _ in range(40):
            out = MODELS["tiny"].generate(
                torch.tensor([prompt]).repeat(500, 1),
                attention_mask=torch.ones(500, len(prompt), dtype=torch.long),
                use_cache=False,
                **as_kwargs(params),
            ).tolist()
            for start in range(0, len(out), keep):
                key = " | ".join(
                    " ".join(map(str, strip(s, len(prompt), params)[len(prompt) :])) for s in out[start : start + keep]
                )
                counts[key] = counts.get(key, 0) + 1
        cases.append({"table": "tiny", "prompt": prompt, "params": params, "counts": counts})
    return cases


def write(name, cases):
    text = "[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n"
    (HERE / f"{name}.json").write_text(text)
    print(name, len(cases), len(text))


tables = {name: [[round(float(x), 3) for x in row] for row in table] for name, table in TABLES.items()}
(HERE / "tables.json").write_text(
    "{\n" + ",\n".join(f'"{n}": [\n' + ",\n".join(json.dumps(r) for r in t) + "\n]" for n, t in tables.items()) + "\n}\n"
)
write("searches", searches())
write("processors", processors())
write("distributions", distributions())
write("beam_samples", beam_samples())
