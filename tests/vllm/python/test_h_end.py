"""The engine of the other checks ends, and leaves nothing behind."""

import os
import signal

from engines import wait_until

CHECKS = "vllm/end"


def test_nothing_of_the_engine_is_left(engine):
    assert len(engine.running()) > 1, "vLLM computes in a process of its own"
    os.kill(engine.process.pid, signal.SIGTERM)
    engine.process.wait(60)
    wait_until(lambda: not engine.running(), 60, "all of its processes are gone")
