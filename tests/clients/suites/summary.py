#!/usr/bin/env python3
"""Prints how many tests of each file passed, then each that failed, with the first words of why; variants of one test together."""

import sys
from collections import Counter, defaultdict
from xml.etree import ElementTree

counts: dict[str, Counter] = defaultdict(Counter)
failures: dict[tuple[str, str, str], int] = Counter()
for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
    parts = case.get("classname").split(".")
    module = next((place for place, part in enumerate(parts) if part.startswith("test_")), len(parts) - 1)
    begin = 0 if parts[0] != "tests" else 2
    place = "/".join(parts[begin : module + 1])
    kind = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
    counts[place][kind] += 1
    if kind in ("failure", "error"):
        message = " ".join(next(child for child in case if child.tag == kind).get("message", "").split())
        failures[place, case.get("name").split("[")[0], message[: int(sys.argv[2]) if len(sys.argv) > 2 else 140]] += 1
print(f"\n{'file':40} {'passed':>7} {'failed':>7} {'skipped':>7}")
for place, of in sorted(counts.items()):
    print(f"{place:40} {of['passed']:7} {of['failure'] + of['error']:7} {of['skipped']:7}")
print()
for (place, name, message), times in failures.items():
    print(f"{times:3} x {place}::{name}: {message}")
total = sum(counts.values(), Counter())
print(f"\n{total['passed']} passed, {total['failure'] + total['error']} failed, {total['skipped']} skipped")
