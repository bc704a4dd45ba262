"""The SDK of OpenAI for Python: models, chat, and what an answer consists of."""

import math
from collections import Counter

import openai
import pytest
from questions import CONVERSATIONS, GREEDY, OPEN, WORKSPACE

CLIENT = ("openai-python", "openai")


def texts_of(answer) -> list[str]:
    return [choice.message.content for choice in answer.choices]


def streamed(stream) -> tuple[dict[int, str], list[dict]]:
    """The text of each choice, and every chunk as it was sent."""
    texts, chunks = {}, []
    for chunk in stream:
        chunks.append(chunk.to_dict())
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return texts, chunks


def test_models_list(client):
    models = client.models.list()
    assert models.object == "list"
    demo = models.data[0]
    assert (demo.id, demo.object, demo.owned_by) == ("demo", "model", "kaito")
    assert isinstance(demo.created, int) and demo.created > 1_600_000_000
    assert demo.max_model_len == 2048
    assert client.models.retrieve("demo").id == "demo"


def test_models_retrieve_with_slash(serve, client_of):
    flags = ("--served-model-name", "org/demo", "--served-model-name", "other")
    client = client_of(*flags)
    assert [model.id for model in client.models.list()][:2] == ["org/demo", "other"]
    assert client.models.retrieve("org/demo").id == "org/demo"
    raw = client._client.get(f"{serve(*flags).v1}/models/org/demo")
    assert (raw.status_code, raw.json()["id"]) == (200, "org/demo")
    answer = client.chat.completions.create(model="other", messages=WORKSPACE, temperature=0, max_tokens=5)
    assert texts_of(answer) == [serve(*flags).chat_text(WORKSPACE, 5)]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["question", "models", "system", "turns"])
def test_chat_greedy_equals_kaito_chat(client, server, conversation):
    answer = client.chat.completions.create(**GREEDY, messages=conversation, max_completion_tokens=100)
    assert texts_of(answer) == [server.chat_text(conversation, 100)]
    choice = answer.choices[0]
    assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "stop")
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == "demo"
    assert answer.system_fingerprint.startswith("kaito-")
    # An empty list in place of nothing breaks clients.
    assert "tool_calls" not in choice.message.to_dict()


def test_content_parts_join(client, server):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "a workspace?"}]
    answer = client.chat.completions.create(**GREEDY, messages=[{"role": "user", "content": parts}], max_tokens=20)
    assert texts_of(answer) == [server.chat_text(WORKSPACE, 20)]


def test_developer_is_system(client, server):
    system = [{"role": "system", "content": "Answer briefly."}, *WORKSPACE]
    developer = [{"role": "developer", "content": "Answer briefly."}, *WORKSPACE]
    answer = client.chat.completions.create(**GREEDY, messages=developer, max_tokens=20)
    assert texts_of(answer) == [server.chat_text(system, 20)]
    asked = [client.chat.completions.create(**GREEDY, messages=it, max_tokens=1) for it in (system, developer)]
    assert asked[0].usage.prompt_tokens == asked[1].usage.prompt_tokens


def test_continue_final_message(client, server):
    begun = [*WORKSPACE, {"role": "assistant", "content": "A workspace is"}]
    answer = client.chat.completions.create(
        **GREEDY, messages=begun, max_tokens=20, extra_body={"continue_final_message": True}
    )
    # The Kaito dialect continues a last assistant message unasked.
    assert texts_of(answer) == [server.chat_text(begun, 20)]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["question", "models", "system", "turns"])
def test_chat_stream_joins_to_whole(client, conversation):
    whole = client.chat.completions.create(**GREEDY, messages=conversation, max_tokens=100)
    texts, chunks = streamed(
        client.chat.completions.create(**GREEDY, messages=conversation, max_tokens=100, stream=True)
    )
    assert [texts[0]] == texts_of(whole)
    assert len(chunks) > 5, "an answer of many tokens came in few chunks"
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"


def test_first_chunk_has_role(client):
    _, chunks = streamed(client.chat.completions.create(**GREEDY, messages=WORKSPACE, max_tokens=5, stream=True, n=2))
    firsts = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        firsts.setdefault(choice["index"], choice["delta"])
        if choice["delta"] is not firsts[choice["index"]]:
            assert "role" not in choice["delta"], "the role came twice"
    assert firsts == {index: {"role": "assistant", "content": ""} for index in range(2)}


def test_finish_chunk_has_empty_delta(client):
    _, chunks = streamed(client.chat.completions.create(**GREEDY, messages=WORKSPACE, max_tokens=5, stream=True))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert choices[-1]["delta"] == {}
    assert all(choice["delta"]["content"] for choice in choices[1:-1]), "an empty text was sent"


def test_no_usage_unless_asked(client):
    ask = GREEDY | {"messages": WORKSPACE, "max_tokens": 5}
    _, plain = streamed(client.chat.completions.create(**ask, stream=True))
    assert all("usage" not in chunk and chunk["choices"] for chunk in plain)
    _, asked = streamed(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in asked[:-1])
    assert asked[-1]["choices"] == []
    whole = client.chat.completions.create(**ask).usage
    assert asked[-1]["usage"]["completion_tokens"] == whole.completion_tokens == 5
    assert asked[-1]["usage"]["prompt_tokens"] == whole.prompt_tokens
    _, running = streamed(
        client.chat.completions.create(
            **ask, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}
        )
    )
    counts = [chunk["usage"]["completion_tokens"] for chunk in running]
    assert counts == sorted(counts) and counts[-1] == 5
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ask, stream_options={"include_usage": True})
    assert refused.value.param.startswith("stream_options")


def test_usage_counts_match(client, server):
    reference = server.chat(WORKSPACE, 100, return_dict_in_generate=True)
    answer = client.chat.completions.create(**GREEDY, messages=WORKSPACE, max_tokens=100, logprobs=True)
    usage, listed = answer.usage, answer.choices[0].logprobs.content
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens == len(reference["sequences"][0])
    # The end token counts, as in vLLM, though it is no part of the text.
    assert usage.completion_tokens in (len(listed), len(listed) + 1)
    counted = server.post("/tokenize", {"messages": WORKSPACE}).json()
    assert usage.prompt_tokens == counted["count"] == len(counted["tokens"])
    assert usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
    assert usage.completion_tokens_details.reasoning_tokens == 0
    three = client.chat.completions.create(**GREEDY, messages=WORKSPACE, max_tokens=7, n=3).usage
    assert (three.prompt_tokens, three.completion_tokens) == (usage.prompt_tokens, 21)


def test_n_3_seeded_repeats(client):
    ask = {"model": "demo", "messages": OPEN, "temperature": 2, "top_p": 1, "max_tokens": 20}
    first = client.chat.completions.create(**ask, seed=7, n=3)
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert texts_of(first) == texts_of(client.chat.completions.create(**ask, seed=7, n=3))
    assert len(set(texts_of(first))) > 1, "each choice draws from a stream of its own"
    assert texts_of(client.chat.completions.create(**ask, seed=7)) == texts_of(first)[:1]
    texts, _ = streamed(client.chat.completions.create(**ask, seed=7, n=3, stream=True))
    assert [texts[index] for index in range(3)] == texts_of(first)


def test_stop_strings_split_over_chunks(client):
    ask = GREEDY | {"messages": WORKSPACE, "max_tokens": 100}
    whole = client.chat.completions.create(**ask, logprobs=True)
    text, tokens = whole.choices[0].message.content, [entry.token for entry in whole.choices[0].logprobs.content]
    # From the middle of one token into the next but one, at several places.
    checked = 0
    for place in range(4, len(tokens) - 3, 5):
        begin = len("".join(tokens[:place])) + max(1, len(tokens[place]) // 2)
        stop = text[begin : begin + len(tokens[place]) + len(tokens[place + 1])]
        if not stop or text.find(stop) != begin:
            continue
        checked += 1
        cut = client.chat.completions.create(**ask, stop=stop)
        assert texts_of(cut) == [text[:begin]]
        assert (cut.choices[0].finish_reason, cut.choices[0].stop_reason) == ("stop", stop)
        texts, chunks = streamed(client.chat.completions.create(**ask, stop=["no such text", stop], stream=True))
        assert texts[0] == text[:begin]
        last = chunks[-1]["choices"][0]
        assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)
        kept = client.chat.completions.create(**ask, stop=stop, extra_body={"include_stop_str_in_output": True})
        assert texts_of(kept) == [text[: begin + len(stop)]]
        listed = client.chat.completions.create(**ask, stop=stop, logprobs=True).choices[0]
        assert text.startswith("".join(entry.token for entry in listed.logprobs.content))
        assert len(listed.logprobs.content) <= place + 1, "tokens of a cut stop string are cut too"
    assert checked >= 3
    assert whole.choices[0].stop_reason is None


def test_stop_token_ids(client, server):
    ids = server.chat(WORKSPACE, 8, return_dict_in_generate=True)["sequences"][0][-8:]
    stop = ids[4]
    answer = client.chat.completions.create(
        **GREEDY, messages=WORKSPACE, max_tokens=8, extra_body={"stop_token_ids": [stop]}
    )
    assert (answer.choices[0].finish_reason, answer.choices[0].stop_reason) == ("stop", stop)
    assert answer.usage.completion_tokens == ids.index(stop) + 1


def test_logprobs_20_join_to_text(client, server):
    answer = client.chat.completions.create(
        **GREEDY, messages=WORKSPACE, max_tokens=30, logprobs=True, top_logprobs=20
    ).choices[0]
    listed = answer.logprobs.content
    assert "".join(entry.token for entry in listed) == answer.message.content
    assert answer.logprobs.refusal is None
    for entry in listed:
        likely = [top.logprob for top in entry.top_logprobs]
        assert len(likely) == 20 and likely == sorted(likely, reverse=True)
        assert sum(map(math.exp, likely)) <= 1 + 1e-5
        # Greedy takes the likeliest.
        assert (entry.top_logprobs[0].token, entry.logprob) == (entry.token, likely[0])
        assert bytes(entry.bytes).decode() == entry.token
    reference = server.chat(WORKSPACE, 30, output_scores=True)["scores"]
    reference = reference[0] if isinstance(reference[0], list) else reference
    for entry, expected in zip(listed, reference, strict=True):
        assert abs(entry.logprob - next(expected[key] for key in ("logprob", "log_prob") if key in expected)) < 1e-4
    streamed_chunks = list(
        client.chat.completions.create(
            **GREEDY, messages=WORKSPACE, max_tokens=30, logprobs=True, top_logprobs=20, stream=True
        )
    )
    pieces = [choice.logprobs.content for chunk in streamed_chunks for choice in chunk.choices if choice.logprobs]
    together = [entry.to_dict() for piece in pieces for entry in piece]
    assert [(entry["token"], len(entry["top_logprobs"])) for entry in together] == [(it.token, 20) for it in listed]
    assert all(abs(one["logprob"] - other.logprob) < 1e-4 for one, other in zip(together, listed, strict=True))


def test_logprobs_of_raw_scores(client):
    """Temperature, penalties and bias change what is chosen, not what is reported."""
    ask = {"model": "demo", "messages": OPEN, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    changes = [
        {"temperature": 0},
        {"temperature": 2, "seed": 3},
        {"temperature": 0.1, "top_p": 0.5, "seed": 3},
        {"temperature": 0, "presence_penalty": 2, "frequency_penalty": 2},
    ]
    answers = [client.chat.completions.create(**ask, **change).choices[0].logprobs.content[0] for change in changes]
    expected = {top.token: top.logprob for top in answers[0].top_logprobs}
    for answer in answers[1:]:
        likely = {top.token: top.logprob for top in answer.top_logprobs}
        assert likely.keys() == expected.keys()
        assert all(abs(likely[token] - expected[token]) < 1e-4 for token in expected)


def test_logprobs_bytes_of_emoji(client):
    emoji = "🙂"
    answer = client.chat.completions.create(
        **GREEDY, messages=WORKSPACE, logprobs=True, top_logprobs=2, max_tokens=20,
        extra_body={"structured_outputs": {"choice": [emoji]}},
    ).choices[0]
    assert answer.message.content.strip() == emoji
    listed = answer.logprobs.content
    spelled = b"".join(bytes(entry.bytes) for entry in listed)
    assert spelled.decode() == answer.message.content
    # The demo tokenizer has no piece for it, so it falls back to its four bytes.
    assert [entry.bytes for entry in listed][-4:] == [[byte] for byte in emoji.encode()]
    assert all("\ufffd" in entry.token for entry in listed[-4:])


def test_logit_bias_bans(client, server):
    first = server.chat(WORKSPACE, 1, return_dict_in_generate=True)
    token, ask = first["sequences"][0][-1], GREEDY | {"messages": WORKSPACE, "max_tokens": 1}
    plain = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2).choices[0]
    banned = client.chat.completions.create(**ask, logit_bias={str(token): -100}).choices[0]
    # The likeliest but one stands in.
    assert banned.message.content == plain.logprobs.content[0].top_logprobs[1].token != plain.message.content
    other = server.post("/tokenize", {"prompt": "workspace", "add_special_tokens": False}).json()["tokens"][0]
    forced = client.chat.completions.create(
        **ask, logit_bias={str(other): 100}, extra_body={"return_token_ids": True}
    )
    assert forced.choices[0].message.content.strip() == "workspace"[: len(forced.choices[0].message.content.strip())]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ask, logit_bias={"2048": 1})
    assert refused.value.param.startswith("logit_bias") and "2048" in refused.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ask, logit_bias={str(token): 101})
    assert refused.value.param.startswith("logit_bias")


@pytest.mark.parametrize("penalties", [(2.0, 0.0), (0.0, 2.0), (1.5, -1.0)], ids=["frequency", "presence", "both"])
def test_frequency_penalty_changes(client, penalties):
    """Greedy decoding by hand: the reported log-probabilities are raw, so the chosen token must be the likeliest after
    the penalties are subtracted."""
    frequency, presence = penalties
    ask = GREEDY | {"messages": OPEN, "max_tokens": 200, "logprobs": True, "top_logprobs": 20}
    ask |= {"extra_body": {"return_tokens_as_token_ids": True, "ignore_eos": True}}
    plain = client.chat.completions.create(**ask).choices[0]
    changed = client.chat.completions.create(
        **ask, frequency_penalty=frequency, presence_penalty=presence
    ).choices[0]
    assert changed.message.content != plain.message.content
    counts: Counter[str] = Counter()
    for entry in changed.logprobs.content:
        assert entry.token.startswith("token_id:")

        def penalised(token: str, logprob: float) -> float:
            return logprob - frequency * counts[token] - presence * (counts[token] > 0)

        best = max(penalised(top.token, top.logprob) for top in entry.top_logprobs)
        assert penalised(entry.token, entry.logprob) >= best - 1e-4
        counts[entry.token] += 1


def test_seed_negative(client):
    ask = {"model": "demo", "messages": OPEN, "temperature": 2, "top_p": 1, "max_tokens": 20}
    texts = {}
    for seed in (-5, 5, -(2**63), 2**63 - 1):
        texts[seed] = texts_of(client.chat.completions.create(**ask, seed=seed))
        assert texts[seed] == texts_of(client.chat.completions.create(**ask, seed=seed))
    assert texts[-5] != texts[5]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ask, seed=2**63)
    assert refused.value.param == "seed"


def test_max_tokens_capped(client_of):
    client = client_of("--max-seq-len", "64")
    answer = client.chat.completions.create(
        **GREEDY, messages=WORKSPACE, max_tokens=4096, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 64
    unset = client.chat.completions.create(**GREEDY, messages=WORKSPACE, extra_body={"ignore_eos": True})
    assert unset.usage.total_tokens == 64
    # The newer name of the two wins.
    both = client.chat.completions.create(**GREEDY, messages=WORKSPACE, max_tokens=9, max_completion_tokens=3)
    assert both.usage.completion_tokens == 3
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**GREEDY, messages=WORKSPACE, max_tokens=0)
    assert refused.value.param == "max_tokens"


def test_any_model_name(serve, client_of):
    answer = client_of("--any-model-name").chat.completions.create(
        model="gpt-4o", messages=WORKSPACE, temperature=0, max_tokens=10
    )
    assert texts_of(answer) == [serve("--any-model-name").chat_text(WORKSPACE, 10)]


def test_cancel_frees_pages(serve, client_of):
    server = serve("--max-batch-size", "9")
    client = client_of("--max-batch-size", "9")
    stream = client.chat.completions.create(
        model="demo", messages=OPEN, temperature=2, seed=1, n=8, max_tokens=1900, stream=True,
        extra_body={"ignore_eos": True},
    )
    for _, chunk in zip(range(20), stream):
        assert chunk.choices
    assert server.metric("kaito_sequences_running") == 8 and server.metric("kaito_kv_cache_pages_used") > 0
    stream.close()
    server.wait_for_metric("kaito_sequences_running", 0)
    server.wait_for_metric("kaito_kv_cache_pages_used", 0)
    assert server.metric("kaito_generated_tokens_total") < 8 * 1900, "it ran to its end"


def test_aliases_without_v1(server, client):
    short = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
    assert short.models.list().data[0].id == "demo"
    answer = short.chat.completions.create(**GREEDY, messages=WORKSPACE, max_tokens=5)
    assert texts_of(answer) == [server.chat_text(WORKSPACE, 5)]
