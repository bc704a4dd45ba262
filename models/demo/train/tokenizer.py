"""Trains the SentencePiece tokenizer and writes it in both forms, tokenizer.model and tokenizer.json."""

import io
import json
from pathlib import Path

import sentencepiece

# The dialog format of Llama 2, so that a chat template and Meta's dialog format give the same tokens.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)


def train(lines: list[str], vocabulary: int, directory: Path) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=vocabulary, model_type="bpe",
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=True, character_coverage=0.9999, allow_whitespace_only_pieces=True, max_sentencepiece_length=16,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, input_sentence_size=0, minloglevel=2)
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))


def write_hugging_face_form(directory: Path, positions: int) -> None:
    """tokenizer.json and tokenizer_config.json beside tokenizer.model."""
    from transformers import LlamaTokenizerFast

    tokenizer = LlamaTokenizerFast(vocab_file=str(directory / "tokenizer.model"), legacy=True, add_prefix_space=True, model_max_length=positions,
                                   clean_up_tokenization_spaces=False, chat_template=CHAT_TEMPLATE)
    tokenizer.save_pretrained(directory)
    (directory / "special_tokens_map.json").unlink(missing_ok=True)
    # With `add_prefix_space` in its configuration, transformers would convert tokenizer.model again at each load.
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["add_prefix_space"]
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    # Written compactly: the indented form is three times as large.
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
