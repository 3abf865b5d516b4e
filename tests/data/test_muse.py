"""The MUSE reader: on small files in MUSE's layout that the test writes, and on real questions where there are any."""

import json
import re
from unittest.mock import Mock

import pandas as pd
import pytest
from support.helpers import OWN, SHARED, compose, execute

from unlearn.config.schema import ConfigError
from unlearn.data.records import Tables
from unlearn.data.rows import DataError, Row, check
from unlearn.data.sets import muse
from unlearn.store.files import read_json

NEWS = SHARED / "data" / "muse_news_knowmem"
WORDS = ("data.words.prompt=2", "data.words.answer=3")


def page(name: str) -> str:
    return " ".join(f"{name}{i}" for i in range(8))  # 2 words to begin with, and 6 in two answers


TABLES = {
    "raw/forget": [{"text": page("f")}, {"text": page("s")}],
    "raw/retain1": [{"text": page("r")}, {"text": page("s")}, {"text": ""}],  # one page is in both sets, one is empty
    "raw/retain2": [{"text": page("t")}],
    "scal/forget_1": [{"text": page("f")}],
    "knowmem/forget_qa": [{"question": "Who f?", "answer": "Effie"}, {"question": "Who s?", "answer": "Esser"}],
    "knowmem/forget_qa_icl": [{"question": f"Who {i}?", "answer": f"No {i}"} for i in range(3)],
    "knowmem/retain_qa": [{"question": "Who t?", "answer": "Tee"}],
    "knowmem/retain_qa_icl": [{"question": f"What {i}?", "answer": f"It {i}"} for i in range(3)],
    "verbmem/forget": [{"prompt": "f0 f1 f2", "gt": "f3 f4"}],
    "privleak/holdout": [{"text": page("h")}],
}
SIZES = {"forget": 4, "retain": 2, "holdout": 2, "forget_verbatim": 1, "forget_knowledge": 2, "retain_knowledge": 1}


@pytest.fixture
def folder(tmp_path):
    for name, rows in TABLES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        bare = name.startswith(("raw/", "privleak/"))  # MUSE's own files hold bare texts there
        (tmp_path / f"{name}.json").write_text(json.dumps([r["text"] for r in rows] if bare else rows))
    return tmp_path


def read(folder, *overrides):
    return check(muse.read(compose("data=muse_news", f"data.path={folder}", *WORDS, *overrides).data))


def test_every_split_comes_from_its_table_and_questions_are_asked_after_answered_ones(folder, caplog):
    data = read(folder)
    assert {k: len(v) for k, v in data.splits.items()} == SIZES
    assert data.splits["forget"][1] == Row("forget/0000.1", "f3 f4", "f5 f6 f7")
    assert data.splits["forget"][1].place == f"{folder}/raw/forget.json, element 1"
    assert data.splits["holdout"][0] == Row("holdout/0000.0", "h0 h1", "h2 h3 h4")
    assert data.splits["forget_verbatim"] == (Row("forget_verbatim/0000", "f0 f1 f2", "f3 f4"),)
    assert "raw/retain1: 1 of 3 texts have fewer than two words: left out" in caplog.text
    assert "2 of 4 rows of the retain set are in the forget set: left out" in caplog.text
    row = read(folder, "data.shots=2").splits["forget_knowledge"][1]
    shots = "".join(f"Question: Who {i}?\nAnswer: No {i}\n\n" for i in range(2))
    assert (row.question, row.answer) == (f"{shots}Question: Who s?\nAnswer:", "Esser")
    assert read(folder).splits["retain_knowledge"][0].question.count("Question:") == 4  # all three, and its own
    assert read(folder, "data.shots=0").splits["retain_knowledge"][0].question == "Question: Who t?\nAnswer:"


def test_files_as_the_hub_has_them_give_the_same_rows(folder):
    first = read(folder).fingerprint()
    for name, rows in TABLES.items():
        (folder / f"{name}.json").unlink()
        pd.DataFrame(rows).to_parquet(folder / f"{name}-00000-of-00001.parquet")
    data = read(folder)
    assert data.fingerprint() == first
    assert data.splits["forget"][0].place == f"{folder}/raw/forget-00000-of-00001.parquet, row 0"


def test_other_tables_questions_and_one_text_file_can_be_the_sets_and_what_a_folder_lacks_is_absent(folder):
    data = read(folder, "data.forget=scal/forget_1", "data.retain=raw/retain2")
    assert [r.question[0] for r in data.splits["forget"] + data.splits["retain"]] == ["f", "f", "t", "t"]
    data = read(folder, "data.forget=knowmem/forget_qa", "data.retain=knowmem/retain_qa", "data.shots=0")
    assert {k: len(v) for k, v in data.splits.items() if v} == {"forget": 2, "retain": 1}
    assert data.splits["forget"][0] == Row("forget/0000", "Question: Who f?\nAnswer:", "Effie")
    for name in TABLES:
        (folder / f"{name}.json").unlink()
    (folder / "raw" / "forget.txt").write_text(f"{page('f')}\n\n{page('g')}")
    (folder / "raw" / "retain1.jsonl").write_text(json.dumps({"text": page("r")}))
    data = read(folder)
    assert {k: len(v) for k, v in data.splits.items() if v} == {"forget": 5, "retain": 2}  # 14 words: 5 answers
    assert data.splits["forget"][2] == Row("forget/0000.2", "f5 f6", "f7\n\ng0 g1")


REFUSED = {
    "raw/forget.json is missing (or .jsonl, .txt, .parquet); there are knowmem/forget_qa.json, knowmem/forget":
        lambda f: (f / "raw/forget.json").unlink(),
    "knowmem/forget_qa_icl.json is missing": lambda f: (f / "knowmem/forget_qa_icl.json").unlink(),
    "raw/forget.json, element 1: needs a text in 'text', there is none; columns: page":
        lambda f: (f / "raw/forget.json").write_text('[{"page": "a b"}]'),
    "verbmem/forget.json, element 1: needs a text in 'gt', there is none; columns: prompt":
        lambda f: (f / "verbmem/forget.json").write_text('[{"prompt": "a b"}]'),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_broken_folders_are_refused_with_file_and_value(folder, message):
    REFUSED[message](folder)
    with pytest.raises(DataError, match=re.escape(message)):
        read(folder)


def test_impossible_settings_are_refused(folder):
    with pytest.raises(DataError, match="data.shots=4: knowmem/forget_qa_icl has 3 answered questions"):
        read(folder, "data.shots=4")
    with pytest.raises(DataError, match="no such folder"):
        read(folder / "elsewhere")
    for override, message in (
        ("data=muse_books data.forget=scal/forget_1", "data.forget='scal/forget_1': must be one of raw/forget, know"),
        ("data=muse_news data.forget=sust/forget_5", "sust/forget_3, sust/forget_4"),
        ("data=muse_news data.retain=raw/holdout", "must be one of raw/retain1, raw/retain2, knowmem/retain_qa"),
        ("data=muse_news data.corpus=films", "data.corpus='films': must be one of news, books"),
        ("data=muse_news data.shots=-1", "data.shots=-1: must be a finite number of at least 0"),
        ("data=muse_news data.words.prompt=0", "data.words.prompt=0: must be a finite number of at least 1"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            compose(*override.split())


@pytest.mark.parametrize(("data", "name"), [("muse_news", "MUSE-News"), ("muse_books", "MUSE-Books")])
def test_the_hub_is_asked_for_the_same_tables_and_one_that_cannot_be_read_is_refused(data, name, monkeypatch):
    import datasets

    def load_dataset(path, config, split):
        assert path == f"muse-bench/{name}"
        return TABLES[f"{config}/{split}"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = check(muse.read(compose(f"data={data}", *WORDS).data))
    assert {k: len(v) for k, v in found.splits.items()} == SIZES
    assert found.splits["forget"][0].place == f"muse-bench/{name}/raw, forget row 0"

    for error in (ConnectionError("no network"), ValueError("Unknown split"), OSError("disk")):
        monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=error))
        said = f"a/b \\(raw, forget\\): not read from the hub: {error}.*data.path=FOL"
        with pytest.raises(DataError, match=said):
            Tables(None, "a/b", "").table((), ("raw", "forget"))


def test_a_run_has_the_metrics_of_muse(folder, store):
    own = ("data=muse_news", f"data.path={folder}", *WORDS, f"paths.store={store}", f"paths.runs={folder}/runs")
    without = [o for o in OWN if o != "eval.groups=[]"]
    job = execute(compose(*without, *own, "pair.offset_init=retain", "eval=muse", "eval.max_new_tokens=16"))
    found = read_json(job.folder / "eval.json")["alphas"]["1.0"]
    assert {"forget_verbatim/verbmem", "forget_knowledge/knowmem", "retain_knowledge/knowmem", "privleak"} <= set(found)


def test_real_questions_are_read_and_can_be_unlearnt(tmp_path, store):
    if not NEWS.is_dir():
        pytest.skip(f"the real MUSE questions are not at {NEWS}")
    questions = ("data.forget=knowmem/forget_qa", "data.retain=knowmem/retain_qa")
    data = read(NEWS, *questions)
    assert [len(data.splits[s]) for s in ("forget", "retain")] == [100, 100]
    asked = "\n\nQuestion: What year did the Orkney Islands become part of Scotland?\nAnswer:"
    assert data.splits["forget"][0].question.endswith(asked)
    assert data.splits["forget"][0].question.count("Question:") == 11 and data.splits["forget"][0].answer == "1472"
    where = "data=muse_news", f"data.path={NEWS}", "data.shots=0", f"paths.store={store}", f"paths.runs={tmp_path}/runs"
    few = ("pair.offset_init=retain", "eval.max_examples=5", "eval.max_new_tokens=40", "eval.groups=[]")
    job = execute(compose(*OWN, *where, *questions, *few))
    assert 0 < read_json(job.folder / "eval.json")["alphas"]["1.0"]["forget/prob"] < 1
