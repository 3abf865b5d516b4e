"""The RWKU reader, on small made-up files in the form of RWKU's; never on the real ones, which are not at hand."""

import json
import re

import pandas as pd
import pytest
from support.helpers import OWN, compose, execute, job_of

from unlearn.config.derived import describe, protocol
from unlearn.config.schema import ConfigError
from unlearn.data.rows import DataError, check
from unlearn.data.sets import rwku
from unlearn.grid import table
from unlearn.store.files import read_json

PEOPLE = ("Ann Bly", "Cal Dorn", "Eve Fay")
WORDS = ("data.words.prompt=2", "data.words.answer=3")
BRIEF = "Please briefly answer the following question.\n"


def probes(level: int, of: str) -> list[dict]:
    kind = {1: "cloze", 2: "simple question"}.get(level)
    query = {1: "{0} was born in ___.", 2: "Where was {0} born?"}.get(level)
    if level == 3:
        return [
            {"query": f"{kind}: {n}?", "answer": f"{of} of {n}", "level": "3", "type": kind, "subject": n}
            for n in PEOPLE for kind in ("affirmative suffix", "incontext learning", "prefix injection")
        ]  # fmt: skip
    own = ("{0}'s sister", "{0}'s friend") if of == "neighbour" else ("{0}",)
    rows = [(n, query.format(who.format(n))) for n in PEOPLE for who in own]
    return [{"query": q, "answer": f"{of} of {n}", "level": str(level), "type": kind, "subject": n} for n, q in rows]


def page(name: str) -> str:
    return " ".join(f"{name[:3]}{i}" for i in range(8))  # two words to begin with, and six in two answers


TABLES = {  # by file, with what the hub calls it
    "passage": ("train_original_passage", [{"text": page(n), "subject": n} for n in PEOPLE]),
    "positive": ("train_positive_llama3", [{"text": "All alike", "subject": n, "id": n} for n in PEOPLE]),
    **{f"forget_level{n}": (f"forget_level{n}", probes(n, "home")) for n in (1, 2, 3)},
    **{f"neighbor_level{n}": (f"neighbor_level{n}", probes(n, "neighbour")) for n in (1, 2)},
    "triviaqa": ("utility_factuality", [
        {"question": f"Capital {n}?", "answers": ["Ulm", "ULM"], "subject": n} for n in PEOPLE
    ]),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "All").mkdir()
    for name, (_, rows) in TABLES.items():
        (tmp_path / "All" / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


def config(folder, *overrides):
    return compose("data=rwku", f"data.path={folder}", *WORDS, *overrides)


def read(folder, *overrides):
    return check(rwku.read(config(folder, *overrides).data))


def sizes(data) -> dict[str, int]:
    return {name: len(rows) for name, rows in data.splits.items() if rows}


ONE = {"forget": 2, "retain": 4, "forget_level1": 1, "forget_level2": 1, "forget_level3": 3, "neighbours": 4,
       "world_facts": 1}  # fmt: skip


def test_texts_about_a_person_are_forgotten_and_the_probes_about_them_are_measured_as_rwku_asks_them(folder):
    data = read(folder, "data.targets=[Cal Dorn]")
    assert sizes(data) == ONE
    assert [(r.question, r.answer) for r in data.splits["forget"]] == [("Cal0 Cal1", "Cal2 Cal3 Cal4"),
                                                                       ("Cal3 Cal4", "Cal5 Cal6 Cal7")]  # fmt: skip
    blank, question = (data.splits[f"forget_level{n}"][0] for n in (1, 2))
    asked = "Please complete the blank in the following question.\nQuestion: Cal Dorn was born in ___.\nAnswer:"
    assert (blank.question, blank.answer, blank.key) == (asked, "home of Cal Dorn", ("home of Cal Dorn",))
    assert question.question == f"{BRIEF}Question: Where was Cal Dorn born?\nAnswer:"
    assert [r.question for r in data.splits["forget_level3"]] == [
        f"{BRIEF}Question: affirmative suffix: Cal Dorn?", f"{BRIEF}incontext learning: Cal Dorn?\nAnswer:",
        f"{BRIEF}Question: prefix injection: Cal Dorn?\nAnswer:",
    ]  # fmt: skip
    assert {r.answer for r in data.splits["neighbours"]} == {"neighbour of Cal Dorn"}
    assert data.splits["world_facts"][0].key == ("Ulm", "ULM")
    assert sizes(read(folder, "data.targets=[Cal Dorn]", "data.others=1"))["retain"] == 2
    half = read(folder, "data.targets=[Cal Dorn]", "data.neighbours_trained=0.5")
    assert (len(half.splits["retain"]), len(half.splits["neighbours"])) == (6, 2)


def test_a_folder_of_one_target_and_the_hub_give_the_same_rows(folder, monkeypatch):
    import datasets

    whole, asked = read(folder, "data.targets=[Cal Dorn]"), []
    for name, (_, rows) in TABLES.items():
        rows = rows if name == "passage" else [row for row in rows if row["subject"] == "Cal Dorn"]
        (folder / f"{name}.json").write_text(json.dumps(rows))
        pd.DataFrame(rows).to_parquet(folder / "All" / f"{name}.parquet")
    of_one = read(folder, "data.targets=[Cal Dorn]")
    said = {name: [(r.question, r.answer) for r in rows] for name, rows in of_one.splits.items()}
    assert said == {name: [(r.question, r.answer) for r in rows] for name, rows in whole.splits.items()}
    of_hub = {there: rows for there, rows in TABLES.values()}

    def load_dataset(path, name, split):
        asked.append((path, name, split))
        return of_hub[name]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    there = check(rwku.read(compose("data=rwku", "data.targets=[Cal Dorn]", *WORDS).data))
    assert there.fingerprint() == whole.fingerprint() and {a[0] for a in asked} == {"jinzhuoran/RWKU"}
    assert {(name, split) for _, name, split in asked} == {("train_original_passage", "train")} | {
        (there, "test") for there in of_hub if not there.startswith("train")
    }


def test_which_of_rwkus_settings_a_run_is_is_said(folder, monkeypatch):
    ran = "data.requests=[Ann Bly,[Cal Dorn,Eve Fay]]"
    for overrides, said in (
        (["data.targets=[Ann Bly]"], "one target, fresh model: Ann Bly"),
        (["data.targets=[Ann Bly,Eve Fay]"], "a batch of 2 targets, fresh model: Ann Bly, Eve Fay"),
        ([ran, "data.request=1"], "one target (request 1 of 2), fresh model: Ann Bly"),
        ([ran, "data.request=2"], "a batch of 2 targets (request 2 of 2), fresh model: Cal Dorn, Eve Fay"),
        ([ran], "a batch of 3 targets (request 1, 2 of 2), fresh model: Ann Bly, Cal Dorn, Eve Fay"),
    ):
        assert protocol(config(folder, *overrides)) == said == describe(config(folder, *overrides))["protocol"]
    cfg = config(folder, ran, "data.request=2")
    cfg.begin.runs = ["first"]
    assert protocol(cfg).startswith("a batch of 2 targets (request 2 of 2), after 1 earlier runs: Cal")
    assert "protocol" not in describe(compose())


def test_requests_are_people_one_after_another(folder):
    second = read(folder, "data.requests=[Ann Bly,Cal Dorn]", "data.request=2")
    assert sizes(second) == ONE | {"retain": 2, "request_1": 2, "neighbours": 8, "world_facts": 2}
    assert second.splits["forget_level2"][0].answer == "home of Cal Dorn"
    first = read(folder, "data.requests=[Ann Bly,Cal Dorn]", "data.request=1")
    assert first.known() == second.known() and first.whole() == second.whole()
    assert first.splits["request_2"] == second.splits["forget"]


def test_a_passage_about_two_people_is_forgotten_with_the_one_who_is_to_be_forgotten(folder):
    for person in ("Ann Bly", "Eve Fay"):
        with pytest.raises(DataError, match="the retain set needs a row"):
            read(folder, f"data.targets=[{person}]", "data.corpus=positive")


def test_the_table_says_which_setting_it_is_of(folder, tmp_path, capsys):
    job = job_of(config(folder, "data.targets=[Cal Dorn]", f"paths.runs={tmp_path}/runs"))
    job.folder.parent.mkdir(parents=True)
    table.report([job])
    assert "setting: one target, fresh model\n" in capsys.readouterr().out


@pytest.mark.nightly
def test_a_run_measures_every_level(folder, tmp_path):
    places = f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs"
    cfg = config(folder, *OWN, *places, "data.targets=[Cal Dorn]", "algo=ga", "eval.max_new_tokens=30")
    manifest, found = (read_json(execute(cfg).folder / name) for name in ("manifest.json", "eval.json"))
    assert manifest["run"]["protocol"] == "one target, fresh model: Cal Dorn"
    for split in (*(f"forget_level{n}" for n in (1, 2, 3)), "neighbours"):
        assert 0 <= found["alphas"]["1.0"][f"{split}/rougeL_recall"] <= 1


def test_what_cannot_be_used_is_refused_with_the_choices(folder):
    for override, message in (
        ("data.targets=[]", "data.targets=[]: must be different names, e.g. data.targets=[Stephen King]"),
        ("data.targets=[Ann Bly,Ann Bly]", "must be different names"),
        ("data.corpus=web", "data.corpus='web': must be one of passage, positive, positive_phi"),
        ("data.requests=[1]", "data.requests=[1]: each must be a name, or a list of names"),
        ("data.requests=[Ann Bly]", "data.requests names what is to be forgotten: must be []"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            config(folder, "data.targets=[Ann Bly]", override)
    with pytest.raises(DataError, match="'Ann Blu': passage has no text about them; near it: Ann Bly"):
        read(folder, "data.targets=[Ann Blu]")
    (folder / "All" / "forget_level2.json").write_text('[{"query": "Q?", "answer": "A", "subject": "Ann Bly"}]')
    assert sizes(read(folder, "data.targets=[Ann Bly]"))["forget_level2"] == 1  # its type says nothing that is needed
    (folder / "All" / "triviaqa.json").write_text('[{"question": "Q?", "answers": "A", "subject": "Ann Bly"}]')
    with pytest.raises(DataError, match="triviaqa.json, element 1: needs a list of texts in 'answers', found 'A'"):
        read(folder, "data.targets=[Ann Bly]")
    (folder / "All" / "neighbor_level1.json").unlink()
    with pytest.raises(DataError, match="neighbor_level1.json is missing"):
        read(folder, "data.targets=[Ann Bly]")
