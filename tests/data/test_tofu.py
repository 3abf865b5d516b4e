"""The TOFU reader: on small files of its form that the test writes, and on the real data where they are at hand."""

import json

import pytest
from support.helpers import SHARED, read_tofu

from unlearn.data.rows import DataError, Row, check

GOLDEN = SHARED / "golden" / "openunlearning_chat" / "data"


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


def read(folder, rows=None, refusals=None):
    return check(read_tofu(folder and str(folder), "forget01", rows, refusals))


def test_splits_rows_and_refusals_are_read_and_retain_rows_carry_their_perturbed_answers(folder):
    data = read(folder)
    assert {k: len(v) for k, v in data.splits.items()} == {
        "forget": 2, "retain": 8, "real_authors": 3, "world_facts": 3, "holdout": 0}  # fmt: skip
    assert data.refusals == ("I don't know.", "No idea.")
    first = data.splits["forget"][0]
    assert first == Row("forget/0000", "Question 8?", "Answer 8.", "It is 8.", "Which 8?",
                        tuple(f"It is 8{j}." for j in range(5)))  # fmt: skip
    assert data.evaluated("forget") == data.splits["forget"] and data.evaluated("holdout") == ()
    retain = read(folder, 6).splits["retain"]
    assert len(retain) == 6
    assert [bool(r.perturbed_answers) for r in retain] == [True] * 4 + [False] * 2
    first = read(folder).fingerprint()
    assert read(folder).fingerprint() == first
    damage(folder / "retain99.json", 7, json.dumps(record(7) | {"answer": "Another."}))
    assert read(folder).fingerprint() != first


def test_the_retain_set_is_evaluated_on_its_perturbed_rows_also_where_the_retain_file_lacks_some(folder):
    for data, rows in ((read(folder), 4), (read(folder, 3), 3)):
        assert "retain_untrained" not in data.splits
        assert [r.question for r in data.evaluated("retain")] == [f"Question {i}?" for i in range(rows)]
        assert all(len(r.perturbed_answers) == 5 for r in data.evaluated("retain"))
    path = next(folder.glob("retain99.json*"))
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "Question 3?" not in line))
    data = read(folder)
    assert [r.question for r in data.splits["retain_untrained"]] == ["Question 3?"]
    assert [r.question for r in data.evaluated("retain")] == [f"Question {i}?" for i in range(4)]


def test_perturbed_rows_of_another_retain_set_are_evaluated_and_never_lost(folder):
    rows = [record(i, True) for i in (0, 5, 30)]
    (folder / "retain_perturbed.json").write_text("\n".join(map(json.dumps, rows)))
    data = read(folder)
    assert [r.question for r in data.evaluated("retain")] == ["Question 0?", "Question 5?", "Question 30?"]
    (folder / "retain_perturbed.json").write_text("\n".join(map(json.dumps, [*rows, record(9, True)])))
    said = "retain_perturbed.json, line 4: 'Question 9\\?' with the same answer is both in"
    with pytest.raises(DataError, match=said):
        read(folder)


def test_json_arrays_the_other_ending_and_own_refusals_are_read(folder):
    first = read(folder)
    rows = [record(i) for i in range(8)]
    (folder / "retain99.json").unlink()
    (folder / "retain99.jsonl").write_text(json.dumps(rows, indent=1))
    (folder / "holdout01.json").write_text(json.dumps([record(40)]))
    (folder / "own.txt").write_text("Pass.\n")
    data = read(folder, refusals=str(folder / "own.txt"))
    assert data.splits["retain"] == first.splits["retain"]
    assert data.splits["holdout"] == (Row("holdout/0000", "Question 40?", "Answer 40."),)
    assert data.refusals == ("Pass.",)


BROKEN = {  # beside what every file of records is refused for: test_jsonl.py
    "no such folder": lambda f: f / "elsewhere",
    "retain99.json is missing \\(or .jsonl, .parquet\\); there are forget01.json, forget01_perturbed.json, idont":
        lambda f: (f / "retain99.json").unlink(),
    "retain99.json, line 1: must be an object": lambda f: damage(f / "retain99.json", 0, '"text"'),
    "forget01_perturbed.json, line 2: forget01 and forget01_perturbed hold different questions":
        lambda f: damage(f / "forget01.json", 1, json.dumps(record(7))),
    "must be the same rows, and there are 1 and 2": lambda f: damage(f / "forget01.json", 1, ""),
    "world_facts_perturbed.json, line 3: 'perturbed_answer' is missing": lambda f: damage(
        f / "world_facts_perturbed.json", 2, json.dumps(record(22))
    ),
    "idontknow.jsonl, line 1: must be plain text": lambda f: (f / "idontknow.jsonl").write_text(json.dumps(record(1))),
}  # fmt: skip


def damage(file, line: int, text: str) -> None:
    lines = file.read_text().splitlines()
    lines[line] = text
    file.write_text("\n".join(lines))


@pytest.mark.parametrize("message", BROKEN)
def test_broken_files_are_refused_with_file_line_and_value(folder, message):
    path = BROKEN[message](folder)
    with pytest.raises(DataError, match=message):
        read(path if message == "no such folder" else folder)


def test_the_real_files_have_the_published_shape(tofu_folder):
    for forget, sizes in {"forget01": (40, 3960), "forget05": (200, 3800), "forget10": (400, 3600)}.items():
        data = check(read_tofu(str(tofu_folder), forget, None))
        assert (len(data.splits["forget"]), len(data.splits["retain"])) == sizes
        assert (len(data.splits["real_authors"]), len(data.splits["world_facts"])) == (100, 117)
        assert len(data.splits["holdout"]) == sizes[0]
        assert all(len(r.perturbed_answers) == 5 for r in data.splits["forget"])
        assert sum(bool(r.perturbed_answers) for r in data.splits["retain"]) == 400
        assert len(data.refusals) == 100


def test_a_folder_of_the_same_form_with_other_endings_is_read():
    """OpenUnlearning's tables under a chat template: its retain rows with wrong answers are the evaluated ones."""
    if not GOLDEN.is_dir():
        pytest.skip(f"the parity data are not at {GOLDEN}")
    data = check(read_tofu(str(GOLDEN), "forget10", None))
    sizes = {"forget": 40, "retain": 360, "real_authors": 40, "world_facts": 40, "holdout": 40}
    assert {k: len(v) for k, v in data.splits.items()} == sizes and data.refusals == ()
    lines = (GOLDEN / "retain_perturbed.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [json.loads(line)["question"] for line in lines]
    assert sorted(r.question for r in data.evaluated("retain")) == sorted(expected)


@pytest.fixture
def hub(folder, monkeypatch):
    """A hub that holds what the folder holds."""
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    def load_dataset(path, config, split):
        assert (path, split) == ("locuslab/TOFU", "train")
        file = folder / f"{config}.json"
        if not file.is_file():
            raise ValueError(f"BuilderConfig '{config}' not found. Available: ['full']")
        return [json.loads(line) for line in file.read_text().splitlines()]

    def download(path, name, repo_type):
        if not (folder / name).is_file():
            raise EntryNotFoundError(name)
        return str(folder / name)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return folder


def test_the_hub_gives_the_same_data_set_as_a_folder_and_only_what_may_be_absent_may_lack(hub, caplog):
    data = read(None)
    assert data.fingerprint() == read(hub).fingerprint()
    assert data.splits["retain"][2].place == "locuslab/TOFU/retain99, train row 2"
    (hub / "idontknow.jsonl").unlink()
    assert read(None).refusals == () and "five general ones are taken" in caplog.text
    assert read(None).splits["holdout"] == ()
    said = "locuslab/TOFU \\(retain95, train\\): not read from the hub: BuilderConfig"
    with pytest.raises(DataError, match=said):
        read_tofu(None, "forget05", None)
