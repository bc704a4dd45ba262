"""Makes a start of vLLM's CPU build a matter of 15 seconds instead of 30. Python imports this first where it is in `PYTHONPATH`.

Each of vLLM's processes (server, engine core, worker) imports the same 5000 modules again, one process after the other, which is nearly all
of that time: on CPUs vLLM insists on the start method `spawn`. Here `spawn` gives processes of a fork server that has imported them
already, beside the server's own imports. What the processes do, and how they end, is vLLM's own.
"""

import gc
import os
import sys
from multiprocessing import context, forkserver

# A third of the time of imports is a search for garbage in what they build.
gc.set_threshold(100_000, 20, 100)

PRELOADED = [
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.model_executor.models.llama",
]


class Process(context.ForkServerProcess):
    """With the environment of the process that starts it, as a spawned one has it, and not the fork server's."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.environment = dict(os.environ)

    def run(self):
        # What is the same stays where it lies: names of processes are written over where the environment begins.
        for name in os.environ.keys() - self.environment.keys():
            del os.environ[name]
        for name, value in self.environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        # Its own processes are of the same fork server. Only that one's parent can ask whether it runs.
        forkserver._forkserver.ensure_running = lambda: None
        super().run()


class Context(context.ForkServerContext):
    Process = Process


context._concrete_contexts["spawn"] = Context()
if len(sys.orig_argv) > 1 and os.path.basename(sys.orig_argv[1]) == "vllm":
    forkserver.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()
