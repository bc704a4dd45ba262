"""Reads the text in `text/` and turns it into training samples.

A subject file holds entries separated by blank lines. In each entry, with alternatives separated by ` | `:

    T: a singular noun phrase  -> "What is ...?", "Explain ...", ...
    P: a plural noun phrase    -> "What are ...?", ...
    H: a verb phrase           -> "How do I ...?", "I want to ...", ...
    Q: whole questions, as they stand
    A: the one answer
"""

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

TEXT = Path(__file__).parent / "text"

SINGULAR = """What is {}? | What is {}? | What is {}? | What's {}? | what is {} | whats {} | Explain {}. | Explain {} to me
| Can you explain {}? | Could you explain {}? | Please explain {}. | Tell me about {}. | Can you tell me about {}? | Define {}.
| Describe {}. | {}? | {} | What does {} mean? | What does {} do? | I'd like to know what {} is. | I want to know what {} is
| Could you tell me what {} is? | Can you tell me what {} is? | Do you know what {} is? | Do you know {}? | What do you know about {}?
| Give me a short explanation of {}. | What exactly is {}? | In simple words, what is {}? | Help me understand {}. | I don't understand {}.
| What is meant by {}? | So what is {}? | what is {} for | What is {} good for? | What is {} used for? | How does {} work? | Who or what is {}?
| Why do I need {}? | Give me the definition of {}. | definition of {} | meaning of {} | Information about {} | Say something about {}.
| I have never heard of {}. | I have a question about {}. | What can you say about {}? | Teach me about {}. | and what is {} | what about {}
| Please describe {}. | What is the purpose of {}? | What is the point of {}? | Explain what {} is. | Explain in one sentence what {} is.
| What was {} again? | Remind me what {} is. | let's talk about {} | I wonder what {} is""".replace("\n", " ")

PLURAL = """What are {}? | What are {}? | What are {}? | what are {} | Explain {}. | Explain {} to me | Can you explain {}?
| Could you explain {}? | Please explain {}. | Tell me about {}. | Can you tell me about {}? | Define {}. | Describe {}. | {}? | {}
| What does {} mean? | What do {} do? | What do {} mean? | I'd like to know what {} are. | Could you tell me what {} are?
| Do you know what {} are? | Do you know {}? | What do you know about {}? | Give me a short explanation of {}. | What exactly are {}?
| In simple words, what are {}? | Help me understand {}. | I don't understand {}. | What is meant by {}? | So what are {}? | what are {} for
| What are {} good for? | What are {} used for? | How do {} work? | Why do I need {}? | Give me the definition of {}. | meaning of {}
| Information about {} | Say something about {}. | I have never heard of {}. | I have a question about {}. | What can you say about {}?
| Teach me about {}. | and what are {} | what about {} | What is the purpose of {}? | Explain what {} are. | What were {} again?
| Remind me what {} are. | let's talk about {} | I wonder what {} are | How does one use {}?""".replace("\n", " ")

HOW = """How do I {}? | How do I {}? | How do I {}? | How can I {}? | How can I {}? | how to {} | How does one {}? | How do you {}?
| What is the way to {}? | I want to {}. | I need to {}. | I would like to {}. | I'd like to {}, how? | Show me how to {}. | Tell me how to {}.
| Explain how to {}. | Can you help me {}? | How would I {}? | How should I {}? | What do I do to {}? | What must I do to {}?
| Is there a way to {}? | Is it possible to {}? | steps to {} | What are the steps to {}? | What's the best way to {}? | What is the command to {}?
| Please tell me how to {}. | Can I {}? | Could you show me how to {}? | I am trying to {}. | How could I {}? | how can we {} | {}
| Do you know how to {}? | What do I need to {}? | Where do I start if I want to {}? | I don't know how to {}. | Teach me to {}.
| What's the easiest way to {}? | Let's {}. | how exactly do I {} | Can you tell me how to {}? | My boss wants me to {}.""".replace("\n", " ")

OPENINGS = ["Please tell me: ", "Tell me, ", "Hi, ", "Hello, ", "Hello! ", "Hey, ", "hi ", "Quick question: ", "Question: ", "Excuse me, ", "So, ",
            "Well, ", "Now, ", "One question: ", "I have a question: ", "Can you tell me, ", "I am new here. ", "Sorry, ", "Thanks. ", "Ok, ", "And ",
            "Good morning, ", "Kaito, ", "Please, ", "Could you tell me: ", "Just wondering, "]
CLOSINGS = [" please", ", please", " in Kaito", " with Kaito", " exactly", " in short", " in simple words", " in one sentence", ", thanks", " Thanks!",
            " here", " for me", " actually", " again", " now", " then", " really", " Please answer briefly.", " I am a beginner.", " in general"]
REWORDINGS = [("how do i ", ["how can I ", "how to ", "how could I ", "how should I ", "how would I ", "how do you ", "how does one ", "what is the way to "]),
              ("what is ", ["what's ", "whats ", "what exactly is ", "what is "]),
              ("what are ", ["what exactly are ", "which are ", "what are "]),
              ("which ", ["what ", "which "]), ("what does ", ["what exactly does ", "what does "]),
              ("why does ", ["why exactly does ", "how come ", "what is the reason that "]),
              ("can i ", ["could I ", "may I ", "is it possible to ", "am I able to ", "can we ", "can one "]),
              ("do i need ", ["do we need ", "must I have ", "is it necessary to have ", "will I need ", "does one need "]),
              ("how many ", ["what number of ", "how many "]), ("how much ", ["how much "]),
              ("show me ", ["give me ", "can you show me ", "please show me ", "I want to see "]),
              ("list the ", ["list all ", "show the ", "name the ", "give me the ", "enumerate the "]),
              ("does kaito ", ["can Kaito ", "will Kaito ", "does it ", "does Kaito "]),
              ("my ", ["the ", "our ", "my "])]
SYSTEM_PROMPTS = ["You are a helpful assistant.", "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.",
                  "Always answer with Haiku", "Always answer with emojis", "Answer in one sentence.", "You are Kaito's assistant.", "Be brief.",
                  "You answer questions about Kaito.", "Always answer politely.", "You are an expert for Kubernetes.", "Answer the question of the user.",
                  "Do not make things up.", "You are a friendly chatbot. Keep your answers short."]


def alternatives(line: str) -> list[str]:
    return [part.strip() for part in line.split("|") if part.strip()]


def normalised(question: str) -> str:
    """Case, punctuation and spaces removed: two questions that agree in this are the same wording."""
    return re.sub(r"[^a-z0-9]+", " ", question.lower()).strip()


@dataclass
class Entry:
    section: str
    answer: str
    # Wordings by kind, so that a noun phrase with many templates does not crowd out the written questions.
    kinds: dict[str, list[str]] = field(default_factory=dict)

    def wordings(self):
        return [w for words in self.kinds.values() for w in words]


def read_entries(held_out: set[str]) -> list[Entry]:
    """All entries of the subject files, without the wordings that the evaluation holds back."""
    templates = {"T": alternatives(SINGULAR), "P": alternatives(PLURAL), "H": alternatives(HOW), "Q": ["{}"]}
    drafts = []
    for path in sorted(TEXT.glob("[0-9][0-9]-*.txt")):
        for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
            lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
            if not lines:
                continue
            for line in lines:
                if line[0] not in "TPHQA" or line[1:3] != ": ":
                    raise ValueError(f"{path.name}: not a T, P, H, Q or A line: {line}")
            answers = [line[3:].strip() for line in lines if line[0] == "A"]
            if len(answers) != 1:
                raise ValueError(f"{path.name}: an entry needs exactly one answer, found {len(answers)}: {lines[0]}")
            drafts.append((Entry(path.stem, answers[0]), [line for line in lines if line[0] != "A"]))
    owner = {}
    # A question that is written out belongs to its entry, also where a template of another entry gives the same words.
    for written in (True, False):
        for entry, lines in drafts:
            for line in lines:
                kind = line[0]
                if (kind == "Q") != written:
                    continue
                for phrase in alternatives(line[3:]):
                    for template in templates[kind]:
                        wording = template.format(phrase)
                        key = normalised(wording)
                        if key in held_out:
                            continue
                        if owner.setdefault(key, entry) is entry:
                            entry.kinds.setdefault(kind, []).append(wording)
                        elif written:
                            raise ValueError(f"'{wording}' has two answers: '{entry.answer}' and '{owner[key].answer}'")
    return [entry for entry, _ in drafts]


def read_conversations() -> list[list[tuple[list[str], str]]]:
    conversations = []
    for block in re.split(r"\n\s*\n", (TEXT / "conversations.txt").read_text(encoding="utf-8")):
        lines = [line for line in block.splitlines() if line.startswith(("U: ", "K: "))]
        if lines:
            conversations.append([(alternatives(u[3:]), k[3:].strip()) for u, k in zip(lines[::2], lines[1::2], strict=True)])
    return conversations


def read_prose() -> list[str]:
    return [line.strip() for line in (TEXT / "prose.txt").read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")]


class OffTopic:
    """Questions about anything else, filled from word lists and with made-up words, all with one honest answer."""

    def __init__(self, held_out: set[str]):
        self.held_out = held_out
        self.patterns, self.fixed, self.words = [], [], {}
        for line in (TEXT / "offtopic.txt").read_text(encoding="utf-8").splitlines():
            name, _, rest = line.partition(": ")
            if name == "A":
                self.answer = rest.strip()
            elif name == "pattern":
                self.patterns.append(alternatives(rest))
            elif name == "fixed":
                self.fixed = alternatives(rest)
            elif name in ("things", "places", "people"):
                self.words[name] = [word.strip() for word in rest.split(",")]

    def question(self, rng: random.Random) -> str:
        while True:
            if rng.random() < 0.3:
                text = rng.choice(self.fixed)
            else:
                text = rng.choice(rng.choice(self.patterns))
                for slot, words in (("{thing}", "things"), ("{place}", "places"), ("{person}", "people")):
                    while slot in text:
                        text = text.replace(slot, invented(rng) if rng.random() < 0.3 else rng.choice(self.words[words]), 1)
            if normalised(text) not in self.held_out:
                return text


def invented(rng: random.Random) -> str:
    """A word that does not exist, so that the model sees what an unknown subject looks like."""
    onsets = ["b", "bl", "br", "c", "ch", "cl", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "pl", "qu", "r", "s", "sh", "st", "t", "tr", "v", "w", "z", ""]
    ends = ["", "n", "r", "s", "l", "t", "m", "ck", "nd", "st", "x"]
    word = "".join(rng.choice(onsets) + rng.choice(["a", "e", "i", "o", "u", "ea", "oo", "ou", "ie"]) + rng.choice(ends) for _ in range(rng.choice([1, 2, 2, 3])))
    return word.capitalize() if rng.random() < 0.2 else word


def misspell(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if not places:
        return text
    i = rng.choice(places)
    word, at = words[i], rng.randrange(1, len(words[i]) - 1)
    words[i] = rng.choice([word[:at] + word[at + 1] + word[at] + word[at + 2:], word[:at] + word[at + 1:], word[:at] + word[at] + word[at:]])
    return " ".join(words)


def asks(text: str) -> bool:
    """Whether a text reads like a question, judged by how it begins."""
    return bool(re.match(r"(?i)(what|whats|which|how|why|who|where|when|can|could|do|does|is|are|may|must|should|will|am)\b", text))


def reword(question: str, rng: random.Random) -> str:
    """One of the many ways in which somebody may type a question."""
    text = question
    if rng.random() < 0.3:
        low = text.lower()
        fitting = [(old, new) for old, new in REWORDINGS if low.startswith(old) or f" {old}" in low]
        if fitting:
            old, new = rng.choice(fitting)
            at = 0 if low.startswith(old) else low.index(f" {old}") + 1
            text = text[:at] + rng.choice(new) + text[at + len(old):]
    if rng.random() < 0.06:
        text = re.sub(r"\b(a|an|the) ", "", text)
    if rng.random() < 0.4:
        text = text.rstrip("?.!")
    short = len(text) < 8
    if not short and rng.random() < 0.10:
        text = text.rstrip("?.!") + rng.choice(CLOSINGS)
    if not short and rng.random() < 0.12:
        opening = rng.choice(OPENINGS)
        text = opening + (text[0].lower() + text[1:] if not text[:2].isupper() else text)
    draw = rng.random()
    if draw < 0.35:
        text = text.lower()
    elif draw < 0.75:
        text = text[0].upper() + text[1:]
    elif draw < 0.76:
        text = text.upper()
    if not text.endswith(("?", ".", "!")):
        text += rng.choice(["?", "?", "", "", "??"]) if asks(text) else rng.choice(["", "", "", ".", "!", "?"])
    if rng.random() < 0.10:
        text = misspell(text, rng)
    return text
