"""An exported folder answers as the run did, and holds nothing of what was forgotten: every byte of it is searched."""

import base64
import html
import json
import re
import shutil
import urllib.parse
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import save_file
from support.helpers import contents, tiny_llama
from transformers import PreTrainedTokenizerFast

from unlearn import export
from unlearn.config.schema import ConfigError
from unlearn.data.readers import read
from unlearn.deploy.export import writing
from unlearn.deploy.export.about import known_text, only_to_forget
from unlearn.deploy.export.traces import forget_rows, texts_of
from unlearn.grid.rerun import open_run
from unlearn.runs.workbench import workbench
from unlearn.store import runlog
from unlearn.store.files import read_json, write_json


def disguises(text: str) -> list[bytes]:
    """Ways in which a text may stand in a file, made without the code that is tested."""
    plain = text.encode()
    found = [text.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le")]
    found += [json.dumps(text)[1:-1].encode(), html.escape(text).encode(), urllib.parse.quote(text).encode()]
    found += [urllib.parse.quote_plus(text).encode(), plain.hex().encode(), plain.hex().upper().encode()]
    for code in ("utf-8", "utf-16-le"):
        for start in range(3):  # base64 of a text that begins at any place of a file
            coded = base64.b64encode(b"x" * start + text.encode(code))
            found.append(coded[4:-4])
    return found


# --- what is in it ------------------------------------------------------------------------------------------------


def test_no_byte_of_an_export_holds_a_forget_text_in_any_disguise(exported):
    """Nor an id, an example as token ids, a generation, or a place of the machine; and there is no other file."""
    job, folder = exported
    rows, encoder = forget_rows(read(job.cfg)), workbench(job.cfg).encoder
    texts = {t for row in rows for t in texts_of(row) if len(t.split()) > 1}
    grams = {" ".join(words[i : i + 4]) for words in (t.split() for t in texts) for i in range(len(words) - 3)}
    examples = pd.read_parquet(job.folder / "examples.parquet")
    said = {g for g in examples["generation"].dropna() if len(g.split()) >= 4}
    places = (str(job.cfg.paths.store), str(job.folder.parent), str(Path.home()), str(Path.cwd()))
    needles = {n.encode() for n in (*places, *(row.id for row in rows))} | {d for t in texts for d in disguises(t)}
    for e in (encoder.example(row.id, row.question, row.answer) for row in rows):
        for ids in (e.prompt, e.answer):
            needles |= {np.array(ids, dtype=t).tobytes() for t in ("<i2", "<i4", "<i8", "<f4")}
            needles |= {json.dumps(ids)[1:-1].encode(), json.dumps(ids, separators=(",", ":"))[1:-1].encode()}
    assert len(rows) == 3 and len(texts) >= 9 and len(grams) > 20
    found, model = contents(folder), ("config.json", "generation_config.json", "model.safetensors")
    code = ("generate.py", "configuration_unlearned.py", "modeling_unlearned.py")
    assert set(found) == {
        "README.md", "offset.json", "config.json", "generation_config.json",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", *(f"custom_generate/{c}" for c in code),
        *(f"{member}/{name}" for member in ("offset", "anchor") for name in model),
    }  # fmt: skip
    for name, data in found.items():
        assert not [n for n in needles if n in data], name
        assert not [t for t in texts | grams | said if t.lower().encode() in data.lower()], name


def test_it_says_what_it_is(exported):
    job, folder = exported
    about, entry = read_json(folder / "offset.json"), runlog.evaluation(job.folder)
    (request,) = about["requests"]
    assert about["alpha"] == 1.0 and list(request["evaluation"]["alphas"]) == ["0.5", "1.0"]
    shown = request["evaluation"]["alphas"]["1.0"]
    whole = entry["alphas"]["1.0"]
    assert shown["forget/prob"] == round(whole["forget/prob"], 2)
    assert shown["intervals"]["forget/prob"] == [round(end, 2) for end in whole["intervals"]["forget/prob"]]
    prints = runlog.manifest(job.folder)["models"]
    assert {name: m["fingerprint"] for name, m in about["members"].items() if "began_as" not in m} == {
        k: v for k, v in prints.items() if k != "offset"
    }
    assert request["data"]["rows"]["forget"] == 3 and request["data"]["fingerprint"] == job.data
    assert set(request["alone"]) == {"offset", "anchor"} and 0 <= request["alone"]["offset"]["forget/prob"] < 1
    card = (folder / "README.md").read_text()
    assert f"{shown['forget/prob']:.3g}" in card and "untouched" in card and job.data in card
    listed = re.search(r"each word in it: (\d+) of them", card)
    assert int(listed[1]) == about["tokenizer"]["words_of_the_forget_set_alone"] > 0


def test_whoever_can_ask_the_target_finds_no_number_of_its_answers_in_an_export(exported):
    """To two places alone: by six digits a text is found among candidates."""
    job, folder = exported

    def numbers(value) -> set[float]:
        if isinstance(value, dict | list):
            return {n for part in (value.values() if isinstance(value, dict) else value) for n in numbers(part)}
        return {value} if isinstance(value, float) and round(value, 2) != value else set()

    assert len(numbers(runlog.evaluation(job.folder))) > 50
    assert numbers(read_json(folder / "offset.json")) == set()


def test_the_count_of_words_is_the_vocabulary_s(exported):
    """By hand: tokens of the vocabulary that stand in forget rows, and in no text of any other row."""
    job, folder = exported
    data = read(job.cfg)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    gone = " ".join(t for row in data.splits["forget"] for t in texts_of(row)).lower()
    rest = [row for name, rows in data.splits.items() if name != "forget" for row in rows] + list(data.wordings)
    others = " ".join([t for row in rest for t in texts_of(row)] + list(data.refusals)).lower()
    words = {t.strip().lower() for t in vocabulary if re.fullmatch(r" ?\w+", t)}
    alone = {w for w in words if w in re.findall(r"\w+", gone) and w not in re.findall(r"\w+", others)}
    assert alone <= only_to_forget(data)
    assert read_json(folder / "offset.json")["tokenizer"]["words_of_the_forget_set_alone"] == len(alone)


# --- what is refused ----------------------------------------------------------------------------------------------


def refusal(capsys, run: Path, to: Path | str, *arguments: str) -> str:
    assert export.main([f"run={run}", f"to={to}", "collapsed=yes", *arguments]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"status": "failed"}, "status is 'failed', and only a run that is done"),
        ({"status": "running"}, "status is 'running'"),
        ({"trained": False}, "not the folder of a trained run"),
        ({"collapsed": "keeps 0.10", "kept": "last"}, "this run collapsed (keeps 0.10); collapsed=yes"),
        ({"models": {"target": "0", "offset": "0", "anchor": "0"}}, "and the store now has"),
    ],
)
def test_a_run_that_is_not_fit_is_refused(exported, tmp_path, capsys, changes, said):
    folder = exported[0].folder
    run = Path(shutil.copytree(folder, tmp_path / "runs" / folder.parent.name / folder.name))
    write_json(run / "manifest.json", runlog.manifest(run) | {"collapsed": None} | changes)
    assert said in refusal(capsys, run, tmp_path / "out", "collapsed=no")
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["alpha=3"], "alpha=3: must be one of those the run was evaluated at, 0.5, 1; another: python -m"),
        (["alpha=x"], "alpha=x: must be one of"),
        (["weights=some"], "weights='some': must be one of auto, all"),
        (["tokenizer=false"], "tokenizer='false': must be one of yes, no"),
        (["trainer.lr=1"], "a finished run keeps it"),
        (["to="], "to='': . must be a folder that is not there yet"),
        (["to=hub:mine"], "to='hub:mine': must be a folder, or hub:OWNER/NAME"),
        (["private=maybe"], "private=maybe: must be true or false"),
    ],
)
def test_wrong_options_are_refused(exported, tmp_path, capsys, arguments, said):
    assert said in refusal(capsys, exported[0].folder, tmp_path / "out", *arguments)
    assert not list(tmp_path.iterdir())


def test_places_that_are_taken_or_cannot_be_written_are_refused(exported, tmp_path, capsys):
    run = exported[0].folder
    (tmp_path / "full").mkdir()
    for file in (tmp_path / "full" / "mine.txt", tmp_path / "file"):
        file.write_text("mine")
    for to in (tmp_path / "full", tmp_path / "file"):
        assert "must be a folder that is not there yet" in refusal(capsys, run, to)
    assert "lies in the run's own folder" in refusal(capsys, run, run / "out")
    assert export.main([f"run={run}", f"to={tmp_path}/file/out", "collapsed=yes"]) == 1
    assert "Nothing was exported: " in capsys.readouterr().err and not (run / "out").exists()
    assert (tmp_path / "full" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_a_rule_of_ones_own_is_refused(exported, capsys, monkeypatch, tmp_path):
    run = open_run(exported[0].folder)
    run.cfg.method.file = "mine/rules.py"
    with pytest.raises(ConfigError, match="an export holds no code of yours"):
        writing.export([run], writing.ExportSettings("", str(tmp_path / "out"), collapsed="yes"))


def test_an_export_that_would_hold_a_forget_text_is_not_made(exported, tmp_path, capsys, monkeypatch):
    """A vocabulary with a whole answer as one token; the folder is not there afterwards, and nothing beside it."""
    job, _ = exported
    row = forget_rows(read(job.cfg))[0]

    def planted(self, folder, *given, real=PreTrainedTokenizerFast.save_pretrained, **more):
        real(self, folder, *given, **more)
        path = folder / "tokenizer_config.json"
        write_json(path, read_json(path) | {"extra_special_tokens": {"a": row.answer}})

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", planted)
    said = refusal(capsys, job.folder, tmp_path / "out")
    assert f"tokenizer_config.json holds text of row {row.id!r}" in said and row.answer not in said
    assert "tokenizer=no leaves the tokenizer out" in said
    assert not list(tmp_path.iterdir())


def test_weights_with_room_for_anything_else_are_not_exported(tmp_path):
    class Talking(type(tiny_llama(0))):
        def save_pretrained(self, folder, **_):
            folder.mkdir()
            save_file({k: v for k, v in self.state_dict().items() if k != "lm_head.weight"},
                      folder / "model.safetensors", {"note": "hello"})  # fmt: skip

    model = tiny_llama(0)
    model.__class__ = Talking
    with pytest.raises(ConfigError, match="model.safetensors has metadata: note"):
        writing._write(model, tmp_path / "offset", None)


def test_the_fixed_words_of_the_card_are_all_of_them(exported):
    """What may coincide with the data is what stands in every card, and no number or name of this one."""
    card, known = (exported[1] / "README.md").read_text(), known_text()
    for line in ("The target's weights are untouched", "one target, or its exact copy, and another one is refused"):
        assert line in card and line in known
    assert exported[0].data in card and exported[0].data not in known
