"""What the real model is asked: the requests of prompts.json, and what expected.json says that is answered."""

import json
from pathlib import Path

HERE = Path(__file__).parent


def requests() -> list[dict]:
    """Each has a `name`, and `messages` or a `prompt`. `of_text` is a part of quality/text.txt, for what is long: the prompt, or what
    stands before the last message."""
    text = (HERE / "quality/text.txt").read_text()
    rows = json.loads((HERE / "prompts.json").read_text())
    for row in rows:
        if "of_text" not in row:
            continue
        first, last = row.pop("of_text")
        if "messages" in row:
            row["messages"][-1]["content"] = f"{text[first:last]}\n\n{row['messages'][-1]['content']}"
        else:
            row["prompt"] = text[first:last]
    return rows


def expected() -> dict[str, dict]:
    """Of each request, by its name."""
    return json.loads((HERE / "expected.json").read_text())["answers"]
