"""How each engine is run, and what its own report says. A measurement is a list of samples."""

import json
import math
import os
import tempfile
import time
from pathlib import Path

from . import prepare, processes
from .figures import LLAMA, OURS, TRANSFORMERS, Sample
from .processes import BusyCore, Failed, Server, Watch

PROMPT = 512
CONTEXT = 128
CLIENTS = 16
LONG_CONTEXT = 16384


class Settings:
    """How much is measured; `quick` measures the same for a shorter time."""

    def __init__(self, threads, quick):
        self.threads = threads
        self.prompt = PROMPT
        self.batches = (1, 8, 16)
        self.context = 32 if quick else CONTEXT
        self.decode_tokens = 12 if quick else 32
        self.clients = CLIENTS
        self.request_tokens = (128, 32) if quick else (128, 128)
        self.long_context = 2048 if quick else LONG_CONTEXT
        self.transformers_steps = 4 if quick else 16
        self.limit = 240.0 if quick else 900.0


class Kaito:
    """Ours, or another build of it under another name."""

    client_flags = ("--api", "kaito")

    def __init__(self, binary, settings, name=OURS, compute=None, kernels=None):
        self.name, self.binary, self.settings = name, binary, settings
        self.flags = ("--compute", compute) if compute else ()
        self.environment = {"KAITO_KERNELS": kernels} if kernels else {}

    def version(self):
        return processes.run([self.binary, "--version"], 60, None).output.strip()

    def model_flags(self, weights, precision):
        read = weights.gguf(precision) if precision.same_file else weights.checkpoint
        flags = ["--weights", read, *precision.ours, "--threads", str(self.settings.threads), *self.flags]
        if precision.packs:
            flags += ["--quantize-cache", weights.quantized_cache(precision, self.name)]
        return flags

    def prepare(self, weights, precision):
        """The first start with fewer bits makes a file; it is not to be part of a measurement."""
        folder = weights.quantized_cache(precision, self.name)
        if not precision.packs or folder.exists():
            return
        weights.made.append(folder)
        with self.server(weights, precision, processes.GROUP_PRIORITY, limit=1800.0):
            pass

    def warm(self, weights, precision):
        if precision.same_file:
            return prepare.warm(weights.gguf(precision))
        folder = weights.quantized_cache(precision, self.name)
        if precision.packs and folder.exists():
            return prepare.warm(folder)
        return prepare.warm(weights.checkpoint)

    def bench(self, flags, limit=None, priority=processes.GROUP_PRIORITY, beside=()):
        """What `kaito bench` reports, and the process that did."""
        limit = processes.allowed(limit or self.settings.limit)
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            command = [self.binary, "bench", *flags, "--time-limit", f"{limit:.0f}s", "--json", report]
            done = processes.run(command, 2 * limit, priority, self.environment, beside)
            return json.loads(report.read_text(encoding="utf-8")), done

    def speed(self, weights, precision):
        settings = self.settings
        flags = [*self.model_flags(weights, precision), "--measure", "prefill,decode", "--repetitions", "1",
                 "--prompt-lengths", str(settings.prompt), "--batch-sizes", ",".join(map(str, settings.batches)),
                 "--context", str(settings.context), "--decode-tokens", str(settings.decode_tokens)]
        report, done = self.bench(flags)
        return kaito_speed(report, done.others), report

    def decode(self, weights, precision, context, tokens, priority, beside=(), limit=None):
        """The report of decoding one sequence."""
        flags = [*self.model_flags(weights, precision), "--measure", "decode", "--repetitions", "1", "--batch-sizes", "1",
                 "--context", str(context), "--decode-tokens", str(tokens),
                 "--max-seq-len", str(context + 2 * tokens + 64)]
        report, done = self.bench(flags, limit, priority, beside)
        rate = kaito_rate(report["decode"][0])
        return rate, report, done

    def server(self, weights, precision, priority=processes.GROUP_PRIORITY, limit=300.0):
        command = [self.binary, "serve", *self.model_flags(weights, precision), "--port", "{port}", "--max-seq-len", "1024",
                   "--max-batch-size", str(max(CLIENTS, 16)), "--speculate", "false", "--request-timeout", "30m"]
        return Server(command, "/healthz", limit, priority, self.environment)

    def first_token(self, server):
        server.ask("/chat", {"prompt": "Hello world", "do_sample": False, "max_new_tokens": 1, "return_full_text": False})


class LlamaCpp:
    name = LLAMA
    client_flags = ("--api", "openai", "--vocab-size", "32000")

    def __init__(self, binaries, settings):
        self.binaries, self.settings = binaries, settings

    def system(self):
        """What it says it can use of the processor. The server says so before it finds that there is no such model."""
        words = processes.run(["sh", "-c", '"$0" --model /nonexistent --port 1 --verbosity 5 2>&1; true',
                               self.binaries / "llama-server"], 60)
        return system_info(words.output)

    def prepare(self, weights, precision):
        pass

    def warm(self, weights, precision):
        return prepare.warm(weights.gguf(precision))

    def speed(self, weights, precision):
        settings, model = self.settings, weights.gguf(precision)
        threads = str(settings.threads)
        single = processes.run(
            [self.binaries / "llama-bench", "--model", model, "--threads", threads, "--n-prompt", str(settings.prompt),
             "--n-gen", str(settings.decode_tokens), "--repetitions", "1", "--output", "json"], settings.limit)
        samples = llama_bench(single.output, single.others)
        batches = [batch for batch in settings.batches if batch > 1]
        # The prompt is computed once and shared, the texts after it are not.
        cells = max(batches) * 256
        several = processes.run(
            [self.binaries / "llama-batched-bench", "--model", model, "--threads", threads, "--ctx-size", str(cells),
             "-npp", str(settings.context), "-ntg", str(settings.decode_tokens), "-npl", ",".join(map(str, batches)), "-pps",
             "--output-format", "jsonl"], settings.limit)
        return samples + batched_bench(several.output + several.errors, several.others), None

    def decode(self, weights, precision, context, tokens, priority, beside=(), limit=None):
        done = processes.run(
            [self.binaries / "llama-bench", "--model", weights.gguf(precision), "--threads", str(self.settings.threads),
             "--n-prompt", "0", "--n-gen", str(tokens), "--n-depth", str(context), "--repetitions", "1", "--output", "json"],
            limit or self.settings.limit, priority, beside=beside)
        [(_, rate, _)] = llama_bench(done.output, done.others)
        return rate, None, done

    def server(self, weights, precision, priority=processes.GROUP_PRIORITY, limit=300.0):
        return self.server_of(weights.gguf(precision), CLIENTS * 512, CLIENTS, priority, limit)

    def server_of(self, model, cells, parallel, priority=processes.GROUP_PRIORITY, limit=300.0):
        threads = str(self.settings.threads)
        command = [self.binaries / "llama-server", "--model", model, "--threads", threads, "--threads-batch", threads,
                   "--ctx-size", str(cells), "--parallel", str(parallel), "--host", "127.0.0.1", "--port", "{port}",
                   "--no-webui", "--cache-ram", "0"]
        return Server(command, "/health", limit, priority)

    def first_token(self, server):
        server.ask("/completion", {"prompt": "Hello world", "n_predict": 1, "temperature": 0})


class Transformers:
    name = TRANSFORMERS

    def __init__(self, python, settings):
        self.python, self.settings = python, settings

    def measure(self, weights, dtype):
        settings = self.settings
        done = processes.run(
            [self.python, prepare.HERE / "transformers_side.py", "measure", weights.checkpoint, "--dtype", dtype,
             "--threads", str(settings.threads), "--prompt", str(settings.prompt), "--context", str(settings.context),
             "--steps", str(settings.transformers_steps)], settings.limit, environment={"HF_HUB_OFFLINE": "1"})
        report = json.loads(done.output)
        found = [("first token", report["first_token_seconds"]), ("peak memory", done.peak_bytes / 1e9),
                 *report["rates"].items()]
        return [(metric, value, done.others) for metric, value in found], report["versions"], report["left_out"]

    def greedy(self, checkpoint, prompts, steps):
        done = processes.run(
            [self.python, prepare.HERE / "transformers_side.py", "greedy", checkpoint, "--threads",
             str(self.settings.threads), "--steps", str(steps), "--prompts", json.dumps(prompts)], self.settings.limit,
            environment={"HF_HUB_OFFLINE": "1"})
        return json.loads(done.output)


def kaito_rate(row):
    """Tokens a second of a row of `kaito bench`, or the cause why it has none."""
    rate = row.get("tokens_per_second")
    if rate is None:
        causes = "; ".join(failure["cause"] for failure in row.get("failures", [])) or "no cause given"
        raise Failed(f"kaito bench: {causes}")
    return rate


def kaito_speed(report, others):
    """(metric, value, load of others, part of the limit) of each row; a row's own record of others is the better one."""
    found = []
    for row in report["prefill"]:
        found.append(("prefill", kaito_rate(row), _or(row.get("others"), others), row.get("fraction_of_peak")))
    for row in report["decode"]:
        found.append((f"decode {row['batch_size']}", kaito_rate(row), _or(row.get("others"), others),
                      row.get("fraction_of_bandwidth")))
    return found


def _or(value, otherwise):
    return otherwise if value is None else value


def llama_bench(output, others):
    """What `llama-bench --output json` reports."""
    found = []
    for test in json.loads(output):
        metric = "prefill" if test["n_gen"] == 0 else "decode 1"
        found.append((metric, finite(test["avg_ts"], "llama-bench"), others))
    return found


def batched_bench(output, others):
    """What `llama-batched-bench --output-format jsonl` reports, among its log."""
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise Failed("llama-batched-bench reported nothing")
    return [(f"decode {line['pl']}", finite(line["speed_tg"], "llama-batched-bench"), others) for line in lines]


def system_info(log):
    """What llama.cpp says it can use of the processor: `{"AVX512": "1", "AMX_INT8": "1", ...}`."""
    for line in log.splitlines():
        if "system_info:" in line:
            pairs = (part.split("=") for part in line.rpartition("CPU :")[2].split("|"))
            return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
    return {}


def tiles(system):
    """Whether llama.cpp uses AMX, in words."""
    if not system:
        return "it did not say whether it uses AMX"
    if system.get("AMX_INT8") == "1":
        return "with AMX (for Q8_0 and Q4_0; its bf16 has no tile code)"
    return "without AMX"


def finite(value, who):
    value = float(value)
    if not math.isfinite(value) or value <= 0:
        raise Failed(f"{who} reports {value} tokens/s")
    return value


def start(engine, weights, precision):
    """Seconds from start to first token with the files in the page cache, peak resident bytes, load of others."""
    engine.warm(weights, precision)
    watch = Watch()
    with engine.server(weights, precision) as server:
        engine.first_token(server)
        seconds = time.monotonic() - server.started
        with open(f"/proc/{server.pid}/stat", encoding="utf-8", errors="replace") as stat:
            others = watch.others(processes.process_seconds(stat.read()))
        return seconds, server.peak_bytes(), others


def serve(client, engine, weights, precision):
    """All tokens a second of a server that clients keep busy, the load of others, and the server's peak memory."""
    settings = client.settings
    given, wanted = settings.request_tokens
    engine.warm(weights, precision)
    with engine.server(weights, precision) as server:
        engine.first_token(server)
        flags = ["--url", f"http://127.0.0.1:{server.port}", *engine.client_flags, "--measure", "clients", "--clients",
                 str(settings.clients), "--requests-per-client", "1", "--input-tokens", str(given), "--output-tokens",
                 str(wanted)]
        report, done = client.bench(flags, beside=[server.pid])
        [row] = report["clients"]
        problems = check_clients(row, settings.clients, given, wanted)
        return kaito_rate(row), done.others, server.peak_bytes(), problems


def check_clients(row, clients, given, wanted):
    """What is not as it was asked for, in words: both sides must have done the same work. Prompts may be words."""
    problems = []
    if row["completed"] != clients:
        problems.append(f"{row['completed']} of {clients} requests were completed")
    for field, each, tolerance in (("input_tokens", given, 0.1), ("output_tokens", wanted, 0.02)):
        if abs(row[field] - clients * each) > tolerance * clients * each:
            problems.append(f"{row[field]} {field.replace('_', ' ')} instead of {clients * each}")
    return problems


def sharing(engine, weights, precision, tokens):
    """Decoding one sequence, quietly and with one core in use by another process: tokens/s of both."""
    engine.warm(weights, precision)
    core = max(os.sched_getaffinity(0))
    # In the ordinary scheduler group, as the busy process is: each is as important as the other.
    quiet, _, done = engine.decode(weights, precision, CONTEXT, tokens, 0)
    with BusyCore(core, 600) as busy:
        shared, _, beside = engine.decode(weights, precision, CONTEXT, tokens, 0, beside=[busy.pid], limit=300.0)
    return (quiet, done.others), (shared, beside.others)


def long_context(kaito, weights, precision, context):
    """Tokens/s after a long text, and the time of a token as a multiple of what reading its bytes takes."""
    # The text is computed twice, as `kaito bench` begins with a repetition that does not count.
    rate, report, done = kaito.decode(weights, precision, context, 16, processes.GROUP_PRIORITY, limit=3600.0)
    model, limits = report.get("model"), report.get("limits")
    if not model or not limits:
        return rate, None, done.others
    bytes_read = model["step_bytes"] + model["kv_bytes_per_token"] * context
    return rate, limits["read_bytes_per_second"] / (rate * bytes_read), done.others


def samples(shape, precision, engine, found, number):
    return [Sample(shape, precision, engine, *row, round=number) for row in found]
