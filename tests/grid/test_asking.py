"""``python -m unlearn.generate model=…``: what a model knows, before there is a run."""

import json
import logging
import re
from statistics import mean

import pandas as pd
import pytest
from support.black_box_server import serve
from support.helpers import OWN, compose, execute
from support.pretrained import AS_IT_IS

from unlearn import generate
from unlearn.grid import asking, questions
from unlearn.grid.questions import Question
from unlearn.models import llama
from unlearn.store import runlog

FEW = ("eval.max_new_tokens=6", "trainer.device=cpu")


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def prompts(bench, tmp_path):
    rows = [{"question": row.question, "n": i} for i, row in enumerate(bench.data.splits["retain"])]
    rows[6] |= {"key": ["Nobody says this."]}
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:8]))
    return path


@pytest.fixture
def ask(prompts, store, tmp_path):
    def call(out: str, *more: str) -> int:
        return generate.main([f"prompts={prompts}", f"out={tmp_path / out}", f"paths.store={store}", *FEW, *more])

    return call


def test_what_a_model_answers_is_a_forget_set_with_the_probabilities_that_a_run_finds(
    made, ask, prompts, store, tmp_path, capsys
):
    assert ask("known.jsonl", f"model={made('llama')}") == 0
    assert "data.forget=" in (said := capsys.readouterr().out) and "template=question_answer" in said
    found = lines(tmp_path / "known.jsonl")
    (unknown,) = lines(tmp_path / "known.unknown.jsonl")
    asked = lines(prompts)
    assert unknown["key"] == ["Nobody says this."] and unknown["question"] == asked.pop(6)["question"]
    assert [{"question": row["question"], "n": row["n"]} for row in found] == asked
    assert all(row["answer"] and 0 < row["prob"] < 1 for row in found)
    (tmp_path / "retain.jsonl").write_text('{"question": "Who?", "answer": "She."}\n')
    run = execute(compose(
        *OWN, *AS_IT_IS, f"paths.store={store}", f"paths.runs={tmp_path}/runs", "algo=ga", "data=jsonl",
        "template=question_answer", f"data.forget={tmp_path}/known.jsonl", f"data.retain={tmp_path}/retain.jsonl",
        f"pair.target.source={made('llama')}", f"pair.small.source={made('llama', 1)}", "trainer.steps=1",
        "eval.max_examples=9",
    ))  # fmt: skip
    measured = runlog.evaluation(run.folder)["references"]["target"]["forget/prob"]
    assert mean(row["prob"] for row in found) == pytest.approx(measured, abs=2e-6)


def test_what_is_there_is_not_asked_again_and_a_torn_line_is(made, ask, tmp_path, monkeypatch, capsys):
    of, out = f"model={made('llama')}", tmp_path / "known.jsonl"
    ask("known.jsonl", of)
    whole, asked, answer = out.read_text(), [], asking.Asked.answer
    monkeypatch.setattr(asking.Asked, "answer", lambda self, ids: asked.extend(ids) or answer(self, ids))
    parts = whole.splitlines(keepends=True)
    out.write_text("".join(parts[:5]) + parts[5][:9])
    assert ask("known.jsonl", of) == 0 and len(asked) == 2
    assert [{**row, "prob": pytest.approx(row["prob"], abs=1e-5)} for row in lines(out)] == [*map(json.loads, parts)]
    monkeypatch.setattr(llama, "load", None)  # what needs no model loads none
    assert ask("known.jsonl", of) == 0
    assert ask("known.jsonl", of, "eval.max_new_tokens=5") == 2
    assert "answers of another model, template or eval.max_new_tokens" in capsys.readouterr().err
    assert len(asked) == 2


def test_answers_that_no_run_could_take_are_left_out_and_named(made, ask, tmp_path, monkeypatch, caplog):
    said = ["", "word " * 600, *(["He did."] * 6)]
    monkeypatch.setattr(asking.Asked, "answer", lambda self, prompts: said)
    monkeypatch.setattr(asking.Asked, "prob", lambda self, examples: [0.5] * len(examples))
    assert ask("known.jsonl", f"model={made('llama')}", "eval.max_new_tokens=1") == 0
    assert len(lines(tmp_path / "known.jsonl")) == 5
    assert re.search(r"left out: 2, at \S*prompts.jsonl, line 1; \S*prompts.jsonl, line 2\b", caplog.text)
    assert re.search(r"whole ones: 6, to the questions at (\S+ line \d; ){4}\S+ line 7 …", caplog.text)


def test_a_server_is_asked_as_a_model_that_is_here_and_within_its_budget(made, ask, tmp_path, caplog, capsys):
    folder = made("llama")
    ask("here.jsonl", f"model={folder}")
    caplog.set_level(logging.INFO)
    model = llama.load(folder)
    with serve(model, asking.hub.tokenizers.load(folder)) as server:
        there = (f"model={server.url}", "name=tiny", f"tokenizer={folder}", "pair.target.http.k=0",
                 f"paths.store={tmp_path}/store")  # fmt: skip
        assert ask("there.jsonl", *there, "pair.target.http.max_requests=5") == 2
        assert "max_requests" in capsys.readouterr().err
        assert ask("there.jsonl", *there) == 0
        asked = server.requests
        (tmp_path / "there.jsonl").unlink(), (tmp_path / "there.unknown.jsonl").unlink()
        assert ask("there.jsonl", *there) == 0 and server.requests == asked  # what was answered is kept
    assert any(re.search(r"may be asked for \d+ texts and \d+ answers", message) for message in caplog.messages)
    for a, b in zip(lines(tmp_path / "here.jsonl"), lines(tmp_path / "there.jsonl"), strict=True):
        assert a | {"asked": b["asked"], "prob": pytest.approx(b["prob"], abs=1e-4)} == b


@pytest.mark.parametrize(("row", "known"), [(("Lyon", "paris"), True), (("Pari",), False), ((), True)])
def test_an_answer_is_known_where_it_holds_a_spelling_of_the_fact_or_none_is_named(row, known):
    assert Question("", "", row, {}).is_known("It is Paris.") is known


@pytest.mark.parametrize("kind", ["txt", "json", "csv", "parquet"])
def test_questions_come_from_any_file_of_rows_and_each_is_asked_once(kind, tmp_path, caplog):
    path = tmp_path / f"prompts.{kind}"
    table = pd.DataFrame({"question": ["Who?", "Where?", "Who?"], "key": ["a", "b", "a"]})
    if kind == "txt":
        path.write_text("Who?\n\nWhere?\nWho?\n")
    elif kind == "json":
        table.to_json(path, orient="records")
    else:
        getattr(table, f"to_{kind}")(path, index=False)
    more = [{}, {}] if kind == "txt" else [{"key": "a"}, {"key": "b"}]
    found = questions.asked(path, compose("data=jsonl"))
    assert [(each.text, each.more) for each in found] == list(zip(["Who?", "Where?"], more, strict=True))
    assert "asked once: 1" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run=FOLDER or model="),
        (["model=here"], "prompts=FILE out=FILE: both must be given"),
        (["run=here", "prompts=p.txt"], "prompts=: not with run="),
        (["model=here", "prompts=p.txt", "out=o.jsonl", "prompt=Who?"], "prompt=: not with model="),
        (["model=here", "prompts=none.txt", "out=o.jsonl"], "prompts='none.txt': no such file"),
        (["model=here", "prompts=p.pdf", "out=o.jsonl"], "must be one of .txt, .jsonl"),
        (["model=here", "prompts=p.txt", "out=o.jsonl", "eval.max_tokens=3"], "eval.max_tokens: unknown key"),
        (["model=./here", "prompts=p.txt", "out=o.jsonl"], "model='./here': no such folder"),
        (["model=http://localhost:1", "prompts=p.txt", "out=o.jsonl"], "name=: must be given"),
        (["model=here", "prompts=p.txt", "out=o.csv"], "out='o.csv': must end in .jsonl"),
        (["model=here", "prompts=p.jsonl", "out=p.jsonl"], "out='p.jsonl': is where prompts= is read from"),
        (["model=here", "prompts=p.unknown.jsonl", "out=p.jsonl"], "out='p.jsonl': is where prompts= is read from"),
        (["model=here", "prompts=p.txt", "out=p.jsonl"], "is a file of something else than answers"),
        (["model=here", "prompts=number.jsonl", "out=o.jsonl"], "line 1: needs a text or a list of texts in 'key'"),
        (["model=here", "prompts=nothing.jsonl", "out=o.jsonl"], "line 1: 'key' is empty"),
        (["model=here", "prompts=other.jsonl", "out=o.jsonl"], "line 1: needs a text in 'question'"),
        (["model=here", "name=x", "prompts=p.txt", "out=o.jsonl"], "name=x: is for a model on a server"),
    ],
)
def test_a_call_that_cannot_work_is_refused_in_its_own_words(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = {
        "p.txt": "Who?", "p.pdf": "Who?", "p.jsonl": '{"question": "Who?"}', "p.unknown.jsonl": '{"question": "Who?"}',
        "number.jsonl": '{"question": "When?", "key": 1969}', "nothing.jsonl": '{"question": "When?", "key": ""}',
        "other.jsonl": '{"frage": "Wann?"}',
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(asking, "run", None)  # all of it is said without torch
    assert generate.main(arguments or ["draft=2"]) == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files  # what a user has is left as it is


def test_a_key_that_stands_in_its_question_is_named(tmp_path, caplog):
    rows = ({"question": f"What is the capital of {n}?", "key": k} for n, k in (("Peru", "Lima"), ("Luxembourg",) * 2))
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    questions.asked(tmp_path / "p.jsonl", compose("data=jsonl"))
    assert re.search(r"counts as known: 1, first \S*p.jsonl, line 2", caplog.text)


def test_columns_of_other_names_are_read_and_a_column_called_question_hides_none(tmp_path):
    (tmp_path / "p.csv").write_text("frage,question,fakt,answer\nWer?,no. 7,Ich,Du\n")
    names = ("data.columns.question=frage", "data.columns.fact=fakt")
    (found,) = questions.asked(tmp_path / "p.csv", compose("data=jsonl", *names))
    assert (found.text, found.key) == ("Wer?", ("Ich",))
    assert found.more == {"given_question": "no. 7", "fakt": "Ich", "given_answer": "Du"}
