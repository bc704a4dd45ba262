"""The requests that each model is asked, as a client would send them."""

import random
from dataclasses import dataclass, field
from typing import Callable

from . import corpus
from .reference import Answer, Reference

MAX_ATTEMPTS = 120

# Which models get a case. Every parameter is tried on one model of each kind of tokenizer and cache; the rest show that
# each variant of a family computes the same whatever the parameters.
EVERY = None
WHOLE = ("llama-multi-head", "falcon-7b-type", "mistral-window", "phi3-window")
LLAMA = ("llama-multi-head",)


@dataclass
class Case:
    """A kind of request. `parameters` makes `generate_kwargs` for a prompt, given what the model says greedily to it.

    Where `unlike` is given, the answer must differ from that to the same request with these parameters changed: a case
    in which its parameter does nothing shows nothing.
    """

    name: str
    parameters: Callable[["Context"], dict] | dict
    models: tuple[str, ...] | None = EVERY
    prompts: list[str] = field(default_factory=lambda: corpus.SHORT)
    request: dict = field(default_factory=dict)
    unlike: dict | None = None
    accept: Callable[[dict, Answer], bool] | None = None


class Context:
    """What a case may look at to choose parameters that matter for its prompt."""

    def __init__(self, reference: Reference, request: dict):
        self.reference = reference
        # -1 is no token: the answer goes on for 16 tokens.
        parameters = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": -1}
        answer = reference.answer({**request, "generate_kwargs": parameters})
        self.prompt_ids = answer.prompt_ids
        self.greedy = answer.new_tokens
        self._mean = answer.mean_probabilities

    def likely(self, count: int) -> list[int]:
        """Tokens that are likely all along but are not what greedy search begins with: good end tokens."""
        order = self._mean.argsort(descending=True).tolist()
        return [i for i in order if i not in self.greedy[:3]][:count]


def greedy(**parameters) -> dict:
    return {"do_sample": False, "max_new_tokens": 20, **parameters}


def beams(count: int, **parameters) -> dict:
    return {"do_sample": False, "num_beams": count, "max_new_tokens": 12, **parameters}


def groups(count: int, of: int, penalty: float, **parameters) -> dict:
    return beams(count, num_beam_groups=of, diversity_penalty=penalty, **parameters)


def draw(**parameters) -> dict:
    """One token, whose distribution is compared. `top_k` 0 switches the documented default of 10 off."""
    return {"max_new_tokens": 1, **parameters}


def _unequal_lengths(_request: dict, answer: Answer) -> bool:
    return len({len(s) for s in answer.sequences}) > 1


def _ends_early(request: dict, answer: Answer) -> bool:
    return len(answer.new_tokens) < request["generate_kwargs"]["max_new_tokens"]


def _several_kept(_request: dict, answer: Answer) -> bool:
    return len(answer.distribution) > 1


def _crosses_32(_request: dict, answer: Answer) -> bool:
    """Begins below the original length of the long-rope models and ends beyond it."""
    return len(answer.prompt_ids) < 32 < len(answer.sequences[0]) - 3


def _starts_beyond_32(_request: dict, answer: Answer) -> bool:
    return len(answer.prompt_ids) > 32


GREEDY = [
    Case("greedy", greedy()),
    Case("greedy, second prompt", greedy()),
    Case("greedy, long prompt", greedy(), prompts=corpus.LONG),
    Case("greedy, unicode", greedy(), prompts=corpus.UNICODE),
    Case("greedy, white space", greedy(), prompts=corpus.SPACES),
    Case("greedy to the default length", {"do_sample": False}, models=("llama-multi-head", "mistral-window"),
         accept=lambda _, a: len(a.new_tokens) > 60),
    Case("greedy to max_length", {"do_sample": False, "max_length": 40}),
    Case("max_new_tokens wins over max_length", greedy(max_length=12), models=LLAMA),
    Case("one new token", greedy(max_new_tokens=1), models=WHOLE),
    Case("sampling from one token", {"top_k": 1, "max_new_tokens": 12}, models=WHOLE),
    Case("several sequences of one token's choice", {"top_k": 1, "max_new_tokens": 8, "num_return_sequences": 3},
         models=WHOLE),
    Case("output scores", greedy(output_scores=True, return_dict_in_generate=True)),
    Case("output scores of processed logits", greedy(output_scores=True, repetition_penalty=1.4), models=WHOLE),
    Case("repetition penalty", greedy(repetition_penalty=1.5), unlike={"repetition_penalty": 1}),
    Case("reward for repetition", greedy(repetition_penalty=0.8), models=WHOLE, unlike={"repetition_penalty": 1}),
    Case("no repeated pair", greedy(no_repeat_ngram_size=2, max_new_tokens=40), models=WHOLE,
         unlike={"no_repeat_ngram_size": 0}),
    Case("no repeated token", greedy(no_repeat_ngram_size=1), unlike={"no_repeat_ngram_size": 0}),
    Case("no repeated triple", greedy(no_repeat_ngram_size=3), models=("falcon-7b-type", "falcon-40b-type-bf16"),
         unlike={"no_repeat_ngram_size": 0}),
    Case("nothing of the prompt again", greedy(encoder_no_repeat_ngram_size=1), unlike={"encoder_no_repeat_ngram_size": 0}),
    Case("no pair of the prompt again", greedy(encoder_no_repeat_ngram_size=2), models=("falcon-7b-type",),
         prompts=["os acc10 acc10 acc10", "he h cap lo lo lo", "wowo us090909 Setro pro090909"],
         unlike={"encoder_no_repeat_ngram_size": 0}),
    Case("bad words", lambda c: greedy(bad_words_ids=[[c.greedy[1]], [c.greedy[3], c.greedy[4]]]),
         unlike={"bad_words_ids": None}),
    Case("bad word that begins in the prompt", lambda c: greedy(bad_words_ids=[[c.prompt_ids[-1], c.greedy[0]]]),
         models=WHOLE, unlike={"bad_words_ids": None}),
    Case("bad words of three", lambda c: greedy(bad_words_ids=[c.greedy[2:5], c.greedy[7:10]]), models=WHOLE,
         unlike={"bad_words_ids": None}),
    Case("a bad word equal to the end token is dropped",
         lambda c: greedy(bad_words_ids=[[c.greedy[5]], [c.greedy[1]]], eos_token_id=c.greedy[5]), models=WHOLE,
         accept=_ends_early),
    Case("end token of the request", lambda c: greedy(eos_token_id=c.greedy[6])),
    Case("list of end tokens", lambda c: greedy(eos_token_id=[c.greedy[12], c.greedy[8]]), models=WHOLE,
         accept=_ends_early),
    Case("null switches off what the model sets", greedy(no_repeat_ngram_size=None), models=("llama-tied-bin-f16",),
         unlike={"no_repeat_ngram_size": 3}),
    Case("null end token falls back", greedy(eos_token_id=None, max_new_tokens=60), models=WHOLE, accept=_ends_early),
    Case("own end token", greedy(max_new_tokens=60), accept=_ends_early),
    Case("min_length", lambda c: greedy(eos_token_id=c.greedy[3], min_length=len(c.prompt_ids) + 9),
         unlike={"min_length": 0}),
    Case("min_length within the prompt does nothing", lambda c: greedy(eos_token_id=c.greedy[3], min_length=2), models=LLAMA),
    Case("min_length beyond the longest length", lambda c: greedy(eos_token_id=c.greedy[3], min_length=1000), models=WHOLE,
         unlike={"min_length": 0}),
    Case("min_new_tokens beyond the longest length", lambda c: greedy(eos_token_id=c.greedy[3], min_new_tokens=21),
         models=WHOLE, unlike={"min_new_tokens": None}),
    Case("min_length beyond the longest length, forced end",
         lambda c: greedy(eos_token_id=c.greedy[3], min_length=1000, forced_eos_token_id=c.greedy[3], max_new_tokens=9),
         models=LLAMA, unlike={"forced_eos_token_id": None}),
    Case("min_new_tokens", lambda c: greedy(eos_token_id=c.greedy[3], min_new_tokens=7), models=WHOLE,
         unlike={"min_new_tokens": None}),
    Case("forced end", lambda c: greedy(forced_eos_token_id=c.reference.end_tokens({})[0], max_new_tokens=10),
         unlike={"forced_eos_token_id": None}),
    Case("forced end that is no end token", lambda c: greedy(forced_eos_token_id=c.likely(1)[0], max_new_tokens=9), models=WHOLE,
         unlike={"forced_eos_token_id": None}),
    Case("forced end, several ids", lambda c: greedy(forced_eos_token_id=c.likely(3), max_new_tokens=9), models=WHOLE,
         unlike={"forced_eos_token_id": None}),
    Case("forced end against min_length",
         lambda c: {"do_sample": False, "max_length": len(c.prompt_ids) + 8, "min_length": len(c.prompt_ids) + 8,
                    "forced_eos_token_id": c.reference.end_tokens({})[0]}, models=WHOLE),
    Case("forced end that is a bad word", lambda c: greedy(forced_eos_token_id=c.greedy[2], bad_words_ids=[[c.greedy[2]]]),
         models=LLAMA, unlike={"forced_eos_token_id": None}),
    Case("forced first token", lambda c: greedy(forced_bos_token_id=c.likely(1)[0]), models=("llama-multi-head", "phi3-longrope"),
         prompts=[""], unlike={"forced_bos_token_id": None}),
    Case("forced first token does nothing after a prompt", lambda c: greedy(forced_bos_token_id=c.likely(1)[0]),
         models=LLAMA),
    Case("padding token", lambda c: greedy(pad_token_id=c.likely(1)[0], eos_token_id=c.greedy[4]), models=LLAMA),
    Case("remove_invalid_values", lambda c: greedy(remove_invalid_values=True, bad_words_ids=[[c.greedy[1]]]),
         models=WHOLE),
    Case("empty prompt", greedy(), models=("llama-multi-head", "falcon-7b-type", "mistral-window"), prompts=[""]),
    Case("processors together",
         lambda c: greedy(repetition_penalty=1.2, no_repeat_ngram_size=2, encoder_no_repeat_ngram_size=3,
                          bad_words_ids=[[c.greedy[0]], c.greedy[2:4]], eos_token_id=[c.greedy[1]],
                          min_length=len(c.prompt_ids) + 6, forced_eos_token_id=c.greedy[1])),
]  # fmt: skip

TEXT = [
    Case("new text only", greedy(), request={"return_full_text": False}),
    Case("null return_full_text is the full text", greedy(), request={"return_full_text": None}, models=LLAMA),
    Case("no clean-up where the request is silent",
         lambda c: greedy(max_new_tokens=1, forced_eos_token_id=c.reference.tokenizer.convert_tokens_to_ids(",")),
         request={"return_full_text": False}, prompts=["The answer is ", "In the beginning "], models=WHOLE,
         accept=lambda _, a: a.texts == [","]),
    Case("clean-up null, a space before a comma",
         lambda c: greedy(max_new_tokens=2, forced_eos_token_id=c.reference.tokenizer.convert_tokens_to_ids(",")),
         request={"return_full_text": False, "clean_up_tokenization_spaces": None}, prompts=["The answer is", "In the beginning"],
         models=LLAMA),
    Case("clean-up off", greedy(), request={"clean_up_tokenization_spaces": False}, prompts=corpus.SPACES[4:5],
         models=WHOLE),
    Case("clean-up on", greedy(), request={"clean_up_tokenization_spaces": True}, prompts=corpus.SPACES[4:5]),
    Case("clean-up null", greedy(), request={"clean_up_tokenization_spaces": None, "return_full_text": False},
         prompts=corpus.SPACES[4:5], models=WHOLE),
    Case("prefix", greedy(), request={"prefix": "In short: "}),
    Case("prefix counts in max_length and min_length",
         lambda c: {"do_sample": False, "max_length": len(c.prompt_ids) + 8, "min_length": len(c.prompt_ids) + 5,
                    "eos_token_id": [c.greedy[1], c.greedy[2]]},
         request={"prefix": "A knight said:"}, models=WHOLE),
    Case("no special tokens", greedy(), request={"add_special_tokens": False}, models=WHOLE),
    Case("no special tokens, those of the prompt", greedy(), request={"add_special_tokens": False, "return_full_text": False},
         prompts=["<s>Hello <s> the world.</s> end"], models=("llama-multi-head", "mistral-full-bf16", "phi3-window")),
    Case("no special tokens, prefix", greedy(), request={"add_special_tokens": False, "prefix": "So: "}, models=LLAMA),
    Case("special tokens of a prefix count in max_length",
         lambda c: {"do_sample": False, "max_length": len(c.prompt_ids) + 8, "min_length": len(c.prompt_ids) + 5,
                    "eos_token_id": [c.greedy[1], c.greedy[2]]},
         request={"prefix": "A knight said:", "add_special_tokens": True}, models=WHOLE),
    Case("prefix, new text only", greedy(), request={"prefix": "\u00bfqu\u00e9? ", "return_full_text": False}, models=WHOLE),
    Case("hole", greedy(max_new_tokens=24), request={"handle_long_generation": "hole"}, prompts=corpus.LONG,
         models=("falcon-7b-type", "llama-tied-bin-f16"), accept=lambda _, a: len(a.prompt_ids) == 40),
    Case("hole, new text only", greedy(max_new_tokens=50),
         request={"handle_long_generation": "hole", "return_full_text": False}, prompts=corpus.LONG + corpus.UNICODE,
         models=("falcon-7b-type", "llama-tied-bin-f16"), accept=lambda _, a: len(a.prompt_ids) == 14),
    Case("hole that is not needed", greedy(max_new_tokens=5), request={"handle_long_generation": "hole"},
         models=("llama-multi-head", "falcon-7b-type")),
    Case("start and end tokens in the prompt", greedy(),
         prompts=["Hello <s> the world.</s> end", "<s>[INST] What is a workspace? [/INST]", "</s><s> a</s>",
                  "<unk> and <s>  two spaces"],
         models=("llama-multi-head", "llama-grouped-sharded", "llama-tied-bin-f16", "mistral-full-bf16", "phi3-window",
                 "phi3-longrope")),
    Case("start and end tokens in the prompt, new text only", greedy(), request={"return_full_text": False},
         prompts=["the end</s>", "</s> ", "<s>", " <s> the end of</s>the"],
         models=("llama-multi-head", "llama-grouped-sharded", "llama-tied-bin-f16", "mistral-full-bf16", "phi3-window")),
    Case("Falcon's special tokens in the prompt", greedy(),
         prompts=[">>QUESTION<<What is a workspace?>>ANSWER<<", "the end<|endoftext|>\nThe answer"],
         models=("falcon-7b-type", "falcon-40b-type-bf16")),
    Case("Phi-3's special tokens in the prompt", greedy(),
         prompts=["<|user|>\nHow to explain Internet for a medieval knight?<|end|>\n<|assistant|>\n",
                  "<|user|> How to explain Internet for a medieval knight?<|end|><|assistant|>"],
         models=("phi3-window", "phi3-longrope", "phi3-su-bf16")),
    Case("Phi-3's special tokens, new text only", greedy(), request={"return_full_text": False},
         prompts=["<|system|>\nBe brief.<|end|>  \n\n <|user|>\nHi</s>  there<|end|>\n<|assistant|>\n"],
         models=("phi3-window", "phi3-longrope", "phi3-su-bf16")),
    Case("unicode, new text only", greedy(), request={"return_full_text": False}, prompts=corpus.UNICODE, models=WHOLE),
    Case("white space, new text only", greedy(), request={"return_full_text": False}, prompts=corpus.SPACES, models=WHOLE),
]  # fmt: skip

BEAMS = [
    Case("two beams", beams(2)),
    Case("three beams, three sequences", beams(3, num_return_sequences=3)),
    Case("five beams, new text only", beams(5, num_return_sequences=2), request={"return_full_text": False}, models=WHOLE),
    Case("beams that end early, early_stopping true",
         lambda c: beams(3, num_return_sequences=3, early_stopping=True, eos_token_id=c.likely(3)), accept=_unequal_lengths),
    Case("beams that end early, early_stopping false",
         lambda c: beams(3, num_return_sequences=3, early_stopping=False, eos_token_id=c.likely(3)), accept=_unequal_lengths),
    Case("beams that end early, early_stopping never",
         lambda c: beams(3, num_return_sequences=3, early_stopping="never", eos_token_id=c.likely(3)), models=WHOLE,
         accept=_unequal_lengths),
    Case("early_stopping true is not false", lambda c: beams(3, early_stopping=True, eos_token_id=c.likely(4)), models=WHOLE,
         unlike={"early_stopping": False}),
    Case("early_stopping never is not false",
         lambda c: beams(3, early_stopping="never", eos_token_id=c.likely(4), max_new_tokens=20, num_return_sequences=3),
         models=WHOLE,
         unlike={"early_stopping": False}),
    Case("early_stopping never, penalty against length",
         lambda c: beams(3, early_stopping="never", eos_token_id=c.likely(3), length_penalty=-0.5), models=LLAMA),
    Case("length_penalty 2", lambda c: beams(3, eos_token_id=c.likely(3), length_penalty=2.0), unlike={"length_penalty": 1.0}),
    Case("length_penalty 0", lambda c: beams(3, eos_token_id=c.likely(2), length_penalty=0.0), models=WHOLE,
         unlike={"length_penalty": 1.0}),
    Case("length_penalty -1", lambda c: beams(4, eos_token_id=c.likely(2), length_penalty=-1.0, num_return_sequences=4),
         models=WHOLE),
    Case("beams, repetition penalty", beams(3, repetition_penalty=1.3), unlike={"repetition_penalty": 1}),
    Case("beams, no repeated pair", beams(3, no_repeat_ngram_size=2, max_new_tokens=24), models=("falcon-7b-type",),
         unlike={"no_repeat_ngram_size": 0}),
    Case("beams, no repeated token", beams(2, no_repeat_ngram_size=1), models=WHOLE, unlike={"no_repeat_ngram_size": 0}),
    Case("beams, nothing of the prompt again", beams(3, encoder_no_repeat_ngram_size=1), models=WHOLE,
         unlike={"encoder_no_repeat_ngram_size": 0}),
    Case("beams, bad words", lambda c: beams(3, bad_words_ids=[[c.greedy[0]], c.greedy[1:3]]), models=WHOLE,
         unlike={"bad_words_ids": None}),
    Case("beams, min_length",
         lambda c: beams(3, eos_token_id=c.likely(3), min_length=len(c.prompt_ids) + 5, early_stopping=True), models=WHOLE,
         unlike={"min_length": 0}),
    Case("beams, min_length beyond the longest length",
         lambda c: beams(3, eos_token_id=c.likely(3), min_length=1000, num_return_sequences=3), models=WHOLE,
         unlike={"min_length": 0}),
    Case("beams, forced end",
         lambda c: beams(3, forced_eos_token_id=c.reference.end_tokens({})[0], max_new_tokens=6, num_return_sequences=2),
         unlike={"forced_eos_token_id": None}),
    Case("beams, end token is no special token",
         lambda c: beams(2, eos_token_id=c.likely(2)[::-1], num_return_sequences=2, early_stopping=True), models=WHOLE,
         accept=_ends_early),
    Case("beams, padding token", lambda c: beams(3, eos_token_id=c.likely(3), pad_token_id=c.likely(6)[5],
                                                  num_return_sequences=3, early_stopping=True), models=WHOLE,
         accept=_unequal_lengths),
    Case("beams, output scores", beams(3, output_scores=True, return_dict_in_generate=True, num_return_sequences=2),
         models=WHOLE),
    Case("beams, max_length", {"do_sample": False, "num_beams": 4, "max_length": 30}, models=WHOLE),
    Case("beams, long prompt", beams(3), prompts=corpus.LONG),
    Case("beams, prefix", beams(2), request={"prefix": "So: "}, models=LLAMA),
    Case("groups of two", groups(4, 2, 0.6, num_return_sequences=4)),
    Case("groups of one", groups(3, 3, 1.0, num_return_sequences=3), models=WHOLE, unlike={"diversity_penalty": 0.01}),
    Case("three groups that end early",
         lambda c: groups(6, 3, 0.8, num_return_sequences=6, eos_token_id=c.likely(3), early_stopping=True), models=WHOLE,
         accept=_unequal_lengths),
    Case("groups, early_stopping false",
         lambda c: groups(4, 2, 0.4, num_return_sequences=3, eos_token_id=c.likely(3)), accept=_unequal_lengths),
    Case("groups, length and repetition penalty",
         lambda c: groups(4, 2, 0.7, num_return_sequences=2, eos_token_id=c.likely(2), length_penalty=0.5,
                          repetition_penalty=1.2), models=WHOLE, unlike={"repetition_penalty": 1}),
    Case("groups, processors together",
         lambda c: groups(4, 4, 0.9, num_return_sequences=4, no_repeat_ngram_size=2, bad_words_ids=[[c.greedy[0]]],
                          eos_token_id=c.likely(2), min_length=len(c.prompt_ids) + 4), models=WHOLE),
]  # fmt: skip

USER = {"role": "user", "content": "What is a workspace?"}
SYSTEM = {"role": "system", "content": "Answer in one word."}
TURNS = [USER, {"role": "assistant", "content": " A name for what you want. "}, {"role": "user", "content": "And a preset?"}]


def _chat(name: str, messages: list[dict], models: tuple[str, ...], parameters=None) -> Case:
    return Case(name, parameters or greedy(), models, prompts=[None],
                request={"messages": messages, "return_full_text": False})  # fmt: skip


CHAT = [
    _chat("chat", [USER], ("llama-multi-head", "mistral-full-bf16", "phi3-window", "phi3-longrope")),
    _chat("chat with a system text", [SYSTEM, USER], ("llama-multi-head", "phi3-window", "phi3-su-bf16")),
    _chat("chat of several turns", TURNS, ("llama-multi-head", "mistral-full-bf16", "phi3-window")),
    _chat("chat of several turns with a system text", [SYSTEM, *TURNS], ("llama-multi-head", "phi3-longrope")),
    Case("chat without special tokens", greedy(), ("llama-multi-head", "mistral-full-bf16"), prompts=[None],
         request={"messages": TURNS, "return_full_text": False, "add_special_tokens": False}),
    _chat("chat by beams", TURNS, ("llama-multi-head", "phi3-window"), beams(3, num_return_sequences=2)),
]

LONG_ROPE = [
    Case("crosses the original length", greedy(max_new_tokens=40), accept=_crosses_32),
    Case("crosses the original length, second prompt", greedy(max_new_tokens=40), accept=_crosses_32),
    Case("reaches the original length exactly", {"do_sample": False, "max_length": 32},
         accept=lambda _, a: len(a.sequences[0]) == 32),
    Case("goes one beyond the original length", {"do_sample": False, "max_length": 34},
         accept=lambda _, a: len(a.sequences[0]) == 34),
    Case("prompt beyond the original length", greedy(), prompts=corpus.LONG, accept=_starts_beyond_32),
    Case("beams cross the original length", beams(3, max_new_tokens=24, num_return_sequences=3), accept=_crosses_32),
    Case("groups cross the original length", groups(4, 2, 0.7, max_new_tokens=24, num_return_sequences=4),
         accept=_crosses_32),
    Case("repetition penalty across the original length", greedy(max_new_tokens=40, repetition_penalty=1.4),
         accept=_crosses_32),
]  # fmt: skip
for _case in LONG_ROPE:
    _case.models = ("phi3-longrope", "phi3-su-bf16")

DRAWS = [
    Case("draw by default", draw()),
    Case("draw from everything", draw(top_k=0), models=("llama-multi-head", "falcon-40b-type-bf16")),
    Case("draw, temperature", draw(temperature=0.6)),
    Case("draw, high temperature", draw(temperature=1.7, top_k=25), models=WHOLE),
    Case("draw, top_k", draw(top_k=4), models=WHOLE),
    Case("draw, top_p", draw(top_k=0, top_p=0.8), accept=_several_kept),
    Case("draw, top_k then top_p", draw(top_k=8, top_p=0.7, temperature=1.3), models=WHOLE, accept=_several_kept),
    Case("draw, typical_p", draw(top_k=0, typical_p=0.6), accept=_several_kept),
    Case("draw, typical_p small", draw(top_k=0, typical_p=0.2), models=WHOLE),
    Case("draw, everything at once", draw(temperature=1.4, top_k=30, top_p=0.9, typical_p=0.8), models=WHOLE,
         accept=_several_kept),
    Case("draw, repetition penalty", draw(repetition_penalty=1.5, top_k=20), models=WHOLE),
    Case("draw, bad words and no repeats",
         lambda c: draw(bad_words_ids=[[c.greedy[0]]], no_repeat_ngram_size=1, temperature=0.8), models=WHOLE),
    Case("draw, min_length", lambda c: draw(eos_token_id=c.greedy[0], min_length=len(c.prompt_ids) + 1, top_k=12), models=WHOLE),
    Case("draw, min_length beyond the longest length", lambda c: draw(eos_token_id=c.greedy[0], min_length=1000), models=WHOLE),
    Case("draw, no special tokens", draw(), request={"add_special_tokens": False}, models=("llama-multi-head", "mistral-window")),
    Case("draw, forced end", lambda c: {"max_length": len(c.prompt_ids) + 1, "forced_eos_token_id": c.greedy[3]}, models=LLAMA),
    Case("draw, long prompt", draw(top_p=0.9), prompts=corpus.LONG),
    Case("draw, prefix", draw(top_k=6), request={"prefix": "Say: "}, models=LLAMA),
]  # fmt: skip

ALL = [*GREEDY, *TEXT, *BEAMS, *CHAT, *LONG_ROPE, *DRAWS]


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")


def _expectation(request: dict, answer: Answer) -> dict:
    expected = {"prompt_ids": answer.prompt_ids}
    if Reference.is_draw(request):
        return {**expected, "distribution": [[i, _rounded(p)] for i, p in sorted(answer.distribution.items())]}
    expected["sequences"] = answer.sequences
    expected["texts"] = answer.texts
    if answer.sequences_scores is not None:
        expected["sequences_scores"] = [_rounded(s) for s in answer.sequences_scores]
    elif request["generate_kwargs"].get("output_scores"):
        expected["log_probs"] = [_rounded(p) for p in answer.log_probs]
    return expected


def _prompt(case: Case, stream: random.Random, attempt: int) -> str | None:
    if attempt < len(case.prompts):
        return case.prompts[(stream.randrange(1 << 20) if len(case.prompts) > 6 else attempt) % len(case.prompts)]
    # The pool is used up: a prompt more, in front of one of the pool.
    words = stream.choice(corpus.TRAINING_TEXT.split("\n")).split(" ")
    more = " ".join(words[: stream.randrange(1, 5)])
    chosen = stream.choice(case.prompts)
    return None if chosen is None else f"{more} {chosen}" if chosen else chosen


def _answer_case(case: Case, reference: Reference, seed: int) -> dict | None:
    stream = random.Random(f"{seed} {case.name}")
    for attempt in range(MAX_ATTEMPTS):
        request = dict(case.request)
        prompt = _prompt(case, stream, attempt)
        if prompt is not None:
            request = {"prompt": prompt, **request}
        parameters = case.parameters
        if callable(parameters):
            parameters = parameters(Context(reference, request))
        request["generate_kwargs"] = parameters
        answer = reference.answer(request)
        if case.accept is not None and not case.accept(request, answer):
            continue
        if case.unlike is not None:
            other = reference.answer({**request, "generate_kwargs": {**parameters, **case.unlike}})
            if other.sequences == answer.sequences:
                continue
        if not reference.is_well_separated(request, answer):
            continue
        return {"name": case.name, "request": request, "expect": _expectation(request, answer)}
    return None


def answer_cases(name: str, reference: Reference, seed: int) -> list[dict]:
    """Every case of the model `name` with its answer. A case for which no prompt works is an error."""
    answered = []
    failed = []
    for case in ALL:
        if case.models is not None and name not in case.models:
            continue
        result = _answer_case(case, reference, seed)
        if result is None:
            failed.append(case.name)
        else:
            answered.append(result)
    if failed:
        raise RuntimeError(f"{name}: no prompt found for the cases {failed}")
    return answered
