"""Starting, watching and ending the programs that are measured.

Each runs in a session of its own, and so in a scheduler group of its own: with a low value in /proc/self/autogroup, other
people's work does not share its cores. What other processes used meanwhile is recorded with every sample.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

TICKS = os.sysconf("SC_CLK_TCK")
CORES = len(os.sched_getaffinity(0))
# What -20 to 19 is to processes, this is to groups of them.
GROUP_PRIORITY = -15

_living = set()


class Failed(Exception):
    """A program did not do what it was started for; the text says which and why."""


@dataclass
class Finished:
    output: str
    errors: str
    seconds: float
    peak_bytes: int
    # Share of all cores that other processes used meanwhile.
    others: float


def busy_seconds(stat_line):
    """CPU time of all cores that was not idle, from the first line of /proc/stat; stolen time was another guest's."""
    user, nice, system, _idle, _wait, irq, soft_irq, stolen = (int(field) for field in stat_line.split()[1:9])
    return (user + nice + system + irq + soft_irq + stolen) / TICKS


def process_seconds(stat):
    """CPU time of a process and of its children that ended, from /proc/PID/stat. Its name may hold spaces and brackets."""
    fields = stat.rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICKS


class Watch:
    """What others use between its making and `others`. `pids` live longer than that, `others` is told of the rest."""

    def __init__(self, pids=()):
        self.pids = list(pids)
        self.started = time.monotonic()
        self.busy, self.own = self._now()

    def _now(self):
        with open("/proc/stat", encoding="ascii") as stat:
            busy = busy_seconds(stat.readline())
        own = time.process_time()
        for pid in self.pids:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
                own += process_seconds(stat.read())
        return busy, own

    def others(self, children=0.0):
        busy, own = self._now()
        elapsed = max(time.monotonic() - self.started, 1e-3)
        return max(0.0, busy - self.busy - (own - self.own) - children) / (elapsed * CORES)


def _start(command, out, errors, priority, environment):
    def in_child():
        if priority is None:
            return
        try:
            with open("/proc/self/autogroup", "w", encoding="ascii") as group:
                group.write(str(priority))
        except OSError:
            # Not allowed, or a kernel without such groups: the recorded load of others says what that cost.
            pass

    command = [str(part) for part in command]
    environment = {**os.environ, **(environment or {})}
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=environment,
                                 start_new_session=True, preexec_fn=in_child)
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from error
    _living.add(child)
    return child


def end(child, patience=20.0):
    """Ends a program and what it started: asked first, killed when it does not listen."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is not None:
            break
        try:
            os.killpg(child.pid, number)
            child.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    _living.discard(child)


def end_all():
    for child in list(_living):
        end(child, patience=5.0)


def run(command, limit, priority=GROUP_PRIORITY, environment=None, beside=()):
    """Runs a program to its end, for `limit` seconds at most. What the processes `beside` it use is no one else's."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        watch = Watch(beside)
        child = _start(command, out, errors, priority, environment)
        deadline = watch.started + limit
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                end(child)
                raise Failed(f"{_name(command)}: not done after {limit:.0f} s, and so ended{_tail(errors)}")
            time.sleep(0.02)
        child.returncode = os.waitstatus_to_exitcode(status)
        _living.discard(child)
        seconds = time.monotonic() - watch.started
        others = watch.others(usage.ru_utime + usage.ru_stime)
        if child.returncode != 0:
            raise Failed(f"{_name(command)}: exit status {child.returncode}{_tail(errors)}")
        return Finished(_text(out), _text(errors), seconds, usage.ru_maxrss * 1024, others)


def _name(command):
    return " ".join(str(part) for part in command)


def _text(file):
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _tail(file, lines=12):
    last = _text(file).strip().splitlines()[-lines:]
    return "".join(f"\n    {line}" for line in last)


class Server:
    """A server on a free port of this machine, from its start to the end of a `with`."""

    def __init__(self, command, health, limit, priority=GROUP_PRIORITY, environment=None):
        self.command, self.health, self.limit, self.priority = command, health, limit, priority
        self.environment = environment
        self.port = free_port()

    def __enter__(self):
        self.log = tempfile.TemporaryFile()
        command = [str(part).replace("{port}", str(self.port)) for part in self.command]
        self.started = time.monotonic()
        self.child = _start(command, self.log, self.log, self.priority, self.environment)
        self.pid = self.child.pid
        try:
            self._wait_until_healthy()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        end(self.child)
        self.log.close()

    def _wait_until_healthy(self):
        while True:
            if self.child.poll() is not None:
                raise Failed(f"{_name(self.command)}: ended with {self.child.returncode}{_tail(self.log)}")
            if time.monotonic() - self.started > self.limit:
                raise Failed(f"{_name(self.command)}: not healthy after {self.limit:.0f} s{_tail(self.log)}")
            try:
                if self._request("GET", self.health, None, 5.0)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.01)

    def _request(self, method, path, body, limit):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def ask(self, path, body, limit=600.0):
        """What it answers to a JSON body."""
        try:
            status, answer = self._request("POST", path, json.dumps(body), limit)
        except OSError as error:
            raise Failed(f"{_name(self.command)}: {path}: {error}{_tail(self.log)}") from error
        if status != 200:
            raise Failed(f"{_name(self.command)}: {path}: {status} {answer[:300].decode('utf-8', 'replace')}")
        return json.loads(answer)

    def peak_bytes(self):
        with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as status:
            return status_bytes(status.read(), "VmHWM")


def status_bytes(status, field):
    """A size in /proc/PID/status, which are in kB."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise Failed(f"/proc/PID/status has no {field}")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class BusyCore:
    """A process that does nothing but use one core, pinned to it; it ends by itself after `limit` seconds."""

    def __init__(self, core, limit):
        self.core, self.limit = core, limit

    def __enter__(self):
        code = ("import os, time\n"
                f"os.sched_setaffinity(0, [{self.core}])\n"
                f"end = time.monotonic() + {self.limit}\n"
                "while time.monotonic() < end: pass\n")
        self.child = _start([sys.executable, "-c", code], subprocess.DEVNULL, subprocess.DEVNULL, None, None)
        self.pid = self.child.pid
        time.sleep(0.3)
        return self

    def __exit__(self, *_):
        end(self.child)
