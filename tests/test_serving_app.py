"""The HTTP interface in this process: what is asked and answered, refused, attested; who may switch offsets."""

import json
import logging

import pytest
import torch
from served import PROMPTS, Client, engine, logp_of, parts, plain

from unlearn.ensemble import Ensemble, Member
from unlearn.serving import app as application
from unlearn.serving.chat import Chat

WORDS = [f" w{i}" for i in range(40)]
MESSAGES = [{"role": "user", "content": " w9 w12"}]
CHAT = "/v1/chat/completions"


def spoken(ids) -> str:
    return "".join({0: "<pad>", 1: "<eos>", 2: "<unk>"}.get(i, f" w{i}") for i in ids)


@pytest.fixture(scope="module")
def running():
    with engine(max_batch=8, max_waiting=16) as started:
        yield started


@pytest.fixture
def client(running):
    return Client(running, max_choices=24, max_tokens=30)


# --- completions ------------------------------------------------------------------------------------------------------


def test_a_prompt_is_a_text_token_ids_or_a_list_of_either(client):
    expected = [spoken(plain(p, 1.0)) for p in PROMPTS[:3]]
    assert client.text(prompt=list(PROMPTS[0]), temperature=0, max_tokens=12) == expected[0]
    assert client.text(prompt=spoken(PROMPTS[0]), temperature=0, max_tokens=12) == expected[0]
    both = [list(map(list, PROMPTS[:3])), list(map(spoken, PROMPTS[:3]))]
    for prompts in both:
        found = client.complete(prompt=prompts, temperature=0, max_tokens=12)
        assert [c["text"] for c in found["choices"]] == expected
        assert [c["index"] for c in found["choices"]] == [0, 1, 2]
    used, said = found["usage"], sum(len(plain(p, 1.0)) for p in PROMPTS[:3])
    ended = sum(c["finish_reason"] == "stop" for c in found["choices"])
    assert used["prompt_tokens"] == sum(map(len, PROMPTS[:3])) and used["completion_tokens"] == said + ended
    assert found["object"] == "text_completion" and found["model"] == "request0" and found["id"].startswith("cmpl-")


def test_sixteen_tokens_are_the_default_and_the_room_there_is_the_most(client):
    assert client.complete(prompt=spoken(PROMPTS[1]), seed=1)["usage"]["completion_tokens"] == 16
    long = spoken([5] * 35)
    assert client.complete(prompt=long, seed=1, temperature=0)["usage"]["completion_tokens"] <= 5
    assert "together at most 40" in client.refused(prompt=long, max_tokens=6)
    assert "the prompt has 40 tokens" in client.refused(prompt=spoken([5] * 40))
    assert client.post("/v1/completions", {"prompt": long, "max_tokens": 6}).json()["error"]["code"] == (
        "context_length_exceeded"
    )


def test_stop_strings_end_an_answer_across_tokens(client):
    whole = client.text(prompt=list(PROMPTS[0]), temperature=0, max_tokens=12)
    middle = whole[4:9]
    found = client.complete(prompt=list(PROMPTS[0]), temperature=0, max_tokens=12, stop=["nowhere", middle])
    assert found["choices"][0]["text"] == whole[: whole.index(middle)]
    assert found["choices"][0]["finish_reason"] == "stop" and found["usage"]["completion_tokens"] < 12
    again = client.text(prompt=list(PROMPTS[0]), temperature=0, max_tokens=12, stop=middle)
    assert again == found["choices"][0]["text"]


def test_the_same_seed_says_the_same_and_n_answers_differ(client):
    asked = {"prompt": list(PROMPTS[0]), "seed": 5, "n": 4, "temperature": 2.0, "max_tokens": 8}
    first, again = (client.complete(**asked) for _ in range(2))
    texts = [c["text"] for c in first["choices"]]
    assert texts == [c["text"] for c in again["choices"]] and len(set(texts)) == 4
    assert texts != [c["text"] for c in client.complete(**asked | {"seed": 6})["choices"]]
    assert texts[0] == client.text(**asked | {"n": 1})
    free = {client.text(**asked | {"seed": None, "n": 1}) for _ in range(4)}
    assert len(free) > 1
    assert client.text(**asked | {"top_p": 0, "n": 1}) == client.text(**asked | {"temperature": 0, "n": 1})


def test_echo_with_log_probabilities_is_what_scoring_clients_read(client):
    prompt, k = PROMPTS[2], 2
    found = client.complete(prompt=list(prompt), max_tokens=1, logprobs=k, echo=True, temperature=0)["choices"][0]
    lp = found["logprobs"]
    token = logp_of(parts()[0].ensemble, prompt, 1.0)[-1].argmax().item()
    expected = logp_of(parts()[0].ensemble, [*prompt, token], 1.0)
    ids = [*prompt, token]
    assert found["text"] == spoken(prompt) + ("" if token == 1 else spoken([token]))
    assert lp["tokens"] == [spoken([i]) for i in ids] and lp["token_logprobs"][0] is lp["top_logprobs"][0] is None
    assert lp["text_offset"] == [len(spoken(ids[:i])) for i in range(len(ids))]
    for t in range(1, len(ids)):
        assert lp["token_logprobs"][t] == pytest.approx(expected[t - 1, ids[t]].item(), abs=1e-5)
        best = expected[t - 1].topk(k).indices.tolist()
        assert set(lp["top_logprobs"][t]) == {spoken([i]) for i in {*best, ids[t]}}
        assert max(lp["top_logprobs"][t].values()) == pytest.approx(expected[t - 1].max().item(), abs=1e-5)
    scored = client.complete(prompt=list(prompt), max_tokens=0, logprobs=0, echo=True)["choices"][0]
    assert scored["logprobs"]["token_logprobs"] == pytest.approx(lp["token_logprobs"][:-1], abs=1e-6, nan_ok=True) or (
        scored["logprobs"]["token_logprobs"][1:] == pytest.approx(lp["token_logprobs"][1:-1], abs=1e-6)
    )
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


def test_tokens_can_be_called_by_their_ids(client):
    asked = {"prompt": list(PROMPTS[0]), "max_tokens": 3, "temperature": 0, "logprobs": 2, "echo": True}
    lp = client.complete(**asked, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]
    assert lp["tokens"][: len(PROMPTS[0])] == [f"token_id:{i}" for i in PROMPTS[0]]
    assert all(name.startswith("token_id:") for top in lp["top_logprobs"][1:] for name in top)


# --- chat -------------------------------------------------------------------------------------------------------------


def test_a_chat_without_a_chat_template_is_one_question_in_the_data_sets_template(client):
    prompt = (5, 6, 9, 12, 7)
    found = client.post(CHAT, {"messages": MESSAGES, "temperature": 0, "max_tokens": 6}).json()
    assert found["choices"][0]["message"] == {
        "role": "assistant", "content": spoken(plain(prompt, 1.0, steps=6)).strip(),
    }  # fmt: skip
    assert found["object"] == "chat.completion" and found["usage"]["prompt_tokens"] == 5
    parted = [{"role": "user", "content": [{"type": "text", "text": " w9"}, {"type": "text", "text": " w12"}]}]
    again = client.post(CHAT, {"messages": parted, "temperature": 0, "max_completion_tokens": 6}).json()
    assert again["choices"][0]["message"] == found["choices"][0]["message"]
    asked = client.post(
        CHAT, {"messages": MESSAGES, "temperature": 0, "max_tokens": 6, "logprobs": True, "top_logprobs": 2}
    )
    content = asked.json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 6 and all(len(c["top_logprobs"]) == 2 for c in content)
    assert bytes(content[0]["bytes"]).decode() == content[0]["token"] == content[0]["top_logprobs"][0]["token"]


def test_a_chat_template_is_used_where_there_is_one(running):
    tokenizer = running.encoder.tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ {'system': ' w3', 'user': ' w4', 'assistant': ' w5'}[m.role] + m.content }}"
        "{% endfor %}{% if add_generation_prompt %} w5{% endif %}"
    )
    try:
        chat = Chat(running.encoder)
        turns = [{"role": r, "content": f" w{10 + i}"} for i, r in enumerate(("system", "user", "assistant", "user"))]
        assert chat.templated and chat.ids(turns) == (3, 10, 4, 11, 5, 12, 4, 13, 5)
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
    pieces = client.stream(**asked, stream_options={"include_usage": True})
    *pieces, last = pieces
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


# --- what is refused --------------------------------------------------------------------------------------------------

WRONG = {
    "n": [(0, "n=0: must be a whole number from 1 to 24"), (2.0, "n=2.0"), (True, "n=True"), (25, "n=25")],
    "max_tokens": [(-1, "max_tokens=-1: must be a whole number from 0 to 30"), (31, "=31"), ("9", "max_tokens='9'")],
    "temperature": [(-0.1, "temperature=-0.1: must be a number from 0 to 100"), ("warm", "'warm'"), (101, "=101")],
    "top_p": [(1.1, "top_p=1.1: must be a number from 0 to 1"), ([], "top_p=[]")],
    "seed": [(0.5, "seed=0.5: must be a whole number"), (2**64, "seed=")],
    "stop": [([""], "an empty text ends nothing"), (["a"] * 17, "at most 16 texts"), (3, "stop:"), ([1], "stop:")],
    "stream": [(1, "stream=1: must be true or false")],
    "logprobs": [(41, "logprobs=41: must be a whole number from -1 to 40"), (True, "logprobs=True")],
    "prompt_logprobs": [(-2, "prompt_logprobs=-2: must be a whole number from -1 to 40")],
    "model": [(7, "model=7: there is 'request0'")],
    "prompt": [
        ([], "prompt: must be a text, a list of token ids"), ("", "has no tokens"), ([[]], "must be a text"),
        ([40], "token id 40: must be from 0 to 39"), ([-1], "token id -1"), ([[3], "w", 4], "must be a text"),
        ([True], "must be a text"), ({"a": 1}, "must be a text"), (["w"] * 25, "25 prompts; at most 24"),
    ],
    "best_of": [(3, "best_of=3: is not done here; leave it out, or give 1")],
    "presence_penalty": [(0.5, "presence_penalty=0.5: is not done here; leave it out, or give 0")],
    "logit_bias": [({"5": 9}, "logit_bias={'5': 9}: is not done here")],
    "top_k": [(5, "top_k=5: is not done here; leave it out, or give -1 or 0")],
    "min_tokens": [(2, "min_tokens=2")],
    "temperatur": [(1, "'temperatur': no such field; there are model, n, max_tokens")],
    "messages": [([], "'messages': no such field")],
    "stream_options": [({"x": 1}, "may hold include_usage")],
    "alpha": [(1.0, "alpha: this server lets no request choose it; it was started without per_request=true")],
    "offsets": [([], "offsets: this server lets no request choose it")],
}  # fmt: skip


@pytest.mark.parametrize("name, value, said", [(n, v, s) for n, cases in WRONG.items() for v, s in cases])
def test_what_cannot_be_done_is_refused_with_value_rule_and_choices(client, name, value, said):
    message = client.refused(status=404 if name == "model" else 400, **({"prompt": spoken([5])} | {name: value}))
    assert said in message


def test_what_changes_nothing_is_ignored(client):
    plainly = client.text(prompt=" w5", temperature=0)
    more = {"user": "me", "metadata": {"a": 1}, "presence_penalty": 0.0, "best_of": 1, "logit_bias": {}, "top_k": -1,
            "suffix": None, "stop": None, "seed": None, "model": "request0", "n": None}  # fmt: skip
    assert client.text(prompt=" w5", temperature=0, **more) == plainly
    assert "prompts: at most 24 answers" in client.refused(prompt=[" w5"] * 13, n=2)
    assert "in a stream" in client.refused(prompt=" w5", prompt_logprobs=1, stream=True)
    assert "only with logprobs=true" in client.refused(CHAT, messages=MESSAGES, top_logprobs=2)
    assert "give one of them" in client.refused(CHAT, messages=MESSAGES, max_tokens=2, max_completion_tokens=2)
    assert "no such field" in client.refused(CHAT, messages=MESSAGES, prompt="x")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 10**5, b"3", b'{"prompt": "a", "temperature": NaN}'])
def test_a_body_that_is_no_request_is_refused(client, content):
    found = client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert found.status_code == 400 and found.json()["error"]["type"] == "invalid_request_error"


def test_other_kinds_and_lengths_of_bodies_routes_and_methods_are_refused_in_the_same_form(client, monkeypatch):
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        found = client.post("/v1/completions", content=b"{}", headers={"content-type": kind})
        assert found.status_code == 415 and "application/json" in found.json()["error"]["message"]
    monkeypatch.setattr(application, "LONGEST", 50)
    assert "longer than 50 bytes" in client.refused(status=413, prompt=" w5" * 50)
    for found, status in ((client.get("/v1/none"), 404), (client.get("/v1/completions"), 405)):
        assert found.status_code == status and found.json()["error"]["message"]


def test_too_many_log_probabilities_are_refused_before_they_are_made(client, monkeypatch):
    monkeypatch.setattr("unlearn.serving.protocol.ENTRIES", 100)
    assert "and at most 100 are given at once" in client.refused(prompt=list(PROMPTS[0]), prompt_logprobs=-1)
    assert client.complete(prompt=list(PROMPTS[0]), prompt_logprobs=1)


def test_a_server_may_show_fewer_of_the_likeliest(running):
    few = Client(running, max_logprobs=5)
    assert "prompt_logprobs=-1: must be a whole number from 0 to 5" in few.refused(prompt=" w5", prompt_logprobs=-1)
    assert few.complete(prompt=" w5", logprobs=5)


def test_a_fault_of_the_server_shows_nothing_of_its_inside(running, monkeypatch):
    client = Client(running)
    monkeypatch.setattr(running.blend, "attested", lambda mix: 1 / 0)
    found = client.post("/v1/completions", {"prompt": " w5"})
    assert found.status_code == 500 and "Zero" not in found.text and "Traceback" not in found.text


def test_models_without_numbers_are_a_500_and_in_a_stream_its_last_line():
    made = parts()
    made[0].ensemble.members[1].model.get_input_embeddings().weight.data[7] = torch.nan
    with engine(*made) as started:
        client = Client(started)
        assert "gave no numbers" in client.refused(status=500, prompt=[7, 8])
        found = client.post("/v1/completions", {"prompt": [7, 8], "stream": True}).text
        assert "gave no numbers" in found and "[DONE]" not in found


def test_when_no_place_is_left_clients_are_told_to_come_back():
    with engine(max_batch=1, max_waiting=2) as started:
        client = Client(started, max_choices=9)
        found = client.post("/v1/completions", {"prompt": " w5", "n": 4})
        assert found.status_code == 503 and found.headers["retry-after"] == "1"
        assert found.json()["error"]["code"] == "busy"
        assert client.complete(prompt=" w5", n=3)


# --- attestation, alpha and offsets -----------------------------------------------------------------------------------


def test_every_reply_attests_what_answered(client):
    expected = {"target": "t", "offsets": [{"name": "request0", "alpha": 1.0, "weights": "weights0"}]}
    for path, body in (("/v1/completions", {"prompt": " w5"}), (CHAT, {"messages": MESSAGES, "max_tokens": 2})):
        found = client.post(path, body)
        assert json.loads(found.headers["x-unlearned"]) == found.json()["unlearned"] == expected
        streamed = client.post(path, body | {"stream": True})
        assert json.loads(streamed.headers["x-unlearned"]) == expected
        assert found.json()["system_fingerprint"] in streamed.text


@pytest.fixture
def two():
    with engine(*parts(2)) as started:
        yield started


def test_requests_may_choose_alpha_and_offsets_where_that_is_allowed(two):
    client, asked = Client(two, per_request=True), {"prompt": list(PROMPTS[0]), "temperature": 0, "max_tokens": 12}
    assert client.text(**asked, offsets=["request0"]) == spoken(plain(PROMPTS[0], 1.0))
    assert client.text(**asked, offsets=["request0"], alpha=2) == spoken(plain(PROMPTS[0], 2.0))
    assert client.text(**asked, alpha=0) == client.text(**asked, offsets=[]) == spoken(plain(PROMPTS[0], 0.0))
    attested = client.complete(**asked, alpha=0.5)["unlearned"]["offsets"]
    assert [(o["name"], o["alpha"]) for o in attested] == [("request0", 0.5), ("request1", 0.5)]
    assert "offsets='other': must be a list of names; there are request0, request1" in client.refused(
        **asked, offsets=["other"]
    )
    assert "offsets='request0'" in client.refused(**asked, offsets="request0")
    assert "alpha='x': must be a number" in client.refused(**asked, alpha="x")
    whole = Ensemble((Member("model", parts()[0].ensemble.members[0].model, "t", 1.0, 0.0, True),))
    from unlearn.serving.offsets import Part

    with engine(Part("m", whole, "w", 1.0)) as alone:
        assert "cannot be left out" in Client(alone, per_request=True).refused(**asked, offsets=[])


def test_offsets_are_switched_while_the_server_runs(two):
    client, asked = Client(two), {"prompt": list(PROMPTS[0]), "temperature": 0, "max_tokens": 12}
    both = client.text(**asked)
    listed = client.get("/v1/offsets").json()["data"]
    assert listed == [{"name": f"request{i}", "on": True, "alpha": 1.0, "weights": f"weights{i}"} for i in range(2)]
    found = client.post("/v1/offsets", {"name": "request1", "on": False}).json()["data"]
    assert [o["on"] for o in found] == [True, False]
    assert client.text(**asked) == spoken(plain(PROMPTS[0], 1.0)) != both
    client.post("/v1/offsets", {"name": "request0", "alpha": 2})
    assert client.text(**asked) == spoken(plain(PROMPTS[0], 2.0))
    client.post("/v1/offsets", {"name": "request0", "on": False})
    reply = client.complete(**asked)
    assert reply["choices"][0]["text"] == spoken(plain(PROMPTS[0], 0.0)) and reply["unlearned"]["offsets"] == []
    client.post("/v1/offsets", {"name": "request0", "on": True, "alpha": 1.0})
    client.post("/v1/offsets", {"name": "request1", "on": True})
    assert client.text(**asked) == both


@pytest.mark.parametrize(
    "body, said",
    [
        ({"name": "x", "on": True}, "name='x': must be one of request0"), ({"on": True}, "name=None"),
        ({"name": "request0", "on": 1}, "on=1: must be true or false"), (["request0"], "the body must be like"),
        ({"name": "request0", "alpha": "1"}, "alpha='1': must be a number"), ({"name": ["request0"]}, "name="),
        ({"name": "request0", "off": 1}, "must be like"),
    ],
)  # fmt: skip
def test_wrong_switches_are_refused(running, body, said):
    found = Client(running).post("/v1/offsets", body)
    assert found.status_code == 400 and said in found.json()["error"]["message"]


# --- who may ask ------------------------------------------------------------------------------------------------------

KEY, ADMIN = "planted-key-for-everybody", "planted-key-of-the-admin"


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setenv("SERVE_FOR_ALL", KEY)
    monkeypatch.setenv("SERVE_ADMIN", ADMIN)
    return {"key_env": "SERVE_FOR_ALL"}, {"admin_key_env": "SERVE_ADMIN"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_with_a_key_nobody_else_is_answered_and_no_key_is_logged(running, keys, caplog):
    caplog.set_level(logging.DEBUG)
    client = Client(running, **keys[0])
    wrong = {}, bearer("other"), bearer(""), {"authorization": KEY}, {"authorization": f"Basic {KEY}"}
    for headers in (*wrong, {"authorization": "Bearer é".encode()}):
        for found in (
            client.post("/v1/completions", {"prompt": " w5"}, headers=headers),
            client.post(CHAT, {"messages": MESSAGES}, headers=headers), client.get("/v1/models", headers=headers),
            client.get("/v1/offsets", headers=headers),
        ):  # fmt: skip
            assert found.status_code == 401 and found.json()["error"]["code"] == "invalid_api_key"
    assert client.get("/health").status_code == 200
    client.headers = bearer(KEY)
    assert client.complete(prompt=" w5 w9") and client.get("/v1/models").json()["data"][0]["id"] == "request0"
    assert KEY not in caplog.text and "w9" not in caplog.text and "tokens read" in caplog.text


def test_offsets_are_switched_with_the_admins_key_alone_where_there_is_one(running, keys):
    client = Client(running, client=("203.0.113.5", 1), **keys[0], **keys[1])
    body = {"name": "request0", "on": True}
    for headers, status in ((bearer(ADMIN), 200), (bearer(KEY), 401), ({}, 401)):
        assert client.post("/v1/offsets", body, headers=headers).status_code == status
        assert client.get("/v1/offsets", headers=headers).status_code == status
    assert client.post("/v1/completions", {"prompt": " w5"}, headers=bearer(ADMIN)).status_code == 401


@pytest.mark.parametrize(
    "place, headers, status",
    [
        ("127.0.0.1", {}, 200), ("::1", {}, 200), ("203.0.113.5", {}, 403), ("10.0.0.1", {}, 403),
        ("127.0.0.1", {"x-forwarded-for": "127.0.0.1"}, 403),  # through a proxy on the same machine
        ("127.0.0.1", {"host": "evil.example:8000"}, 403),  # a name that was made to point here
        ("127.0.0.1", {"origin": "http://evil.example"}, 403),  # a web page in a browser here
        ("127.0.0.1", {"host": "localhost:8000"}, 200),
    ],
)  # fmt: skip
def test_without_an_admins_key_offsets_are_switched_from_the_machine_itself(running, place, headers, status):
    client = Client(running, client=(place, 1))
    assert client.post("/v1/offsets", {"name": "request0", "on": True}, headers=headers).status_code == status
    assert client.get("/v1/offsets", headers=headers).status_code == status


def test_health_and_models_say_what_there_is(running):
    client = Client(running, name="gpt-none")
    assert client.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    model = client.get("/v1/models").json()["data"][0]
    assert (model["id"], model["object"], model["max_model_len"]) == ("gpt-none", "model", 40)
    stopped = engine().start()
    stopped.close()
    assert Client(stopped).get("/health").status_code == 503
