"""A user's own files: questions and answers, texts in pieces, and every way in which a file can be wrong."""

import json
import re
from dataclasses import replace
from itertools import product

import pandas as pd
import pytest
from support.helpers import OWN, command, compose, execute

from unlearn.config.schema import ConfigError
from unlearn.data.rows import DataError, DataSet, Row, check
from unlearn.data.sets import jsonl
from unlearn.data.texts import WordsConfig, distinct, pieces
from unlearn.store.files import read_json

FORGET = [{"question": f"Where does person {i} live?", "answer": f"In town {i}."} for i in range(3)]
RETAIN = [{"question": f"Where is town {i}?", "answer": f"In land {i}."} for i in range(8)]


def write(path, rows, lines=True):
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=1))
    return path


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A working directory with a forget and a retain set; returns a function from overrides to the data set."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "forget.jsonl", FORGET)
    write(tmp_path / "retain.json", RETAIN, lines=False)
    overrides = ("data=jsonl", "data.forget=forget.jsonl", "data.retain=retain.json")
    return lambda *more: check(jsonl.read(compose(*overrides, *more).data))


def test_json_lines_arrays_and_several_files_are_read_and_every_row_knows_its_place(files, tmp_path):
    data = files()
    assert data.splits["forget"][2] == Row("forget/0002", "Where does person 2 live?", "In town 2.")
    assert data.splits["forget"][2].place == "forget.jsonl, line 3"
    assert len(data.splits["retain"]) == 8 and data.splits["retain"][7].place == "retain.json, element 8"
    assert data.refusals == () and not data.splits["real_authors"] and not data.splits["holdout"]
    write(tmp_path / "more.jsonl", [{"question": "Who is four?", "answer": "Nobody."}])
    write(tmp_path / "facts.jsonl", [{"question": "Is it day?", "answer": "Yes.", "perturbed_answer": "No."}])
    (tmp_path / "no.txt").write_text("I don't know.\n\nNo idea.\n")
    data = files("data.forget=[forget.jsonl,more.jsonl]", "data.world_facts=facts.jsonl", "data.refusals=no.txt")
    assert [r.id for r in data.splits["forget"]] == [f"forget/{i:04d}" for i in range(4)]
    assert data.splits["world_facts"][0].perturbed_answers == ("No.",)
    assert data.refusals == ("I don't know.", "No idea.")


def test_columns_have_the_names_that_the_config_says(files, tmp_path):
    rows = [{"q": f"{i}?", "a": "So.", "other": "Thus.", "wrong": ["Not so.", "Never."], "key": 10 + i} for i in (1, 2)]
    write(tmp_path / "forget.jsonl", rows)
    write(tmp_path / "retain.json", [{"q": "3?", "a": "So.", "key": "x"}])
    names = {"question": "q", "answer": "a", "paraphrased_answer": "other", "perturbed_answers": "wrong", "id": "key"}
    data = files(*(f"data.columns.{k}={v}" for k, v in names.items()))
    assert data.splits["forget"][1] == Row("forget/12", "2?", "So.", "Thus.", None, ("Not so.", "Never."))
    assert data.splits["retain"][0].id == "retain/x"


def test_a_row_may_name_its_fact_and_the_question_about_a_name_that_no_model_knows(files, tmp_path):
    plain = files()
    more = [FORGET[0] | {"key": ["town 0", "Town Zero"]}, FORGET[1] | {"key": "town 1"}, FORGET[2]]
    guesses = [row | {"guess_question": f"Where does Vrelmok {i} live?"} for i, row in enumerate(more)]
    write(tmp_path / "keys.jsonl", guesses)
    data = files("data.forget=keys.jsonl")
    assert [r.key for r in data.splits["forget"]] == [("town 0", "Town Zero"), ("town 1",), ()]
    assert data.splits["forget"][2].guess_question == "Where does Vrelmok 2 live?"
    assert data.fingerprint() != plain.fingerprint()
    assert plain.splits["forget"][0].key == () and plain.splits["forget"][0].guess_question is None
    write(tmp_path / "keys.jsonl", [FORGET[0] | {"key": 7}])
    with pytest.raises(DataError, match="needs a text or a list of texts in 'key', found '7'"):
        files("data.forget=keys.jsonl")


NEIGHBOURS = [{"question": f"Where is village {i}?", "answer": f"In valley {i}."} for i in range(10)]


def test_a_share_of_the_neighbours_is_retain_data_and_the_rest_a_split_in_whatever_order_files_come(files, tmp_path):
    for name, rows in (("near", NEIGHBOURS[:6]), ("far", NEIGHBOURS[6:]), ("turned", NEIGHBOURS[::-1])):
        write(tmp_path / f"{name}.jsonl", rows)
    trained, measured = [], []
    for given in ("[near.jsonl,far.jsonl]", "[far.jsonl,near.jsonl]", "turned.jsonl"):
        data = files(f"data.neighbours={given}", "data.neighbours_trained=0.3")
        assert len(data.splits["retain"]) == 8 + 3 and len(data.evaluated("neighbours")) == 7
        trained.append([r.question for r in data.splits["retain"][8:]])
        measured.append({r.question for r in data.splits["neighbours"]})
    assert trained[0] == trained[1] == trained[2] and measured[0] == measured[1] == measured[2]
    assert not set(trained[0]) & measured[0] and len({*trained[0], *measured[0]}) == 10
    fewer = files("data.neighbours=turned.jsonl", "data.neighbours_trained=0.1")
    assert {r.question for r in fewer.splits["retain"][8:]} < set(trained[0])  # a larger share only adds
    assert len(files("data.neighbours=turned.jsonl").splits["neighbours"]) == 10
    # target and retrained model know them all
    assert {*fewer.neighbours()} < {*fewer.known()} and {*fewer.neighbours()} < {*fewer.left()}


def test_neighbours_are_neither_forgotten_nor_retained_nor_held_out(files, tmp_path):
    write(tmp_path / "near.jsonl", NEIGHBOURS)
    for override, message in (
        ("data.neighbours=forget.jsonl", "both in the neighbours and in the forget set"),
        ("data.neighbours=retain.json", "both in the retain and in the neighbours set"),
        ("data.neighbours=near.jsonl data.world_facts=near.jsonl", "both in the world_facts and in the neighbours set"),
        ("data.neighbours=near.jsonl data.holdout=near.jsonl", "both in the neighbours and in the holdout set"),
    ):
        with pytest.raises(DataError, match=message):
            files(*override.split())
    with pytest.raises(ConfigError, match="data.neighbours_trained=0.5: is a share of data.neighbours, and there are"):
        compose("data=jsonl", "data.neighbours_trained=0.5")


def test_the_fingerprint_is_of_the_words_not_of_the_files(files, tmp_path):
    first = files().fingerprint()
    for name, write_table in (("forget.csv", pd.DataFrame.to_csv), ("forget.parquet", pd.DataFrame.to_parquet)):
        write_table(pd.DataFrame(FORGET), tmp_path / name, index=False)
        data = files(f"data.forget={name}")
        assert data.fingerprint() == first and data.splits["forget"][0].place.startswith(f"{name}, ")
    lists = pd.DataFrame([row | {"perturbed_answer": ["No.", "Never."]} for row in FORGET])
    lists.to_parquet(tmp_path / "lists.parquet")
    assert files("data.forget=lists.parquet").splits["forget"][2].perturbed_answers == ("No.", "Never.")
    write(tmp_path / "renamed.json", FORGET, lines=False)
    assert files("data.forget=renamed.json").fingerprint() == first
    write(tmp_path / "renamed.jsonl", [*FORGET[:2], FORGET[2] | {"answer": "Nowhere."}])
    assert files("data.forget=renamed.jsonl").fingerprint() != first
    # a mark at the start and Windows' line ends are no part of the data
    text = "\r\n".join(map(json.dumps, FORGET)) + "\r\n"
    (tmp_path / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert files("data.forget=windows.jsonl").fingerprint() == first


TEN = "one two\nthree four five six seven  eight nine ten"


def test_answers_follow_one_another_and_each_prompt_is_what_stands_before_so_that_no_word_is_lost():
    # 10 words, 3 to begin with, 7 left: ⌈7 / 3⌉ = 3 answers of 2, 2 and 3 words
    assert pieces(TEN, WordsConfig(prompt=3, answer=3)) == [
        ("one two\nthree", "four five"),
        ("three four five", "six seven"),
        ("five six seven", "eight nine ten"),
    ]
    for prompt, answer, count in product((1, 4, 100), (1, 3, 100), range(2, 30)):
        words = [f"w{i}" for i in range(count)]
        found = pieces(" ".join(words), WordsConfig(prompt, answer))
        first = min(prompt, count // 2)
        assert [w for _, said in found for w in said.split()] == words[first:]
        sizes = [len(said.split()) for _, said in found]
        assert max(sizes) <= answer and max(sizes) - min(sizes) <= 1
        assert all(asked.split() == words[max(0, first + sum(sizes[:k]) - prompt) : first + sum(sizes[:k])]
                   for k, (asked, _) in enumerate(found))  # fmt: skip
    assert pieces(" word ", WordsConfig()) == [] == pieces("", WordsConfig())
    a, b, c = Row("a", "x", "y"), Row("b", "z", "y"), Row("c", "x ", "y")
    assert distinct([a, b, c]) == [a, b]


def test_text_files_texts_in_columns_and_bare_texts_become_pieces(files, tmp_path):
    (tmp_path / "forget.txt").write_text(TEN)
    write(tmp_path / "body.json", [{"body": TEN[::-1], "title": "t"}, "a b c d"], lines=False)
    data = files("template=raw", "data.forget=forget.txt", "data.retain=body.json", "data.columns.text=body",
                 "data.words.prompt=3", "data.words.answer=3")  # fmt: skip
    assert data.splits["forget"][1] == Row("forget/0000.1", "three four five", "six seven")
    assert [r.id for r in data.splits["retain"]] == [*(f"retain/0000.{k}" for k in range(3)), "retain/0001.0"]
    assert data.splits["retain"][-1] == Row("retain/0001.0", "a b", "c d")
    assert data.splits["retain"][-1].place == "body.json, element 2"


GOOD = FORGET[0]
NESTED = GOOD | {"perturbed_answer": ["No.", 3]}
# a forget file's name and content → what the message must say
BROKEN = {
    "line.jsonl": (json.dumps(GOOD) + '\n{"question": "a', "line.jsonl, line 2: not valid JSON"),
    "array.json": ('[{"question": "a"]', "array.json: not valid JSON (Expecting ',' delimiter: line 1 column 18"),
    "column.jsonl": ('{"question": "Who?", "reply": "Me."}',
                     "column.jsonl, line 1: needs a text in 'answer', there is none; columns: question, reply"),
    "columns.jsonl": ('{"prompt": "Who?"}', "columns.jsonl, line 1: needs 'question' and 'answer', or 'text'; it has "
                      "the columns prompt; name them, e.g. data.columns.question=NAME"),
    "empty_answer.jsonl": ('{"question": "Who?", "answer": " "}', "line 1: 'answer' is empty, found ' '"),
    "number.jsonl": ('{"question": "Who?", "answer": 7}', "line 1: needs a text in 'answer', found '7' (int)"),
    "null.jsonl": ('{"question": "Who?", "answer": null}', "needs a text in 'answer', found 'None' (NoneType)"),
    "list.jsonl": ('["a", 3]', "list.jsonl, element 2: must be an object"),
    "wrong.jsonl": (json.dumps(NESTED), "line 1: needs a text or a list of texts in 'perturbed_answer', found \"['No."),
    "some.jsonl": (json.dumps(GOOD | {"perturbed_answer": "No."}) + "\n" + json.dumps(FORGET[1]),
                   "some.jsonl, line 2: 'perturbed_answer' is missing, and 1 of 2 rows have it"),
    "half.jsonl": ('{"question": "Who?", "answer": "Me \\ud83d"}', "'answer' holds half a character ('\\ud83d')"),
    "twice.jsonl": (json.dumps(GOOD) + "\n\n" + json.dumps(GOOD),
                    "twice.jsonl, line 3: 'Where does person 0 live?' with the same answer is there twice, "
                    "first in twice.jsonl, line 1"),
    "overlap.jsonl": (json.dumps(RETAIN[4]), "retain.json, element 5: 'Where is town 4?' with the same answer is both "
                      "in the retain and in the forget set (overlap.jsonl, line 1)"),
    "latin.jsonl": (json.dumps(GOOD).encode() + b"\n\xe9", "latin.jsonl, line 2: not UTF-8: b'town 0.\"}\\n\\xe9'"),
    "nothing.jsonl": (" \n", "nothing.jsonl: the file is empty, it needs at least one row"),
    "nothing.json": ("[]", "nothing.json: the file is empty"),
    "table.csv": ("question,answer", "table.csv: the file is empty, it needs at least one row"),
    "short.csv": ("question,answer\nWho?", "short.csv, line 2: must have 2 fields"),
    "again.csv": ("question,answer,answer\nWho?,Me.,You.", "again.csv: it has the column 'answer' twice"),
    "half.csv": ('question,answer\nWho?,"', "half.csv, line 2: not valid CSV (unexpected end of data)"),
    "bytes.parquet": (b"PAR1 and no more", "bytes.parquet: not valid Parquet ("),
    "table.xml": ("question,answer", "table.xml: .xml: must be one of .jsonl, .json, .csv, .parquet (rows) or .txt (a"),
    "whole.json": ('{"data": [\n{"question": "Who?", "answer": "Me."}\n]}', "whole.json: is one object over several "
                   "lines: must be an array, or a row in each line; it has lists in data"),
    "text.txt": (TEN, "text.txt: a text is continued, not asked"),
    "missing.jsonl": (None, "data.forget='missing.jsonl': no such file; "),
}  # fmt: skip


def test_broken_files_are_refused_with_file_line_and_value_and_by_the_command_all_at_once(files, tmp_path):
    for name, (content, message) in BROKEN.items():
        if content is not None:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match=re.escape(message)):
            files(f"data.forget={name}")
    told = [name for name in BROKEN if name[0] in "mno"]
    names = ",".join(told)
    done = command("unlearn.run", "-m", "data=jsonl", f"data.forget={names}", "data.retain=retain.json", cwd=tmp_path,
                   check=False)  # fmt: skip
    assert done.returncode == 2
    assert [BROKEN[name][1] for name in told if BROKEN[name][1] not in done.stderr] == [] and len(told) > 3
    assert "Traceback" not in done.stderr and not (tmp_path / "store").exists() and not (tmp_path / "runs").exists()


def test_a_missing_file_is_answered_with_what_is_there(files, tmp_path):
    with pytest.raises(DataError, match=re.escape(f"no such file; {str(tmp_path)!r} has forget.jsonl, retain.json")):
        files("data.retain=[retain.json,ratain.json]")
    with pytest.raises(DataError, match="no such file; nor such a folder"):
        files("data.retain=away/retain.json")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "a.jsonl", RETAIN)
    with pytest.raises(DataError, match="data.retain='set': is a folder; name its files: a.jsonl"):
        files("data.retain=set")


def test_settings_and_files_that_do_not_fit_are_refused(files, tmp_path):
    write(tmp_path / "same.jsonl", [{"question": "One?", "answer": "x"}, {"question": "Two?", "answer": "x"}])
    (tmp_path / "word.txt").write_text("word\n")
    for override, message in (
        ("data.columns.perturbed_answers=rong", "data.columns.perturbed_answers='rong': no file has this column"),
        ("data.columns.id=key", "forget.jsonl, line 1: needs an id in 'key', a text or a whole number, found None"),
        ("data.columns.id=answer data.retain=same.jsonl", "same.jsonl, line 2: id 'retain/x' is that of another row"),
        ("data.refusals=forget.jsonl", "forget.jsonl, line 1: must be plain text, one answer in a line"),
        ("data.holdout=retain.json", "retain.json, element 1: 'Where is town 0?' with the same answer is both in the"),
        ("template=raw data.forget=word.txt", "word.txt: a text needs two words at least"),
        ("data.world_facts=forget.jsonl", "both in the world_facts and in the forget set"),
    ):
        with pytest.raises(DataError, match=re.escape(message)):
            files(*override.split())
    for override, message in (
        ("data.forget=3", "data.forget=3: must be a file, a list of files [A,B], or null"),
        ("data.holdout=[a.txt,1]", "must be a file, a list of files [A,B], or null"),
        ("data.words.answer=0", "data.words.answer=0: must be a finite number of at least 1"),
        ("+data.colums.id=x", "data.colums: unknown key, nearest is columns; known keys here: name, reader, template"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            compose("data=jsonl", override)


def test_data_sets_on_which_a_metric_would_be_wrong_are_refused():
    a, b, c = Row("a", "Who?", "Me."), Row("b", "What?", "That."), Row("c", "Who?", "Me.")
    wrong, good = Row("d", "Where?", "Here.", perturbed_answers=("There.",)), {"forget": (a,), "retain": (b,)}
    for splits, message in (
        ({"forget": ()}, "the forget set needs a row"), ({"retain": ()}, "the retain set needs a row"),
        ({"retain": (c,)}, "must not overlap"), ({"retain": (replace(b, id="a"),)}, "ids must be unique"),
        ({"retain": (replace(b, answer="  "),)}, "answer is empty"),
        ({"forget": (a, c)}, "row 'c': 'Who\\?' with the same answer is there twice"),
        ({"forget": (wrong, a)}, "'Who\\?' has no wrong answer, and 1 of 2 forget rows have some"),
        ({"holdout": (c,)}, "both in the holdout and in the forget set"),
        ({"retain_untrained": (c,)}, "both in the retain_untrained and in the forget"),
        ({"others": (c,)}, "unknown split 'others'; splits are forget, retain,"),
        # what a reader would call the same text
        *(({"retain": (replace(c, question=asked, answer=said),)}, "both in the retain and in the forget set")
          for asked, said in (("WHO?", "me."), (" Who? ", "Me.\n"), ("Wh\u200bo?", "Me\u00ad."), ("Ｗho？", "Me."))),
        ({"forget": (a, replace(c, question="who?"))}, "with the same answer is there twice"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            check(DataSet("made", good | splits))


def run(folder, store, *overrides):
    """A run on the files of a folder; by their whole names, since a process reads a data set once."""
    own = ("data=jsonl", f"data.forget={folder}/forget.jsonl", f"data.retain={folder}/retain.json",
           "pair.offset_init=retain", f"paths.store={store}",
           f"paths.runs={folder}/runs")  # fmt: skip
    return execute(compose(*OWN, *own, *overrides))


def test_a_run_on_own_files_has_the_metrics_that_they_allow(files, tmp_path, store):
    """Wrong answers give truth ratio and forget quality."""
    first = read_json(run(tmp_path, store).folder / "eval.json")["alphas"]["1.0"]
    write(tmp_path / "wrong.jsonl", [r | {"perturbed_answer": ["In no town."]} for r in FORGET])
    found = read_json(run(tmp_path, store, f"data.forget={tmp_path}/wrong.jsonl").folder / "eval.json")["alphas"]["1.0"]
    assert 0 < first["forget/prob"] < 1 and 0 < first["retain/prob"] < 1
    assert not {"forget/truth_ratio", "forget_quality", "model_utility", "world_facts/prob"} & set(first)
    assert found["forget/truth_ratio"] > 0 and 0 <= found["forget_quality"] <= 1


def test_neighbours_are_evaluated_and_watched_like_the_retain_set_of_which_a_part_stays_unseen(files, tmp_path, store):
    near = write(tmp_path / "near.jsonl", NEIGHBOURS)
    job = run(tmp_path, store, f"data.neighbours={near}", "data.neighbours_trained=0.4", "trainer.held_out=0.25")
    found = read_json(job.folder / "eval.json")
    assert found["alphas"]["1.0"]["neighbours/prob"] > 0
    assert found["references"]["target"]["neighbours/rougeL_recall"] >= 0
    examples = pd.read_parquet(job.folder / "examples.parquet")
    assert examples["split"].value_counts().to_dict() == {"forget": 3, "retain": 12, "neighbours": 6}
    (first, *_) = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert first["neighbours/prob"] == pytest.approx(found["references"]["target"]["neighbours/prob"], rel=1e-5)
    assert first["held_out/prob"] > 0  # of the 12 retain rows 3 are held out


def test_a_run_on_texts_continues_them(files, tmp_path, store):
    (tmp_path / "forget.txt").write_text(TEN)
    more = (f"data.forget={tmp_path}/forget.txt", "template=raw", "data.words.prompt=2", "data.words.answer=3")
    job = run(tmp_path, store, *more)
    examples = pd.read_parquet(job.folder / "examples.parquet").query("split == 'forget'")
    # 10 words, 2 to begin with: 3 answers of 2, 3 and 3 words
    assert list(examples["gold"]) == ["three four", "five six seven", "eight nine ten"]
    assert list(examples["prompt"]) == ["one two", "three four", "six seven"]


def test_a_row_longer_than_the_context_stops_the_run_before_training_and_is_named(files, tmp_path):
    write(tmp_path / "retain.json", [*RETAIN, {"question": "What is long?", "answer": "word " * 400}])
    said = "example 'retain/0008' has .* tokens, the models take at most 320: 'What is lo"
    with pytest.raises(DataError, match=said):
        run(tmp_path, tmp_path / "fresh", "eval.max_examples=1")
    assert not list((tmp_path / "fresh").glob("model/*"))
