"""Trains the tiny vocabularies, in the file formats in which the real ones are published."""

import io
import json
from pathlib import Path

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizerFast

from .corpus import TRAINING_TEXT

# What Llama 2's chat models expect: the system text goes into the first user turn.
LLAMA_CHAT_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for turn in turns %}"
    "{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns, the user first') }}{% endif %}"
    "{% if turn['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.first else '') + turn['content']).strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
MISTRAL_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}"
    "{% if turn['role'] not in ['user', 'assistant'] %}{{ raise_exception('only user and assistant may speak') }}{% endif %}"
    "{% if turn['role'] == 'user' %}{{ '[INST] ' ~ turn['content'] ~ ' [/INST]' }}"
    "{% else %}{{ turn['content'] ~ eos_token }}{% endif %}{% endfor %}"
)
PHI3_CHAT_TEMPLATE = (
    "{% for turn in messages %}{{ '<|' + turn['role'] + '|>\\n' + turn['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI3_ADDED_TOKENS = [
    "<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|placeholder3|>", "<|placeholder4|>",
    "<|system|>", "<|end|>", "<|placeholder5|>", "<|placeholder6|>", "<|user|>",
]  # fmt: skip


def write_json(path: Path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def sentencepiece_model(size: int) -> bytes:
    """A byte-pair vocabulary with byte fallback, with the trainer settings of Llama's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        character_coverage=0.99,
        num_threads=1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def _added_token(text: str, *, special: bool, rstrip: bool = False) -> dict:
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": rstrip, "single_word": False,
            "special": special}  # fmt: skip


def llama(directory: Path, *, size: int, config: dict, files=("tokenizer.model", "tokenizer.json"),
          string_merges=False, normalizer_legacy=None):  # fmt: skip
    """Llama's, Mistral's and Phi-3's kind. `files` are those to keep: a checkpoint may have either or both.

    `string_merges` writes each merge as one string with a space, as versions before 0.20 of the library did.
    `normalizer_legacy` true marks every segment's start in tokenizer.json whatever the config says, as published files do.
    """
    config = dict(config)
    (directory / "tokenizer.model").write_bytes(sentencepiece_model(size))
    added = {str(i): _added_token(text, special=True) for i, text in enumerate(["<unk>", "<s>", "</s>"])}
    added.update(config.pop("extra_added_tokens", {}))
    settings = {
        "added_tokens_decoder": added,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        **config,
    }
    write_json(directory / "tokenizer_config.json", settings)
    if "tokenizer.json" in files:
        legacy = {} if normalizer_legacy is None else {"legacy": normalizer_legacy}
        tokenizer = LlamaTokenizerFast.from_pretrained(directory, from_slow=True, **legacy)
        text = json.loads(tokenizer.backend_tokenizer.to_str())
        if string_merges:
            text["model"]["merges"] = [" ".join(pair) for pair in text["model"]["merges"]]
        write_json(directory / "tokenizer.json", text)
    if "tokenizer.model" not in files:
        (directory / "tokenizer.model").unlink()


def phi3(directory: Path, *, size: int, config: dict, normalizer_legacy=None):
    added = {
        str(size + i): _added_token(text, special=True, rstrip=text not in ("<|endoftext|>",))
        for i, text in enumerate(PHI3_ADDED_TOKENS)
    }
    # Phi-3 declares the end token of the Llama vocabulary an ordinary added token.
    added["2"] = _added_token("</s>", special=False, rstrip=True)
    llama(
        directory,
        size=size,
        config={
            "extra_added_tokens": added,
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "padding_side": "left",
            "legacy": False,
            "chat_template": PHI3_CHAT_TEMPLATE,
            **config,
        },
        string_merges=True,
        normalizer_legacy=normalizer_legacy,
    )


def falcon(directory: Path, *, size: int):
    """Byte-level byte pairs, with Falcon's splitting of punctuation and digits and its twelve special tokens."""
    special = [">>TITLE<<", ">>ABSTRACT<<", ">>INTRODUCTION<<", ">>SUMMARY<<", ">>COMMENT<<", ">>ANSWER<<",
               ">>QUESTION<<", ">>DOMAIN<<", ">>PREFIX<<", ">>SUFFIX<<", ">>MIDDLE<<", "<|endoftext|>"]  # fmt: skip
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ])
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT.splitlines(), trainer)
    write_json(directory / "tokenizer.json", json.loads(tokenizer.to_str()))
    write_json(directory / "tokenizer_config.json", {
        "add_prefix_space": False,
        "eos_token": "<|endoftext|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 64,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
    write_json(directory / "special_tokens_map.json", {
        "additional_special_tokens": special[:-1], "eos_token": "<|endoftext|>",
    })
