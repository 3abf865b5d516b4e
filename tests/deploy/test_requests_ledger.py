"""The ledger of deletion requests: what is asked, answered, taken back, fused and erased; and nothing of the text."""

import dataclasses
import json
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
from support.helpers import Killed, compose, contents, lines, raising_at
from support.privacy_page import kind, table
from support.requested import EASY, TINY3, copied

from unlearn import request
from unlearn.command import parse
from unlearn.config.schema import ConfigError
from unlearn.data.readers import read
from unlearn.deploy.export.traces import Traces, forget_rows
from unlearn.deploy.requests import active, evidence
from unlearn.deploy.requests.actions import Request, add, erase, evaluate, undo
from unlearn.deploy.requests.chain import Chain, LedgerError
from unlearn.deploy.requests.evidence import markdown, record
from unlearn.deploy.requests.fusing import fuse
from unlearn.deploy.requests.ledger import Ledger, begin
from unlearn.deploy.requests.private import of_rows, of_text
from unlearn.deploy.requests.verify_ledger import chosen
from unlearn.deploy.serving.loading import load
from unlearn.deploy.serving.settings import Settings, checked
from unlearn.learning.loop import Loop
from unlearn.store import runlog

KEY = "UNLEARN_TEST_LEDGER"


def kinds(ledger: Ledger, id: str | None = None) -> list[str]:
    return [e["kind"] for e in ledger.chain.entries() if id is None or e["request"] == id]


def test_a_request_is_asked_takes_effect_and_is_evaluated(ledger):
    assert kinds(ledger, "R1") == ["asked", "effective", "evaluated"] == kinds(ledger, "R2")
    asked, effective, _ = (e["body"] for e in ledger.chain.entries() if e["request"] == "R1")
    evaluated = ledger.state("R1").evaluated[-1]["body"]
    assert asked["received"] == "2026-11-01" and asked["questions"] == 3 and asked["rule"] == list(EASY)
    run = ledger.run_of("R1")
    manifest = runlog.manifest(run)
    assert effective["alpha"] == 1.0 and effective["target"] == manifest["models"]["target"] and effective["code"]
    salt = ledger.salts.get("R1@offset")
    assert {n: of_text(s, salt) for n, s in manifest["sealed_weights"].items()}.items() < effective["bound"].items()
    entry = runlog.evaluation(run)["alphas"]["1.0"]
    assert evaluated["offsets"] == {"R1": 1.0} and evaluated["passed"] is True
    for name in ("forget/leak@2", "forget/leak_gap", "retain/prob", "model_utility"):
        found = evaluated["metrics"][name]
        # others' texts decide about the retain set
        close = {"rel": 1e-5} if name.startswith("forget") else {"abs": 0.005}
        assert found["value"] == pytest.approx(entry[name], **close)
        assert found.get("interval", []) == pytest.approx(entry["intervals"].get(name, []), **close)
    leak = evaluated["metrics"]["forget/leak@2"]
    references = runlog.evaluation(run)["references"]
    assert leak["retrained"] == pytest.approx(references["retrained"]["forget/leak@2"], rel=1e-5)

    # the second is measured under both
    evaluated = ledger.state("R2").evaluated[-1]["body"]
    assert evaluated["offsets"] == {"R1": 1.0, "R2": 1.0}
    alone = runlog.evaluation(ledger.run_of("R2"))["alphas"]["1.0"]
    assert evaluated["metrics"]["forget/prob"]["value"] != pytest.approx(alone["forget/prob"], rel=1e-3)


def test_a_ledger_is_served(ledger, monkeypatch):
    """``python -m unlearn.serve ledger=FOLDER``: what is in effect, each offset at its α."""
    found = active(ledger.folder)
    assert [(a.id, a.alpha) for a in found] == [("R1", 1.0), ("R2", 1.0)]
    assert all((a.folder / "offset" / "model.safetensors").is_file() for a in found)
    settings = checked(parse(Settings, [f"ledger={ledger.folder}", "port=0"]))
    assert [settings.run, *settings.offsets] == [str(ledger.run_of(id)) for id in ("R1", "R2")]
    assert settings.alpha == [1.0, 1.0] and settings.name == "ledger"
    monkeypatch.chdir(ledger.folder.parent)  # a path as it is typed is none from the root
    served = load(checked(parse(Settings, [f"ledger={ledger.folder.name}", "port=0"]))).blend.parts
    assert [part.name for part in served.values()] == [ledger.run_of(id).name for id in ("R1", "R2")]
    for more in ("run=x", "offsets=[x]", "alpha=0.5"):
        with pytest.raises(ConfigError, match="leave run, offsets, alpha out"):
            checked(parse(Settings, [f"ledger={ledger.folder}", more]))
    undo(ledger, "R1")
    assert checked(parse(Settings, [f"ledger={ledger.folder}"])).offsets == []
    assert [a.id for a in active(ledger.folder)] == ["R2"]
    undo(ledger, "R2")
    assert active(ledger.folder) == [] and ledger.state("R1").status == "undone"
    with pytest.raises(ConfigError, match="no request is in effect"):
        checked(parse(Settings, [f"ledger={ledger.folder}"]))
    with pytest.raises(ConfigError, match="no ledger"):
        checked(parse(Settings, [f"ledger={ledger.folder}/nowhere"]))


def test_weights_that_did_not_take_effect_are_not_active(ledger, tmp_path):
    run = Path(shutil.copytree(ledger.run_of("R1"), tmp_path / "runs" / ledger.run_of("R1").name))
    weights = run / "offset" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    ledger.link("R1", run)
    with pytest.raises(
        LedgerError, match="offset/model.safetensors was changed or damaged|R1: in .* is not what took effect"
    ):
        active(ledger.folder)
    assert request.main(["verify", f"ledger={ledger.folder}"]) == 1


def test_the_same_again_changes_nothing(ledger, settings):
    before = ledger.chain.path.read_bytes()
    assert add(ledger, settings(1), Request()).id == "R1"
    assert add(ledger, settings(2), Request(id="R2", rule=EASY)).id == "R2"
    assert ledger.chain.path.read_bytes() == before


@pytest.mark.parametrize(
    ("n", "more", "asked", "message"),
    [
        (3, (), Request(id="R1"), "R1: was asked on .* with another forget set, and that cannot be changed"),
        (1, ("seed=1",), Request(id="R1"), "another settings"),
        (1, (), Request(id="R1", rule=("forget/prob<=0.5",)), "another rule"),
        (1, (), Request(id="R1", subject="customer 1"), "another subject"),
        (1, (), Request(id="R1", due="2030-01-01"), "another due"),
        (1, (), Request(id="../R1"), "names a folder"),
        (1, ("method=uld", "algo=uld"), Request(), "method='uld': the answers to several requests are added up"),
        (1, ("method=dd", "pair.offset_init=full"), Request(), "needs a method that trains what is added"),
        (1, ("eval.groups=[]",), Request(), "needs the group leak"),
        (1, ("eval.retrained=none",), Request(), "rule: must be given"),
        (1, (), Request(rule=("forget/prob",)), "must be METRIC<=NUMBER"),
    ],
)
def test_what_was_asked_cannot_be_changed_and_what_makes_no_sense_is_refused(ledger, settings, n, more, asked, message):
    before = ledger.chain.path.read_bytes()
    with pytest.raises(LedgerError, match=message):
        add(ledger, settings(n, *more), asked)
    assert ledger.chain.path.read_bytes() == before


def test_a_run_that_is_killed_or_fails_takes_no_effect_and_goes_on_and_is_written_once(settings, tmp_path, monkeypatch):
    def failing(*_):
        raise ZeroDivisionError("broken on purpose")

    ledger, asked = begin(tmp_path / "ledger", None), set()
    given = settings(3, "trainer.steps=4", "trainer.save_every=1", f"paths.runs={tmp_path}/runs")
    said = "broken on purpose; rerun the same command"
    for run, error, words in ((raising_at(2, Killed()), Killed, None), (failing, LedgerError, said)):
        with monkeypatch.context() as patch, pytest.raises(error, match=words):
            patch.setattr(Loop, "run", run)
            add(ledger, given, Request(rule=EASY))
        assert kinds(ledger) == ["opened", "asked"] and ledger.state("R1").status == "asked" and not ledger.active()
        asked.add(ledger.chain.path.read_bytes())
    assert len(asked) == 1
    assert add(ledger, given, Request(rule=EASY)).status == "effective"
    assert kinds(ledger) == ["opened", "asked", "effective", "evaluated"]
    assert ledger.chain.path.read_bytes().startswith(asked.pop())
    assert [line["step"] for line in lines(ledger.run_of("R1"))] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "ends", [["effective"], pytest.param(["effective", "evaluated"], marks=pytest.mark.nightly)], ids=len
)
def test_a_kill_between_the_entries_of_a_request_loses_nothing(ledger, settings, monkeypatch, ends):
    undo(ledger, "R1")
    erase(ledger, "R1")
    for last in ends:

        def dying(self, name, *rest, last=last, real=Chain.append):
            if name == last:
                raise Killed
            return real(self, name, *rest)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Chain, "append", dying)
            add(ledger, settings(1), Request(rule=EASY))
    add(ledger, settings(1), Request(rule=EASY))
    assert kinds(ledger, "R3") == ["asked", "effective", "evaluated"]


def test_the_usual_rule_asks_for_general_knowledge_where_there_is_some(settings):
    cfg = compose(*settings(1))
    found = [c.text for c in evidence.conditions(None, cfg, read(cfg))]
    assert found == ["forget/leak_gap<=0.05", "kept:retain/prob>=0.95", "kept:real_authors/prob>=0.9",
                     "kept:world_facts/prob>=0.9"]  # fmt: skip
    without = dataclasses.replace(read(cfg), splits={k: v for k, v in read(cfg).splits.items() if k != "world_facts"})
    assert [c.text for c in evidence.conditions(None, cfg, without)] == found[:3]


def test_no_byte_of_a_ledger_holds_anything_of_the_forget_sets(fused, settings, tmp_path):
    ledger = copied(fused, tmp_path / "ledger")
    undo(ledger, "F1")
    evaluate(ledger, ["R1"])
    data = read(compose(*settings(1)))
    traces = Traces(forget_rows(data))
    assert traces.texts > 20 and traces.count > 50
    for id in ("R1", "F1"):
        assert request.main(["record", id, f"ledger={ledger.folder}", f"out={ledger.folder}/records"]) == 0
    found = contents(ledger.folder)
    assert {"ledger.jsonl", "salts/R1", "links/R1.json", "records/record-R1.md"} <= set(found)
    words = {w for row in forget_rows(data) for w in row.question.split() if w[0].isupper()}
    for name, content in found.items():
        assert traces.in_bytes(content) is None, name
        for row in forget_rows(data):
            assert row.id.encode() not in content and row.answer.encode() not in content, name
        # the number may stand in a hash by chance
        assert not re.search(rb"people/|customer|(?<![0-9a-f])4711(?![0-9a-f])", content)
    names = {row.question.split("'")[0].split()[-1] for row in forget_rows(data)} | words
    chain = found["ledger.jsonl"].decode()
    assert [n for n in names if len(n) > 4 and n in chain] == []
    for plain in (data.fingerprint(), ledger.run_of("R1").name, ledger.run_of("R1").name.rsplit("-")[-1]):
        assert plain not in chain  # a plain hash of a small set can be guessed


def test_the_privacy_page_says_what_each_file_of_a_ledger_holds(ledger):
    said = table("**A ledger of deletion requests**")
    found = contents(ledger.folder)
    assert len(said) == 5 and [name for name in found if kind(name, said) is None] == []
    assert {pattern for pattern in said if any(kind(name, {pattern: ""}) is not None for name in found)} == set(said)


def test_fingerprints_tell_the_same_set_by_its_salt_alone(ledger):
    rows = read(compose(*TINY3, "data.request=1")).splits["forget"]
    asked = ledger.state("R1").asked["body"]
    salt, other = ledger.salts.get("R1"), ledger.salts.get("R2")
    assert of_rows(rows, salt) == of_rows(rows[::-1], salt) == asked["fingerprint"]
    assert asked["fingerprint"] not in (of_rows(rows[1:], salt), of_rows(rows, other))
    assert stat.S_IMODE(os.stat(ledger.salts.folder / "R1").st_mode) == 0o600 and len(salt) == 32


def test_an_erased_salt_is_gone_and_the_chain_is_whole(ledger, settings, capsys):
    salt = ledger.salts.get("R1")
    erase(ledger, "R1")
    assert all(salt not in content for content in contents(ledger.folder).values())
    assert request.main(["verify", f"ledger={ledger.folder}"]) == 0
    assert [a.id for a in ledger.active()] == ["R1", "R2"]  # it goes on answering
    assert "salt gone" in (said := markdown(record(ledger, "R1"))) or "erased on" in said
    with pytest.raises(LedgerError, match="salt was erased before"):
        erase(ledger, "R1")
    undo(ledger, "R1")
    assert add(ledger, settings(1), Request(rule=EASY)).id == "R3"  # nothing links it to R1
    erase(ledger, "R2")
    undo(ledger, "R2")
    with pytest.raises(LedgerError, match="R2: is undone"):
        undo(ledger, "R2")


def test_several_offsets_are_fused_into_one_and_back(fused, tmp_path):
    ledger = copied(fused, tmp_path / "ledger")
    state = ledger.state("F1")
    assert state.id == "F1" and state.parts == ("R1", "R2") and [a.id for a in ledger.active()] == ["F1"]
    assert kinds(ledger, "F1") == ["fusing", "evaluated", "evaluated", "evaluated", "effective"]
    assert ledger.state("R1").status == "fused in F1"
    manifest = runlog.manifest(ledger.run_of("F1"))
    assert manifest["status"] == "done" and "train" not in manifest["seconds"]
    before = ledger.chain.path.read_bytes()
    assert fuse(ledger, ["R2", "R1"], id="F1").id == "F1" and ledger.chain.path.read_bytes() == before
    with pytest.raises(LedgerError, match="undo F1 first"):
        undo(ledger, "R1")
    undo(ledger, "F1")
    assert [a.id for a in ledger.active()] == ["R1", "R2"]


def test_a_fusion_that_does_not_meet_its_rule_takes_no_effect(ledger, capsys):
    assert request.main(["fuse", f"ledger={ledger.folder}", "rule=[forget/prob<=0]"]) == 1
    assert "F1: does not meet its rule and did not take effect (forget/prob<=0 " in (said := capsys.readouterr().err)
    assert "R1, R2 stay active" in said and ledger.state("F1").evaluated
    assert [a.id for a in ledger.active()] == ["R1", "R2"] and ledger.state("F1").status == "not used"
    with pytest.raises(LedgerError, match="give a new id"):
        fuse(ledger, id="F1")
    with pytest.raises(LedgerError, match="needs two active offsets"):
        fuse(ledger, ["R1"])
    with pytest.raises(LedgerError, match="R9: no such request"):
        fuse(ledger, ["R1", "R9"])


def test_what_does_not_meet_its_rule_says_so(ledger, settings):
    state = add(ledger, settings(3), Request(rule=("forget/prob<=0", "kept:retain/prob>=0.01", "no_such<=1")))
    verdict = state.evaluated[-1]["body"]["rule"]
    assert [r["holds"] for r in verdict] == [False, True, False] and verdict[2]["value"] is None
    assert state.passed is False and state.active


def test_the_record_says_what_was_done_and_what_is_not_claimed(ledger):
    found = record(ledger, "R1")
    said = markdown(found)
    for part in ("# Evidence record: request R1", "2026-11-01", "2026-12-01", "forget/leak@2", "What is not claimed",
                 "weights are untouched", "measure again", found["chain"]["head"], found["made"]["bound"]["settings"],
                 found["forget_set"]["fingerprint"]):  # fmt: skip
        assert part in said
    assert json.loads(json.dumps(found)) == found
    assert found["rule"]["fixed"] == "by entry 1, before the run" and found["evidence"][0]["questions"] == 3


def test_the_commands(tmp_path, settings, monkeypatch, capsys):
    monkeypatch.setenv(KEY, "a key of some length")
    where = f"ledger={tmp_path}/ledger"
    assert request.main(["init", where, f"hmac={KEY}"]) == 0
    assert request.main(["add", where, "rule=[forget/prob<=1]", "id=A", *settings(1)]) == 0
    assert request.main(["add", where, "rule=[forget/prob<=0]", *settings(2)]) == 1
    assert "R1: effective; the rule was NOT met: forget/prob<=0 (found 0." in capsys.readouterr().out
    assert request.main(["list", where]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if "effective" in line] == ["A", "R1"]
    assert request.main(["head", where, f"out={tmp_path}/head.json"]) == 0
    assert request.main(["undo", "R1", where]) == 0
    assert request.main(["verify", where, f"head={tmp_path}/head.json"]) == 0
    assert "8 entries" in (said := capsys.readouterr().out) and "HMACs are right" in said
    chain = tmp_path / "ledger" / "ledger.jsonl"
    chain.write_bytes(b"".join(chain.read_bytes().splitlines(keepends=True)[:4]))
    monkeypatch.setenv(KEY, "a key of some length")
    assert request.main(["verify", where]) == 0
    assert request.main(["verify", where, f"head={tmp_path}/head.json"]) == 1
    assert "entry 4: truncated" in capsys.readouterr().err


def test_an_audit_runs_a_request_again_and_finds_the_same(ledger, capsys):
    where, place = f"ledger={ledger.folder}", ledger.run_of("R1").parent.parent
    runs, head = sorted(place.iterdir()), ledger.chain.head()
    assert request.main(["audit", where]) == 0
    (body,) = (e["body"] for e in ledger.chain.entries() if e["kind"] == "audited")
    (id,) = chosen(ledger.chain.entries()[: head.count], 0.1)
    assert body == {"head": head.hash, "share": 0.1, "outcome": "same"} and sorted(place.iterdir()) == runs
    assert f"{id}: same: the same weights and settings" in capsys.readouterr().out
    assert request.main(["verify", where]) == 0 and request.main(["record", id, where]) == 0
    assert "to the byte the same" in capsys.readouterr().out
    assert request.main(["audit", "R9", where]) == 2


@pytest.mark.nightly
def test_an_audit_finds_a_run_that_is_not_what_the_ledger_says(ledger, capsys):
    ledger.link("R1", ledger.run_of("R2"))
    assert request.main(["audit", "R1", f"ledger={ledger.folder}"]) == 1
    assert "R1: other: other offset/model.safetensors, settings" in capsys.readouterr().out
