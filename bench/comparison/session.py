"""One comparison: what is measured in which order, what comes of it, and what is said about it."""

import json
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

from . import aims, check, engines, figures, prepare, processes, programs
from .figures import BEFORE, LLAMA, OURS, TRANSFORMERS, VLLM
from .vllm_engine import Vllm

PARTS = {
    "speed": "prefill and decode of 1, 8 and 16 sequences",
    "server": "16 clients",
    "start": "start to first token, and peak memory",
    "sharing": "one of the cores used by another process",
    "long": "decode after 16k tokens (ours alone)",
    "transformers": "prefill and decode, by transformers",
}
# The parts that are measured unless --parts says otherwise, and in which precisions where not in all.
DEFAULT_PARTS = {
    "tinyllama-1.1b": {"speed": None, "server": None, "start": None, "sharing": ("bf16", "int4"), "long": ("int8",),
                       "transformers": ("bf16",)},
    "llama-2-7b": {"speed": None, "start": None},
}
QUICK_PARTS = {"speed": None, "server": None, "start": None}
# A server is measured for minutes, so in fewer rounds.
SERVER_ROUNDS = 2


def tasks(parts, precisions, rounds):
    """(part, precision, round) in the order in which they are measured: a first round of what has aims comes first, and what
    is told least by comes last, so that a run which is cut short has said the most it could."""
    def of(part, number):
        if part in parts:
            only = parts[part]
            yield from ((part, precision, number) for precision in precisions if only is None or precision.name in only)

    yield from of("speed", 1)
    yield from of("server", 1)
    yield from of("start", 1)
    for number in range(2, rounds + 1):
        yield from of("speed", number)
    for number in range(2, min(rounds, SERVER_ROUNDS) + 1):
        yield from of("server", number)
    yield from of("sharing", 1)
    for number in range(2, rounds + 1):
        yield from of("start", number)
    yield from of("long", 1)
    yield from of("transformers", 1)


class Session:
    def __init__(self, args):
        self.args = args
        self.began = time.monotonic()
        self.samples, self.notes, self.limits, self.agreement = [], [], {}, []
        self.versions, self.took = {}, {}
        self.settings = engines.Settings(args.threads, args.quick)
        self.ours = self.before = self.llama = self.llama_build = self.vllm = self.transformers = None
        self.situation = aims.Situation(
            tiles=aims.has_tiles(read("/proc/cpuinfo")) and args.kernels in (None, "amx"), exact=args.compute == "exact")

    def say(self, text):
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        print(f"[{minutes:3}:{seconds:02}] {text}", file=sys.stderr, flush=True)

    def note(self, text):
        self.say(text)
        self.notes.append(text)

    def add(self, shape, precision, engine, number, found):
        """Keeps (metric, value, others[, of_limit]) rows, and says them."""
        self.samples += engines.samples(shape, precision, engine, found, number)
        words = [f"{row[0]} {figures.number(row[1], figures.METRICS[row[0]].unit)}" for row in found]
        others = max((row[2] for row in found if row[2] is not None), default=0.0)
        self.say(f"{shape} {precision} {engine}, round {number}: {', '.join(words)} (others {others:.0%})")

    def attempt(self, what, measure):
        """The result of `measure`, or None and a note: one failure does not end the comparison."""
        try:
            return measure()
        except (processes.Failed, OSError, ValueError, KeyError) as error:
            self.note(f"{what}: {type(error).__name__ if isinstance(error, KeyError) else 'failed'}: {error}")
            return None

    def build(self):
        """Gets the programs of everyone who takes part, which is whoever is asked for and is there."""
        args = self.args
        # A peer that is named and not there is installed; without names, whoever is there takes part.
        wanted = lambda peer: args.peers is None or peer in args.peers
        named = lambda peer: args.peers is not None and peer in args.peers
        release = args.build or programs.kaito(self.say)
        self.release = release
        self.ours = engines.Kaito(release / "kaito", self.settings, OURS, args.compute, args.kernels)
        self.versions[OURS] = self.ours.version()
        if args.before:
            self.before = engines.Kaito(args.before, self.settings, BEFORE)
            self.versions[BEFORE] = f"{self.before.version()} ({args.before})"
        if wanted(LLAMA):
            self.llama_build = programs.llama_cpp(self.say)
            self.llama = engines.LlamaCpp(self.llama_build.binaries, self.settings)
            runs = self.attempt("llama.cpp: what it can use", self.llama.system) or {}
            self.say(f"llama.cpp: {engines.tiles(runs)}")
            self.versions[LLAMA] = f"{engines.tiles(runs)}, of llama-cpp-python {self.llama_build.version}, tile configuration kept alive at build time"
        if wanted(VLLM) and (python := programs.vllm(self.say, named(VLLM))):
            self.vllm = Vllm(python, self.settings)
        if wanted(TRANSFORMERS) and (python := programs.transformers(self.say, named(TRANSFORMERS))):
            self.transformers = engines.Transformers(python, self.settings)
        there = [peer for peer, engine in ((LLAMA, self.llama), (VLLM, self.vllm), (TRANSFORMERS, self.transformers)) if engine]
        self.say(f"compared with: {', '.join(([BEFORE] if self.before else []) + there) or 'nobody'}")

    def builds(self):
        return [engine for engine in (self.ours, self.before) if engine]

    def peers(self, precision):
        """Whoever has a precision, in the order of a round."""
        of_bf16 = self.vllm if precision.name == "bf16" else None
        return [engine for engine in (*self.builds(), self.llama, of_bf16) if engine]

    def run(self):
        args = self.args
        self.build()
        if args.minutes and not args.prepare:
            # What is built is there for the next time; what is measured counts.
            processes.end_at(time.monotonic() + 60 * args.minutes)
        args.data.mkdir(parents=True, exist_ok=True)
        precisions = [prepare.PRECISIONS[name] for name in args.only or prepare.DEFAULT]
        names = list(prepare.SHAPES) if args.shape == "all" else [args.shape]
        if not args.quick:
            others = [engine for engine in (self.transformers, self.vllm) if engine]
            self.agreement = check.check(self.release, self.builds(), self.llama, self.llama_build, others, args.data, self.say)
        for line in self.agreement:
            self.say(line)
        for name in names:
            weights = prepare.Weights(args.data, prepare.SHAPES[name])
            try:
                weights.make(precisions, [build.name for build in self.builds()], self.release, self.llama_build, self.say)
                if not args.prepare:
                    self.measure(weights, precisions)
            finally:
                if self.vllm:
                    self.vllm.close()
                if not (args.keep or args.prepare):
                    weights.remove_made()

    def measure(self, weights, precisions):
        defaults = QUICK_PARTS if self.args.quick else DEFAULT_PARTS[weights.shape.name]
        parts = {part: defaults.get(part) for part in self.args.parts or defaults}
        if self.args.only:
            # A precision that is named is measured in every part.
            parts = {part: None for part in parts}
        parts = {part: only for part, only in parts.items() if part != "transformers" or self.transformers}
        runs = {"speed": self.speed, "transformers": self.measure_transformers, "server": self.server,
                "start": self.start, "sharing": self.sharing, "long": self.long_context}
        for precision in precisions:
            for build in self.builds():
                self.attempt(f"{weights.shape.name} {precision.name} {build.name}: first start",
                             lambda build=build: build.prepare(weights, precision))
        for part, precision, number in tasks(parts, precisions, self.args.rounds):
            runs[part](weights, precision, number)

    def in_time(self, key, what, measure):
        """Measures what there is time for, by how long it took before."""
        needed = self.took.get(key, 0.0)
        if needed >= processes.time_left() or processes.time_left() < 5:
            self.note(f"{what}: left out, as it takes some {needed:.0f} s and {max(0.0, processes.time_left()):.0f} s are left")
            return None
        began = time.monotonic()
        found = self.attempt(what, measure)
        if found is not None:
            self.took[key] = time.monotonic() - began
        return found

    def speed(self, weights, precision, number):
        shape = weights.shape
        # Every other round in the opposite order, so that what changes steadily favours nobody.
        order = self.peers(precision)[:: 1 if number % 2 else -1]
        for engine in order:
            what = f"{shape.name} {precision.name} {engine.name}: speed"
            measured = self.quietly(("speed", precision.name, engine.name), what,
                                    lambda engine=engine: self.one_speed(engine, weights, precision))
            if measured is None:
                continue
            found, report = measured
            if engine is self.ours:
                if report.get("limits"):
                    self.limits.setdefault((shape.name, precision.name), []).append(report["limits"])
                if report.get("model"):
                    weights.bytes_in_memory = report["model"]["weights_bytes"]
            if engine is self.vllm:
                self.versions[VLLM] = ", ".join(f"{name} {version}" for name, version in engine.versions.items())
            self.add(shape.name, precision.name, engine.name, number, found)

    def one_speed(self, engine, weights, precision):
        engine.warm(weights, precision)
        return engine.speed(weights, precision)

    def quietly(self, key, what, measure):
        """Measures again while others used too much; keeps the quietest, which is marked when it was not quiet either."""
        best = None
        for _ in range(1 + self.args.retries):
            measured = self.in_time(key, what, measure)
            if measured is None:
                return best and best[1]
            others = max((row[2] for row in measured[0] if row[2] is not None), default=0.0)
            if best is None or others < best[0]:
                best = (others, measured)
            if others <= self.args.others:
                break
            self.say(f"{what}: others used {others:.0%} of the cores")
        return best[1]

    def measure_transformers(self, weights, precision, number):
        # It has no weights of fewer bits on a CPU; f32 is its fastest prefill where bf16 is slow.
        if precision.name != "bf16":
            return
        needed = 4.4 * weights.shape.parameters
        for dtype in ("bf16", "f32"):
            if dtype == "f32" and needed > memory_available():
                self.note(f"{weights.shape.name} f32 transformers: needs {needed / 1e9:.0f} GB of memory")
                continue
            self.transformers_round(weights, dtype, number)

    def transformers_round(self, weights, dtype, number):
        prepare.warm(weights.checkpoint)
        measured = self.in_time(("transformers", dtype), f"{weights.shape.name} {dtype} transformers",
                                lambda: self.transformers.measure(weights, dtype))
        if measured:
            found, versions, left_out = measured
            self.versions.update(versions)
            for figure, seconds in left_out.items():
                self.note(f"{weights.shape.name} {dtype} transformers: {figure} left out, it would take some {seconds:.0f} s")
            self.add(weights.shape.name, dtype, TRANSFORMERS, number, found)

    def server(self, weights, precision, number):
        shape = weights.shape
        for engine in self.peers(precision):
            what = f"{shape.name} {precision.name} {engine.name}: server"
            measured = self.in_time(("server", precision.name, engine.name), what,
                                    lambda engine=engine: engines.serve(self.ours, engine, weights, precision))
            if measured is None:
                continue
            rate, others, _, problems = measured
            for problem in problems:
                self.note(f"{what}: {problem}")
            self.add(shape.name, precision.name, engine.name, number, [("server", rate, others)])

    def start(self, weights, precision, number):
        shape = weights.shape
        for engine in [*self.builds(), *([self.llama] if self.llama else [])]:
            measured = self.in_time(("start", precision.name, engine.name), f"{shape.name} {precision.name} {engine.name}: start",
                                    lambda engine=engine: engines.start(engine, weights, precision))
            if measured is None:
                continue
            seconds, peak, others = measured
            found = [("first token", seconds, others), ("peak memory", peak / 1e9, None)]
            held = getattr(weights, "bytes_in_memory", None)
            if engine is self.ours and held:
                found.append(("weights ratio", peak / held, None))
            self.add(shape.name, precision.name, engine.name, number, found)

    def sharing(self, weights, precision, number):
        shape = weights.shape
        for engine in [*self.builds(), *([self.llama] if self.llama else [])]:
            measured = self.in_time(
                ("sharing", precision.name, engine.name), f"{shape.name} {precision.name} {engine.name}: sharing",
                lambda engine=engine: engines.sharing(engine, weights, precision, self.settings.decode_tokens // 2))
            if measured is None:
                continue
            (quiet, quiet_others), (shared, others) = measured
            self.add(shape.name, precision.name, engine.name, number,
                     [("shared decode 1", shared, others), ("kept", shared / quiet, max(others, quiet_others))])

    def long_context(self, weights, precision, number):
        shape, context = weights.shape, self.settings.long_context
        measured = self.in_time(
            ("long", precision.name), f"{shape.name} {precision.name} kaito: decode after {context} tokens",
            lambda: engines.long_context(self.ours, weights, precision, context))
        if measured is None:
            return
        rate, multiple, others = measured
        found = [("long decode 1", rate, others)]
        if multiple is not None:
            found.append(("long bytes", multiple, others))
        self.add(shape.name, precision.name, OURS, number, found)

    def limit_lines(self):
        for (shape, precision), all_limits in self.limits.items():
            reads = figures.median([limits["read_bytes_per_second"] for limits in all_limits])
            operations = figures.median([limits["operations_per_second"] for limits in all_limits])
            line = f"{precision}: reads {reads / 1e9:.1f} GB/s, {operations / 1e9:.0f} G operations/s ({all_limits[0]['unit']})"
            tiles = [limits["tiles"] for limits in all_limits if limits.get("tiles")]
            if tiles:
                product = figures.median([limits["plain_product"] for limits in tiles])
                registers = figures.median([limits["in_registers"] for limits in tiles])
                line += (f", {registers / 1e9:.0f} in registers; a plain product of tiles, which prompts are compared with, "
                         f"{product / 1e9:.0f}")
                operations = product
            theirs = self.llama_shares(shape, precision, reads, operations)
            yield shape, line + (f"; llama.cpp reaches {theirs}" if theirs else "")

    def llama_shares(self, name, precision, reads, operations):
        """llama.cpp's shares of the same limits, from the size of its weights."""
        shape, bits = prepare.SHAPES[name], prepare.PRECISIONS[precision].bits
        medians = {metric: figures.median([s.value for s in self.samples
                                           if (s.shape, s.precision, s.engine, s.metric) == (name, precision, LLAMA, metric)])
                   for metric in ("prefill", "decode 1")}
        words = []
        if medians["prefill"]:
            # Counted as `kaito bench` counts.
            words.append(f"{medians['prefill'] * 2 * shape.parameters / operations:.0%} in prefill")
        if medians["decode 1"]:
            step = (shape.parameters - shape.embedding) * bits / 8
            words.append(f"{medians['decode 1'] * step / reads:.0%} in decode")
        return " and ".join(words)

    def rows(self):
        found = figures.rows(self.samples, self.args.others)
        for row in found:
            ratios = {peer: of_peer.median for peer, of_peer in row.ratios.items()}
            row.verdicts = aims.verdicts(self.situation, figures.METRICS[row.metric], row.precision, row.values.get(OURS), ratios,
                                         row.of_limit)
        return found

    def report(self):
        found = self.rows()
        for shape in dict.fromkeys(row.shape for row in found):
            of_shape = [row for row in found if row.shape == shape]
            print(f"\n{shape}, {self.args.threads} threads, medians of up to {self.args.rounds} rounds; ratios are how many times "
                  "better kaito is\n")
            print(figures.table(of_shape, self.args.others))
            for shape_of_line, line in self.limit_lines():
                if shape_of_line == shape:
                    print(line)
            if of_before := figures.before_table(of_shape):
                print(f"\nAgainst the binary from before, round by round\n\n{of_before}")
            if any(row.verdicts for row in of_shape):
                print(f"\nAims on {self.situation.words()}: {figures.aims_table(of_shape)}")
        if any(row.others is not None and row.others > self.args.others for row in found):
            print(f"* others used more than {self.args.others:.0%} of the cores")
        if self.args.quick:
            print("--quick: short samples, which swing by a tenth and more")
        if self.agreement:
            print("\nSame model: " + "; ".join(self.agreement))
        print("Versions: " + "; ".join(f"{name} {version}" for name, version in self.versions.items()))
        for note in self.notes:
            print(f"Note: {note}")
        minutes = (time.monotonic() - self.began) / 60
        print(f"Took {minutes:.0f} minutes")
        if self.args.json:
            self.args.json.write_text(json.dumps(self.document(found), indent=1) + "\n", encoding="utf-8")

    def document(self, found):
        args = {name: value if isinstance(value, (int, float, str, list, type(None))) else str(value)
                for name, value in vars(self.args).items()}
        limits = [{"shape": shape, "precision": precision, "each": each} for (shape, precision), each in self.limits.items()]
        return {"schema": "kaito-compare/2", "started": self.args.started, "settings": args, "versions": self.versions,
                "machine": {"cpu": cpu_name(), "cores": processes.CORES, "kernel": platform.release()},
                "same_model": self.agreement, "limits": limits, "rows": figures.as_json(found),
                "samples": [asdict(sample) for sample in self.samples], "notes": self.notes}


def read(path):
    return Path(path).read_text(encoding="utf-8", errors="replace")


def memory_available():
    return processes.status_bytes(read("/proc/meminfo"), "MemAvailable")


def cpu_name():
    for line in read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
