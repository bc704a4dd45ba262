"""vLLM's own server as a process, in a network namespace of its own if wanted, and what compares two servers' answers."""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import httpx2
from serving import HTTP, REPOSITORY, Running, Server

PYTHON = os.environ["VLLM_PYTHON"]
DEMO = REPOSITORY / "models/demo"
STARTUP = REPOSITORY / "tests/vllm/startup"
# Its sequences are shorter than this.
MAX_MODEL_LEN = 512
# vLLM loads torch and compiles nothing; both take their time on a busy machine.
LOADING_LIMIT = 400.0
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VIRTUAL_ENV": str(Path(PYTHON).parent.parent),
    "PYTHONPATH": str(STARTUP),
    # What --enforce-eager leaves: several ranks would each have one function compiled by a C++ compiler.
    "TORCHDYNAMO_DISABLE": "1",
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def processes_of(group: int) -> list[int]:
    """The processes of a group that run, zombies left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(condition, limit: float, what: str) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {limit:.0f} s"
        time.sleep(0.1)


class Engine:
    """One `vllm serve` and the processes that it starts, which are a process group."""

    def __init__(self, model: Path, *flags: str, name: str = "demo", port: int | None = None, host: str = "127.0.0.1",
                 namespace: str | None = None, environment: dict[str, str] | None = None):
        self.port = port or free_port()
        self.url = f"http://{host}:{self.port}"
        self.log = Path(tempfile.mkstemp(prefix="vllm-", suffix=".log")[1])
        self.command = [
            *(["ip", "netns", "exec", namespace] if namespace else []), str(Path(PYTHON).with_name("vllm")), "serve", str(model),
            "--served-model-name", name, "--host", host, "--port", str(self.port), "--dtype", "float32", "--enforce-eager", "--max-model-len", str(MAX_MODEL_LEN),
            "--enable-prompt-tokens-details", *flags,
        ]
        self.environment = os.environ | ENVIRONMENT | (environment or {})
        self.process: subprocess.Popen | None = None
        atexit.register(self.close)

    def start(self) -> "Engine":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                            env=self.environment, start_new_session=True)
        return self

    def check(self) -> None:
        assert self.process.poll() is None, f"vLLM ended with {self.process.returncode}:\n{self.last_words()}"

    def is_ready(self) -> bool:
        self.check()
        try:
            return HTTP.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    def wait(self, beside: "Engine | None" = None) -> "Engine":
        """Until it answers; `beside` is a rank that it needs."""
        def is_ready():
            if beside is not None:
                beside.check()
            return self.is_ready()

        try:
            wait_until(is_ready, LOADING_LIMIT, f"vLLM at {self.url} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.last_words()}") from None
        return self

    def last_words(self) -> str:
        """The end of its log, and before that what it calls errors: its processes do not write in the order of time."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines[:-40] if "ERROR" in line or "Error" in line][-40:] + lines[-40:])

    def send(self, signal_number: int) -> None:
        """To all its processes."""
        os.killpg(self.process.pid, signal_number)

    def running(self) -> list[int]:
        return processes_of(self.process.pid)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait(30)
        wait_until(lambda: not self.running(), 30, "all of vLLM's processes are gone")

    def close(self) -> None:
        if self.process is not None and self.running():
            self.kill()
        self.log.unlink(missing_ok=True)


def without_weights(model: Path) -> Path:
    """A folder with all of a model but its weights, which a front must not need."""
    folder = Path(tempfile.mkdtemp(prefix="without-weights-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for file in model.iterdir():
        if file.is_file() and file.suffix not in (".safetensors", ".bin"):
            shutil.copy(file, folder)
    return folder


def front(model: Path, engine: Engine, name: str, *flags: str) -> Server:
    """`kaito serve --upstream` before the engine."""
    return Server(str(without_weights(model)), "--served-model-name", name, "--upstream", engine.url, *flags)


def own(model: Path, name: str) -> Server:
    """Our own engine, in 32 bits: the reference."""
    return Server("--weights", str(model), "--served-model-name", name, "--dtype", "f32", "--max-seq-len", str(MAX_MODEL_LEN))


def greedy(server: Running, model: str, prompt: str, tokens: int) -> dict:
    """The one choice of a greedy completion: text, token ids, and the two best scores of each."""
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": tokens, "logprobs": 2, "return_token_ids": True}
    answer = server.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


# Scores that are closer than this may come in another order: sums are added up in another one.
TIE = 1e-3


def is_tie(choice: dict, at: int) -> bool:
    """Whether the two best tokens at a place have the same score but for rounding."""
    best = sorted(choice["logprobs"]["top_logprobs"][at].values(), reverse=True)
    return best[0] - best[1] <= TIE


def assert_same_tokens(reference: dict, answer: dict, prompt: str) -> str | None:
    """The same tokens, or another one at a tie, which is told; what follows such a place is another text."""
    pairs = list(zip(reference["token_ids"], answer["token_ids"], strict=False))
    differing = next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
    if differing is None:
        assert reference["token_ids"] == answer["token_ids"] and reference["text"] == answer["text"], repr(prompt)
        return None
    assert is_tie(reference, differing), f"{prompt!r} at token {differing}: {reference['text']!r}, {answer['text']!r}"
    return f"a tie at token {differing} of {prompt!r}"


def prompts(count: int) -> list[str]:
    """Sentences of this repository's documents."""
    sentences = []
    for document in ("README.md", "docs/serving.md", "docs/kubernetes.md"):
        text = (REPOSITORY / document).read_text()
        sentences += [line for line in text.splitlines() if len(line) > 60 and line[0].isalpha()]
    assert len(sentences) >= count, f"{len(sentences)} sentences"
    return [sentence[:120] for sentence in sentences[:count]]
