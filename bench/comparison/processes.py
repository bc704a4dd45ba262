"""Starting, watching and ending the programs that are measured.

Each runs in a session of its own, and so in a scheduler group of its own: with a low value in /proc/self/autogroup, other
people's work does not share its cores. What other processes used meanwhile is recorded with every sample.
"""

import contextlib
import http.client
import json
import math
import os
import select
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
_end = None


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


def stat_fields(stat):
    """The fields of /proc/PID/stat after the name, which may hold spaces and brackets: state, parent, group, session, and so on."""
    return stat.rpartition(")")[2].split()


def process_seconds(stat):
    """CPU time of a process and of its children that ended, from /proc/PID/stat."""
    return sum(int(field) for field in stat_fields(stat)[11:15]) / TICKS


def session_stats(session):
    """What /proc/PID/stat says of each process of a session, by its id. What is measured has a session of its own."""
    stats = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stat:
                text = stat.read()
        except OSError:
            # It ended meanwhile.
            continue
        if int(stat_fields(text)[3]) == session:
            stats[int(entry)] = text
    return stats


def session_seconds(session):
    """CPU time of all processes of a session, and of their children that ended."""
    return sum(process_seconds(stat) for stat in session_stats(session).values())


def session_living(session):
    """The processes of a session that have not ended."""
    return [pid for pid, stat in session_stats(session).items() if stat_fields(stat)[0] not in "ZX"]


class Watch:
    """What others use between its making and `others`. `sessions` live longer than that, `others` is told of the rest."""

    def __init__(self, sessions=()):
        self.sessions = list(sessions)
        self.started = time.monotonic()
        self.busy, self.own = self._now()

    def _now(self):
        with open("/proc/stat", encoding="ascii") as stat:
            busy = busy_seconds(stat.readline())
        return busy, time.process_time() + sum(session_seconds(session) for session in self.sessions)

    def others(self, children=0.0):
        busy, own = self._now()
        elapsed = max(time.monotonic() - self.started, 1e-3)
        return max(0.0, busy - self.busy - (own - self.own) - children) / (elapsed * CORES)


def end_at(moment):
    """Nothing may run beyond this moment of the monotonic clock."""
    global _end
    _end = moment


def time_left():
    """Seconds until everything has to be done; infinite where nobody said."""
    return math.inf if _end is None else _end - time.monotonic()


def allowed(limit):
    """How long something may take that has a limit of its own."""
    left = time_left()
    if left <= 0:
        raise Failed("no time left")
    return min(limit, left)


def _start(command, out, errors, priority, environment, inward=subprocess.DEVNULL):
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
        child = subprocess.Popen(command, stdin=inward, stdout=out, stderr=errors, env=environment,
                                 start_new_session=True, preexec_fn=in_child)
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from error
    _living.add(child)
    return child


def end(child, patience=20.0):
    """Ends a program and what it started, and returns when they have ended: asked first, killed when they do not listen."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in session_living(child.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                # One that was stopped hears nothing until it goes on.
                os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + patience
        while (child.poll() is None or session_living(child.pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
    _living.discard(child)


def end_all():
    for child in list(_living):
        end(child, patience=5.0)


def run(command, limit, priority=GROUP_PRIORITY, environment=None, beside=()):
    """Runs a program to its end, for `limit` seconds at most. What the sessions `beside` it use is no one else's."""
    limit = allowed(limit)
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
        self.limit = allowed(self.limit)
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
            status, answer = self._request("POST", path, json.dumps(body), allowed(limit))
        except OSError as error:
            raise Failed(f"{_name(self.command)}: {path}: {error}{_tail(self.log)}") from error
        if status != 200:
            raise Failed(f"{_name(self.command)}: {path}: {status} {answer[:300].decode('utf-8', 'replace')}")
        return json.loads(answer)

    def peak_bytes(self):
        with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as status:
            return status_bytes(status.read(), "VmHWM")


class Worker:
    """A program that answers lines of JSON with lines of JSON, and is stopped while it is not asked."""

    def __init__(self, command, limit, environment=None, priority=GROUP_PRIORITY):
        self.command = command
        self.log = tempfile.TemporaryFile()
        self.child = _start(command, subprocess.PIPE, self.log, priority, environment, subprocess.PIPE)
        self.pid = self.child.pid
        self.waiting = b""
        try:
            self.ready = self._line(allowed(limit))
        except BaseException:
            self.close()
            raise
        os.killpg(self.pid, signal.SIGSTOP)

    def ask(self, question, limit):
        """Its answer, and the share of the cores that others used meanwhile."""
        limit = allowed(limit)
        watch = Watch([self.pid])
        os.killpg(self.pid, signal.SIGCONT)
        try:
            self.child.stdin.write(json.dumps(question).encode() + b"\n")
            self.child.stdin.flush()
            answer = self._line(limit)
        except OSError as error:
            raise Failed(f"{_name(self.command)}: {error}{_tail(self.log)}") from error
        finally:
            # Where it ended, there is nothing to stop.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGSTOP)
        if "error" in answer:
            raise Failed(f"{_name(self.command)}: {answer['error']}")
        return answer, watch.others()

    def _line(self, limit):
        deadline = time.monotonic() + limit
        output = self.child.stdout.fileno()
        while b"\n" not in self.waiting:
            readable, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise Failed(f"{_name(self.command)}: no answer after {limit:.0f} s{_tail(self.log)}")
            more = os.read(output, 1 << 16)
            if not more:
                raise Failed(f"{_name(self.command)}: ended{_tail(self.log)}")
            self.waiting += more
        line, _, self.waiting = self.waiting.partition(b"\n")
        return json.loads(line)

    def close(self):
        end(self.child)
        for pipe in (self.child.stdin, self.child.stdout):
            # What was never read is lost with it.
            with contextlib.suppress(OSError):
                pipe.close()
        self.log.close()


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
