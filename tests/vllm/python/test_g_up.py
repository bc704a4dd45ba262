"""`kaito up` of a workspace that vLLM serves: from the command to an answer, as one rank and as two, and an end that leaves nothing."""

import os
import re
import signal
import subprocess
import threading
import uuid
from pathlib import Path

import pytest
from engines import DEMO, ENVIRONMENT, LOADING_LIMIT, PYTHON, assert_same_tokens, greedy, prompts, wait_until
from serving import BINARY, Running

CHECKS = "vllm/up"
VLLM = Path(PYTHON).with_name("vllm")

# A preset, whose weights are the demo model's here: by how many nodes it is served, and with which flags of vLLM.
MANIFEST = """
apiVersion: kaito.sh/v1beta1
kind: Workspace
metadata:
  name: up
  annotations:
    kaito.sh/runtime: vllm
resource:
  count: {ranks}
  labelSelector:
    matchLabels:
      apps: up
inference:
  config: flags
  preset:
    name: {preset}
    accessMode: private
    presetOptions:
      image: registry.example.com/weights:1
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: flags
data:
  inference_config.yaml: |
    vllm:
      dtype: float32
      enforce-eager: true
      max-model-len: 512
      {more}
"""
CASES = {"one_rank": ("smollm2-135m-instruct", 1, ""), "two_ranks": ("llama-2-7b-chat", 2, "tensor-parallel-size: 2")}


class Up:
    """A `kaito up`, and everything that it starts."""

    def __init__(self, manifest: Path):
        self.mark = f"UP_TEST={uuid.uuid4()}"
        name, value = self.mark.split("=")
        kept = {key: word for key, word in os.environ.items() if not key.startswith("KAITO_")}
        self.process = subprocess.Popen(
            [BINARY, "up", "--port", "0", "--vllm", VLLM, "--weights", DEMO, "-f", manifest], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=kept | ENVIRONMENT | {name: value})
        self.lines: list[str] = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self.reader.start()

    def conditions(self, *words: str) -> list[str]:
        return [line for line in list(self.lines) if all(word in line for word in words)]

    def url(self) -> str:
        """The service's, once it answers."""
        def is_ready():
            assert self.process.poll() is None, "".join(self.lines)
            return self.conditions("WorkspaceReady", "True")
        try:
            wait_until(is_ready, LOADING_LIMIT, "the workspace is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{''.join(self.lines)}") from None
        [line] = self.conditions("InferenceReady", "True", "http://")
        return re.search(r"http://[\d.:]+", line)[0]

    def running(self) -> list[str]:
        """What was started and runs, zombies left out: their environment is empty."""
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in environment.read_bytes().split(b"\0"):
                    found.append((environment.parent / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found


@pytest.fixture
def up(tmp_path, request):
    preset, ranks, more = CASES[request.param]
    manifest = tmp_path / "workspace.yaml"
    manifest.write_text(MANIFEST.format(preset=preset, ranks=ranks, more=more))
    up = Up(manifest)
    yield up, preset, ranks
    if up.process.poll() is None:
        up.process.kill()
        for found in Path("/proc").glob("[0-9]*/environ"):
            try:
                if up.mark.encode() in found.read_bytes():
                    os.kill(int(found.parent.name), signal.SIGKILL)
            except OSError:
                continue


@pytest.mark.parametrize("up", CASES, indirect=True)
def test_from_the_command_to_an_answer_and_its_end(reference, up):
    up, preset, ranks = up
    server = Running(up.url())
    engines = [line for line in up.running() if " supervise " in line]
    assert len(engines) == ranks, engines
    assert up.conditions("InferenceReady", "False", "ModelLoading"), "".join(up.lines)
    for prompt in prompts(5):
        ours = greedy(reference, "demo", prompt, 16)
        assert_same_tokens(ours, greedy(server, preset, prompt, 16), prompt)
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(120) == 0, "".join(up.lines)
    assert not up.running(), up.running()
