"""What is aimed at. The tables here are the only place where an aim stands; `verdicts` says which are met."""

from dataclasses import dataclass

from .figures import LLAMA, OURS, VLLM, Metric

PRECISIONS = ("bf16", "int8", "int4")


def _each(bf16, int8, int4):
    return dict(zip(PRECISIONS, (bf16, int8, int4), strict=True))


# Ours to theirs in the same run, where the processor has tiles (AMX).
WITH_TILES = {
    LLAMA: {
        "prefill": _each(5, 3, 3),
        "decode 1": _each(1.6, 1.6, 1.8),
        "decode 8": _each(2.5, 3.5, 4),
        "decode 16": _each(3, 4, 4),
        "server": _each(2.5, 4, 4),
    },
    VLLM: {
        "prefill": {"bf16": 1.2},
        "decode 1": {"bf16": 1.5},
        "decode 8": {"bf16": 1.3},
        "decode 16": {"bf16": 1.2},
        "server": {"bf16": 1.5},
    },
}
# The same where it has none.
WITHOUT_TILES = {
    LLAMA: {
        "prefill": _each(1.7, 4, 3),
        "decode 1": _each(1.3, 1.7, 2),
        "decode 8": _each(2.5, 4, 4),
        "server": _each(2, 4, 3),
    },
}
# Where both read the same GGUF file, on any processor.
SAME_FILE = {"prefill": 2, "decode 1": 1.2, "decode 8": 2}
# What differs where 16-bit weights are multiplied exactly: the peers round activations to bf16, and vLLM is no measure then.
EXACT_WITH_TILES = {LLAMA: {**WITH_TILES[LLAMA], "prefill": _each(2.5, 3, 3)}}
# Shares of a limit that was measured in the same run: of the bandwidth in decoding; in a prompt, of a plain product of packed
# operands where there are tiles, of the peak where there are none.
OF_LIMIT = {"prefill": 0.75, "decode 1": 0.85, "decode 8": 0.7}
# What a figure is to be itself.
AT_LEAST = {"kept": 0.5}
AT_MOST = {"weights ratio": 1.05, "long bytes": 1.3}
# llama.cpp's time to ours.
START = {LLAMA: {"first token": _each(3, 3, 3)}}


@dataclass(frozen=True)
class Situation:
    """What decides which aims hold."""

    tiles: bool
    exact: bool = False

    def ratios(self):
        ratios = WITHOUT_TILES if not self.tiles else EXACT_WITH_TILES if self.exact else WITH_TILES
        return {**ratios, LLAMA: {**ratios[LLAMA], **START[LLAMA]}}

    def ratio(self, peer, metric, precision):
        if precision not in PRECISIONS:
            return SAME_FILE.get(metric) if peer == LLAMA else None
        return self.ratios().get(peer, {}).get(metric, {}).get(precision)

    def words(self):
        if not self.tiles:
            return "a processor without tiles (or kernels that leave them alone)"
        return "a processor with tiles" + (", 16-bit weights multiplied exactly" if self.exact else "")


@dataclass(frozen=True)
class Verdict:
    """An aim, and what was found."""

    # Whom or what it is compared with: a peer, a limit, or nothing.
    to: str
    found: float
    aim: float
    reached: bool


def verdicts(situation, metric: Metric, precision, ours, ratios, of_limit):
    """Every aim of a figure of which enough is known."""
    found = []
    for peer, ratio in ratios.items():
        aim = situation.ratio(peer, metric.name, precision)
        if aim is not None and ratio is not None:
            found.append(Verdict(peer, ratio, aim, ratio >= aim))
    share = OF_LIMIT.get(metric.name)
    if share is not None and of_limit is not None:
        found.append(Verdict("its limit", of_limit, share, of_limit >= share))
    if ours is not None and metric.name in AT_LEAST:
        found.append(Verdict("", ours, AT_LEAST[metric.name], ours >= AT_LEAST[metric.name]))
    if ours is not None and metric.name in AT_MOST:
        found.append(Verdict("", ours, AT_MOST[metric.name], ours <= AT_MOST[metric.name]))
    return found


def has_tiles(cpuinfo):
    """Whether /proc/cpuinfo tells of tiles and of both kinds of their products."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return {"amx_tile", "amx_int8", "amx_bf16"} <= set(value.split())
    return False
