"""The text that the tiny vocabularies are trained on, and the prompts of the cases."""

TRAINING_TEXT = """\
A workspace names the instance type and the model, and the controller does the rest.
The controller asks for nodes with the right accelerator and waits until they are ready.
When the nodes are ready the inference service starts and loads the weights of the model.
A preset describes a model: its image, its disk, its memory and how many accelerators it needs.
The service listens on port 80 and answers requests for text generation and for chat.
The user sends a prompt and the server sends the text that follows the prompt.
How much memory does the model need? It needs fourteen gigabytes, and a little more.
The quick brown fox jumps over the lazy dog, and the dog does not mind at all.
What is the capital of France? The capital of France is Paris, on the river Seine.
I am here, he said. It's late, isn't it? They don't know; we won't tell them.
Write a short story about a knight who learns what the network is.
Numbers: 0 1 2 3 4 5 6 7 8 9 10 12 42 100 128 256 1024 2048 4096 32000 65024.
print("hello, world")  # a comment
for i in range(10): total += values[i] * weights[i]
if (x < y && y != 0) { return x / y; } else { return 0; }
The temperature scales the scores; the nucleus keeps the likeliest tokens; the beams keep the best sentences.
Attention looks back at every earlier token, or only at those inside its window.
The rotary embedding turns pairs of numbers by an angle that grows with the position.
Les modèles répondent en français. Die Modelle antworten schön auf Deutsch. Señor, ¿qué tal?
Москва и Киев. 東京は日本の首都です。 你好，世界。 안녕하세요.
A list: first, second, third; then the end. The end is the end of the beginning.
In the beginning was the word, and the word was a token, and the token was a number.
Every question has an answer and every answer has a question that it does not answer.
There are more things in heaven and earth than are dreamt of in your philosophy.
One model, one server, one workspace; two models, two servers, two workspaces.
To be or not to be, that is the question: whether it is nobler in the mind to suffer.
Kaito runs large language models in a cluster: llama, falcon, mistral and phi.
The answer is yes. The answer is no. The answer is that nobody knows the answer.
"""

SHORT = [
    "The capital of France is",
    "What is a workspace?",
    "One model, one server",
    "The user sends a prompt and",
    "Kaito runs",
    "In the beginning was the word",
    "How much memory does the model need?",
    "Every question has an answer",
    "The answer is",
    "Numbers: 1 2 3 42 4096",
    "To be or not to be",
    "A list: first, second",
    "I am here, he said. It's late",
    "The nodes are ready when",
    "for i in range(10):",
    "a b c a b c a b",
    "the end of the end of the end of",
    "Write a short story about a knight who learns",
]

UNICODE = [
    "Les modèles répondent: ça va, Señor?",
    "東京は日本の首都です。",
    "Москва и Киев, 안녕하세요",
    "thumbs 👍🏽 up \U0001f468\u200d\U0001f469\u200d\U0001f467 family",
    "e\u0301 and é, ﬁne ligature, ½ \u00a0nbsp",
    "caf\u00e9 \u4f60",
]

SPACES = [
    "  two leading spaces",
    "trailing space ",
    "\nnewline first",
    "tabs\tand\n\n\nnewlines\r\nand   runs    of     spaces",
    "Hello , world ! It is n't ' right ' , they 've said .",
    " ",
]

LONG = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 2
    + "Attention looks back at every earlier token, or only at those inside its window.",
    "\n".join(TRAINING_TEXT.splitlines()[4:9]),
    "There are more things in heaven and earth than are dreamt of in your philosophy. "
    "The rotary embedding turns pairs of numbers by an angle that grows with the position. 1 2 3 4 5 6 7 8 9 10",
]
