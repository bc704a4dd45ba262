"""`tests/vllm/gpu-check`, which is for a machine with a GPU: what it says without one, of a GPU that does not suffice, and on CPUs."""

import importlib.machinery
import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest
from engines import ENVIRONMENT, PYTHON
from serving import BINARY, REPOSITORY

CHECKS = "vllm/gpu-check"
SCRIPT = REPOSITORY / "tests/vllm/gpu-check"
LOADER = importlib.machinery.SourceFileLoader("gpu_check", str(SCRIPT))
gpu_check = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", LOADER))
LOADER.exec_module(gpu_check)


def run(*flags: str, path: str | None = None, limit: float = 120) -> tuple[int, dict[str, tuple[str, str]]]:
    """Its exit status, and its table: the result of each check, and what is said of it. vLLM starts as it does by itself."""
    done = subprocess.run([SCRIPT, "--kaito", BINARY, *flags], capture_output=True, text=True, timeout=limit,
                          env=os.environ | ENVIRONMENT | {"PYTHONPATH": ""} | ({"PATH": path} if path else {}))
    assert not done.stderr, done.stderr
    rows = [[line[:22].strip(), line[24:35].strip(), line[37:].strip()] for line in done.stdout.splitlines()]
    return done.returncode, {name: (result, words) for name, result, words in rows}


def program(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)
    return file


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_what_it_could_not_check(tmp_path):
    status, table = run("--vllm", "no-such-program")
    assert status == 3
    assert table["GPU"] == ("not checked", "no GPU: there is no nvidia-smi")
    assert table["vLLM"] == ("not checked", "there is no program no-such-program")
    assert {result for result, _ in table.values()} == {"not checked"}


def test_a_gpu_that_does_not_suffice_fails(tmp_path):
    said = json.dumps({"vllm": "0.32.0", "torch": "2.13.0", "cuda": "13.0", "gpus": 1})
    python = program(tmp_path, "python", f"#!/bin/sh\necho '{said}'\n")
    vllm = program(tmp_path, "vllm", f"#!{python}\n")
    program(tmp_path, "nvidia-smi", "#!/bin/sh\necho 'Tesla K80, 11441 MiB, 3.7, 470.256.02'\n")
    status, table = run("--vllm", str(vllm), path=f"{tmp_path}:{os.environ['PATH']}")
    assert status == 1
    assert table["GPU"] == ("ok", "1 x Tesla K80, 11441 MiB, compute capability 3.7, driver 470.256.02")
    assert table["compute capability"] == ("FAILED", "vLLM needs 7.0 at least")
    assert table["driver and CUDA"] == ("FAILED", "CUDA 13.0 needs driver 580 at least, and there is 470.256.02")
    # This vLLM serves nothing.
    assert table["demo model"][0] == table["out of GPU memory"][0] == "FAILED"
    assert table["tokens"] == ("not checked", "the model is not served")


def test_two_gpus_are_read():
    found = gpu_check.gpus("NVIDIA H200, 143771 MiB, 9.0, 580.82.07\nNVIDIA A10, 23028 MiB, 8.6, 580.82.07\n")
    assert [(gpu["name"], gpu["mib"], gpu["capability"]) for gpu in found] == [
        ("NVIDIA H200", 143771, (9, 0)), ("NVIDIA A10", 23028, (8, 6))]


def test_answers_part_at_another_token_but_not_at_a_tie():
    def choice(*tokens, best=(-0.1, -2.0)):
        scores = [{"a": best[0], "b": best[1]}] * len(tokens)
        return {"token_ids": list(tokens), "logprobs": {"top_logprobs": scores}}

    assert gpu_check.differing(choice(1, 2, 3), choice(1, 2, 3)) is None
    assert gpu_check.differing(choice(1, 2, 3), choice(1, 4, 3)) == 1
    assert gpu_check.differing(choice(1, 2, 3), choice(1, 2)) == 2
    assert gpu_check.differing(choice(1, 2, best=(-0.6931, -0.6932)), choice(1, 4)) is None


def test_on_cpus_all_but_the_gpu_is_checked():
    status, table = run("--cpu", "--vllm", str(Path(PYTHON).with_name("vllm")), limit=540)
    assert status == (3 if table["GPU"][0] == "not checked" else 1), table
    for name in ("vLLM", "demo model", "tokens", "throughput", "end"):
        assert table[name][0] == "ok", table
