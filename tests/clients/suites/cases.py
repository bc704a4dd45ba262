"""The cases of a run by pytest, and the lists of those that are known to fail: expected/SUITE.toml."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
EXPECTED = HERE / "expected"


@dataclass(frozen=True, order=True)
class Case:
    """One case: its file, its name there with its class, and its variant, which is empty where there is none."""

    file: str
    test: str
    variant: str = ""

    def __str__(self):
        return f"{self.file}::{self.test}" + (f"[{self.variant}]" if self.variant else "")


@dataclass(frozen=True)
class Result:
    """`passed`, `failed` or `skipped`, and what the failure says."""

    kind: str
    message: str = ""


@dataclass
class Reason:
    """Why cases fail, and which."""

    name: str
    why: str
    cases: list[Case]


@dataclass
class Expected:
    """What is known of a suite."""

    suite: str
    of: str
    passed: int
    skipped: int
    reasons: list[Reason] = field(default_factory=list)

    @property
    def failing(self) -> dict[Case, Reason]:
        return {case: reason for reason in self.reasons for case in reason.cases}


def expected(suite: str, folder: Path = EXPECTED) -> Expected:
    """The list of a suite; ValueError where it contradicts itself."""
    content = tomllib.loads((folder / f"{suite}.toml").read_text())
    reasons = []
    for reason in content["reason"]:
        cases = [
            Case(file, test, variant)
            for file, tests in reason["cases"].items()
            for test, variants in tests.items()
            for variant in variants or [""]
        ]
        if not cases:
            raise ValueError(f"{suite}: no case fails for the reason {reason['name']}")
        reasons.append(Reason(reason["name"], reason["why"], cases))
    found = Expected(suite, content["of"], content["passed"], content["skipped"], reasons)
    names = [reason.name for reason in reasons]
    everything = [case for reason in reasons for case in reason.cases]
    for kind, of in (("reason", names), ("case", everything)):
        twice = sorted({str(one) for one in of if of.count(one) > 1}) if len(set(of)) < len(of) else []
        if twice:
            raise ValueError(f"{suite}: the {kind} {twice[0]} is listed twice")
    return found


def suites(folder: Path = EXPECTED) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.toml"))


def results(junit: str | Path) -> dict[Case, Result]:
    """What came of each case, from the XML that pytest writes, or json_schema.py with names that are no Python."""
    found = {}
    for element in ElementTree.parse(junit).iter("testcase"):
        if element.get("file"):
            case = Case(element.get("file"), element.get("name"), element.get("variant"))
        else:
            case = case_of(element.get("classname"), element.get("name"))
        failure = next((child for child in element if child.tag in ("failure", "error")), None)
        if failure is not None:
            result = Result("failed", " ".join((failure.get("message") or "").split()))
        else:
            result = Result("skipped" if element.find("skipped") is not None else "passed")
        # A case whose fixture fails as it ends is there twice.
        if case not in found or result.kind == "failed":
            found[case] = result
    return found


def case_of(classname: str, name: str) -> Case:
    """`unit.test_basic.TestClass` and `test_a[1]`: a module is the first part that begins with `test_`."""
    parts = classname.split(".")
    module = next((place for place, part in enumerate(parts) if part.startswith("test_")), len(parts) - 1)
    test, bracket, variant = name.partition("[")
    return Case(
        "/".join(parts[: module + 1]) + ".py",
        "::".join([*parts[module + 1 :], test]),
        variant.removesuffix("]") if bracket else "",
    )


def differences(run: dict[Case, Result], known: Expected | None, files: list[str] | None = None) -> list[str]:
    """What a run shows that the list does not say, and the other way round. Without a list nothing may fail.

    Only cases of these files were asked, where some are named: `test_basic` is `unit/test_basic.py`.
    """
    failing = known.failing if known else {}
    found = [
        f"fails and is not listed: {case}: {result.message[:300]}"
        for case, result in sorted(run.items())
        if result.kind == "failed" and case not in failing
    ]
    for case, reason in sorted(failing.items()):
        if files and Path(case.file).stem not in files:
            continue
        if case not in run:
            found.append(f"is listed ({reason.name}) and does not exist: {case}")
        elif run[case].kind != "failed":
            found.append(f"is listed ({reason.name}) and {run[case].kind}: {case}")
    if known and not files:
        for kind, listed in (("passed", known.passed), ("skipped", known.skipped)):
            counted = sum(result.kind == kind for result in run.values())
            if counted != listed:
                found.append(f"{counted} {kind}, the list says {listed}")
    return found
