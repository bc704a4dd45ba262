"""vLLM's CPU build: a process that stays for prompts and decoding, and its server."""

from . import prepare, processes
from .engines import CLIENTS
from .figures import VLLM
from .processes import Server, Worker


class Vllm:
    name = VLLM
    # The name under which its server has the model.
    served = "random-weights"
    client_flags = ("--api", "openai", "--vocab-size", "32000", "--served-model", served)

    def __init__(self, python, settings):
        self.python, self.settings = python, settings
        self.worker, self.worker_of = None, None
        self.versions = {}

    def environment(self):
        """No network, no threads pinned by itself, and one gigabyte of KV cache, which is more than is used."""
        threads = str(self.settings.threads)
        return {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": threads,
                "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING",
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VIRTUAL_ENV": str(self.python.parent.parent)}

    def prepare(self, weights, precision):
        pass

    def warm(self, weights, precision):
        return prepare.warm(weights.checkpoint)

    def start_worker(self, checkpoint, dtype):
        command = [self.python, "-P", prepare.HERE / "vllm_side.py", checkpoint, "--dtype", dtype, "--threads",
                   str(self.settings.threads)]
        worker = Worker(command, 600.0, self.environment())
        self.versions = worker.ready["versions"]
        return worker

    def speed(self, weights, precision):
        """Prompts and decoding, as the others' programs measure them: once beforehand, which does not count."""
        settings = self.settings
        if self.worker_of != weights.checkpoint:
            self.close()
            self.worker = self.start_worker(weights.checkpoint, "bfloat16")
            self.worker_of = weights.checkpoint
            self.worker.ask({"measure": "prefill", "length": settings.prompt}, settings.limit)
            self.worker.ask({"measure": "decode", "sequences": 1, "context": 16, "steps": 2}, settings.limit)
        found = []
        for metric, question in [
            ("prefill", {"measure": "prefill", "length": settings.prompt}),
            *((f"decode {batch}", {"measure": "decode", "sequences": batch, "context": settings.context,
                                   "steps": settings.decode_tokens}) for batch in settings.batches),
        ]:
            answer, others = self.worker.ask(question, settings.limit)
            found.append((metric, answer["tokens_per_second"], others))
        return found, None

    def greedy(self, checkpoint, prompts, steps):
        """What follows prompts of token ids, computed in 32 bits."""
        worker = self.start_worker(checkpoint, "float32")
        try:
            answer, _ = worker.ask({"measure": "greedy", "prompts": prompts, "steps": steps}, self.settings.limit)
            return answer["tokens"]
        finally:
            worker.close()

    def server(self, weights, precision, priority=processes.GROUP_PRIORITY, limit=300.0):
        command = [self.python.parent / "vllm", "serve", weights.checkpoint, "--dtype", "bfloat16", "--host", "127.0.0.1",
                   "--port", "{port}", "--max-model-len", "1024", "--max-num-seqs", str(max(CLIENTS, 16)),
                   "--no-enable-prefix-caching", "--served-model-name", self.served]
        environment = self.environment()
        # The server and its engine are two processes, as they are by default.
        del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]
        return Server(command, "/health", limit, priority, environment)

    def first_token(self, server):
        server.ask("/v1/completions", {"model": self.served, "prompt": [3, 4, 5], "max_tokens": 1, "temperature": 0})

    def close(self):
        if self.worker is not None:
            self.worker.close()
        self.worker, self.worker_of = None, None
