"""Writes what Python 3.11 knows about characters, and HTML's named character references.

    python make_data.py

unicode.txt has a line for each property, `name gap-length ...` in hexadecimal: ranges of code points, each by its distance
from the end of the one before it. The lines `title` and `fold` hold pairs, `code point=code points`, where str.title or
str.casefold differ from str.upper and str.lower. entities.txt has a line for each reference.
"""

import html.entities
from pathlib import Path

HERE = Path(__file__).parent
CHARACTERS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def ranges(name, holds):
    parts, end, start = [], 0, None
    for c in range(0x110001):
        inside = c < 0x110000 and not 0xD800 <= c < 0xE000 and holds(chr(c))
        if inside and start is None:
            start = c
        if not inside and start is not None:
            parts.append(f"{start - end:x}-{c - start:x}")
            end, start = c, None
    return f"{name} " + " ".join(parts)


def pairs(name, map_to, usual):
    mapped = [(c, map_to(c)) for c in CHARACTERS if map_to(c) != usual(c)]
    return f"{name} " + " ".join(f"{ord(c):x}=" + "+".join(f"{ord(d):x}" for d in to) for c, to in mapped)


lines = [
    ranges("printable", str.isprintable),
    ranges("alpha", str.isalpha),
    ranges("decimal", str.isdecimal),
    ranges("digit", str.isdigit),
    ranges("numeric", str.isnumeric),
    ranges("identifier_start", str.isidentifier),
    ranges("identifier_part", lambda c: ("a" + c).isidentifier()),
    ranges("upper", str.isupper),
    ranges("lower", str.islower),
    pairs("title", str.title, str.upper),
    pairs("fold", str.casefold, str.lower),
]
(HERE / "unicode.txt").write_text("\n".join(lines) + "\n")
entities = sorted((name, text) for name, text in html.entities.html5.items())
(HERE / "entities.txt").write_text("".join(f"{name} {' '.join(f'{ord(c):x}' for c in text)}\n" for name, text in entities))
