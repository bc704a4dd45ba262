"""What the checks ask: the demo model knows about Kaito alone."""

WORKSPACE = [{"role": "user", "content": "What is a workspace?"}]
CONVERSATIONS = [
    WORKSPACE,
    [{"role": "user", "content": "Which models does Kaito support?"}],
    [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "What does temperature do?"}],
    [
        {"role": "user", "content": "What is a preset?"},
        {"role": "assistant", "content": "A preset is a ready description of one model."},
        {"role": "user", "content": "How do I start the server?"},
    ],
]
# The demo model is sure of nearly every answer; after this word it is not, so that drawing gives several texts.
OPEN = [{"role": "user", "content": "The"}]
OPEN_PROMPT = "[INST] The [/INST]"
GREEDY = {"model": "demo", "temperature": 0}

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Berlin", "Oslo", "Quito"]},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
CLOCK = {
    "type": "object",
    "properties": {"hours": {"type": "integer", "minimum": -12, "maximum": 14}},
    "required": ["hours"],
    "additionalProperties": False,
}


def function(name: str, description: str, parameters: dict) -> dict:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    function("get_weather", "The weather of a city", WEATHER),
    function("get_time", "The time at an offset from UTC", CLOCK),
]
