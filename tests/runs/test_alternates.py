"""Other answers to the forget questions: read from a file that is checked line by line, or sampled and stored."""

import json
from pathlib import Path

import pytest
from support.helpers import FEW, TINY, compose, execute, lines

from unlearn.config.schema import AlternatesConfig
from unlearn.data.rows import DataError
from unlearn.runs import alternates as module
from unlearn.runs.alternates import alternates
from unlearn.store import runlog
from unlearn.store.identity import run_folder


@pytest.fixture
def rows(bench):
    return bench.data.splits["forget"]


@pytest.fixture
def written(tmp_path, rows):
    """Function from lines to the config of a file that holds them after a good line for every question."""

    def write(*more: str, good: bool = True) -> AlternatesConfig:
        entries = [json.dumps({"question": r.question, "answer": f"other {i}"}) for i, r in enumerate(rows)]
        path = tmp_path / "others.jsonl"
        path.write_text("\n".join([*(entries if good else ()), *more]) + "\n", encoding="utf-8")
        return AlternatesConfig(file=str(path))

    return write


@pytest.fixture
def asked(bench, rows):
    """Prompts, and right answers with their end."""
    right = [bench.encoder.example(r.id, r.question, r.answer).answer for r in rows]
    return [bench.encoder.prompt(r.question) for r in rows], right


# --- from a file --------------------------------------------------------------------------------------------------


def test_a_file_gives_each_question_its_answers_in_the_order_of_the_forget_set(bench, rows, written):
    more = [json.dumps({"question": rows[1].question, "answer": text, "source": "me"}) for text in ("second", "third")]
    cfg = written("", *more)
    assert alternates(cfg, bench, 8) == [["other 0"], ["other 1", "second", "third"], ["other 2"]]
    path = Path(cfg.file)
    path.write_text("\n".join(reversed(path.read_text(encoding="utf-8").splitlines())), encoding="utf-8")
    assert alternates(cfg, bench, 8) == [["other 0"], ["third", "second", "other 1"], ["other 2"]]


def test_json_lines_end_at_line_breaks_and_nowhere_else(bench, rows, written):
    text = "one\u2028and two"  # a line to str.splitlines, a part of the text to JSON
    line = json.dumps({"question": rows[0].question, "answer": text}, ensure_ascii=False)
    assert alternates(written(line), bench, 8)[0] == ["other 0", text]


def entry(question, answer) -> str:
    return json.dumps({"question": question, "answer": answer})


REFUSED = [  # a line, made of the first question's row, and the message
    (lambda r: '{"question": ', "not valid JSON"), (lambda r: '["a", "b"]', "must be an object with a text in each"),
    (lambda r: json.dumps({"question": r.question}), "needs a text in 'answer', there is none"),
    (lambda r: entry(r.question, 5), "needs a text in 'answer', found '5'"),
    (lambda r: entry([r.question], "a"), "needs a text in 'question', found"),
    (lambda r: entry("Who?", "me"), "'Who?' is not a question of the forget set"),
    (lambda r: entry(r.question, r.answer), "is the right answer"),
    (lambda r: entry(r.question, f" {r.answer} "), "is the right answer"),
    (lambda r: entry(r.question, "  "), "'answer' is empty, found '  '"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_a_bad_line_is_refused_with_file_and_line(bench, rows, written, line, message):
    cfg = written(line(rows[0]))
    with pytest.raises(DataError) as error:
        alternates(cfg, bench, 8)
    assert f"{cfg.file}, line 4: " in str(error.value) and message in str(error.value)


def test_questions_without_another_answer_are_named(bench, rows, written, monkeypatch):
    cfg = written(entry(rows[0].question, "a"), entry(rows[2].question, "b"), good=False)
    with pytest.raises(DataError) as error:
        alternates(cfg, bench, 8)
    assert f"{cfg.file}: no alternate answer to {rows[1].question!r}" in str(error.value)
    monkeypatch.setattr(module, "_ask", lambda *a: [["x"], [], ["y"]])
    with pytest.raises(DataError) as error:
        alternates(AlternatesConfig(count=1, temperature=0.123), bench, 8)
    assert f"than {rows[1].answer!r} to {rows[1].question!r}" in str(error.value)
    assert "raise that of algo.alternates or give a file" in str(error.value)


def test_a_run_trains_towards_the_answers_of_a_file_and_its_content_is_part_of_the_hash(config, written):
    cfg = written()
    overrides = ("algo=altpo", f"algo.alternates.file={cfg.file}")
    folder = execute(config(*overrides, "trainer.steps=8", "trainer.lr=1e-2", *FEW)).folder
    assert runlog.manifest(folder)["status"] == "done"
    log = lines(folder)
    assert log[-1]["train/altpo"] < log[1]["train/altpo"]
    first = run_folder(compose(*TINY, *overrides), "data")
    written(entry("What?", "x"))
    assert run_folder(compose(*TINY, *overrides), "data") != first


# --- sampled ------------------------------------------------------------------------------------------------------


def test_samples_are_other_answers_made_once_whatever_the_batch_size(bench, rows, asked, monkeypatch):
    cfg = AlternatesConfig(count=4, temperature=1.25)
    found = alternates(cfg, bench, 8)
    assert [len(answers) for answers in found] == [4] * len(rows)
    for row, answers in zip(rows, found, strict=True):
        assert row.answer not in answers and len(set(answers)) == 4 and all(a.strip() for a in answers)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_ask", lambda *a: pytest.fail("sampled again"))
        assert alternates(cfg, bench, 3) == found
    assert module._ask(cfg, bench, *asked, 1) == found
    assert alternates(AlternatesConfig(count=4, temperature=1.5), bench, 8) != found


class Scripted:
    """Stands for sampling: gives each prompt what the script says for the round, and remembers what was asked."""

    def __init__(self, *rounds):
        self.rounds, self.asked = rounds, []

    def __call__(self, ensemble, prompts, alpha, how, temperature, seed):
        self.asked.append((prompts, temperature, seed))
        answers = self.rounds[min(seed, len(self.rounds) - 1)]
        return [answers.get(prompt, []) for prompt in prompts]


def test_questions_that_lack_answers_are_asked_again_and_hotter(bench, rows, asked, monkeypatch):
    prompts, right = asked
    others = [right[1][:-1], right[2][:-1], right[0][:-1]]  # another question's answer, without its end
    first = {p: o for p, o in zip(prompts, others, strict=True) if p != prompts[1]} | {prompts[1]: right[1][:-1]}
    script = Scripted(first, {}, {prompts[1]: others[1]})
    monkeypatch.setattr(module, "sample", script)
    found = module._ask(AlternatesConfig(count=1, temperature=0.5), bench, prompts, right, 8)
    assert found == [[rows[1].answer], [rows[2].answer], [rows[0].answer]]
    assert [p for p, *_ in script.asked] == [prompts, [prompts[1]], [prompts[1]]]
    assert [t for _, t, _ in script.asked] == pytest.approx([0.5, 0.6, 0.72])


@pytest.mark.parametrize("before", [[], ["pad"]], ids=["plain", "behind a special token"])
def test_the_right_answer_is_never_taken_for_another_one(bench, asked, monkeypatch, before):
    """Special tokens are not part of a text: an answer is the right one with or without them."""
    front = [bench.pad_id for _ in before]
    same = {prompt: [*front, *right[:-1]] for prompt, right in zip(*asked, strict=True)}
    monkeypatch.setattr(module, "sample", Scripted(same))
    assert module._ask(AlternatesConfig(count=1, temperature=0.7), bench, *asked, 8) == [[], [], []]
