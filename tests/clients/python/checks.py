"""A plug-in of pytest: names every check, runs those that `CLIENTS_ONLY` finds, and writes one line a check."""

import os
import re
from importlib.metadata import version

import pytest


def name_of(item: pytest.Function) -> str:
    """`clients/CLIENT-VERSION/SCENARIO`. A module's `CLIENT` is (shown name, distribution), or it says by `CHECKS` what stands
    before a scenario. `test_tools[auto]` is the scenario `tools_auto`."""
    scenario = re.sub(r"^test_?|\]$", "", item.name).replace("[", "_").replace("-", "_").strip("_").lower()
    if hasattr(item.module, "CHECKS"):
        return f"{item.module.CHECKS}/{scenario}"
    shown, distribution = item.module.CLIENT
    release = ".".join(version(distribution).split(".")[:2])
    return f"clients/{shown}-{release}/{scenario}"


def pytest_collection_modifyitems(config, items):
    only = re.compile(os.environ.get("CLIENTS_ONLY", ""))
    for item in items:
        item.user_properties.append(("name", name_of(item)))
    wanted = [item for item in items if only.search(name_of(item))]
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = wanted


def pytest_runtest_logreport(report):
    path = os.environ.get("CLIENTS_RESULTS")
    # A failure in set-up has no report of a call; one in the clean-up belongs to no check.
    if path and (report.when == "call" or (report.when == "setup" and report.outcome != "passed")):
        result = {"passed": "ok", "failed": "FAILED", "skipped": "absent"}[report.outcome]
        with open(path, "a") as results:
            results.write(f"{dict(report.user_properties)['name']}\t{result}\t{report.duration:.2f}\n")
    if path and report.failed:
        with open(f"{path}.failures", "a") as failures:
            failures.write(f"\n{dict(report.user_properties)['name']}\n{report.longreprtext}\n")


def pytest_sessionfinish(session, exitstatus):
    # A pattern may find nothing in one of several environments.
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
