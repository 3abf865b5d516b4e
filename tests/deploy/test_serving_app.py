"""The HTTP interface in this process: what is asked and answered, whole and in pieces."""

import pytest
import torch
from support.served import CHAT, MESSAGES, PROMPTS, Client, bytewise, logp_of, parts, plain, spoken
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from unlearn.deploy.serving.bodies import Turn
from unlearn.deploy.serving.protocol import chat_ids
from unlearn.deploy.serving.replies import Names

# --- completions ------------------------------------------------------------------------------------------------------


def test_a_prompt_is_a_text_token_ids_or_a_list_of_either(client):
    texts = [p for p in PROMPTS if 2 not in p][:3]  # special tokens in a text are plain text: see below
    expected = [spoken(plain(p, 1.0)) for p in texts]
    assert client.text(prompt=list(texts[0]), temperature=0, max_tokens=12) == expected[0]
    assert client.text(prompt=spoken(texts[0]), temperature=0, max_tokens=12) == expected[0]
    both = [list(map(list, texts)), list(map(spoken, texts))]
    for prompts in both:
        found = client.complete(prompt=prompts, temperature=0, max_tokens=12)
        assert [c["text"] for c in found["choices"]] == expected
        assert [c["index"] for c in found["choices"]] == [0, 1, 2]
    used, said = found["usage"], sum(len(plain(p, 1.0)) for p in texts)
    ended = sum(c["finish_reason"] == "stop" for c in found["choices"])
    assert used["prompt_tokens"] == sum(map(len, texts)) and used["completion_tokens"] == said + ended
    assert found["object"] == "text_completion" and found["model"] == "request0" and found["id"].startswith("cmpl-")


def test_special_tokens_in_a_text_are_plain_text(client):
    assert client.complete(prompt=" w5<eos> w6", max_tokens=1)["usage"]["prompt_tokens"] == 2  # " w5<eos>" is one word
    assert client.complete(prompt=[5, 1, 6], max_tokens=1)["usage"]["prompt_tokens"] == 3
    asked = [{"role": "user", "content": " w9<eos>"}]
    found = client.post("/v1/chat/completions", {"messages": asked, "max_tokens": 1}).json()
    assert found["usage"]["prompt_tokens"] == 4  # with the template's three


def test_an_answer_ends_with_its_limit_with_the_room_there_is_or_with_a_stop_string_across_tokens(client):
    assert client.complete(prompt=spoken(PROMPTS[1]), seed=2)["usage"]["completion_tokens"] == 16
    long = spoken([5] * 35)
    assert client.complete(prompt=long, seed=1, temperature=0)["usage"]["completion_tokens"] <= 5
    assert "the prompt has 40 tokens" in client.refused(prompt=spoken([5] * 40))
    error = client.post("/v1/completions", {"prompt": long, "max_tokens": 6}).json()["error"]
    assert error["code"] == "context_length_exceeded" and "together at most 40" in error["message"]
    asked = {"prompt": list(PROMPTS[0]), "temperature": 0, "max_tokens": 12}
    whole = client.text(**asked)
    middle = whole[4:9]
    found = client.complete(**asked, stop=["nowhere", middle])
    assert found["choices"][0]["text"] == whole[: whole.index(middle)] == client.text(**asked, stop=middle)
    assert found["choices"][0]["finish_reason"] == "stop" and found["usage"]["completion_tokens"] < 12


def test_the_same_seed_says_the_same_and_n_answers_differ(client):
    asked = {"prompt": list(PROMPTS[0]), "seed": 5, "n": 4, "temperature": 2.0, "max_tokens": 8}
    first, again = (client.complete(**asked) for _ in range(2))
    texts = [c["text"] for c in first["choices"]]
    assert texts == [c["text"] for c in again["choices"]] and len(set(texts)) == 4
    assert texts != [c["text"] for c in client.complete(**asked | {"seed": 6})["choices"]]
    assert texts[0] == client.text(**asked | {"n": 1})
    greedy = client.text(**asked | {"temperature": 0, "n": 1})
    for near in (1e-7, 1e-30, 1e-320, 5e-324):
        assert greedy == client.text(**asked | {"temperature": near, "n": 1})
        assert greedy == client.text(**asked | {"top_p": near, "n": 1})
    assert len({client.text(**asked | {"seed": None, "n": 1}) for _ in range(4)}) > 1
    assert client.text(**asked | {"top_p": 0, "n": 1}) == client.text(**asked | {"temperature": 0, "n": 1})


def test_echo_with_log_probabilities_is_what_scoring_clients_read(client):
    prompt, ensemble = PROMPTS[2], parts()[0].ensemble
    found = client.complete(prompt=list(prompt), max_tokens=1, logprobs=2, echo=True, temperature=0)["choices"][0]
    lp, token = found["logprobs"], logp_of(ensemble, prompt, 1.0)[-1].argmax().item()
    ids = [*prompt, token]
    expected = logp_of(ensemble, ids, 1.0)
    assert found["text"] == spoken(prompt) + ("" if token == 1 else spoken([token]))
    assert lp["tokens"] == [spoken([i]) for i in ids] and lp["token_logprobs"][0] is lp["top_logprobs"][0] is None
    assert lp["text_offset"] == [len(spoken(ids[:i])) for i in range(len(ids))]
    for t in range(1, len(ids)):
        assert lp["token_logprobs"][t] == pytest.approx(expected[t - 1, ids[t]].item(), abs=1e-5)
        best = expected[t - 1].topk(2).indices.tolist()
        assert set(lp["top_logprobs"][t]) == {spoken([i]) for i in {*best, ids[t]}}
        assert max(lp["top_logprobs"][t].values()) == pytest.approx(expected[t - 1].max().item(), abs=1e-5)
    named = client.complete(prompt=list(prompt), max_tokens=1, logprobs=2, echo=True, temperature=0,
                            return_tokens_as_token_ids=True)["choices"][0]["logprobs"]  # fmt: skip
    assert named["tokens"] == [f"token_id:{i}" for i in ids]
    assert all(name.startswith("token_id:") for top in named["top_logprobs"][1:] for name in top)
    scored = client.complete(prompt=list(prompt), max_tokens=0, logprobs=0, echo=True)["choices"][0]
    assert scored["logprobs"]["token_logprobs"][1:] == pytest.approx(lp["token_logprobs"][1:-1], abs=1e-6)
    assert scored["finish_reason"] == "length" and scored["text"] == spoken(prompt)


@pytest.mark.parametrize("k", [0, 3, -1])
def test_prompt_logprobs_have_vllms_form(client, k):
    prompts = [list(p) for p in PROMPTS[:2]]
    found = client.complete(prompt=prompts, max_tokens=0, prompt_logprobs=k)["choices"]
    for prompt, choice in zip(prompts, found, strict=True):
        expected = logp_of(parts()[0].ensemble, prompt, 1.0)
        first, *rest = choice["prompt_logprobs"]
        assert first is None and len(rest) == len(prompt) - 1
        for t, entry in enumerate(rest):
            row, own = expected[t], prompt[t + 1]
            order = row.argsort(descending=True).tolist()
            wanted = {str(i) for i in order[: 40 if k < 0 else k]} | {str(own)}
            assert set(entry) == wanted and next(iter(entry)) == str(own)
            for name, one in entry.items():
                assert set(one) == {"logprob", "rank", "decoded_token"}
                assert one["logprob"] == pytest.approx(row[int(name)].item(), abs=1e-5)
                assert one["rank"] == order.index(int(name)) + 1 and one["decoded_token"] == spoken([int(name)])
            assert sum(torch.tensor([e["logprob"] for e in entry.values()]).exp()) <= 1 + 1e-4
    assert "prompt_logprobs" not in client.complete(prompt=prompts, max_tokens=0)["choices"][0]


def test_the_bytes_of_a_token_are_its_own_though_it_is_a_part_of_a_character():
    tok = bytewise()
    names = Names(tok)
    for character in "né€🙂":
        assert bytes(b for i in tok(character)["input_ids"] for b in names.bytes(i)) == character.encode()
    model = Tokenizer(models.BPE({"<0xE2>": 0, "é": 1}, []))
    of_sentencepiece = PreTrainedTokenizerFast(tokenizer_object=model, unk_token=None)
    of_sentencepiece.backend_tokenizer.decoder = decoders.ByteFallback()
    assert [Names(of_sentencepiece).bytes(i) for i in range(2)] == [[0xE2], list("é".encode())]


# --- chat -------------------------------------------------------------------------------------------------------------


def test_a_chat_without_a_chat_template_is_one_question_in_the_data_sets_template(client):
    asked = {"messages": MESSAGES, "temperature": 0, "max_tokens": 6}
    found, said = client.post(CHAT, asked).json(), spoken(plain((5, 6, 9, 12, 7), 1.0, steps=6)).strip()
    assert found["choices"][0]["message"] == {"role": "assistant", "content": said}
    assert found["object"] == "chat.completion" and found["usage"]["prompt_tokens"] == 5
    parted = [{"role": "user", "content": [{"type": "text", "text": " w9"}, {"type": "text", "text": " w12"}]}]
    again = client.post(CHAT, {"messages": parted, "temperature": 0, "max_completion_tokens": 6}).json()
    assert again["choices"][0]["message"] == found["choices"][0]["message"]
    found = client.post(CHAT, asked | {"logprobs": True, "top_logprobs": 2}).json()
    content = found["choices"][0]["logprobs"]["content"]
    assert len(content) == 6 and all(len(c["top_logprobs"]) == 2 for c in content)
    assert bytes(content[0]["bytes"]).decode() == content[0]["token"] == content[0]["top_logprobs"][0]["token"]


def test_a_chat_template_is_used_where_there_is_one(running):
    tokenizer = running.encoder.tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ {'system': ' w3', 'user': ' w4', 'assistant': ' w5'}[m.role] + m.content }}"
        "{% endfor %}{% if add_generation_prompt %} w5{% endif %}"
    )
    try:
        turns = [{"role": r, "content": f" w{10 + i}"} for i, r in enumerate(("system", "user", "assistant", "user"))]
        assert chat_ids(running.encoder, [Turn(**t) for t in turns]) == (3, 10, 4, 11, 5, 12, 4, 13, 5)
        body = {"messages": turns, "temperature": 0, "max_tokens": 5}
        found = Client(running).post(CHAT, body).json()
        assert found["choices"][0]["message"]["content"] == spoken(plain((3, 10, 4, 11, 5, 12, 4, 13, 5), 1.0, steps=5))
    finally:
        tokenizer.chat_template = None


@pytest.mark.parametrize(
    "messages, said",
    [
        (None, "must be a list like"), ([], "must be a list like"), ("hi", "must be a list like"),
        ([{"role": "robot", "content": "x"}], "role='robot': must be one of system, developer, user, assistant"),
        ([{"role": "user", "content": 3}], "content must be a text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "content must be a text"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "must have role and content"),
        ([*MESSAGES, {"role": "assistant", "content": "x"}], "the last one is the assistant's: must be the user's"),
        ([{"role": "system", "content": "x"}, *MESSAGES], "answers single questions, so there must be one message"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_asked_are_refused(client, messages, said):
    assert said in client.refused(CHAT, messages=messages)


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_says_in_pieces_what_is_else_said_whole(client):
    asked = {"prompt": [list(p) for p in PROMPTS[:2]], "n": 2, "seed": 3, "max_tokens": 9, "logprobs": 1, "echo": True}
    whole = client.complete(**asked)
    *pieces, last = client.stream(**asked, stream_options={"include_usage": True})
    assert last["usage"] == whole["usage"] and last["choices"] == []
    for choice in whole["choices"]:
        mine = [p["choices"][0] for p in pieces if p["choices"][0]["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
        for name, values in choice["logprobs"].items():
            joined = [x for c in mine for x in c["logprobs"][name]]
            assert joined == values or name == "top_logprobs" or joined[1:] == pytest.approx(values[1:], abs=1e-5)
    assert len({p["id"] for p in pieces}) == 1


def test_a_chat_stream_begins_with_the_role(client):
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 6}
    pieces = client.stream(CHAT, **body)
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert pieces[0]["object"] == "chat.completion.chunk"
    text = "".join(p["choices"][0]["delta"].get("content", "") for p in pieces)
    assert text == client.post(CHAT, body).json()["choices"][0]["message"]["content"] and len(pieces) > 3
    assert pieces[-1]["choices"][0]["finish_reason"] == "length" and pieces[-1]["unlearned"]["offsets"]
