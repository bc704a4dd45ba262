"""Compares a committed model directory with one made anew."""

import json
from pathlib import Path

SCORE_TOLERANCE = 1e-4


def directories(committed: Path, made: Path) -> list[str]:
    """What differs, one line each."""
    names = {p.name for d in (committed, made) if d.is_dir() for p in d.iterdir() if p.is_file()}
    found = []
    for name in sorted(names):
        one, other = committed / name, made / name
        if not one.exists() or not other.exists():
            found.append(f"{name} is only {'made' if other.exists() else 'committed'}")
        elif name == "cases.json":
            found += _cases(json.loads(one.read_text("utf-8")), json.loads(other.read_text("utf-8")))
        elif one.read_bytes() != other.read_bytes():
            found.append(f"{name} has other bytes")
    return found


def _cases(committed: list[dict], made: list[dict]) -> list[str]:
    if [c["name"] for c in committed] != [c["name"] for c in made]:
        return ["cases.json has other cases"]
    return [
        f"case {one['name']!r}: {one} is now {other}" for one, other in zip(committed, made) if not _same(one, other)
    ]


def _same(one, other) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return abs(one - other) <= SCORE_TOLERANCE
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other
