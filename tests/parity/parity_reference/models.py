"""The tiny models: every family and variant, in every file format in which their kind is published."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from . import vocabularies
from .noise import bell_shaped
from .vocabularies import write_json


@dataclass
class TinyModel:
    """One checkpoint directory to be made.

    `config` and `generation_config` are written as they stand, so that they look like the published files, not like what
    today's library would write. `storage` is the type of the stored weights; all arithmetic is in f32.
    """

    name: str
    family: type
    config_class: type
    config: dict
    tokenizer: Callable[[Path], None]
    generation_config: dict | None
    seed: int
    storage: torch.dtype = torch.float32
    weight_file: str = "safetensors"  # or "bin"
    shard_size: str = "10GB"
    # How strongly the end tokens' rows of the head stand out: random models would hardly ever end otherwise.
    end_tokens: list[int] = field(default_factory=list)
    end_scale: float = 1.5
    # The rows of single bytes, made less likely: otherwise most of the text would be broken UTF-8.
    byte_tokens: range = range(0)


def _random_weights(model: TinyModel, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights large enough that attention is peaked and the candidates' scores are far apart."""
    hidden = model.config["hidden_size"]
    state = network.state_dict()
    weights = {}
    for index, (name, value) in enumerate(state.items()):
        noise = bell_shaped(model.seed, index, tuple(value.shape))
        leaf = name.rsplit(".", 2)[-2]
        if value.ndim == 1:
            noise = 0.1 * noise + (0.0 if name.endswith(".bias") else 1.0)
        elif leaf in ("embed_tokens", "word_embeddings"):
            noise *= 0.4 if _tied(model) else 1.0
        elif leaf == "lm_head":
            noise *= 3.0 / math.sqrt(hidden)
        elif leaf in ("q_proj", "k_proj"):
            noise *= 1.4 / math.sqrt(value.shape[1])
        elif leaf in ("qkv_proj", "query_key_value"):
            noise *= 1.2 / math.sqrt(value.shape[1])
        elif leaf == "dense":
            noise *= 4.0 / math.sqrt(value.shape[1])
        else:
            noise *= 2.0 / math.sqrt(value.shape[1])
        head = leaf == "lm_head" or (leaf in ("embed_tokens", "word_embeddings") and _tied(model))
        if head:
            noise[model.byte_tokens.start : model.byte_tokens.stop] *= 0.6
            noise[model.end_tokens] *= model.end_scale
        weights[name] = torch.from_numpy(noise)
    if _tied(model):
        weights["lm_head.weight"] = next(weights[n] for n in weights if "embed" in n)
    return weights


def _tied(model: TinyModel) -> bool:
    return model.config.get("tie_word_embeddings", model.family is FalconForCausalLM)


def build(model: TinyModel, directory: Path):
    directory.mkdir(parents=True)
    model.tokenizer(directory)
    config = model.config_class(**model.config)
    network = model.family(config)
    network.load_state_dict(_random_weights(model, network))
    network.to(model.storage)
    network.save_pretrained(
        directory, safe_serialization=model.weight_file == "safetensors", max_shard_size=model.shard_size
    )
    for name in ("config.json", "generation_config.json"):
        (directory / name).unlink(missing_ok=True)
    dtype = str(model.storage).removeprefix("torch.")
    write_json(directory / "config.json", {**model.config, "torch_dtype": dtype})
    if model.generation_config is not None:
        write_json(directory / "generation_config.json", model.generation_config)


BYTES = range(3, 259)


def _llama(name, seed, *, tokenizer, vocab_size=512, generation_config=None, storage=torch.float32, weight_file="safetensors",
           shard_size="10GB", **changes):  # fmt: skip
    return TinyModel(
        name=name,
        family=LlamaForCausalLM,
        config_class=LlamaConfig,
        config={
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 64,
            "intermediate_size": 112,
            "max_position_embeddings": 512,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "use_cache": True,
            "vocab_size": vocab_size,
            **changes,
        },
        tokenizer=tokenizer,
        generation_config=generation_config,
        seed=seed,
        storage=storage,
        weight_file=weight_file,
        shard_size=shard_size,
        end_tokens=[2],
        byte_tokens=BYTES,
    )


def _falcon(name, seed, *, tokenizer_size=512, storage=torch.float32, weight_file="safetensors", shard_size="10GB", **changes):
    return TinyModel(
        name=name,
        family=FalconForCausalLM,
        config_class=FalconConfig,
        config={
            "alibi": False,
            "apply_residual_connection_post_layernorm": False,
            "architectures": ["FalconForCausalLM"],
            "attention_dropout": 0.0,
            "bias": False,
            "bos_token_id": 11,
            "eos_token_id": 11,
            "hidden_dropout": 0.0,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "model_type": "falcon",
            "num_hidden_layers": 2,
            "parallel_attn": True,
            "use_cache": True,
            "vocab_size": tokenizer_size,
            **changes,
        },
        tokenizer=lambda directory: vocabularies.falcon(directory, size=tokenizer_size),
        generation_config={"_from_model_config": True, "bos_token_id": 11, "eos_token_id": 11,
                           "transformers_version": "4.33.0.dev0"},
        seed=seed,
        storage=storage,
        weight_file=weight_file,
        shard_size=shard_size,
        end_tokens=[11],
        end_scale=2.5,
        byte_tokens=range(12, 268),
    )  # fmt: skip


def _mistral(name, seed, *, tokenizer, generation_config=None, storage=torch.float32, shard_size="10GB", **changes):
    return TinyModel(
        name=name,
        family=MistralForCausalLM,
        config_class=MistralConfig,
        config={
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 64,
            "intermediate_size": 112,
            "max_position_embeddings": 512,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "use_cache": True,
            "vocab_size": 512,
            **changes,
        },
        tokenizer=tokenizer,
        generation_config=generation_config,
        seed=seed,
        storage=storage,
        shard_size=shard_size,
        end_tokens=[2],
        byte_tokens=BYTES,
    )


def _phi3(name, seed, *, tokenizer, storage=torch.float32, **changes):
    return TinyModel(
        name=name,
        family=Phi3ForCausalLM,
        config_class=Phi3Config,
        config={
            "architectures": ["Phi3ForCausalLM"],
            "model_type": "phi3",
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "embd_pdrop": 0.0,
            "eos_token_id": 512,
            "hidden_act": "silu",
            "hidden_size": 64,
            "intermediate_size": 112,
            "max_position_embeddings": 512,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "original_max_position_embeddings": 512,
            "pad_token_id": 512,
            "resid_pdrop": 0.0,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "use_cache": True,
            # The tokenizer has 523: the last rows of the head belong to no token, as in the published models.
            "vocab_size": 536,
            **changes,
        },
        tokenizer=tokenizer,
        generation_config={"_from_model_config": True, "bos_token_id": 1, "eos_token_id": [512, 513, 519],
                           "pad_token_id": 512, "transformers_version": "4.39.3"},
        seed=seed,
        storage=storage,
        end_tokens=[519],
        byte_tokens=BYTES,
    )  # fmt: skip


LONG_ROPE = {
    "short_factor": [1.0, 1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4],
    "long_factor": [1.05, 1.4, 2.1, 3.3, 5.2, 8.5, 13.0, 21.0],
}

MODELS = [
    _llama(
        "llama-multi-head",
        101,
        tokenizer=lambda d: vocabularies.llama(
            d, size=512, config={"legacy": True, "chat_template": vocabularies.LLAMA_CHAT_TEMPLATE}
        ),
        # What the published chat models carry: the documented defaults override the first three.
        generation_config={"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096, "bos_token_id": 1,
                           "eos_token_id": 2, "pad_token_id": 0, "transformers_version": "4.32.0.dev0"},
    ),
    _llama(
        "llama-grouped-sharded",
        102,
        tokenizer=lambda d: vocabularies.llama(d, size=512, config={}, files=("tokenizer.model",)),
        num_attention_heads=8,
        num_key_value_heads=2,
        shard_size="160KB",
    ),
    _llama(
        "llama-tied-bin-f16",
        103,
        tokenizer=lambda d: vocabularies.llama(
            d, size=480, config={"legacy": False, "model_max_length": 64}, files=("tokenizer.json",), string_merges=True
        ),
        vocab_size=480,
        tie_word_embeddings=True,
        storage=torch.float16,
        weight_file="bin",
        generation_config={"bos_token_id": 1, "eos_token_id": 2, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    ),
    _llama(
        "llama-bin-sharded-bf16",
        104,
        tokenizer=lambda d: vocabularies.llama(d, size=512, config={"legacy": True}),
        storage=torch.bfloat16,
        weight_file="bin",
        shard_size="80KB",
        rms_norm_eps=1e-06,
        rope_theta=500000.0,
        num_key_value_heads=2,
    ),
    _falcon(
        "falcon-7b-type",
        201,
        hidden_size=80,
        num_attention_heads=5,
        multi_query=True,
        new_decoder_architecture=False,
        weight_file="bin",
    ),
    _falcon(
        "falcon-40b-type-bf16",
        202,
        hidden_size=64,
        num_attention_heads=8,
        num_kv_heads=2,
        new_decoder_architecture=True,
        storage=torch.bfloat16,
        shard_size="120KB",
    ),
    # The first Falcons: attention biases for positions, biases everywhere, a key for each query head, one residual after
    # the other. Six heads are no power of two, which the slopes depend on.
    _falcon(
        "falcon-rw-type",
        203,
        hidden_size=96,
        num_attention_heads=6,
        alibi=True,
        bias=True,
        multi_query=False,
        new_decoder_architecture=False,
        parallel_attn=False,
        storage=torch.bfloat16,
    ),
    _mistral(
        "mistral-window",
        301,
        tokenizer=lambda d: vocabularies.llama(
            d,
            size=512,
            config={"legacy": True, "add_bos_token": True, "add_eos_token": False},
            string_merges=True,
        ),
        sliding_window=12,
        generation_config={"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2},
    ),
    _mistral(
        "mistral-full-bf16",
        302,
        tokenizer=lambda d: vocabularies.llama(
            d, size=512, config={"legacy": False, "chat_template": vocabularies.MISTRAL_CHAT_TEMPLATE}
        ),
        sliding_window=None,
        rope_theta=1000000.0,
        head_dim=24,
        storage=torch.bfloat16,
        shard_size="100KB",
        generation_config={"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2},
    ),
    _phi3(
        "phi3-window",
        411,
        tokenizer=lambda d: vocabularies.phi3(d, size=512, config={"add_bos_token": False, "add_eos_token": False}),
        sliding_window=15,
    ),
    _phi3(
        "phi3-longrope",
        402,
        tokenizer=lambda d: vocabularies.phi3(
            d, size=512, config={"add_bos_token": True, "add_eos_token": False}, normalizer_legacy=True
        ),
        original_max_position_embeddings=32,
        rope_scaling={"type": "longrope", **LONG_ROPE},
        sliding_window=2048,
    ),
    _phi3(
        "phi3-su-bf16",
        403,
        tokenizer=lambda d: vocabularies.phi3(d, size=512, config={"add_bos_token": True, "add_eos_token": False}),
        original_max_position_embeddings=32,
        rope_scaling={"type": "su", **LONG_ROPE},
        sliding_window=2048,
        storage=torch.bfloat16,
        hidden_size=96,
        num_attention_heads=6,
        num_key_value_heads=6,
    ),
]
