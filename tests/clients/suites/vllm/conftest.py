"""Stands in for vLLM itself in its tests: a tokenizer that is kaito's, the size of its vocabulary, and names that are only imported."""

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest.mock import MagicMock

import huggingface_hub
from tokenizers import Tokenizer

MODEL = os.environ["KAITO_MODEL"]


class HuggingFaceTokenizer:
    """As much of transformers' tokenizers as the tests use."""

    def __init__(self):
        self.tokenizer = Tokenizer.from_file(os.path.join(MODEL, "tokenizer.json"))

    def encode(self, text, add_special_tokens=True):
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    __call__ = encode

    def decode(self, tokens, skip_special_tokens=False):
        tokens = tokens if isinstance(tokens, list) else [tokens]
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, tokens):
        if isinstance(tokens, int):
            return self.tokenizer.id_to_token(tokens)
        return [self.tokenizer.id_to_token(token) for token in tokens]

    def __len__(self):
        return self.tokenizer.get_vocab_size()


class StandIn(ModuleType):
    """A module of which any name can be imported."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{self.__name__}.{name}")


class Finder:
    """Finds `vllm` and all below it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return ModuleSpec(name, Finder, is_package=True) if name.split(".")[0] == "vllm" else None

    @staticmethod
    def create_module(spec):
        module = StandIn(spec.name)
        if spec.name == "vllm.tokenizers":
            module.get_tokenizer = lambda *_, **__: HuggingFaceTokenizer()
        if spec.name == "vllm.config":
            size = len(HuggingFaceTokenizer())
            module.ModelConfig = lambda *_, **__: MagicMock(get_vocab_size=lambda: size)
        if spec.name == "vllm.version":
            module.__version__ = os.environ["KAITO_VERSION"]
        return module

    @staticmethod
    def exec_module(module):
        pass


sys.meta_path.insert(0, Finder)
# Adapters are downloaded by fixtures; there are none.
huggingface_hub.snapshot_download = lambda *_, **__: ""
# The bounds of 64-bit integers are all that is asked of torch.
torch = StandIn("torch")
torch.long = "int64"
torch.iinfo = lambda _: MagicMock(min=-(2**63), max=2**63 - 1)
sys.modules["torch"] = torch

from tests.v1.entrypoints.conftest import *  # noqa: E402, F403
