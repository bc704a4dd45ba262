"""What Meta's Llama 2 code (commit 689c7f2) answers, run as it is from a checkout, on a CPU in f32.

Its code wants a GPU and a library of parallel layers. Here the layers are plain ones, and what asks for a GPU gets the CPU.
"""

import importlib
import math
import random
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch
from torch.overrides import TorchFunctionMode

from . import corpus, vocabularies
from .noise import bell_shaped
from .reference import NOISE, NOISE_TRIALS
from .vocabularies import write_json

VOCABULARY = 512
# What the server is started with in every case; a request may ask for less.
MAX_SEQ_LEN = 160
MAX_BATCH_SIZE = 8
MAX_ATTEMPTS = 120


class _OnCpu(TorchFunctionMode):
    def __torch_function__(self, function, _types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        if function is torch.Tensor.cuda:
            return args[0]
        return function(*args, **kwargs)


class _Linear(torch.nn.Linear):
    def __init__(self, inputs, outputs, bias, **_parallel):
        super().__init__(inputs, outputs, bias=bias)


class _Embedding(torch.nn.Embedding):
    def __init__(self, count, width, **_parallel):
        super().__init__(count, width)


def load_code(checkout: Path):
    """Meta's `llama.model`, `llama.generation` and `llama.tokenizer`."""
    initialize = types.ModuleType("fairscale.nn.model_parallel.initialize")
    initialize.get_model_parallel_world_size = lambda: 1
    initialize.get_model_parallel_rank = lambda: 0
    initialize.initialize_model_parallel = lambda _size: None
    initialize.model_parallel_is_initialized = lambda: True
    layers = types.ModuleType("fairscale.nn.model_parallel.layers")
    layers.ColumnParallelLinear = layers.RowParallelLinear = _Linear
    layers.ParallelEmbedding = _Embedding
    model_parallel = types.ModuleType("fairscale.nn.model_parallel")
    model_parallel.initialize, model_parallel.layers = initialize, layers
    nn = types.ModuleType("fairscale.nn")
    nn.model_parallel = model_parallel
    fairscale = types.ModuleType("fairscale")
    fairscale.nn = nn
    for module in (fairscale, nn, model_parallel, initialize, layers):
        sys.modules[module.__name__] = module
    sys.path.insert(0, str(checkout))
    return tuple(importlib.import_module(f"llama.{name}") for name in ("model", "generation", "tokenizer"))


@dataclass
class MetaModel:
    name: str
    seed: int
    params: dict
    shards: int
    storage: torch.dtype


MODELS = [
    MetaModel(
        "meta-llama-7b-type",
        501,
        {"dim": 64, "multiple_of": 16, "n_heads": 4, "n_layers": 3, "norm_eps": 1e-05, "vocab_size": -1},
        shards=1,
        storage=torch.float32,
    ),
    MetaModel(
        "meta-llama-70b-type-2-shards",
        502,
        {"dim": 64, "multiple_of": 32, "ffn_dim_multiplier": 1.3, "n_heads": 8, "n_kv_heads": 2, "n_layers": 3,
         "norm_eps": 1e-06, "vocab_size": -1},
        shards=2,
        storage=torch.bfloat16,
    ),
]  # fmt: skip


def _weights(model: MetaModel, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    weights = {}
    for index, (name, value) in enumerate(network.state_dict().items()):
        noise = bell_shaped(model.seed, index, tuple(value.shape))
        leaf = name.rsplit(".", 2)[-2]
        if value.ndim == 1:
            noise = 1.0 + 0.1 * noise
        elif leaf == "output":
            noise *= 3.0 / math.sqrt(value.shape[1])
            noise[3:259] *= 0.6
            noise[2] *= 1.5
        elif leaf != "tok_embeddings":
            noise *= (1.4 if leaf in ("wq", "wk") else 2.0) / math.sqrt(value.shape[1])
        weights[name] = torch.from_numpy(noise).to(model.storage)
    return weights


def _shard(name: str, value: torch.Tensor, rank: int, shards: int) -> torch.Tensor:
    """The part of one rank: layers whose outputs are split are cut by rows, those whose inputs are, by columns."""
    leaf = name.rsplit(".", 2)[-2]
    if value.ndim == 1 or shards == 1:
        return value.clone()
    return value.chunk(shards, dim=1 if leaf in ("wo", "w2", "tok_embeddings") else 0)[rank].clone()


def _write(model: MetaModel, directory: Path, weights: dict[str, torch.Tensor]):
    directory.mkdir(parents=True)
    write_json(directory / "params.json", model.params)
    (directory / "tokenizer.model").write_bytes(vocabularies.sentencepiece_model(VOCABULARY))
    half = model.params["dim"] // model.params["n_heads"] // 2
    # Published files carry the rotary frequencies too; the code computes them anew.
    frequencies = torch.tensor([10000.0 ** -(i / half) for i in range(half)]).to(model.storage)
    for rank in range(model.shards):
        shard = {name: _shard(name, value, rank, model.shards) for name, value in weights.items()}
        torch.save({**shard, "rope.freqs": frequencies.clone()}, directory / f"consolidated.{rank:02}.pth")


@dataclass
class _Answers:
    prompt_ids: list[list[int]]
    tokens: list[list[int]]
    texts: list[str]
    distribution: dict[int, float] | None


class MetaReference:
    def __init__(self, code, directory: Path, params: dict, weights: dict[str, torch.Tensor]):
        self._code = code
        self._directory = directory
        self._params = params
        self._weights = {name: value.float() for name, value in weights.items()}
        self._built = {}

    def _llama(self, max_seq_len: int):
        if max_seq_len not in self._built:
            model, generation, tokenizer = self._code
            encoder = tokenizer.Tokenizer(str(self._directory / "tokenizer.model"))
            arguments = {**self._params, "vocab_size": encoder.n_words}
            network = model.Transformer(
                model.ModelArgs(**arguments, max_seq_len=max_seq_len, max_batch_size=MAX_BATCH_SIZE)
            )
            network.load_state_dict(self._weights)
            self._built[max_seq_len] = generation.Llama(network, encoder)
        return self._built[max_seq_len]

    def answer(self, request: dict, noise: torch.Generator | None = None) -> _Answers:
        parameters = dict(request["parameters"])
        llama = self._llama(parameters.pop("max_seq_len", MAX_SEQ_LEN))
        parameters.pop("max_batch_size", None)
        seen = {}
        run = llama.generate

        def generate(**arguments):
            seen["prompt_ids"] = arguments["prompt_tokens"]
            seen["tokens"], scores = run(**arguments)
            return seen["tokens"], scores

        llama.generate = generate
        hook = None
        if noise is not None:
            hook = llama.model.register_forward_hook(
                lambda _module, _inputs, logits: logits + (torch.rand(logits.shape, generator=noise) * 2 - 1) * NOISE
            )
        multinomial, gather = torch.multinomial, torch.gather

        def observed_multinomial(probabilities, **arguments):
            seen["probabilities"] = probabilities.clone()
            return multinomial(probabilities, **arguments)

        def observed_gather(values, dimension, index):
            seen["order"] = values.clone()
            return gather(values, dimension, index)

        torch.multinomial, torch.gather = observed_multinomial, observed_gather
        try:
            if "prompts" in request:
                texts = [a["generation"] for a in llama.text_completion(request["prompts"], **parameters)]
            else:
                texts = [a["generation"]["content"] for a in llama.chat_completion(request["input_data"], **parameters)]
        finally:
            torch.multinomial, torch.gather = multinomial, gather
            del llama.generate
            if hook is not None:
                hook.remove()
        distribution = None
        if "probabilities" in seen:
            pairs = zip(seen["order"][0].tolist(), seen["probabilities"][0].tolist())
            distribution = {token: p for token, p in pairs if p > 0}
        return _Answers(seen["prompt_ids"], seen["tokens"], texts, distribution)

    def is_well_separated(self, request: dict, answers: _Answers) -> bool:
        for trial in range(NOISE_TRIALS):
            noisy = self.answer(request, torch.Generator().manual_seed(trial))
            if answers.distribution is None and noisy.tokens != answers.tokens:
                return False
            if answers.distribution is not None and noisy.distribution.keys() != answers.distribution.keys():
                return False
        return True


@dataclass
class Case:
    name: str
    request: Callable[[random.Random], dict]
    accept: Callable[[_Answers], bool] | None = None


def _completion(count=1, pool=corpus.SHORT, temperature=0, **parameters):
    """A request for completions of `count` prompts."""
    return lambda stream: {
        "prompts": stream.sample(pool, count),
        "parameters": {"temperature": temperature, **parameters},
    }


def _say(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def _dialogs(*dialogs: list[dict], temperature=0, **parameters):
    """A request for answers to dialogs, in which each `?` is replaced by a text of the pool."""

    def request(stream: random.Random) -> dict:
        filled = [
            [_say(m["role"], m["content"].replace("?", stream.choice(corpus.SHORT))) for m in dialog] for dialog in dialogs
        ]
        return {"input_data": filled, "parameters": {"temperature": temperature, **parameters}}

    return request


_USER = [_say("user", "?")]
_TURNS = [_say("user", " ?\n"), _say("assistant", "  I see.  "), _say("user", "? And then")]
_SYSTEM = [_say("system", "Always answer briefly. ")]


def _some_ends(answers: _Answers) -> bool:
    return len({len(t) for t in answers.tokens}) > 1


CASES = [
    Case("one prompt", _completion(max_gen_len=20)),
    Case("prompts of different lengths", _completion(4, max_gen_len=16)),
    Case("prompts of which some end early", _completion(5, max_gen_len=40), _some_ends),
    Case("unicode prompts", _completion(3, corpus.UNICODE, max_gen_len=16)),
    Case("white space", _completion(4, corpus.SPACES, max_gen_len=12)),
    Case("control tokens in the prompt are plain text",
         _completion(2, ["<s>[INST] hi [/INST]", "the end</s> of <unk>", "</s>"], max_gen_len=12)),
    Case("empty prompt", _completion(1, [""], max_gen_len=10)),
    Case("no max_gen_len: up to max_seq_len", _completion(2, max_seq_len=40),
         lambda a: any(len(p) + len(t) == 40 for p, t in zip(a.prompt_ids, a.tokens))),
    Case("max_gen_len beyond max_seq_len", _completion(2, max_gen_len=200, max_seq_len=36),
         lambda a: any(len(p) + len(t) == 36 for p, t in zip(a.prompt_ids, a.tokens))),
    Case("up to the server's own limit", _completion(3), lambda a: max(map(len, a.tokens)) > 50),
    Case("max_gen_len 1", _completion(3, max_gen_len=1)),
    Case("a prompt of exactly max_seq_len", lambda stream: _exact(stream)),
    Case("a long prompt beside a short one",
         lambda stream: {"prompts": [corpus.LONG[0][:130], stream.choice(corpus.SHORT)],
                         "parameters": {"temperature": 0, "max_gen_len": 10}}),
    Case("one dialog", _dialogs(_USER, max_gen_len=20)),
    Case("system text", _dialogs(_SYSTEM + _USER, max_gen_len=20)),
    Case("several turns", _dialogs(_TURNS, max_gen_len=20)),
    Case("several turns with system text", _dialogs(_SYSTEM + _TURNS, max_gen_len=8)),
    Case("dialogs of different shapes", _dialogs(_USER, _SYSTEM + _USER, _TURNS, max_gen_len=16)),
    Case("unsafe tag in the user's text", _dialogs([_say("user", "? [INST] now")], max_gen_len=8)),
    Case("unsafe tag in the system text, other dialogs answered",
         _dialogs([_say("system", "<<SYS>>"), *_USER], _USER, max_gen_len=8)),
    Case("unsafe tag in the assistant's text",
         _dialogs([_say("user", "?"), _say("assistant", "so [/INST]"), _say("user", "?")], max_gen_len=8)),
    Case("tags in lower case are safe", _dialogs([_say("user", "[inst] ? <<sys>>")], max_gen_len=8)),
    Case("unicode dialog", _dialogs([_say("user", "\u00bfqu\u00e9? \U0001f44d \u6771\u4eac")], max_gen_len=12)),
    Case("dialog up to max_seq_len", _dialogs(_USER, max_seq_len=72),
         lambda a: len(a.prompt_ids[0]) + len(a.tokens[0]) == 72),
    Case("draw by default", lambda stream: {"prompts": [stream.choice(corpus.SHORT)], "parameters": {"max_gen_len": 1}}),
    Case("draw, temperature 1, everything", _completion(temperature=1.0, top_p=1.0, max_gen_len=1)),
    Case("draw, narrow nucleus", _completion(temperature=1.0, top_p=0.5, max_gen_len=1), lambda a: len(a.distribution) > 1),
    Case("draw, high temperature", _completion(temperature=2.0, top_p=0.7, max_gen_len=1)),
    Case("draw, low temperature", _completion(temperature=0.3, top_p=0.95, max_gen_len=1), lambda a: len(a.distribution) > 1),
    Case("draw, nucleus of one", _completion(temperature=0.6, top_p=0.0, max_gen_len=1)),
    Case("draw in a dialog", _dialogs(_SYSTEM + _USER, temperature=0.9, top_p=0.8, max_gen_len=1)),
]  # fmt: skip


def _exact(stream: random.Random) -> dict:
    # Both prompts are as long as the limit; `_answer_case` sets it to the longer prompt's length.
    return {"prompts": stream.sample(corpus.SHORT, 2), "parameters": {"temperature": 0, "max_seq_len": "longest prompt"}}


def _expectation(request: dict, answers: _Answers) -> dict:
    expected = {"prompt_ids": answers.prompt_ids}
    if answers.distribution is not None:
        pairs = sorted(answers.distribution.items())
        return {**expected, "distribution": [[i, float(f"{p:.7g}")] for i, p in pairs]}
    expected["tokens"] = answers.tokens
    expected["texts"] = answers.texts
    if "input_data" in request:
        expected["unsafe"] = [text.startswith("Error: special tags") for text in answers.texts]
    return expected


def _answer_case(case: Case, reference: MetaReference, seed: int) -> dict:
    stream = random.Random(f"{seed} {case.name}")
    for _ in range(MAX_ATTEMPTS):
        request = case.request(stream)
        if request["parameters"].get("max_seq_len") == "longest prompt":
            probe = reference.answer({**request, "parameters": {"temperature": 0, "max_gen_len": 1}})
            request["parameters"]["max_seq_len"] = max(map(len, probe.prompt_ids))
        try:
            answers = reference.answer(request)
        except AssertionError:  # Meta's code asserts that a prompt fits in max_seq_len.
            continue
        if case.accept is not None and not case.accept(answers):
            continue
        if reference.is_well_separated(request, answers):
            return {"name": case.name, "loaded_with": {"max_seq_len": MAX_SEQ_LEN}, "request": request,
                    "expect": _expectation(request, answers)}  # fmt: skip
    raise RuntimeError(f"no prompts found for the case {case.name!r}")


def makers(checkout: Path, write_cases) -> dict[str, Callable[[Path], int]]:
    """For each model in Meta's format, what makes its directory and counts its cases."""
    code = load_code(checkout)

    def make(model: MetaModel, directory: Path) -> int:
        with _OnCpu():
            skeleton = code[0].Transformer(code[0].ModelArgs(**{**model.params, "vocab_size": VOCABULARY}))
            weights = _weights(model, skeleton)
            _write(model, directory, weights)
            reference = MetaReference(code, directory, model.params, weights)
            answered = [_answer_case(case, reference, model.seed) for case in CASES]
        write_cases(directory / "cases.json", answered)
        return len(answered)

    return {model.name: lambda directory, model=model: make(model, directory) for model in MODELS}
