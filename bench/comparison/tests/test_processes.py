import functools
import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

from comparison import prepare, processes
from comparison.processes import TICKS, Failed


class Proc(unittest.TestCase):
    def test_busy_is_all_but_idle_and_waiting(self):
        line = f"cpu  {100 * TICKS} {10 * TICKS} {20 * TICKS} 5000 6000 {TICKS} {2 * TICKS} {3 * TICKS} 0 0\n"
        self.assertEqual(processes.busy_seconds(line), 136.0)

    def test_a_process_whose_name_has_brackets(self):
        fields = ["S", *("0" for _ in range(10)), "100", "200", "300", "400", "20", "0"]
        self.assertEqual(processes.process_seconds(f"7 (a b) c) {' '.join(fields)}"), 1000 / TICKS)

    def test_sizes_of_a_process(self):
        status = "Name:\tx\nVmPeak:\t 2000 kB\nVmHWM:\t    1024 kB\n"
        self.assertEqual(processes.status_bytes(status, "VmHWM"), 1 << 20)
        with self.assertRaises(Failed):
            processes.status_bytes(status, "VmSwap")


class Run(unittest.TestCase):
    def test_output_and_peak_memory(self):
        done = processes.run([sys.executable, "-c", "held = b'x' * (64 << 20); print('done')"], 60)
        self.assertEqual(done.output, "done\n")
        self.assertGreater(done.peak_bytes, 64 << 20)

    def test_a_failure_says_status_and_last_words(self):
        with self.assertRaisesRegex(Failed, "(?s)exit status 3.*no such model"):
            processes.run([sys.executable, "-c", "import sys; print('no such model', file=sys.stderr); sys.exit(3)"], 60)

    def test_a_program_that_does_not_exist(self):
        with self.assertRaisesRegex(Failed, "no-such-program"):
            processes.run(["no-such-program"], 60)

    def test_what_takes_too_long_is_ended_with_all_it_started(self):
        listens = "import time; time.sleep(600)"
        deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        for child_code in (listens, deaf):
            with self.subTest(child_code), tempfile.TemporaryDirectory() as folder:
                child = Path(folder) / "child"
                code = ("import subprocess, sys, time\n"
                        f"child = subprocess.Popen([sys.executable, '-c', {child_code!r}])\n"
                        f"open({str(child)!r}, 'w').write(str(child.pid))\n"
                        "time.sleep(600)\n")
                soon = functools.partial(processes.end, patience=2.0)
                with mock.patch.object(processes, "end", soon), self.assertRaisesRegex(Failed, "not done after 5 s"):
                    processes.run([sys.executable, "-c", code], 5)
                if child.exists():
                    self.assertFalse(alive(int(child.read_text())))
                self.assertEqual(processes._living, set())

    def test_a_busy_core_ends_with_its_block(self):
        with processes.BusyCore(max(os.sched_getaffinity(0)), 60) as busy:
            self.assertTrue(alive(busy.pid))
        self.assertFalse(alive(busy.pid))

    def test_a_server_that_ends_at_once_is_reported_with_its_words(self):
        command = [sys.executable, "-c", "raise SystemExit('no weights')"]
        with self.assertRaisesRegex(Failed, "no weights"):
            with processes.Server(command, "/health", 60):
                pass

    def test_a_server_is_asked_and_ended(self):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1", "--directory", folder]
            with processes.Server(command, "/", 60) as server:
                self.assertGreater(server.peak_bytes(), 1 << 20)
                with self.assertRaisesRegex(Failed, "501"):
                    server.ask("/", {})
            self.assertFalse(alive(server.pid))


WORKER = """
import json, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    question = json.loads(line)
    if question == "sleep":
        time.sleep(600)
    print(json.dumps({"error": "no"} if question == "fail" else {"said": question}), flush=True)
"""


class Worker(unittest.TestCase):
    def setUp(self):
        self.worker = processes.Worker([sys.executable, "-c", WORKER], 60)
        self.addCleanup(self.worker.close)

    def test_it_answers_and_is_stopped_between_questions(self):
        self.assertEqual(self.worker.ready, {"ready": True})
        for question in (1, 2):
            answer, others = self.worker.ask(question, 60)
            self.assertEqual(answer, {"said": question})
            self.assertGreaterEqual(others, 0.0)
            self.assertEqual(state_after(self.worker.pid, "T"), "T")

    def test_what_went_wrong_is_said(self):
        with self.assertRaisesRegex(Failed, "no"):
            self.worker.ask("fail", 60)
        with self.assertRaisesRegex(Failed, "no answer after 1 s"):
            self.worker.ask("sleep", 1)

    def test_a_stopped_one_ends(self):
        self.worker.close()
        self.assertFalse(alive(self.worker.pid))


class Ends(unittest.TestCase):
    def tearDown(self):
        processes.end_at(None)

    def test_nothing_runs_beyond_the_end(self):
        processes.end_at(time.monotonic() + 1)
        with self.assertRaisesRegex(Failed, "not done after 1 s"):
            processes.run([sys.executable, "-c", "import time; time.sleep(600)"], 60)
        with self.assertRaisesRegex(Failed, "no time left"):
            processes.run([sys.executable, "-c", ""], 60)
        processes.end_at(None)
        self.assertEqual(processes.allowed(60), 60)


class Sessions(unittest.TestCase):
    def test_time_of_a_process_and_of_those_it_started(self):
        code = ("import os, subprocess, sys, time\n"
                "burn = 'import time\\nend = time.process_time() + 0.3\\nwhile time.process_time() < end: pass\\ntime.sleep(600)'\n"
                "subprocess.Popen([sys.executable, '-c', burn]).wait()\n")
        child = processes._start([sys.executable, "-c", code], subprocess.DEVNULL, subprocess.DEVNULL, None, None)
        self.addCleanup(processes.end, child)
        deadline = time.monotonic() + 60
        while processes.session_seconds(child.pid) < 0.3 and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertGreaterEqual(processes.session_seconds(child.pid), 0.3)


class Weights(unittest.TestCase):
    def test_what_will_be_written(self):
        shape = prepare.Shape("small", 1000, 10, 10)
        with tempfile.TemporaryDirectory() as folder:
            weights = prepare.Weights(Path(folder), shape)
            bf16, int8 = prepare.PRECISIONS["bf16"], prepare.PRECISIONS["int8"]
            self.assertEqual(weights.lacking([bf16]), 4000)
            # The checkpoint, the file that int8's is made from, that one, and ours.
            self.assertEqual(weights.lacking([int8]), 4000 + 2 * 1062.5)
            weights.checkpoint.mkdir(parents=True)
            weights.gguf(int8).touch()
            weights.quantized_cache(int8, "kaito").mkdir()
            self.assertEqual(weights.lacking([int8]), 0)
            # Another build has a cache of its own, whose form may be another.
            self.assertEqual(weights.lacking([int8], ["kaito", "before"]), 1062)
            # The same file as int8's, which kaito reads as it is.
            self.assertEqual(weights.lacking([prepare.PRECISIONS["Q8_0"]], ["kaito", "before"]), 0)

    def test_without_llama_cpp_none_of_its_files_are_written(self):
        with tempfile.TemporaryDirectory() as folder:
            weights = prepare.Weights(Path(folder), prepare.Shape("small", 1000, 10, 10))
            self.assertEqual(weights.lacking([prepare.PRECISIONS["bf16"]], with_gguf=False), 2000)

    def test_a_file_that_is_not_whole_is_not_under_its_name(self):
        with tempfile.TemporaryDirectory() as folder:
            weights = prepare.Weights(Path(folder), prepare.SHAPES["tinyllama-1.1b"])
            target = Path(folder) / "file"

            def broken(path):
                path.write_text("half")
                raise Failed("disk full")

            with self.assertRaises(Failed):
                weights._whole(target, broken)
            self.assertFalse(target.exists())
            weights._whole(target, lambda path: path.write_text("whole"))
            self.assertEqual(target.read_text(), "whole")
            weights.remove_made()
            self.assertFalse(target.exists())


def state_after(pid, wanted):
    """The state of a process, which is given a moment to become the one wanted."""
    deadline = time.monotonic() + 10
    while (state := state_of(pid)) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return state


def state_of(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
        return processes.stat_fields(stat.read())[0]


def alive(pid):
    try:
        return state_of(pid) not in "ZX"
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    unittest.main()
