"""Instructor reads a sentence."""

import instructor
import pytest
from pydantic import BaseModel, Field

CHECKS = "real/smollm2-135m/instructor"


class Person(BaseModel):
    name: str = Field(max_length=24)
    age: int


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test(client, mode):
    person = instructor.from_openai(client, mode=instructor.Mode[mode]).chat.completions.create(
        model="smollm2-135m-instruct", temperature=0, max_tokens=100, max_retries=1, response_model=Person,
        messages=[{"role": "user", "content": "Anna is 30 years old."}],
    )
    assert person.model_dump() == {"name": "Anna", "age": 30}
