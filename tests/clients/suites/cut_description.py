#!/usr/bin/env python3
"""Cuts OpenAI's description to the routes that kaito has, and to the components that these name.

    cut_description.py openapi.json CUT.json
"""

import json
import sys
from pathlib import Path

ROUTES = {
    "/chat/completions": ["post"],
    "/completions": ["post"],
    "/embeddings": ["post"],
    "/models": ["get"],
    "/models/{model}": ["get"],
    "/responses": ["post"],
}
source = json.loads(Path(sys.argv[1]).read_text())
paths = {path: {method: source["paths"][path][method] for method in methods} for path, methods in ROUTES.items()}
# Schemas of requests ask for models by a list of names; what a stream sends has no place in a description of JSON bodies.
kept: dict = {}


def follow(value) -> None:
    if isinstance(value, dict):
        reference = value.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/components/"):
            kind, name = reference.removeprefix("#/components/").split("/", 1)
            if name not in kept.setdefault(kind, {}):
                kept[kind][name] = source["components"][kind][name]
                follow(kept[kind][name])
        for each in value.values():
            follow(each)
    elif isinstance(value, list):
        for each in value:
            follow(each)


error = {"description": "refused", "content": {"application/json": {
    "schema": {"$ref": "#/components/schemas/ErrorResponse"}}}}
for operations in paths.values():
    for operation in operations.values():
        # The description names no refusals; all of them have this shape.
        operation["responses"] |= {status: error for status in ("400", "401", "404", "408", "413", "415", "429", "503")}
        operation.pop("security", None)
follow(paths)
cut = {name: source[name] for name in ("openapi", "info")} | {"paths": paths, "components": kept}
Path(sys.argv[2]).write_text(json.dumps(cut))
print(f"{len(paths)} paths, {sum(map(len, kept.values()))} components")
