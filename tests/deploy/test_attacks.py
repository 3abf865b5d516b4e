"""What an attacker tries on a ledger's folder, an export and a server, beyond what other tests name: each is refused in
our words, and nothing is lost by it."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from support.helpers import contents
from support.served import CHAT, PROMPTS, Client

from unlearn import request, serve
from unlearn.config.schema import ConfigError
from unlearn.deploy.export import loading as deployed
from unlearn.deploy.requests.chain import hash_of
from unlearn.deploy.serving.loading import load
from unlearn.deploy.serving.settings import Settings
from unlearn.runs.workbench import workbench

# --- a ledger ---------------------------------------------------------------------------------------------------------

CALLS = {
    "id that is a path": ["add", "id=../R3"],
    "id of a salt": ["add", "id=R1@offset"],
    "id of a file": ["add", "id=.ledger.jsonl.lock"],
    "long id": ["add", "id=" + "a" * 81],
    "name in the place of a date": ["add", "received=Anna Quill"],
    "name behind a date": ["add", "due=2026-12-01 Anna Quill"],
    "text in the place of a condition": ["add", "rule=[anna_quill_was_born_in_bern]"],
    "long condition": ["add", f"rule=[{'a' * 200}<=1]"],
    "many conditions": ["add", f"rule=[{','.join(['forget/prob<=1'] * 101)}]"],
    "erasing a path": ["erase", "../ledger.jsonl"],
    "erasing another salt": ["erase", "R1@offset"],
    "undoing a path": ["undo", "../../etc"],
    "record of a path": ["record", "/etc/passwd"],
    "record into a file": ["record", "R1", "out={ledger}/ledger.jsonl"],
}


@pytest.mark.parametrize("name", CALLS)
def test_no_call_writes_or_removes_what_it_should_not(ledger, settings, name, capsys):
    before = contents(ledger.folder)
    act, *rest = (word.format(ledger=ledger.folder) for word in CALLS[name])
    more = settings(3) if act == "add" else []
    assert request.main([act, *rest, f"ledger={ledger.folder}", *more]) == 2
    assert "Refused before any work" in capsys.readouterr().err
    assert {k: v for k, v in contents(ledger.folder).items() if k != ".ledger.jsonl.lock"} == {
        k: v for k, v in before.items() if k != ".ledger.jsonl.lock"
    }


ENTRIES = {
    "request that is a path": lambda e: [*e[:4], *(x | {"request": "../../x"} for x in e[4:])],
    "request that is a list": lambda e: [*e[:4], *(x | {"request": ["R2"]} for x in e[4:])],
    "values that are a path": lambda e: [*e[:-1], e[-1] | {"body": e[-1]["body"] | {"of": "../../x"}}],
    "mark that is a number": lambda e: [*e[:-1], e[-1] | {"body": e[-1]["body"] | {"values": 5}}],
    "rule that is a text": lambda e: [*e[:-1], e[-1] | {"body": e[-1]["body"] | {"rule": "yes"}}],
    "body without anything": lambda e: [*e[:-1], e[-1] | {"body": {}}],
    "kind of theirs": lambda e: [*e, e[-1] | {"n": len(e), "kind": "lambda"}],
    "parts that are a text": lambda e: [
        *e,
        e[-1] | {"n": len(e), "kind": "fusing", "request": "F9", "body": {"parts": "R"}},
    ],
    "weight without end": lambda e: [
        x | {"body": x["body"] | {"alpha": 1e400}} if x["kind"] == "effective" else x for x in e
    ],
    "weight that is a text": lambda e: [
        x | {"body": x["body"] | {"alpha": "x"}} if x["kind"] == "effective" else x for x in e
    ],
    "nothing is bound": lambda e: [
        x | {"body": x["body"] | {"bound": {}}} if x["kind"] == "effective" else x for x in e
    ],
    "ten million digits": lambda e: [*e[:-1], e[-1] | {"time": "9" * 10**7}],
}


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_that_nobody_of_us_wrote_serve_nothing(ledger, name, capsys):
    """A chain without HMACs can be written by anybody: then it says what it likes, but in our form."""
    previous, lines = "0" * 64, []
    for one in ENTRIES[name]([json.loads(line) for line in ledger.chain.lines()]):
        one = one | {"previous": previous}
        one["hash"] = previous = hash_of(one) if one["body"].get("alpha") != 1e400 else "0" * 64
        lines.append(json.dumps(one, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    ledger.chain.path.write_bytes(b"".join(lines))
    for act in (["list"], ["verify"], ["record", "R2"]):
        request.main([*act, f"ledger={ledger.folder}"])  # whatever it says, in no traceback
    served = serve.main([f"ledger={ledger.folder}", "port=0", "host=256.0.0.1"])  # never a server
    assert served == 2 and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"folder": 5}', '{"folder": "/etc"}', '{"folder": "\\u0000"}', "no JSON"]
)
def test_links_that_lead_astray_are_refused(ledger, content, capsys):
    ledger.link_of("R1").write_text(content)
    assert request.main(["verify", f"ledger={ledger.folder}"]) == 1
    assert request.main(["evaluate", f"ledger={ledger.folder}"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["[]", '{"count": 0, "hash": "x"}', '{"count": -7, "hash": "x"}', '{"count": 1e400}']
)
def test_a_head_of_nothing_proves_nothing(ledger, tmp_path, content):
    (tmp_path / "head.json").write_text(content)
    assert request.main(["verify", f"ledger={ledger.folder}", f"head={tmp_path}/head.json"]) == 2


# --- an export --------------------------------------------------------------------------------------------------------

ABOUTS = {
    "absolute path": lambda a: a | {"files": a["files"] | {"/etc/passwd": {"bytes": 1, "sha256": "0"}}},
    "files that are a list": lambda a: a | {"files": ["x"]},
    "files without sums": lambda a: a | {"files": {"offset/model.safetensors": {}}},
    "no members": lambda a: {k: v for k, v in a.items() if k != "members"},
    "length that is a text": lambda a: a | {"max_length": "x"},
    "length below zero": lambda a: a | {"max_length": -1},
    "template of theirs": lambda a: a | {"template": {"code": "import os"}},
}
CONFIGS = {
    "members that are a text": lambda c: c | {"members": "offset"},
    "width that is a text": lambda c: c | {"vocab_size": "x"},
    "width below zero": lambda c: c | {"vocab_size": -1},
    "rule of theirs": lambda c: c | {"rule": "os.system"},
    "folder of theirs": lambda c: c | {"members": [c["members"][0], c["members"][1] | {"folder": "../../x"}]},
    "file of theirs": lambda c: c | {"members": [c["members"][0] | {"files": {"../x": "0"}}]},
}


@pytest.mark.parametrize("name", [*ABOUTS, *CONFIGS])
def test_an_export_of_theirs_is_refused(exported, tmp_path, name):
    """Also one whose checksums are right."""
    job, folder = exported
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    about, config = (json.loads((copy / file).read_text()) for file in ("offset.json", "config.json"))
    about, config = ABOUTS.get(name, dict)(about), CONFIGS.get(name, dict)(config)
    (copy / "config.json").write_text(json.dumps(config))
    if name in CONFIGS:
        data = (copy / "config.json").read_bytes()
        about["files"]["config.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (copy / "offset.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError):
        load(Settings(str(copy), target=str(workbench(job.cfg).folder("target")), overrides=["trainer.device=cpu"]))


def test_a_link_out_of_an_export_is_refused(exported, tmp_path):
    job, folder = exported
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "offset" / "model.safetensors").rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", copy / "offset" / "model.safetensors")
    with pytest.raises(ConfigError, match="outside the folder"):
        deployed.checked(copy)


# --- a server ---------------------------------------------------------------------------------------------------------

BODIES = {
    "a dialogue longer than the context": (CHAT, {"messages": [{"role": "user", "content": ""}] * 41}, 400),
    "a long dialogue of few turns": (CHAT, {"messages": [{"role": "user", "content": " w5" * 300}]}, 400),
    "many parts": (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "w"}] * 700}]}, 400),
    "a name of a model": ("/v1/completions", {"prompt": " w5", "model": "x" * 10**5}, 404),
    "a field of theirs": ("/v1/completions", {"prompt": " w5", "x" * 10**5: 1}, 400),
    "ignored fields": ("/v1/completions", {"prompt": " w5", "metadata": [[["x"] * 10**4]], "user": 7}, 200),
    "zero bytes": ("/v1/completions", {"prompt": "\0 w5\0", "max_tokens": 1}, 200),
    "escapes": ("/v1/completions", {"prompt": "\x1b[2J\r\n\r\nHTTP/1.1 200", "max_tokens": 1}, 200),
    "digits of other scripts": ("/v1/completions", {"prompt": " w5", "n": "\u0663"}, 400),
    "two limits": (
        CHAT,
        {"messages": [{"role": "user", "content": " w5"}], "max_tokens": 1, "max_completion_tokens": 1},
        400,
    ),
    "stops that are all of a kind": (
        "/v1/completions",
        {"prompt": " w5", "stop": [" " * 1000] * 16, "max_tokens": 3},
        200,
    ),
    "an id of a token that is none": ("/v1/completions", {"prompt": [2**31]}, 400),
    "more choices than there may be": ("/v1/completions", {"prompt": [" w5"] * 24, "n": 24}, 400),
    "all log-probabilities of all": (
        "/v1/completions",
        {"prompt": [" w5"] * 24, "logprobs": -1, "max_tokens": 30},
        200,
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_of_an_attacker_are_answered_or_refused(running, name):
    path, body, status = BODIES[name]
    client = Client(running, max_choices=24, max_tokens=30)
    found = client.post(path, body)
    assert found.status_code == status and len(found.content) < 10**6
    assert status == 200 or len(found.json()["error"]["message"]) < 500
    assert client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/offsets", "/v1/models", "/v1/../etc/passwd", "//", "/docs"])
def test_other_methods_and_paths_do_nothing(running, method, path):
    found = Client(running)._ask(method, path)
    assert found.status_code in (404, 405)


def test_switched_weights_of_any_size_answer_or_say_that_they_cannot(running):
    client = Client(running, per_request=True)
    for alpha in (1e6, -1e6, 1e-300, -0.0):
        found = client.post("/v1/completions", {"prompt": list(PROMPTS[0]), "alpha": alpha, "max_tokens": 2})
        assert found.status_code == 200
    assert client.post("/v1/completions", {"prompt": " w5", "offsets": ["request0"] * 10**4}).status_code == 200
