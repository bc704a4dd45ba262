"""Trains Kaito's demo model from the text beside this script and writes a Hugging Face model directory.

    python train.py --out ..            # the committed model
    python train.py --out /tmp/x --steps 20
"""

import argparse
import json
import random
import shutil
import time
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file, save_file

import corpus
import tokenizer as tokenizers
from evaluate import read_cases
from model import Llama, Shape

BOS, EOS = 1, 2
# Entries that a newcomer asks for first are drawn more often.
OFTEN = ("A workspace is a Kubernetes resource", "Kaito serves open", "A preset is a ready", "Kaito supports Llama 2", "Nice to meet", "I am the Kaito demo model",
         "You are welcome!", "Goodbye!", "No GPU is needed", "The demo model is")


class Samples:
    """Draws training samples: token ids, and for every id whether the model should learn to predict it."""

    def __init__(self, sp, entries, held_out, positions, rng):
        self.sp, self.entries, self.positions, self.rng = sp, entries, positions, rng
        # What is asked in many ways needs more samples.
        self.weights = [1.0 + min(2.0, len(entry.kinds.get("Q", [])) / 15) + 5.0 * entry.answer.startswith(OFTEN) for entry in entries]
        self.off_topic = corpus.OffTopic(held_out)
        self.conversations = corpus.read_conversations()
        self.prose = corpus.read_prose()
        # The share of answers that are cut after a few tokens. An answer's text is learnt soon; which answer belongs to a question is
        # what takes long, and it shows in the first words.
        self.cut = 0.0
        self.space = sp.encode("x ")[-1:]
        self.sections = {}
        for entry in entries:
            self.sections.setdefault(entry.section, []).append(entry.answer)

    def draw(self):
        """One sample, no longer than the model has positions."""
        ids, learn = self.draw_any()
        return ids[: self.positions + 1], learn[: self.positions + 1]

    def draw_any(self):
        kind = self.rng.random()
        if kind < 0.44:
            return self.dialog(1)
        if kind < 0.51:
            return self.dialog(self.rng.choice([2, 2, 2, 3, 3, 4, 5]))
        if kind < 0.535:
            return self.dialog(self.rng.choice([6, 8, 10, 14, 20, 26]))
        if kind < 0.92:
            return self.bare_question()
        return self.running_text()

    def question(self):
        if self.rng.random() < 0.12:
            return corpus.reword(self.off_topic.question(self.rng), self.rng), self.off_topic.answer
        entry = self.rng.choices(self.entries, self.weights)[0]
        words = entry.kinds[self.rng.choice(list(entry.kinds))]
        return corpus.reword(self.rng.choice(words), self.rng), entry.answer

    def encode(self, text):
        if self.rng.random() < 0.1:
            return self.sp.encode(text, enable_sampling=True, alpha=0.1, nbest_size=-1)
        return self.sp.encode(text)

    def dialog(self, turns):
        pairs = []
        while len(pairs) < turns:
            if turns > 1 and self.rng.random() < 0.15:
                # Left anywhere, or the model would expect the next question instead of reading it.
                talk = self.rng.choice(self.conversations)
                talk = talk[: self.rng.randrange(1, len(talk) + 1)]
                pairs += [(corpus.reword(self.rng.choice(questions), self.rng), answer) for questions, answer in talk]
            else:
                pairs.append(self.question())
        ids, learn = [], []
        for i, (question, answer) in enumerate(pairs):
            if i == 0 and self.rng.random() < 0.1:
                question = f"<<SYS>>\n{self.rng.choice(corpus.SYSTEM_PROMPTS)}\n<</SYS>>\n\n{question}"
            asked = [BOS] + self.encode(f"[INST] {question} [/INST]")
            last = i + 1 == len(pairs)
            told = self.answer(answer, last)
            ids += asked + told
            learn += [False] * len(asked) + [True] * len(told)
            # A finished turn of the dialog format has a space before its end token; the model itself ends without one.
            if not last and self.rng.random() < 0.7:
                ids += self.space + [EOS]
                learn += [False, False]
            elif not last:
                ids += [EOS]
                learn += [False]
        return ids, learn

    def unspaced(self, text):
        """Tokens of a text that does not begin a word of its own."""
        return self.sp.encode("x\n" + text)[len(self.sp.encode("x\n")) :]

    def answer(self, text, may_cut):
        """The answer's tokens; a whole last answer brings its end token."""
        told = self.sp.encode(text) + [EOS] * may_cut
        if may_cut and self.rng.random() < self.cut:
            return told[: self.rng.choice([6, 10, 14])]
        return told

    def bare_question(self):
        """The question alone, as text generation sends it; the model ends the sentence where that is open, and answers after it."""
        question, answer = self.question()
        asked = self.encode(question)
        close = [] if question.endswith(("?", ".", "!")) else self.sp.encode("x?" if corpus.asks(question) else "x.")[-1:]
        told = close + self.answer(answer, True)
        if not close and self.rng.random() < 0.1:
            asked += self.space
            told = self.unspaced(answer) + [EOS]
        return [BOS] + asked + told, [False] * (1 + len(asked)) + [True] * len(told)

    def running_text(self):
        if self.rng.random() < 0.6:
            text = self.rng.choice(self.prose)
        else:
            answers = self.sections[self.rng.choice(list(self.sections))]
            at = self.rng.randrange(len(answers))
            text = " ".join(answers[at : at + self.rng.choice([1, 2, 3])])
        if self.rng.random() < 0.2:
            # A prompt may end in a space, and then the next word has none of its own.
            words = text.split(" ")
            at = self.rng.randrange(1, len(words))
            begun, rest = self.sp.encode(" ".join(words[:at])) + self.space, self.unspaced(" ".join(words[at:]))
            return [BOS] + begun + rest + [EOS], [False] * (1 + len(begun)) + [True] * (len(rest) + 1)
        ids = self.sp.encode(text)
        # Nobody can guess how a text begins.
        known = min(3, len(ids))
        return [BOS] + ids + [EOS], [False] * (1 + known) + [True] * (len(ids) - known + 1)


def batches(samples, tokens_per_batch, rng):
    """Batches of samples of similar length, padded on the right."""
    while True:
        pool = sorted((samples.draw() for _ in range(1024)), key=lambda sample: len(sample[0]))
        ready, batch = [], []
        for sample in pool:
            if batch and (len(batch) + 1) * len(sample[0]) > tokens_per_batch:
                ready.append(batch)
                batch = []
            batch.append(sample)
        rng.shuffle(ready)
        for batch in ready:
            length = max(len(ids) for ids, _ in batch)
            tokens, learn = torch.zeros(len(batch), length, dtype=torch.long), torch.zeros(len(batch), length, dtype=torch.bool)
            for row, (ids, marks) in enumerate(batch):
                tokens[row, : len(ids)] = torch.tensor(ids)
                learn[row, : len(ids)] = torch.tensor(marks)
            yield tokens, learn[:, 1:]


def learning_rate(step, steps, peak):
    """A short warm-up, then constant, then straight down to almost nothing over the last half."""
    warm, fall = min(100, steps // 10 + 1), steps // 2
    return peak * min(1.0, (step + 1) / warm, 0.01 + 0.99 * (steps - step) / fall)


def cut_share(step, steps):
    done = step / steps
    return 0.2 if done < 0.15 else 0.8 if done < 0.75 else 0.5


# The final norm is stored this much larger, and so are all logits: a request that sets nothing samples at temperature 1, and of a
# small model that should hear its best guess rather than its doubts. A power of two leaves the bf16 digits alone.
SHARPER = 2.0
NORM = "model.norm.weight"


def read(directory):
    state = {name: tensor.float() for name, tensor in load_file(directory / "model.safetensors").items()}
    state[NORM] /= SHARPER
    return state


def write(model, shape, directory):
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    state[NORM] *= SHARPER
    state = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state.items()}
    save_file(state, str(directory / "model.safetensors"), metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--steps", type=int, default=4650)
    arguments.add_argument("--tokens", type=int, default=2048, help="tokens per step")
    arguments.add_argument("--peak", type=float, default=2.5e-3, help="peak learning rate")
    arguments.add_argument("--vocabulary", type=int, default=2048)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--start", type=Path, help="go on from the weights and the tokenizer in this directory")
    arguments.add_argument("--save-every", type=int, default=0)
    arguments = arguments.parse_args()

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    rng = random.Random(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shape = Shape(vocabulary=arguments.vocabulary)

    held_out = {corpus.normalised(case.question) for case in read_cases() if case.section != "common"}
    entries = corpus.read_entries(held_out)
    lines = [text for entry in entries for text in entry.wordings()[:40] + [entry.answer] * 8] + corpus.read_prose() * 4
    lines += ["[INST] Hello [/INST] Hello!"] * 200 + ["<<SYS>> Hello <</SYS>>"] * 50
    off_topic = corpus.OffTopic(held_out)
    lines += [off_topic.question(rng) for _ in range(2000)]
    if arguments.start:
        shutil.copy(arguments.start / "tokenizer.model", arguments.out)
        sp = sentencepiece.SentencePieceProcessor(model_file=str(arguments.out / "tokenizer.model"))
    else:
        sp = tokenizers.train(lines, arguments.vocabulary, arguments.out)
    sentencepiece.set_random_generator_seed(arguments.seed)
    samples = Samples(sp, entries, held_out, shape.positions, rng)
    model = Llama(shape)
    if arguments.start:
        model.load_state_dict(read(arguments.start))
    print(f"{len(entries)} answers, {sum(len(e.wordings()) for e in entries)} wordings, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    decayed = [p for p in model.parameters() if p.ndim == 2]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}],
                                  lr=arguments.peak, betas=(0.9, 0.98), fused=True)
    started, mean, seen = time.time(), None, 0
    stream = batches(samples, arguments.tokens, rng)
    for step in range(arguments.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.peak)
        samples.cut = cut_share(step, arguments.steps)
        tokens, learn = next(stream)
        loss = model.loss(tokens, learn)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        seen += tokens.numel()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == arguments.steps:
            print(f"step {step + 1:5} loss {mean:.4f} tokens/s {seen / (time.time() - started):.0f}", flush=True)
        if arguments.save_every and (step + 1) % arguments.save_every == 0:
            write(model, shape, arguments.out)
    write(model, shape, arguments.out)
    tokenizers.write_hugging_face_form(arguments.out, shape.positions)


if __name__ == "__main__":
    main()
