"""What transformers answers to a request, in f32 on one CPU thread, with padding off."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, TextGenerationPipeline
from transformers.pipelines.text_generation import Chat

# The documented defaults of a request; they go over generation_config.json.
DOCUMENTED_DEFAULTS = {
    "max_length": 200,
    "min_length": 0,
    "do_sample": True,
    "early_stopping": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 10,
    "top_p": 1,
    "typical_p": 1,
    "repetition_penalty": 1,
}
# What a case is tried with again to see that no decision hangs on rounding: a hundred times f32's own error.
NOISE = 1e-3
NOISE_TRIALS = 2


@dataclass
class Answer:
    prompt_ids: list[int]
    sequences: list[list[int]]
    texts: list[str]
    sequences_scores: list[float] | None
    log_probs: list[float] | None
    distribution: dict[int, float]
    mean_probabilities: torch.Tensor
    smallest_margin: float

    @property
    def new_tokens(self) -> list[int]:
        return self.sequences[0][len(self.prompt_ids) :]


def _reordered_cache(cache, beam_indices):
    """What the library does after each step of a beam search, and what it forgets.

    When Phi-3 computes its keys again at the long-rope switch, the library hands back the cache as bare tuples, and its
    own reordering then refuses them. The same cache as an object is reordered like any other.
    """
    if not isinstance(cache, DynamicCache):
        cache = DynamicCache.from_legacy_cache(cache)
    cache.reorder_cache(beam_indices)
    return cache


class Reference:
    def __init__(self, directory: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32).eval()
        assert self.model.config._attn_implementation == "sdpa", "the figures are for the library's default attention"
        self.pipeline = TextGenerationPipeline(model=self.model, tokenizer=self.tokenizer)
        self._generate = self.model.generate
        self.model._temporary_reorder_cache = _reordered_cache

    def end_tokens(self, parameters: dict) -> list[int]:
        """The request's, else the generation config's, else the tokenizer's."""
        for ids in (parameters.get("eos_token_id"), self.model.generation_config.eos_token_id, self.tokenizer.eos_token_id):
            if ids is not None:
                return ids if isinstance(ids, list) else [ids]
        return []

    @torch.no_grad()
    def answer(self, request: dict, noise: torch.Generator | None = None) -> Answer:
        parameters = {**DOCUMENTED_DEFAULTS, **(request.get("generate_kwargs") or {})}
        for name in ("output_scores", "return_dict_in_generate"):
            parameters.pop(name, None)
        ends = self.end_tokens(parameters)
        parameters["eos_token_id"] = ends
        if "add_special_tokens" in request:
            parameters["add_special_tokens"] = request["add_special_tokens"]
        preprocess, forward, postprocess = self.pipeline._sanitize_parameters(
            return_full_text=request.get("return_full_text"),
            # Kaito passes false where the request is silent, and a null as it is, which is true to the pipeline.
            clean_up_tokenization_spaces=request.get("clean_up_tokenization_spaces", False),
            prefix=request.get("prefix"),
            handle_long_generation=request.get("handle_long_generation"),
            **parameters,
        )
        # With it the tokenizer would silently cut the prompt to max_length.
        preprocess.pop("max_length", None)
        text = Chat(request["messages"]) if "messages" in request else request["prompt"]
        inputs = self.pipeline.preprocess(text, **preprocess)
        captured = {}

        def generate(**kwargs):
            captured["output"] = self._generate(
                **kwargs, return_dict_in_generate=True, output_scores=True, output_logits=True
            )
            return captured["output"].sequences

        hook = None
        if noise is not None:
            hook = self.model.register_forward_hook(lambda _module, _inputs, output: self._add_noise(output, noise))
        self.model.generate = generate
        try:
            outputs = self.pipeline._forward(inputs, **forward)
        finally:
            self.model.generate = self._generate
            if hook is not None:
                hook.remove()
        return self._answer(outputs, captured["output"], ends, postprocess)

    @staticmethod
    def _add_noise(output, noise: torch.Generator):
        output.logits = output.logits + (torch.rand(output.logits.shape, generator=noise) * 2 - 1) * NOISE
        return output

    def _answer(self, outputs: dict, output, ends: list[int], postprocess: dict) -> Answer:
        input_ids = outputs["input_ids"]
        prompt_ids = [] if input_ids is None else input_ids[0].tolist()
        sequences = []
        for row in output.sequences.tolist():
            # Beams of unequal length are padded after their end token; padding is no part of an answer.
            start = max(len(prompt_ids), 1)
            end = next((i + 1 for i in range(start, len(row)) if row[i] in ends), len(row))
            sequences.append(row[:end])
        texts = []
        for sequence in sequences:
            record = {**outputs, "generated_sequence": torch.tensor([[sequence]])}
            texts.append(self.pipeline.postprocess(record, **postprocess)[0]["generated_text"])
        beams = getattr(output, "sequences_scores", None)
        log_probs = None
        margin = float("inf")
        if beams is None:
            scores = self.model.compute_transition_scores(output.sequences[:1], [s[:1] for s in output.scores], normalize_logits=True)
            log_probs = scores[0].tolist()
            for step in output.scores:
                first, second = step[0].topk(2).values.tolist()
                # Forced tokens all score exactly 0: a tie by rule, which rounding cannot break.
                margin = margin if first == second == 0 else min(margin, first - second)
        probabilities = torch.softmax(output.scores[0][0], dim=-1)
        return Answer(
            prompt_ids=prompt_ids,
            sequences=sequences,
            texts=texts,
            sequences_scores=None if beams is None else beams.tolist(),
            log_probs=log_probs,
            distribution={i: float(probabilities[i]) for i in probabilities.nonzero().flatten().tolist()},
            mean_probabilities=torch.stack([torch.softmax(step[0], dim=-1) for step in output.logits]).mean(dim=0),
            smallest_margin=margin,
        )

    def is_well_separated(self, request: dict, answer: Answer) -> bool:
        """Whether the same request has the same answer when every logit is off by up to `NOISE`.

        This covers every kind of decision alike: the choice of a token, the order of candidates, the end of a beam
        search, the edge of a nucleus.
        """
        sampled = (request.get("generate_kwargs") or {}).get("do_sample", True)
        if not sampled and answer.smallest_margin < NOISE:
            return False
        for trial in range(NOISE_TRIALS):
            noisy = self.answer(request, torch.Generator().manual_seed(trial))
            if noisy.sequences != answer.sequences and not self.is_draw(request):
                return False
            if noisy.distribution.keys() != answer.distribution.keys() and self.is_draw(request):
                return False
        return True

    @staticmethod
    def is_draw(request: dict) -> bool:
        """Whether the answer is drawn: then the distribution is what is compared."""
        parameters = request.get("generate_kwargs") or {}
        return parameters.get("do_sample", True) and parameters.get("top_k", 10) != 1
