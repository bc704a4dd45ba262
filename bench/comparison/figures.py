"""Medians, ratios and the table. What is aimed at is data of this file."""

import statistics
from dataclasses import asdict, dataclass

OURS, LLAMA, TRANSFORMERS = "kaito", "llama.cpp", "transformers"


@dataclass
class Sample:
    shape: str
    precision: str
    engine: str
    metric: str
    value: float
    # Share of all cores that others used meanwhile; None where nobody looked.
    others: float | None = None
    # Part of the machine's limit that this is, where the engine says so itself.
    of_limit: float | None = None


@dataclass(frozen=True)
class Metric:
    name: str
    title: str
    unit: str
    # Ratios are ours to theirs, or theirs to ours where less is better.
    less_is_better: bool = False
    # Ratio to llama.cpp that is aimed at, by precision.
    ratio: tuple = ()
    # Which share of the limit is aimed at.
    of_limit: float | None = None
    limit: str = ""
    # What the figure itself is to be at least, or at most.
    at_least: float | None = None
    at_most: float | None = None

    def target_ratio(self, precision):
        return dict(self.ratio).get(precision)


def _ratios(bf16, int8, int4):
    return (("bf16", bf16), ("int8", int8), ("int4", int4))


METRICS = {metric.name: metric for metric in (
    Metric("prefill", "prefill, 512 tokens", "tokens/s", ratio=_ratios(1.7, 4, 3), of_limit=0.75, limit="peak"),
    Metric("decode 1", "decode, 1 sequence", "tokens/s", ratio=_ratios(1.3, 1.7, 2), of_limit=0.85, limit="bandwidth"),
    Metric("decode 8", "decode, 8 sequences", "tokens/s", ratio=_ratios(2.5, 4, 4)),
    Metric("decode 16", "decode, 16 sequences", "tokens/s"),
    Metric("server", "server, 16 clients", "tokens/s", ratio=_ratios(2, 4, 3)),
    Metric("first token", "start to first token", "s", less_is_better=True),
    Metric("peak memory", "peak resident memory", "GB", less_is_better=True),
    Metric("weights ratio", "peak memory to weights", "x", less_is_better=True, at_most=1.05),
    Metric("shared decode 1", "decode, 1 sequence, one core busy", "tokens/s"),
    Metric("kept", "of its speed without the busy core", "share", at_least=0.5),
    Metric("long decode 1", "decode after 16k tokens", "tokens/s"),
    Metric("long bytes", "its time to that of its bytes", "x", less_is_better=True, at_most=1.3),
)}


def median(values):
    return statistics.median(values) if values else None


@dataclass
class Row:
    shape: str
    precision: str
    metric: str
    unit: str
    values: dict
    samples: dict
    ratio: float | None
    target: float | None
    reached: bool | None
    of_limit: float | None
    of_limit_target: float | None
    # The largest share that others used during a sample that counts.
    others: float | None


def counted(samples, allowed):
    """The samples a median is taken of: those of a quiet machine, or all where it never was."""
    quiet = [sample for sample in samples if sample.others is None or sample.others <= allowed]
    return quiet or samples


def rows(samples, allowed_others):
    """A row for each shape, precision and metric that anything was measured of, in the order of the tables."""
    found = []
    for shape, precision in dict.fromkeys((sample.shape, sample.precision) for sample in samples):
        for metric in METRICS.values():
            of_row = [s for s in samples if (s.shape, s.precision, s.metric) == (shape, precision, metric.name)]
            if of_row:
                found.append(_row(shape, precision, metric, of_row, allowed_others))
    return found


def _row(shape, precision, metric, samples, allowed_others):
    by_engine = {}
    for sample in samples:
        by_engine.setdefault(sample.engine, []).append(sample)
    kept = {engine: counted(of_engine, allowed_others) for engine, of_engine in by_engine.items()}
    values = {engine: median([s.value for s in of_engine]) for engine, of_engine in kept.items()}
    ours, theirs = values.get(OURS), values.get(LLAMA)
    ratio = None
    if ours and theirs:
        ratio = theirs / ours if metric.less_is_better else ours / theirs
    target = metric.target_ratio(precision)
    of_limit = median([s.of_limit for s in kept.get(OURS, []) if s.of_limit is not None])
    others = [s.others for of_engine in kept.values() for s in of_engine if s.others is not None]
    return Row(shape, precision, metric.name, metric.unit, values, {e: len(s) for e, s in kept.items()}, ratio, target,
               reached(metric, ours, ratio, target, of_limit), of_limit, metric.of_limit, max(others, default=None))


def reached(metric, ours, ratio, target, of_limit):
    """Whether everything that is aimed at was reached; None where nothing is, or nothing is known."""
    verdicts = []
    if target is not None and ratio is not None:
        verdicts.append(ratio >= target)
    if metric.of_limit is not None and of_limit is not None:
        verdicts.append(of_limit >= metric.of_limit)
    if metric.at_least is not None and ours is not None:
        verdicts.append(ours >= metric.at_least)
    if metric.at_most is not None and ours is not None:
        verdicts.append(ours <= metric.at_most)
    return all(verdicts) if verdicts else None


def number(value, unit):
    if value is None:
        return "-"
    if unit == "share":
        return f"{value:.0%}"
    if unit == "x":
        return f"{value:.2f}"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(found, allowed_others):
    """The rows as aligned text."""
    lines = [("", "", "", "kaito", "llama.cpp", "transformers", "ratio", "aim", "of its limit", "aim", "", "others")]
    for row in found:
        metric = METRICS[row.metric]
        engines = [number(row.values.get(engine), row.unit) for engine in (OURS, LLAMA, TRANSFORMERS)]
        share = lambda value: "" if value is None else f"{value:.0%}"
        own_aim = ""
        if metric.at_least is not None:
            own_aim = ">= " + number(metric.at_least, row.unit)
        if metric.at_most is not None:
            own_aim = "<= " + number(metric.at_most, row.unit)
        loud = "*" if row.others is not None and row.others > allowed_others else ""
        lines.append((
            row.precision, metric.title, row.unit, *engines,
            "" if row.ratio is None else f"{row.ratio:.2f}x", f"{row.target:g}x" if row.target else own_aim,
            share(row.of_limit), share(row.of_limit and row.of_limit_target),
            {True: "reached", False: "missed", None: ""}[row.reached], share(row.others) + loud,
        ))
    return aligned(lines, right=range(3, 10))


def aligned(lines, right=()):
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    pad = lambda column, text: text.rjust(widths[column]) if column in right else text.ljust(widths[column])
    return "\n".join("  ".join(pad(*cell) for cell in enumerate(line)).rstrip() for line in lines)


def as_json(found):
    return [asdict(row) for row in found]
