"""Pods as a kubelet runs them: containers in a node's network namespace, each started again wherever it ends."""

import atexit
import os
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import httpx2
from engines import ENVIRONMENT, wait_until
from serving import HTTP

# A kubelet waits longer where a container ends often.
BACK_OFF = 1.0


class Container:
    """A program, its log, and how it has ended so far."""

    def __init__(self, namespace: str, *command: str, environment: dict[str, str] | None = None):
        self.command = ["ip", "netns", "exec", namespace, *command]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KAITO_")}
        self.environment = kept | ENVIRONMENT | (environment or {})
        self.log = Path(tempfile.mkstemp(prefix="container-", suffix=".log")[1])
        self.ends: list[int] = []
        self.process: subprocess.Popen | None = None
        self._removed = threading.Event()
        self._thread: threading.Thread | None = None
        atexit.register(self.close)

    def start(self) -> "Container":
        begun = threading.Event()
        self._removed.clear()
        self._thread = threading.Thread(target=self._run, args=(begun,), daemon=True)
        self._thread.start()
        assert begun.wait(30)
        return self

    def _run(self, begun: threading.Event) -> None:
        while not self._removed.is_set():
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                                env=self.environment)
            begun.set()
            self.ends.append(self.process.wait())
            self._removed.wait(BACK_OFF)

    def terminate(self) -> None:
        """Removes it: its first process is told to end, and nothing starts it again."""
        self._removed.set()
        self.process.send_signal(signal.SIGTERM)

    def wait(self, limit: float) -> int:
        self._thread.join(limit)
        assert not self._thread.is_alive(), f"{self.command} has not ended:\n{self.last_words()}"
        return self.ends[-1]

    def tree(self) -> list[tuple[int, str]]:
        """Id and name of all processes below its first one."""
        parents, names = {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, _, rest = stat.read_text().partition(" (")
            except OSError:
                continue
            name, _, fields = rest.rpartition(") ")
            if fields.split()[0] != "Z":
                parents[int(pid)], names[int(pid)] = int(fields.split()[1]), name
        below, found = {self.process.pid}, []
        while below:
            below = {pid for pid, parent in parents.items() if parent in below}
            found += [(pid, names[pid]) for pid in below]
        return found

    def signal(self, number: int, name: str = "") -> list[int]:
        """Sends a signal to the processes below the first one whose name begins so, and says which they are."""
        sent = [pid for pid, other in self.tree() if other.startswith(name)]
        assert sent, f"{self.command} has no process {name!r}: {self.tree()}"
        for pid in sent:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        return sent

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines[:-40] if "ERROR" in line or "Error" in line][-40:] + lines[-40:])

    def close(self) -> None:
        self._removed.set()
        if self.process is not None and self.process.poll() is None:
            for pid in [self.process.pid, *(pid for pid, _ in self.tree())]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.log.unlink(missing_ok=True)


def health(url: str) -> tuple[int, str]:
    """Status and text of `/healthz`; 0 where nobody listens."""
    try:
        answer = HTTP.get(f"{url}/healthz", timeout=10)
    except httpx2.TransportError as error:
        return 0, repr(error)
    return answer.status_code, answer.text


def wait_until_healthy(url: str, limit: float, containers: list[Container]) -> None:
    try:
        wait_until(lambda: health(url)[0] == 200, limit, f"{url} is healthy")
    except AssertionError as error:
        words = "\n\n".join(container.last_words() for container in containers)
        raise AssertionError(f"{error}: {health(url)}\n{words}") from None
