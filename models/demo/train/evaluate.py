"""Asks the demo model the questions of eval.txt, with transformers, and counts the answers that hold their key words.

    python evaluate.py ..
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Case:
    section: str
    question: str
    # Every inner list is satisfied when one of its words occurs.
    words: list[list[str]]

    def holds(self, answer: str) -> bool:
        return all(any(word in answer.lower() for word in choice) for choice in self.words)


def read_cases(path: Path = Path(__file__).parent / "eval.txt") -> list[Case]:
    cases, section = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if match := re.fullmatch(r"\[(.+)\]", line):
            section = match[1]
        elif line and not line.startswith("#"):
            question, words = line.split(" => ")
            cases.append(Case(section, question.strip(), [[w.strip().lower() for w in choice.split("|")] for choice in words.split("&")]))
    return cases


def main():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("--draws", type=int, default=3, help="sampled answers per question")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--verbose", action="store_true")
    arguments = arguments.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    tokenizer.pad_token_id = 0
    model = AutoModelForCausalLM.from_pretrained(arguments.model, torch_dtype=torch.float32)
    cases = read_cases()

    def answers(prompts, special, **settings):
        batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=special)
        with torch.no_grad():
            out = model.generate(**batch, max_new_tokens=120, pad_token_id=0, **settings)
        return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1]:], skip_special_tokens=True)

    greedy = dict(do_sample=False, temperature=None, top_p=None)
    # What a request to /chat gets when it sets nothing.
    sampled = dict(do_sample=True, temperature=1.0, top_k=10, top_p=1.0)
    forms = {
        "chat": ([tokenizer.apply_chat_template([{"role": "user", "content": c.question}], tokenize=False) for c in cases], False),
        "bare": ([c.question for c in cases], True),
    }
    for form, (prompts, special) in forms.items():
        for name, settings, draws in (("greedy", greedy, 1), ("sampled", sampled, arguments.draws)):
            right = {}
            for draw in range(draws):
                for case, answer in zip(cases, answers(prompts, special, **settings), strict=True):
                    held = case.holds(answer)
                    right.setdefault(case.section, []).append(held)
                    if arguments.verbose or (not held and name == "greedy"):
                        print(f"  {form} {name} {'ok  ' if held else 'MISS'} {case.question!r} -> {answer.strip()!r}")
            for section, marks in right.items():
                print(f"{form:5} {name:8} {section:9} {sum(marks):4} of {len(marks):4} = {100 * sum(marks) / len(marks):.1f}%")


if __name__ == "__main__":
    main()
