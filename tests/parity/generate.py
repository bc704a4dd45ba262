#!/usr/bin/env python3
"""Makes the fixtures: tiny models, and what the reference implementations answer for them.

    generate.py fixtures                                    every model of the Hugging Face format
    generate.py fixtures --only llama-multi-head            one model (may be given again)
    generate.py fixtures --llama-code DIR                   also Meta's format, by Meta's Llama 2 code in DIR

With --check the given folder is left as it is and compared with what would be made: weights and tokenizers byte for byte,
tokens and texts exactly, scores and probabilities to 1e-4.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers

from parity_reference import cases, compare, models
from parity_reference.reference import Reference


def write_cases(path: Path, answered: list[dict]):
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in answered)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def make(model: models.TinyModel, directory: Path) -> int:
    models.build(model, directory)
    answered = cases.answer_cases(model.name, Reference(directory), model.seed)
    write_cases(directory / "cases.json", answered)
    return len(answered)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("--only", action="append", metavar="NAME", help="only models whose name starts with NAME")
    parser.add_argument("--llama-code", type=Path, metavar="DIR", help="a checkout of Meta's Llama 2 code")
    parser.add_argument("--check", action="store_true", help="compare instead of replacing")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")

    makers = {model.name: lambda directory, model=model: make(model, directory) for model in models.MODELS}
    if arguments.llama_code is not None:
        from parity_reference import meta

        makers.update(meta.makers(arguments.llama_code, write_cases))
    differences = 0
    for name, maker in makers.items():
        if arguments.only and not any(name.startswith(only) for only in arguments.only):
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / name
            count = maker(made)
            committed = arguments.fixtures / name
            if arguments.check:
                found = compare.directories(committed, made)
                differences += len(found)
                print("\n".join(f"{name}: {difference}" for difference in found) or f"{name}: the same", file=sys.stderr)
            else:
                shutil.rmtree(committed, ignore_errors=True)
                shutil.copytree(made, committed)
        print(f"{name}: {count} cases in {time.monotonic() - started:.0f} s", flush=True)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
