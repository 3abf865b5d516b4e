"""An export is uploaded as a repository of models; whatever goes wrong there, its folder stays."""

import json

import huggingface_hub.constants
import pytest
import torch
from support import hub as hubs
from support.helpers import contents, python
from support.hub import TOKEN, hub

from unlearn import export
from unlearn.ensemble.engines.modeling_unlearned import UnlearnedForCausalLM
from unlearn.runs.workbench import workbench


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with hub() as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def call(exported, *more: str) -> int:
    return export.main([f"run={exported[0].folder}", "to=hub:me/mine", "collapsed=yes", *more])


@pytest.mark.parametrize("more, private", [((), True), (("private=false",), False)])
def test_an_export_is_uploaded_whole_and_private_unless_asked(exported, server, tmp_path, capsys, more, private):
    assert call(exported, *more) == 0
    folder = tmp_path / "exports" / "me--mine"
    assert server.repositories["me/mine"] == contents(folder) | {".gitattributes": b""}
    assert server.private == {"me/mine": private}
    card = (folder / "README.md").read_text()
    assert "from_pretrained('me/mine', target=" in card and "custom_generate='me/mine'" in card
    assert f"{server.address}/me/mine ({'private' if private else 'public'})" in capsys.readouterr().out


def test_an_export_takes_the_place_of_one_that_was_there_and_of_nothing_else(exported, server, tmp_path, capsys):
    server.repositories["me/mine"] = {"offset.json": b"{}", "offset_2/model.safetensors": b"x"}
    assert call(exported) == 0
    assert "offset_2/model.safetensors" not in server.repositories["me/mine"]
    theirs = {"model.safetensors": b"x"}
    server.repositories["me/mine"] = dict(theirs)
    (tmp_path / "exports" / "me--mine").rename(tmp_path / "before")
    assert call(exported) == 1
    assert "hub:me/mine: holds something else than an export, model.safetensors" in capsys.readouterr().err
    assert server.repositories["me/mine"] == theirs


def test_what_is_private_is_not_uploaded_where_all_see_it(exported, server, tmp_path, capsys):
    theirs = {"offset.json": b"{}"}
    server.repositories["me/mine"], server.private["me/mine"] = dict(theirs), False
    assert call(exported) == 1
    assert "hub:me/mine: is seen by all there, and private=true" in capsys.readouterr().err
    assert server.repositories["me/mine"] == theirs and (tmp_path / "exports" / "me--mine" / "offset.json").is_file()


@pytest.mark.parametrize("answer", [(200, b"<html>welcome</html>"), (200, b"{}"), (418, b""), (200, b"[1]")], ids=str)
def test_a_hub_that_answers_badly_is_told_of_in_one_line(exported, server, tmp_path, capsys, monkeypatch, answer):
    folder = tmp_path / "exports" / "me--mine"
    monkeypatch.setattr(hubs._Handler, "do_POST", lambda self: self._send(*answer, {"Content-Type": "text/html"}))
    assert call(exported) == 1
    said = capsys.readouterr().err
    assert "hub:me/mine: not uploaded: " in said and "hf upload me/mine" in said and "Traceback" not in said
    assert (folder / "offset.json").is_file()


@pytest.mark.parametrize("wrong", ["token", "network"])
def test_without_a_login_or_a_network_the_folder_stays_and_is_named(
    exported, server, monkeypatch, tmp_path, capsys, wrong
):
    if wrong == "token":
        monkeypatch.setenv("HF_TOKEN", "planted-token-of-another")
    else:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert call(exported) == 1
    said = capsys.readouterr().err
    assert "hub:me/mine: not uploaded: " in said and "`hf auth login`" in said and "planted-token" not in said
    assert "hf upload me/mine exports/me--mine" in said
    assert (tmp_path / "exports" / "me--mine" / "offset.json").is_file() and not server.repositories
    assert call(exported) == 2  # it is not written again
    assert "what lies there is uploaded by: hf upload me/mine exports/me--mine" in capsys.readouterr().err


ALONE = """
import sys
sys.modules["unlearn"] = None  # an import of it fails
import torch
from transformers import AutoModelForCausalLM
ids = torch.tensor([[5, 9, 14, 22, 7]])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(model.generate(ids, custom_generate="me/mine", trust_remote_code=True, max_new_tokens=6).tolist())
model = AutoModelForCausalLM.from_pretrained("me/mine", target=sys.argv[1], trust_remote_code=True)
print(model.generate(ids, max_new_tokens=6).tolist())
"""


@pytest.mark.nightly
def test_what_was_uploaded_is_loaded_by_those_who_have_not_this_package(exported, tmp_path):
    with hub() as server:
        environment = {"HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
        environment["HF_HOME"] = str(tmp_path / "home")
        run = f"run={exported[0].folder}"
        python("-m", "unlearn.export", run, "to=hub:me/mine", "collapsed=yes", cwd=tmp_path, **environment)
        target = str(workbench(exported[0].cfg).folder("target"))
        done = python("-c", ALONE, target, cwd=tmp_path, **environment)
    model = UnlearnedForCausalLM.from_pretrained(tmp_path / "exports" / "me--mine", target=target)
    expected = model.generate(torch.tensor([[5, 9, 14, 22, 7]]), max_new_tokens=6).tolist()
    assert [json.loads(line) for line in done.stdout.splitlines()] == [expected, expected]
