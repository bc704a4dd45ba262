"""Renders the templates in chats/, which have the shapes of published ones, over conversations with tools and documents.

    pip install transformers==4.46.3 jinja2==3.1.6
    python3.11 make_chats.py
"""

import json
from pathlib import Path

from make_table import HERE, render

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Gives the weather of a city.\nIn any unit.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city's name, like \"Zürich\""},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "description": "Unit of the temperature"},
                "days": {"type": ["integer", "string"], "description": "How many days"},
                "where": {"type": "object", "additionalProperties": {"type": "number"}, "description": "Coordinates",
                          "properties": {"lat": {"type": "number"}}, "required": []},
                "tags": {"type": "array", "items": {"type": "string"}, "description": "Any <tags>"},
            },
            "required": ["city"],
        },
    },
}
STOP = {"type": "function", "function": {"name": "stop", "description": "Ends it.", "parameters": {"type": "object", "properties": {}}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}}]}
TWO_CALLS = CALL | {"content": "", "tool_calls": CALL["tool_calls"] * 2}
RESULT = {"role": "tool", "name": "get_weather", "content": "22.0", "tool_call_id": "abcdefghi"}


def say(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = {
    "one": [say("user", " Hello \n")],
    "system": [say("system", "Be brief."), say("user", "Hello"), say("assistant", "Hi <there> "), say("user", "Bye & 'thanks'")],
    "two users": [say("user", "a"), say("user", "b")],
    "assistant last": [say("user", "a"), say("assistant", "<think>\nhm\n</think>\n\nb")],
    "unicode": [say("user", "Grüße 你好 \U0001f600 {{ x }} {% y %}"), say("assistant", "\u2028"), say("user", "")],
    "calls": [say("user", "Weather?"), CALL, RESULT, say("assistant", "It is warm."), say("user", "Thanks")],
    "two calls": [say("system", "S"), say("user", "Weather?"), TWO_CALLS, RESULT, RESULT],
    "parts": [say("user", [{"type": "image"}, {"type": "text", "text": " What is it? "}])],
    "debug": [say("debug", "x"), say("user", "a")],
    "empty": [],
}
DOCUMENTS = [{"title": "A", "text": "The first.\nOf two."}, {"title": "B", "n": 1.5}]
MORE = [{}, {"tools": [WEATHER, STOP]}, {"documents": DOCUMENTS, "tools": [STOP]}, {"enable_thinking": False, "builtin_tools": ["get_weather", "code_interpreter"]}]


def main():
    templates = {path.stem: path.read_text() for path in sorted((HERE / "chats").glob("*.jinja"))}
    sets = []
    for conversation, messages in CONVERSATIONS.items():
        for prompt in (False, True):
            for more in MORE:
                sets.append({"messages": messages, "tools": None, "documents": None, "add_generation_prompt": prompt,
                             "bos_token": "<s>", "eos_token": "</s>"} | more)
    cases = []
    for name, template in templates.items():
        for index, variables in enumerate(sets):
            cases.append({"template": name, "variables": index} | render(template, variables))
    lines = lambda part: "[\n" + ",\n".join(map(json.dumps, part)) + "\n]"
    (HERE / "chats.json").write_text('{"variables": ' + lines(sets) + ',\n"cases": ' + lines(cases) + "}\n")
    print(len(cases), "cases;", sum("error" in case for case in cases), "raise")


if __name__ == "__main__":
    main()
