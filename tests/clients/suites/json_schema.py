#!/usr/bin/env python3
"""Asks grammars for the verdicts of the JSON Schema Test Suite, or of MaskBench, and writes them as pytest would.

    json_schema.py PROGRAM FOLDER XML     PROGRAM is the example schema_suite of kaito-grammar, built
    json_schema.py draw FOLDER SAMPLE     draws 500 files of MaskBench into a folder: the same ones every time

A case is an instance, or a schema that is refused: what is asked of that then is skipped. Its variant is `strict` or `lenient`.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

MODES = ("strict", "lenient")


class Names:
    """Names that are given once: a second of the same gets a number."""

    def __init__(self):
        self.given = Counter()

    def of(self, name: str) -> str:
        self.given[name] += 1
        return name if self.given[name] == 1 else f"{name} ({self.given[name]})"


def schemas(folder: Path):
    """Each schema, as the file's path and its content there: a list in the JSON Schema Test Suite, one in MaskBench."""
    for path in sorted(folder.rglob("*.json")):
        content = json.loads(path.read_text())
        names = Names()
        for one in content if isinstance(content, list) else [content]:
            yield path.relative_to(folder).as_posix(), names.of(one["description"]), one


def verdicts(lines, count: int):
    """What the program says of each schema in each mode: its row, and the lines that belong to it.

    Lines on instances stand before the row, the one on the schema after it.
    """
    found = {}
    before, last = [], None
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and cells[1] in MODES:
            last = (int(cells[0]), cells[1])
            found[last] = {"refused": None, "wrong": before}
            before = []
        elif any(line.startswith(f"{mode} refused ") for mode in MODES):
            found[last]["refused"] = line.split(": ", 1)[1].strip()
        elif not line.startswith("|"):
            before.append(line.strip())
    if len(found) != count * len(MODES) or before:
        raise SystemExit(f"{len(found)} verdicts on {count} schemas in {len(MODES)} modes, then {before}")
    return found


def draw(folder: str, sample: str) -> int:
    names = sorted(path.name for path in Path(folder).glob("*.json"))
    Path(sample).mkdir(parents=True)
    for name in random.Random(1).sample(names, 500):
        shutil.copy(Path(folder, name), sample)
    return 0


def main(program: str, folder: str, junit: str) -> int:
    cases = list(schemas(Path(folder)))
    suite = ElementTree.Element("testsuite")

    def case(file: str, test: str, mode: str, kind: str = "passed", message: str = ""):
        element = ElementTree.SubElement(suite, "testcase", file=file, name=test, variant=mode)
        if kind != "passed":
            ElementTree.SubElement(element, kind, message=message)

    # The program prints a row for each folder, so each schema has one of its own; it names instances by their descriptions.
    with tempfile.TemporaryDirectory() as laid:
        for number, (_, _, content) in enumerate(cases):
            place = Path(laid, f"{number:06}")
            place.mkdir()
            numbered = [test | {"description": str(of)} for of, test in enumerate(content["tests"])]
            (place / "case.json").write_text(json.dumps([content | {"tests": numbered}]))
        run = subprocess.run([program, laid], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    of = verdicts(run.stdout.splitlines(), len(cases))
    for number, (file, schema, content) in enumerate(cases):
        for mode in MODES:
            verdict = of[number, mode]
            if verdict["refused"] is not None:
                case(file, schema, mode, "failure", verdict["refused"])
            names = Names()
            for place, test in enumerate(content["tests"]):
                accepted = f"accepted {json.dumps(not test['valid'])}, valid {json.dumps(test['valid'])}"
                line = f"{mode} case.json: {place}: {accepted}"
                name = names.of(f"{schema}: {test['description']}")
                if verdict["refused"] is not None:
                    case(file, name, mode, "skipped")
                elif line in verdict["wrong"]:
                    verdict["wrong"].remove(line)
                    case(file, name, mode, "failure", accepted)
                else:
                    case(file, name, mode)
            if verdict["wrong"]:
                raise SystemExit(f"{file}: {schema}: {verdict['wrong']}")
    ElementTree.ElementTree(suite).write(junit)
    return 0


if __name__ == "__main__":
    sys.exit(draw(*sys.argv[2:]) if sys.argv[1] == "draw" else main(*sys.argv[1:]))
