"""The TOFU reader: on small files of its form that the test writes, and on the real data where they are at hand."""

import json

import pytest

from unlearn.data import tofu
from unlearn.data.rows import DataError, DataSet, Row, check


def record(i: int, perturbed: bool = False) -> dict:
    plain = {"question": f"Question {i}?", "answer": f"Answer {i}."}
    more = {"paraphrased_answer": f"It is {i}.", "paraphrased_question": f"Which {i}?",
            "perturbed_answer": [f"It is {i}{j}." for j in range(5)]}  # fmt: skip
    return plain | more if perturbed else plain


@pytest.fixture
def folder(tmp_path):
    def write(name: str, records: list) -> None:
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)))

    write("forget01.json", [record(i) for i in (8, 9)])
    write("forget01_perturbed.json", [record(i, True) for i in (8, 9)])
    write("retain99.json", [record(i) for i in range(8)])
    write("retain_perturbed.json", [record(i, True) for i in range(4)])
    for name in ("real_authors_perturbed", "world_facts_perturbed"):
        write(f"{name}.json", [record(i) | {"perturbed_answer": ["no", "never"]} for i in (20, 21, 22)])
    (tmp_path / "idontknow.jsonl").write_text("I don't know.\nNo idea.\n")
    return tmp_path


def test_splits_rows_and_refusals_are_read(folder):
    data = check(tofu.read(str(folder), "forget01", None))
    assert {k: len(v) for k, v in data.splits.items()} == {
        "forget": 2, "retain": 8, "real_authors": 3, "world_facts": 3, "holdout": 0}  # fmt: skip
    assert data.refusals == ("I don't know.", "No idea.")
    first = data.splits["forget"][0]
    assert first == Row("forget/0000", "Question 8?", "Answer 8.", "It is 8.", "Which 8?",
                        tuple(f"It is 8{j}." for j in range(5)))  # fmt: skip


def test_retain_rows_carry_their_perturbed_answers_where_tofu_has_them(folder):
    retain = tofu.read(str(folder), "forget01", 6).splits["retain"]
    assert len(retain) == 6
    assert [bool(r.perturbed_answers) for r in retain] == [True] * 4 + [False] * 2


BROKEN = {
    "no such folder": lambda f: f / "elsewhere",
    "retain99.json is missing": lambda f: (f / "retain99.json").unlink(),
    "retain99.json, line 3: not valid JSON": lambda f: damage(f / "retain99.json", 2, '{"question": "a'),
    "retain99.json, line 2: needs a text in 'answer'": lambda f: damage(f / "retain99.json", 1, '{"question": "a?"}'),
    "retain99.json, line 1: must be an object": lambda f: damage(f / "retain99.json", 0, "[1, 2"[:0] + '"text"'),
    "not UTF-8": lambda f: (f / "retain99.json").write_bytes(b"\xff\xfe\x00"),
    "hold different questions": lambda f: damage(f / "forget01.json", 0, json.dumps(record(7))),
}


def damage(file, line: int, text: str) -> None:
    lines = file.read_text().splitlines()
    lines[line] = text
    file.write_text("\n".join(lines))


@pytest.mark.parametrize("message", BROKEN)
def test_broken_files_are_refused_with_file_line_and_value(folder, message):
    path = BROKEN[message](folder)
    with pytest.raises(DataError, match=message):
        tofu.read(str(path if message == "no such folder" else folder), "forget01", None)


def test_unusable_data_sets_are_refused():
    a, b = Row("a", "Who?", "Me."), Row("b", "Who?", "Me.")
    for splits, message in (
        ({"forget": (), "retain": (a,)}, "the forget set is empty"),
        ({"forget": (a,), "retain": ()}, "the retain set is empty"),
        ({"forget": (a,), "retain": (b,)}, "must not overlap"),
        ({"forget": (a,), "retain": (Row("a", "What?", "That."),)}, "ids must be unique"),
        ({"forget": (a,), "retain": (Row("c", "What?", "  "),)}, "answer is empty"),
    ):
        with pytest.raises(DataError, match=message):
            check(DataSet("made", splits))


def test_fingerprints_follow_the_words(folder):
    first = tofu.read(str(folder), "forget01", None).fingerprint()
    assert tofu.read(str(folder), "forget01", None).fingerprint() == first
    damage(folder / "retain99.json", 7, json.dumps(record(7) | {"answer": "Another."}))
    assert tofu.read(str(folder), "forget01", None).fingerprint() != first


def test_the_real_files_have_the_published_shape(tofu_folder):
    for forget, sizes in {"forget01": (40, 3960), "forget05": (200, 3800), "forget10": (400, 3600)}.items():
        data = check(tofu.read(str(tofu_folder), forget, None))
        assert (len(data.splits["forget"]), len(data.splits["retain"])) == sizes
        assert (len(data.splits["real_authors"]), len(data.splits["world_facts"])) == (100, 117)
        assert len(data.splits["holdout"]) == sizes[0]
        assert all(len(r.perturbed_answers) == 5 for r in data.splits["forget"])
        assert sum(bool(r.perturbed_answers) for r in data.splits["retain"]) == 400
        assert len(data.refusals) == 100
