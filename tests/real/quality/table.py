"""The table of docs/precision.md, held against what was measured."""

import re
from typing import NamedTuple

# What another machine may measure otherwise, beside what the table rounds. A divergence may differ by its interval.
POINTS, OF_PERPLEXITY, OF_INTERVAL = 0.5, 0.005, 0.25
COLUMNS = ["weights, activations", "bits, layers", "divergence", "same token", "perplexity"]


class Figures(NamedTuple):
    """Bits of a weight of the layers; the mean divergence, and its interval to both sides; equal tokens in percent; perplexity."""

    bits: float
    divergence: float
    interval: float
    same: float
    perplexity: float


class Printed(NamedTuple):
    """A number of the table, and half of what its last digit counts."""

    value: float
    rounding: float


def printed(text: str) -> Printed:
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise ValueError(f"{text!r} is not a number")
    return Printed(float(text), 0.5 * 10.0 ** -len(text.partition(".")[2]))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def read(document: str) -> dict[str, Figures]:
    """The rows by their names without marks, with `Printed` numbers."""
    lines = document.splitlines()
    begin = next((i for i, line in enumerate(lines) if cells(line) == COLUMNS), None)
    if begin is None:
        raise ValueError(f"no table has the columns {', '.join(COLUMNS)}")
    rows = {}
    for line in lines[begin + 2:]:
        if not line.startswith("|"):
            break
        title, bits, divergence, same, perplexity = cells(line)
        mean, _, interval = divergence.partition(" ± ")
        numbers = (bits, mean, interval or "0", same.removesuffix("%"), perplexity)
        rows[re.sub("[*`]", "", title)] = Figures(*map(printed, numbers))
    return rows


def differences(measured: dict[str, Figures], documented: dict[str, Figures], whole: bool = True) -> list[str]:
    """Where a row of the document says something else than was measured; rows that were not measured count if `whole`."""
    found = []
    for title, row in documented.items():
        figures = measured.get(title)
        if figures is None:
            if whole:
                found.append(f"{title}: the document has this row, and it was not measured")
            continue
        allowed = Figures(0, row.interval.value, OF_INTERVAL * row.interval.value, POINTS, OF_PERPLEXITY * row.perplexity.value)
        for what, was, says, tolerance in zip(Figures._fields, figures, row, allowed):
            # A billionth for sums in binary.
            if not abs(was - says.value) <= says.rounding + tolerance + 1e-9:
                found.append(f"{title}: the document says {what} {says.value:g}, measured was {was:.6g}")
    return found


def untrue(measured: dict[str, Figures]) -> list[str]:
    """What the document concludes from the table, and these figures do not say. Rows that are not there say nothing."""
    found = []
    for ours, theirs in (("int8", "Q8_0"), ("int4", "Q4_K_M")):
        if ours in measured and theirs in measured:
            a, b = measured[ours], measured[theirs]
            # The mean of many may be larger by chance; intervals that have nothing in common are not.
            if not a.divergence - a.interval <= b.divergence + b.interval:
                found.append(f"{ours} has a divergence of {a.divergence:.6g}, and {theirs} only {b.divergence:.6g}")
    weights, both = (measured.get(f"bf16, --compute {compute}") for compute in ("exact", "bf16"))
    if weights and both and not both.divergence - weights.divergence < weights.divergence:
        found.append(f"activations in bf16 cost more than weights: {weights.divergence:.6g} and with them {both.divergence:.6g}")
    return found
