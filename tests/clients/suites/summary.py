#!/usr/bin/env python3
"""Prints how many cases of each file passed, and what differs from the list of those that are known to fail.

    summary.py XML SUITE [FILE...]     the list is expected/SUITE.toml; without one nothing may fail. FILE: only these were asked
    summary.py --all XML SUITE         each failure with what it says

Status 1 where a failing case is not listed, or a listed one passes or does not exist.
"""

import sys
from collections import Counter, defaultdict

import cases


def main(arguments: list[str]) -> int:
    everything = "--all" in arguments
    junit, suite, *files = [argument for argument in arguments if argument != "--all"]
    run = cases.results(junit)
    counts: dict[str, Counter] = defaultdict(Counter)
    for case, result in run.items():
        counts[case.file][result.kind] += 1
    width = max(map(len, counts), default=0)
    print(f"\n{'file':{width}} {'passed':>7} {'failed':>7} {'skipped':>7}")
    for file, of in sorted(counts.items()):
        print(f"{file:{width}} {of['passed']:7} {of['failed']:7} {of['skipped']:7}")
    if everything:
        print()
        for case, result in sorted(run.items()):
            if result.kind == "failed":
                print(f"{case}: {result.message}")
    found = cases.differences(run, cases.expected(suite) if suite in cases.suites() else None, files)
    print()
    for difference in found:
        print(difference)
    total = sum(counts.values(), Counter())
    print(f"\n{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    if not run:
        print("no case ran")
        return 1
    print("differs from the list" if found else "as listed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
