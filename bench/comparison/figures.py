"""Medians, ratios and tables."""

import statistics
from dataclasses import asdict, dataclass, field

OURS, BEFORE, LLAMA, VLLM, TRANSFORMERS = "kaito", "before", "llama.cpp", "vLLM", "transformers"
# With whom ours is compared, in the order of the columns.
PEERS = (BEFORE, LLAMA, VLLM, TRANSFORMERS)


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
    # Samples of one round were taken close to each other.
    round: int = 1


@dataclass(frozen=True)
class Metric:
    name: str
    title: str
    unit: str
    # Ratios are ours to theirs, or theirs to ours where less is better.
    less_is_better: bool = False


METRICS = {metric.name: metric for metric in (
    Metric("prefill", "prefill, 512 tokens", "tokens/s"),
    Metric("decode 1", "decode, 1 sequence", "tokens/s"),
    Metric("decode 8", "decode, 8 sequences", "tokens/s"),
    Metric("decode 16", "decode, 16 sequences", "tokens/s"),
    Metric("server", "server, 16 clients", "tokens/s"),
    Metric("first token", "start to first token", "s", less_is_better=True),
    Metric("peak memory", "peak resident memory", "GB", less_is_better=True),
    Metric("weights ratio", "peak memory to weights", "x", less_is_better=True),
    Metric("shared decode 1", "decode, 1 sequence, one core busy", "tokens/s"),
    Metric("kept", "of its speed without the busy core", "share"),
    Metric("long decode 1", "decode after 16k tokens", "tokens/s"),
    Metric("long bytes", "its time to that of its bytes", "x", less_is_better=True),
)}


def median(values):
    return statistics.median(values) if values else None


@dataclass
class Ratio:
    """Of the medians, and the least and the most of the rounds in which both were measured."""

    median: float
    least: float | None = None
    most: float | None = None


@dataclass
class Row:
    shape: str
    precision: str
    metric: str
    unit: str
    values: dict
    samples: dict
    ratios: dict
    of_limit: float | None
    # The largest share that others used during a sample that counts.
    others: float | None
    verdicts: list = field(default_factory=list)


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
    ratios = {peer: ratio(metric, kept[OURS], kept[peer]) for peer in PEERS if peer in kept and OURS in kept}
    of_limit = median([s.of_limit for s in kept.get(OURS, []) if s.of_limit is not None])
    others = [s.others for of_engine in kept.values() for s in of_engine if s.others is not None]
    return Row(shape, precision, metric.name, metric.unit, values, {e: len(s) for e, s in kept.items()}, ratios, of_limit,
               max(others, default=None))


def ratio(metric, ours, theirs):
    """How many times better ours is."""
    def of(one, other):
        return other / one if metric.less_is_better else one / other

    by_round = []
    for number in dict.fromkeys(sample.round for sample in ours):
        both = [median([s.value for s in side if s.round == number]) for side in (ours, theirs)]
        if all(both):
            by_round.append(of(*both))
    middle = of(median([s.value for s in ours]), median([s.value for s in theirs]))
    return Ratio(middle, min(by_round, default=None), max(by_round, default=None))


def number(value, unit):
    if value is None:
        return "-"
    if unit == "share":
        return f"{value:.0%}"
    if unit == "x":
        return f"{value:.2f}"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def share(value):
    return "" if value is None else f"{value:.0%}"


def table(found, allowed_others):
    """The rows as aligned text: the figures of everyone, and ours to each of the others'."""
    engines = [engine for engine in (OURS, *PEERS) if any(engine in row.values for row in found)]
    peers = [engine for engine in engines if engine != OURS]
    lines = [("", "", "", *engines, *(f"to {peer}" for peer in peers), "of its limit", "others")]
    for row in found:
        loud = "*" if row.others is not None and row.others > allowed_others else ""
        of_peers = [row.ratios.get(peer) for peer in peers]
        lines.append((
            row.precision, METRICS[row.metric].title, row.unit,
            *(number(row.values.get(engine), row.unit) for engine in engines),
            *("" if of_peer is None else f"{of_peer.median:.2f}x" for of_peer in of_peers),
            share(row.of_limit), share(row.others) + loud,
        ))
    return aligned(lines, right=range(3, 3 + len(engines) + len(peers) + 1))


def aims_table(found):
    """A line for each aim of which anything is known, and how many of them are met."""
    lines = [("", "", "compared with", "found", "aim", "")]
    reached = 0
    for row in found:
        metric = METRICS[row.metric]
        for verdict in row.verdicts:
            reached += verdict.reached
            unit = "share" if verdict.to == "its limit" or metric.unit == "share" else "x"
            bound = "<= " if not verdict.to and metric.less_is_better else ""
            lines.append((row.precision, metric.title, verdict.to, number(verdict.found, unit), bound + number(verdict.aim, unit),
                          "reached" if verdict.reached else "MISSED"))
    return f"{reached} of {len(lines) - 1} aims reached\n" + aligned(lines, right=(3, 4))


def before_table(found):
    """Ours to the binary from before, with the spread of the rounds: a difference that the spread contains is not shown."""
    lines = [("", "", "to before", "least", "most", "rounds", "")]
    for row in found:
        of_before = row.ratios.get(BEFORE)
        if of_before is None:
            continue
        spread = ["-" if value is None else number(value, "x") for value in (of_before.least, of_before.most)]
        rounds = min(row.samples[OURS], row.samples[BEFORE])
        lines.append((row.precision, METRICS[row.metric].title, number(of_before.median, "x"), *spread, str(rounds),
                      judged(of_before, rounds)))
    return aligned(lines, right=(2, 3, 4, 5)) if len(lines) > 1 else ""


# Rounds that all agree by chance do so once in 16 times when there are this many.
ENOUGH_ROUNDS = 5


def judged(of_before, rounds):
    """Whether rounds agree that there is a difference."""
    if of_before.least is None or rounds < 2:
        return "one round: nothing is shown"
    if of_before.least <= 1 <= of_before.most:
        return "within noise"
    word = "better" if of_before.least > 1 else "worse"
    return f"{word} in every round" + (", which are too few to tell" if rounds < ENOUGH_ROUNDS else "")


def aligned(lines, right=()):
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    pad = lambda column, text: text.rjust(widths[column]) if column in right else text.ljust(widths[column])
    return "\n".join("  ".join(pad(*cell) for cell in enumerate(line)).rstrip() for line in lines)


def as_json(found):
    return [asdict(row) for row in found]
