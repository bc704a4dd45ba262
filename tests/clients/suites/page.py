#!/usr/bin/env python3
"""Writes docs/compatibility-cases.md, and the tables of reasons in docs/compatibility.md, from the lists in expected/."""

import re
import sys

import cases

DOCS = cases.HERE.parents[2] / "docs"
PAGE, SUMMARY = DOCS / "compatibility-cases.md", DOCS / "compatibility.md"
BEGIN, END = "<!-- written by tests/clients/suites/page.py -->\n", "<!-- end -->\n"
# The order of the suites in the documents.
ORDER = ["openai-python", "llama.cpp", "vllm", "json-schema", "maskbench"]


def code(text: str) -> str:
    """A span of code in a table's cell."""
    text = text.replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def table(head: list[str], rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def reasons(known: cases.Expected) -> str:
    rows = [[reason.name, str(len(reason.cases)), reason.why.replace("|", "\\|")] for reason in known.reasons]
    return table(["reason", "cases", "what is so"], rows)


def page() -> str:
    """docs/compatibility-cases.md."""
    text = f"""# Cases that fail

{BEGIN.strip()}

Every case of the suites of others that fails, with the reason, by the name that [Compatibility](compatibility.md) explains. A run of
a suite is held against these lists, which `tests/clients/suites/expected` has: another failure, or a case here that passes, fails the run.
"""
    for suite in ORDER:
        known = cases.expected(suite)
        text += f"\n## {suite}\n\nOf {known.of}.\n{known.passed} pass, {len(known.failing)} fail, {known.skipped} are skipped.\n"
        tests: dict[tuple[str, str, str], list[str]] = {}
        for reason in known.reasons:
            for case in reason.cases:
                tests.setdefault((case.file, case.test, reason.name), []).append(case.variant)
        for file in sorted({file for file, _, _ in tests}):
            text += f"\n### {suite}: {file.removesuffix('.py').removesuffix('.json')}\n\n"
            rows = [
                [code(test), " ".join(map(code, filter(None, variants))), reason]
                for (of, test, reason), variants in sorted(tests.items())
                if of == file
            ]
            text += table(["case", "variants", "reason"], rows)
    return text


def summary(text: str) -> str:
    """docs/compatibility.md with its tables of reasons and its counts as the lists have them."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    tables = ""
    for suite in ORDER:
        known = cases.expected(suite)
        tables += f"\n### Why cases of {suite} fail\n\n{reasons(known)}"
        row = re.compile(rf"^(\| `{re.escape(suite)}[ A-Z]*` \|.*)\| [0-9]+ \| [0-9]+ \|$", re.MULTILINE)
        before, found = row.subn(rf"\1| {known.passed} | {len(known.failing)} |", before)
        if found != 1:
            raise ValueError(f"{SUMMARY.name} has {found} rows of {suite}")
    return before + BEGIN + tables + "\n" + END + after


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    PAGE.write_text(page())
    SUMMARY.write_text(summary(SUMMARY.read_text()))
