"""The HTTP interface in this process: what is refused, what is attested, and who may ask and switch offsets."""

import gzip
import json
import logging

import pytest
import torch
from support.served import CHAT, MESSAGES, PROMPTS, Client, engine, parts, plain, spoken

from unlearn.deploy.parts import Part
from unlearn.deploy.serving import app as application
from unlearn.ensemble.ensemble import Ensemble, Member

# --- what is refused --------------------------------------------------------------------------------------------------

WRONG = {
    "n": [(0, "n=0: must be a whole number from 1 to 24"), (2.0, "n=2.0"), (True, "n=True"), (25, "n=25")],
    "max_tokens": [(-1, "max_tokens=-1: must be a whole number from 0 to 30"), (31, "=31"), ("9", "max_tokens='9'")],
    "temperature": [(10**400, "temperature=1000"),
                    (-0.1, "temperature=-0.1: must be a number from 0 to 100"), ("warm", "'warm'"), (101, "=101")],
    "top_p": [(1.1, "top_p=1.1: must be a number from 0 to 1"), ([], "top_p=[]")],
    "seed": [(0.5, "seed=0.5: must be a whole number"), (2**64, "seed=")],
    "stop": [([""], "an empty text ends nothing"), (["a"] * 17, "at most 16 texts"), (3, "stop:"), ([1], "stop:"),
             ("a" * 1001, "stop: a text has at most 1,000 characters"), (["a", "b" * 1001], "1,000 characters")],
    "stream": [(1, "stream=1: must be true or false")],
    "logprobs": [(41, "logprobs=41: must be a whole number from -1 to 40"), (True, "logprobs=True")],
    "prompt_logprobs": [(-2, "prompt_logprobs=-2: must be a whole number from -1 to 40")],
    "model": [(7, "model=7: there is 'request0'")],
    "prompt": [
        ([], "prompt: must be a text, a list of token ids"), ("", "has no tokens"), ([[]], "must be a text"),
        ([40], "token id 40: must be from 0 to 39"), ([-1], "token id -1"), ([[3], "w", 4], "must be a text"),
        ([True], "must be a text"), ({"a": 1}, "must be a text"), (["w"] * 25, "25 prompts; at most 24"),
        ("w" * 641, "prompt: a text has 641 characters; at most 640"), ([10**400], "token id 1000"),
    ],
    "best_of": [(3, "best_of=3: is not done here; leave it out, or give 1")],
    "presence_penalty": [(0.5, "presence_penalty=0.5: is not done here; leave it out, or give 0")],
    "logit_bias": [({"5": 9}, "logit_bias={'5': 9}: is not done here")],
    "top_k": [(5, "top_k=5: is not done here; leave it out, or give -1 or 0")],
    "min_tokens": [(2, "min_tokens=2")],
    "temperatur": [(1, "'temperatur': no such field; there are model, n, max_tokens")],
    "messages": [([], "'messages': no such field")],
    "stream_options": [({"x": 1}, "may hold include_usage")],
    "alpha": [(1.0, "per-request alpha is disabled; start the server with per_request=true")],
    "offsets": [([], "per-request offsets is disabled")],
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


HALF = '{"prompt": "\\ud83d hi"}'


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff", b"[" * 10**5, b"3", b'{"prompt": "a", "temperature": NaN}', HALF.encode(),
        HALF.encode("utf-16"), b'{"prompt": "\xed\xa0\xbd"}', b'{"\\ud83d": 1}', b'{"user": "\\udc00", "prompt": "a"}',
        b'{"prompt": "a", "seed": ' + b"9" * 400 + b"}", b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "temperature": 1e400}', b'{"prompt": "a", "max_tokens": -' + b"9" * 400 + b"}",
        b'{"messages": 1, "prompt": ["a", null]}', b'{"prompt": "a", "stop": [["a"]]}',
        gzip.compress(b'{"prompt": "a"}', mtime=0),
    ],
)  # fmt: skip
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


def test_log_probabilities_are_refused_before_too_many_are_made_and_a_server_may_show_fewer(
    client, running, monkeypatch
):
    few = Client(running, max_logprobs=5)
    assert "prompt_logprobs=-1: must be a whole number from 0 to 5" in few.refused(prompt=" w5", prompt_logprobs=-1)
    assert few.complete(prompt=" w5", logprobs=5)
    monkeypatch.setattr("unlearn.deploy.serving.protocol.ENTRIES", 100)
    assert "and at most 100 are given at once" in client.refused(prompt=list(PROMPTS[0]), prompt_logprobs=-1)
    assert client.complete(prompt=list(PROMPTS[0]), prompt_logprobs=1)


def test_models_without_numbers_are_a_500_and_in_a_stream_its_last_line():
    """Whoever does not read the broken weights is answered."""
    made = parts()
    made[0].ensemble.members[1].model.get_input_embeddings().weight.data[7] = torch.nan
    with engine(*made) as started:
        client = Client(started, per_request=True)
        assert client.refused(status=500, prompt=[7, 8]) == "the model gave no numbers for this answer"
        found = client.post("/v1/completions", {"prompt": [7, 8], "stream": True}).text
        assert "gave no numbers" in found and "[DONE]" not in found
        assert client.text(**ASKED, alpha=0) == spoken(plain(PROMPTS[0], 0.0))


def test_a_full_server_tells_clients_to_come_back_and_one_with_a_fault_shows_nothing_of_its_inside(monkeypatch):
    with engine(max_batch=1, max_waiting=2) as started:
        client = Client(started, max_choices=9)
        found = client.post("/v1/completions", {"prompt": " w5", "n": 4})
        assert found.status_code == 503 and found.headers["retry-after"] == "1"
        assert found.json()["error"]["code"] == "busy"
        assert client.complete(prompt=" w5", n=3)
        monkeypatch.setattr(started.blend, "attested", lambda mix: 1 / 0)
        found = client.post("/v1/completions", {"prompt": " w5"})
        assert found.status_code == 500 and "Zero" not in found.text and "Traceback" not in found.text


KEY, ADMIN = "planted-key-for-everybody", "planted-key-of-the-admin"


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setenv("SERVE_FOR_ALL", KEY)
    monkeypatch.setenv("SERVE_ADMIN", ADMIN)
    return {"key_env": "SERVE_FOR_ALL"}, {"admin_key_env": "SERVE_ADMIN"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# --- attestation, alpha and offsets -----------------------------------------------------------------------------------


def test_every_reply_attests_what_answered(client):
    expected = {"target": "t", "offsets": [{"name": "request0", "alpha": 1.0, "weights": "weights0"}]}
    for path, body in (("/v1/completions", {"prompt": " w5"}), (CHAT, {"messages": MESSAGES, "max_tokens": 2})):
        found = client.post(path, body)
        assert json.loads(found.headers["x-unlearned"]) == found.json()["unlearned"] == expected
        streamed = client.post(path, body | {"stream": True})
        assert json.loads(streamed.headers["x-unlearned"]) == expected
        assert found.json()["system_fingerprint"] in streamed.text


ASKED = {"prompt": list(PROMPTS[0]), "temperature": 0, "max_tokens": 12}


@pytest.fixture
def two():
    with engine(*parts(2)) as started:
        yield started


def test_requests_may_choose_alpha_and_offsets_where_that_is_allowed(two):
    client, asked = Client(two, per_request=True), ASKED
    assert client.text(**asked, offsets=["request0"]) == spoken(plain(PROMPTS[0], 1.0))
    assert client.text(**asked, offsets=["request0"], alpha=2) == spoken(plain(PROMPTS[0], 2.0))
    assert client.text(**asked, alpha=0) == client.text(**asked, offsets=[]) == spoken(plain(PROMPTS[0], 0.0))
    attested = client.complete(**asked, alpha=0.5)["unlearned"]["offsets"]
    assert [(o["name"], o["alpha"]) for o in attested] == [("request0", 0.5), ("request1", 0.5)]
    said = client.refused(**asked, offsets=["other"])
    assert "offsets='other': must be a list of names; there are request0, request1" in said
    assert "offsets='request0'" in client.refused(**asked, offsets="request0")
    assert "alpha='x': must be a number" in client.refused(**asked, alpha="x")
    whole = Ensemble((Member("model", parts()[0].ensemble.members[0].model, "t", 1.0, 0.0, True),))
    with engine(Part("m", whole, "w", 1.0)) as alone:
        assert "cannot be left out" in Client(alone, per_request=True).refused(**asked, offsets=[])


def test_offsets_are_switched_while_the_server_runs(two, keys):
    client, asked = Client(two, **keys[1]), ASKED
    client.headers = bearer(ADMIN)
    both = client.text(**asked)
    listed = client.get("/v1/offsets").json()["data"]
    assert listed == [{"name": f"request{i}", "on": True, "alpha": 1.0, "weights": f"weights{i}"} for i in range(2)]
    found = client.post("/v1/offsets", {"name": "request1", "on": False}).json()["data"]
    assert [o["on"] for o in found] == [True, False]
    assert client.text(**asked) == spoken(plain(PROMPTS[0], 1.0)) != both
    client.post("/v1/offsets", {"name": "request0", "alpha": 2})
    assert client.text(**asked) == spoken(plain(PROMPTS[0], 2.0))
    client.post("/v1/offsets", {"name": "request0", "on": False, "alpha": 1.0})
    reply = client.complete(**asked)
    assert reply["choices"][0]["text"] == spoken(plain(PROMPTS[0], 0.0)) and reply["unlearned"]["offsets"] == []
    for name in ("request0", "request1"):
        client.post("/v1/offsets", {"name": name, "on": True})
    assert client.text(**asked) == both


@pytest.mark.parametrize(
    "body, said",
    [
        ({"name": "x", "on": True}, "name='x': must be one of request0"), ({"on": True}, "name=None"),
        ({"name": "request0", "on": 1}, "on=1: must be true or false"), (["request0"], "the body must be like"),
        ({"name": "request0", "alpha": "1"}, "alpha='1': must be a number"), ({"name": ["request0"]}, "name="),
        ({"name": "request0", "off": 1}, "must be like"), ({"name": "request0", "off": None}, "must be like"),
        ({"name": "request0", "on": None}, "on=None: must be true or false"),
    ],
)  # fmt: skip
def test_wrong_switches_are_refused(running, keys, body, said):
    found = Client(running, **keys[1]).post("/v1/offsets", body, headers=bearer(ADMIN))
    assert found.status_code == 400 and said in found.json()["error"]["message"]


# --- who may ask ------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("place", ["127.0.0.1", "::1", "203.0.113.5"])
def test_without_an_admins_key_nobody_switches_offsets_while_the_server_runs(running, keys, place):
    """A proxy with its default settings says nothing of those behind it: they all come from this machine."""
    client, body = Client(running, client=(place, 1), **keys[0]), {"name": "request0", "on": False}
    for headers in ({}, bearer(KEY), bearer(""), {"x-forwarded-for": "127.0.0.1"}):
        found = client.post("/v1/offsets", body, headers=headers)
        assert found.status_code == 403 and "admin_key_env" in found.json()["error"]["message"]
    assert client.get("/v1/offsets").status_code == 401
    assert client.get("/v1/offsets", headers=bearer(KEY)).json()["data"][0]["on"]


@pytest.mark.parametrize(
    "settings, host, status",
    [
        ({}, "evil.example:8000", 403), ({}, "", 403), ({}, "127.0.0.1.evil.example", 403), ({}, "localhost:8000", 200),
        ({}, "[::1]:8000", 200), ({}, "LOCALHOST", 200), ({"hosts": ["model.example"]}, "model.example", 200),
        ({"hosts": ["model.example"]}, "localhost", 403), ({"host": "0.0.0.0"}, "anything.example", 200),
    ],
)  # fmt: skip
def test_a_page_whose_name_was_made_to_point_here_is_not_answered(running, settings, host, status):
    client = Client(running, **settings)
    client.headers = {"host": host}
    for found in (client.post("/v1/completions", {"prompt": " w5"}), client.get("/v1/models"), client.get("/health")):
        assert found.status_code == status and (status == 200 or found.json()["error"]["code"] == "forbidden")


def test_health_and_models_say_what_there_is(running):
    client = Client(running, name="gpt-none")
    assert client.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    model = client.get("/v1/models").json()["data"][0]
    assert (model["id"], model["object"], model["max_model_len"]) == ("gpt-none", "model", 40)
    assert client.get("/v1/models/gpt-none").json() == model
    assert client.get("/v1/models/other/one").json()["error"]["code"] == "model_not_found"
    stopped = engine().start()
    stopped.close()
    assert Client(stopped).get("/health").status_code == 503
