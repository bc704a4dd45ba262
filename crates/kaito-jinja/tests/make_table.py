"""Asks the reference what it renders, and writes table.json.

    pip install transformers==4.46.3 jinja2==3.1.6
    python3.11 make_table.py

The reference is the environment in which transformers renders chat templates. The table has rows for all of Jinja2's filters,
tests and globals, for all methods of Python's values that templates can reach, and for the language around them. A row is a
template with the variables below, and the text that came of it, or the name of the exception. Where the text holds an
address in memory, the row says "address".
"""

import json
import re
from copy import deepcopy
from datetime import datetime
from pathlib import Path

import jinja2
import transformers
from jinja2.defaults import DEFAULT_NAMESPACE
from jinja2.filters import FILTERS
from jinja2.tests import TESTS
from transformers.utils import chat_template_utils

import rows

HERE = Path(__file__).parent
NOW = datetime(2024, 3, 5, 14, 7, 9, 12345)

assert transformers.__version__ == "4.46.3" and jinja2.__version__ == "3.1.6"


class FixedTime(datetime):
    @classmethod
    def now(cls):
        return NOW


chat_template_utils.datetime = FixedTime


def render(template, variables):
    try:
        text = chat_template_utils._compile_jinja_template(template).render(**deepcopy(variables))
    except Exception as error:
        return {"error": type(error).__name__}
    if re.search(r" at 0x[0-9a-f]+", text):
        return {"address": True}
    if any("\ud800" <= character <= "\udfff" for character in text):
        return {"error": "a lone surrogate, which no text of ours can hold"}
    return {"text": text}


def checked(sections):
    """That no builtin was forgotten."""
    source = "\n".join(template for templates in sections.values() for template in templates)
    for name in FILTERS:
        assert re.search(rf"\|\s*{name}\b", source), f"no row for the filter {name}"
    for name in TESTS:
        assert re.search(rf"is (not )?{name}\b|'{re.escape(name)}'", source), f"no row for the test {name}"
    for name in DEFAULT_NAMESPACE:
        assert f"{name}(" in source, f"no row for the global {name}"
    for kind in (str, list, dict, tuple, int, float, range):
        for name in dir(kind):
            if not name.startswith("_") and not isinstance(getattr(kind, name), property):
                assert f".{name}" in source, f"no row for the method {kind.__name__}.{name}"


def main():
    sections = rows.sections()
    checked(sections)
    lines = []
    for section, templates in sections.items():
        for template in dict.fromkeys(templates):
            row = {"section": section, "template": template} | render(template, rows.VARIABLES)
            lines.append(json.dumps(row, ensure_ascii=True))
    variables = json.dumps(rows.VARIABLES)
    (HERE / "table.json").write_text('{"variables": ' + variables + ',\n"rows": [\n' + ",\n".join(lines) + "\n]}\n")
    print(len(lines), "rows;", sum('"error"' in line for line in lines), "raise")


if __name__ == "__main__":
    main()
