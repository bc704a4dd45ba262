#!/usr/bin/env python3
"""Makes adapters: tiny random LoRA adapters for the models in fixtures/, and what PEFT answers with them, unmerged and in f32.

    adapters.py fixtures adapters                           those of every model
    adapters.py fixtures adapters --only llama-multi-head   of one model (may be given again)

With --check the folder of adapters is left as it is and compared with what would be made: weights byte for byte, tokens
exactly, logits to 1e-4. Besides requirements.txt it needs what requirements-adapters.txt lists.
"""

import argparse
import itertools
import json
import math
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed.tensor  # PEFT takes it for granted, and torch 2.5 does not load it by itself.
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from parity_reference import compare
from parity_reference.noise import bell_shaped

# Tokens of the prompts; each adapter answers all of them.
PROMPT_LENGTHS = (5, 37)
NEW_TOKENS = 12
# A hundred times the error of f32: no answer may hang on rounding.
MARGIN = 1e-3
# How far the answers of two adapters must be from each other.
CLEAR = 0.1
# Of the logits behind a prompt, each so manieth is kept.
KEPT_LOGITS = 4
# How strongly each adapter counts in the combination of all.
STRENGTHS = {"one": 0.75, "two": 1.0}

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PHI3 = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
FALCON = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


@dataclass
class Adapter:
    """An adapter to be made. Its B matrices are random too: PEFT's own are zero at first, and would change nothing."""

    modules: list[str]
    rank: int
    alpha: float
    seed: int
    storage: torch.dtype = torch.float32
    safetensors: bool = True
    more: dict = field(default_factory=dict)

    def config(self) -> LoraConfig:
        return LoraConfig(
            r=self.rank, lora_alpha=self.alpha, target_modules=self.modules, lora_dropout=0.0, bias="none",
            task_type="CAUSAL_LM", **self.more,
        )  # fmt: skip


def _adapters(seed: int, modules: list[str], some: list[str], patterned: str, storage=torch.bfloat16) -> dict[str, Adapter]:
    """One on every module; one on some of them in half precision, with a rank and a factor of their own for a few, as torch saves
    it."""
    return {
        "one": Adapter(modules, 2, 4, seed, storage),
        "two": Adapter(
            some, 3, 3, seed + 1, torch.float16, False,
            {"use_rslora": True, "rank_pattern": {some[1]: 2}, "alpha_pattern": {rf"1\.\w+\.{patterned}": 5}},
        ),
    }  # fmt: skip


MODELS = {
    "falcon-40b-type-bf16": _adapters(710, FALCON, ["query_key_value", "dense_h_to_4h"], "query_key_value"),
    "falcon-7b-type": _adapters(720, FALCON, ["query_key_value", "dense_4h_to_h"], "query_key_value"),
    "falcon-rw-type": _adapters(730, FALCON, ["dense", "query_key_value"], "dense"),
    "llama-grouped-sharded": _adapters(740, LLAMA, ["q_proj", "v_proj", "down_proj"], "q_proj", torch.float32),
    "meta-llama-70b-type-2-shards": _adapters(750, LLAMA, ["k_proj", "v_proj", "down_proj"], "k_proj"),
    "meta-llama-7b-type": _adapters(760, LLAMA, ["q_proj", "k_proj"], "q_proj"),
    "mistral-window": _adapters(770, LLAMA, ["gate_proj", "up_proj", "q_proj"], "gate_proj"),
    "phi3-window": _adapters(780, PHI3, ["qkv_proj", "gate_up_proj"], "qkv_proj"),
}


def _from_meta(directory: Path) -> LlamaForCausalLM:
    """Meta's weights as transformers' own conversion script arranges them."""
    params = json.loads((directory / "params.json").read_text())
    shards = [torch.load(path, map_location="cpu", weights_only=True) for path in sorted(directory.glob("*.pth"))]
    heads = params["n_heads"]
    kv_heads = params.get("n_kv_heads") or heads

    def whole(name: str, dimension: int) -> torch.Tensor:
        return torch.cat([shard[name].float() for shard in shards], dim=dimension)

    def rotated(value: torch.Tensor, count: int) -> torch.Tensor:
        rows, columns = value.shape
        return value.view(count, rows // count // 2, 2, columns).transpose(1, 2).reshape(rows, columns)

    state = {
        "model.embed_tokens.weight": whole("tok_embeddings.weight", 1),
        "model.norm.weight": shards[0]["norm.weight"].float(),
        "lm_head.weight": whole("output.weight", 0),
    }
    for i in range(params["n_layers"]):
        old, new = f"layers.{i}.", f"model.layers.{i}."
        state |= {
            f"{new}self_attn.q_proj.weight": rotated(whole(f"{old}attention.wq.weight", 0), heads),
            f"{new}self_attn.k_proj.weight": rotated(whole(f"{old}attention.wk.weight", 0), kv_heads),
            f"{new}self_attn.v_proj.weight": whole(f"{old}attention.wv.weight", 0),
            f"{new}self_attn.o_proj.weight": whole(f"{old}attention.wo.weight", 1),
            f"{new}mlp.gate_proj.weight": whole(f"{old}feed_forward.w1.weight", 0),
            f"{new}mlp.up_proj.weight": whole(f"{old}feed_forward.w3.weight", 0),
            f"{new}mlp.down_proj.weight": whole(f"{old}feed_forward.w2.weight", 1),
            f"{new}input_layernorm.weight": shards[0][f"{old}attention_norm.weight"].float(),
            f"{new}post_attention_layernorm.weight": shards[0][f"{old}ffn_norm.weight"].float(),
        }
    config = LlamaConfig(
        vocab_size=state["lm_head.weight"].shape[0],
        hidden_size=params["dim"],
        intermediate_size=state["model.layers.0.mlp.gate_proj.weight"].shape[0],
        num_hidden_layers=params["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=params["norm_eps"],
        max_position_embeddings=4096,
    )
    network = LlamaForCausalLM(config)
    network.load_state_dict(state)
    return network.eval()


def _network(directory: Path) -> torch.nn.Module:
    if (directory / "params.json").exists():
        return _from_meta(directory)
    return AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32).eval()


def _write(adapter: Adapter, model: Path, directory: Path):
    network = get_peft_model(_network(model), adapter.config())
    for index, (name, value) in enumerate(sorted(network.named_parameters())):
        if "lora_" in name:
            # B is the smaller of the two products' factors, so that the answers change and do not become noise.
            scale = 1.0 / math.sqrt(value.shape[1]) if "lora_A" in name else 0.35
            noise = torch.from_numpy(bell_shaped(adapter.seed, index, tuple(value.shape))) * scale
            value.data = noise.to(adapter.storage)
    network.save_pretrained(directory, safe_serialization=adapter.safetensors)
    (directory / "README.md").unlink()
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    # The library writes where the model lay, and a set in no order.
    config["base_model_name_or_path"] = model.name
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def _answer(network: torch.nn.Module, prompt: list[int]) -> dict | None:
    tokens, first = list(prompt), None
    for _ in range(NEW_TOKENS):
        logits = network(input_ids=torch.tensor([tokens])).logits[0, -1]
        first = logits if first is None else first
        best, second = logits.topk(2).values.tolist()
        if best - second < MARGIN:
            return None
        tokens.append(int(logits.argmax()))
    return {"tokens": tokens[len(prompt) :], "logits": [round(float(x), 5) for x in first[::KEPT_LOGITS]]}


def _answers(network: PeftModel, prompt: list[int]) -> dict | None:
    """With each adapter; nothing where one of them hangs on rounding."""
    answers = {}
    with network.disable_adapter():
        answers["none"] = _answer(network, prompt)
    for adapter in ("one", "two", "weaker", "both"):
        network.set_adapter(adapter)
        answers[adapter] = _answer(network, prompt)
    return answers if all(answers.values()) else None


def _make(name: str, model: Path, directory: Path):
    adapters = MODELS[name]
    for adapter, description in adapters.items():
        _write(description, model, directory / adapter)
    network = _network(model)
    vocabulary = network.config.vocab_size
    network = PeftModel.from_pretrained(network, directory / "one", "one").eval()
    network.load_adapter(directory / "two", "two")
    for combined, parts in (("weaker", ["one"]), ("both", ["one", "two"])):
        strengths = [STRENGTHS[part] for part in parts]
        network.add_weighted_adapter(parts, strengths, combined, combination_type="cat")
    cases = []
    for length in PROMPT_LENGTHS:
        # The first prompt none of whose answers hangs on rounding.
        prompts = ([(7 * i + 3 * length + shift) % (vocabulary - 30) + 20 for i in range(length)] for shift in itertools.count())
        prompt, answers = next((prompt, answers) for prompt in prompts if (answers := _answers(network, prompt)))
        logits = [torch.tensor(answer["logits"]) for answer in answers.values()]
        apart = min(float((one - other).abs().max()) for one, other in itertools.combinations(logits, 2))
        assert apart > CLEAR, f"{name}: two adapters give almost the same logits ({apart})"
        cases.append({"name": f"{length} tokens", "prompt": prompt, "answers": answers})
    lines = ",\n".join(json.dumps(case) for case in cases)
    (directory / "cases.json").write_text(f"[\n{lines}\n]\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("adapters", type=Path)
    parser.add_argument("--only", action="append", metavar="NAME", help="only models whose name starts with NAME")
    parser.add_argument("--check", action="store_true", help="compare instead of replacing")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")

    differences = 0
    for name in MODELS:
        if arguments.only and not any(name.startswith(only) for only in arguments.only):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / name
            made.mkdir()
            _make(name, arguments.fixtures / name, made)
            committed = arguments.adapters / name
            if arguments.check:
                parts = [path.relative_to(made) for path in (made, *made.iterdir()) if path.is_dir()]
                found = [line for part in parts for line in compare.directories(committed / part, made / part)]
                differences += len(found)
                print("\n".join(f"{name}: {difference}" for difference in found) or f"{name}: the same", flush=True)
            else:
                shutil.rmtree(committed, ignore_errors=True)
                shutil.copytree(made, committed)
                print(f"{name}: made", flush=True)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
