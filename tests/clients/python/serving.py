"""A kaito server on a free port of this machine, and what the Kaito dialects answer on it, which is the reference for texts."""

import atexit
import os
import re
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import httpx2

REPOSITORY = Path(__file__).resolve().parents[3]
BINARY = Path(os.environ.get("KAITO_BINARY", REPOSITORY / "target/debug/kaito")).resolve()
# A client of its own for each request would read the system's certificates each time, 40 ms of a processor. Every request has a
# connection of its own, as theirs would.
HTTP = httpx2.Client(verify=False, trust_env=False, limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0))
LOADING_LIMIT = 120.0
# What the log says once a request can be answered: of weights that are loaded, or of an engine elsewhere.
READY = re.compile("the model is loaded|the engine answers")
ADDRESS = re.compile(r"listening.* address=(127\.0\.0\.1:\d+)")


class Running:
    """A server that answers at an address."""

    def __init__(self, url: str):
        self.url = url

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    def post(self, path: str, body: dict, **options) -> httpx2.Response:
        return HTTP.post(f"{self.url}{path}", json=body, timeout=120, **options)

    def chat(self, messages: list[dict] | str, max_new_tokens: int = 100, **parameters) -> dict:
        """What `/chat` of the Kaito dialect answers, greedily."""
        key = "prompt" if isinstance(messages, str) else "messages"
        answer = self.post("/chat", {
            key: messages, "do_sample": False, "max_new_tokens": max_new_tokens, "return_full_text": False, **parameters,
        })
        assert answer.status_code == 200, answer.text
        return answer.json()

    def chat_text(self, messages: list[dict] | str, max_new_tokens: int = 100, **parameters) -> str:
        return self.chat(messages, max_new_tokens, **parameters)["Result"]

    def metric(self, name: str) -> float:
        """The sum over the samples of one metric."""
        lines = HTTP.get(f"{self.url}/metrics").text.splitlines()
        found = [line.rsplit(" ", 1)[1] for line in lines if re.split(r"[ {]", line)[0] == name]
        assert found, f"no metric {name}"
        return sum(map(float, found))

    def wait_for_metric(self, name: str, wanted: float, beside: "Beside | None" = None, limit: float = 60) -> None:
        """Waits until a metric has this value, at most as long as the work beside runs."""
        deadline = time.monotonic() + limit
        while (value := self.metric(name)) != wanted:
            assert time.monotonic() < deadline, f"{name} is {value}, not {wanted}, after {limit} s"
            if beside is not None and not beside.running():
                beside.check()
                raise AssertionError(f"{name} is {value}, not {wanted}, and the work beside has ended")
            time.sleep(0.02)


class Server(Running):
    """`kaito serve ARGUMENT...`: the demo model where the arguments name none."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None):
        self.log = Path(tempfile.mkstemp(prefix="kaito-serve-", suffix=".log")[1])
        command = [str(BINARY), "serve", *arguments, "--host", "127.0.0.1", "--port", "0"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KAITO_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=kept | (environment or {})
            )
        atexit.register(self.stop)
        super().__init__(self._wait(command))

    def _wait(self, command: list[str]) -> str:
        deadline = time.monotonic() + LOADING_LIMIT
        while time.monotonic() < deadline:
            printed = self.log.read_text(errors="replace")
            if self.process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {self.process.returncode}:\n{printed}")
            if (found := ADDRESS.search(printed)) and READY.search(printed):
                url = f"http://{found[1]}"
                if HTTP.get(f"{url}/healthz").status_code == 200:
                    return url
            time.sleep(0.05)
        raise RuntimeError(f"{' '.join(command)} is not healthy after {LOADING_LIMIT:.0f} s:\n{printed}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.log.unlink(missing_ok=True)


class Beside:
    """Calls `work` on a thread of its own; leaving the block waits for it and raises what it raised."""

    def __init__(self, work):
        self.result = None
        self._error = None

        def run():
            try:
                self.result = work()
            except BaseException as error:  # handed to the test's own thread
                self._error = error

        self._thread = threading.Thread(target=run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def running(self) -> bool:
        return self._thread.is_alive()

    def check(self) -> None:
        """Raises what the work raised."""
        if self._error is not None:
            raise self._error

    def __exit__(self, kind, *_):
        self._thread.join(120)
        if kind is None:
            assert not self.running(), "the work beside did not end in 120 s"
            self.check()
