"""Random, damaged and changed files: every reader gives what the file says, or refuses it by name; and so for texts."""

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import fuzz
from support.damage import damaged, expected_row, objects, plain_row

from unlearn.data import texts
from unlearn.data.records import ColumnsConfig, lines, records, row
from unlearn.data.rows import DataError
from unlearn.data.texts import WordsConfig

EXECUTIONS = {"jsonl": 80, "tofu": 60, "muse": 50, "folders": 50, "offline": 80}
steady = settings(
    max_examples=60, derandomize=True, database=None, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))  # fmt: skip


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_damaged_file_is_read_as_it_is_or_refused(name, times, tmp_path):
    reader = fuzz.READERS[name]()
    ends = [fuzz.attempt(reader, tmp_path, seed) for seed in range(times * EXECUTIONS[name])]
    assert ends.count("read") > 5 and ends.count("refused") > 5  # both happen, or this tests nothing


def test_what_is_wrong_is_noticed_and_damage_is_damage_and_the_same_for_the_same_seed():
    """The oracle itself: a reader that loses a row, crashes or says nothing fails."""

    def reader(read):
        return fuzz.Reader("mine", lambda folder, rng: None, read, (DataError,))

    def silent(folder):
        raise DataError("")

    for read in (lambda _: fuzz.same([1], [1, 2]), lambda _: {}["key"], silent):
        with pytest.raises(fuzz.Wrong):
            fuzz.attempt(reader(read), None, 0)
    assert fuzz.attempt(reader(lambda _: fuzz.same([1], [1])), None, 0) == "read"

    content = json.dumps(fuzz.ROW).encode()
    made = [damaged(content, random.Random(seed)) for seed in range(50)]
    assert made == [damaged(content, random.Random(seed)) for seed in range(50)]
    assert len(set(made)) > 40 and made.count(content) < 5


@steady
@given(st.binary(max_size=300), st.sampled_from([".csv", ".parquet"]))
def test_any_bytes_as_a_table(tmp_path, content, kind):
    file = tmp_path / f"any{kind}"
    file.write_bytes(content)
    try:
        found = records(file)
    except DataError as error:
        assert str(file) in str(error)
        return
    assert kind == ".csv" and len({tuple(values) for _, values in found}) == 1  # all rows have the header's columns


@steady
@given(st.binary(max_size=300))
def test_any_bytes_as_a_file_of_records(tmp_path, content):
    file = tmp_path / "any.jsonl"
    file.write_bytes(content)
    try:
        found = records(file, bare="text")
    except DataError as error:
        assert str(file) in str(error)
        return
    said = [v if isinstance(v, dict) else {"text": v} for v in objects(file)]
    assert [values for _, values in found] == said


@steady
@given(st.lists(st.dictionaries(st.sampled_from(["question", "answer", "perturbed_answer", "x"]), JSON, max_size=4)))
def test_any_json_objects_as_rows(tmp_path, given_objects):
    file = tmp_path / "any.jsonl"
    file.write_text("".join(json.dumps(o, ensure_ascii=False) + "\n" for o in given_objects), encoding="utf-8")
    try:
        rows = [row(record, str(i), ColumnsConfig()) for i, record in enumerate(records(file))]
    except DataError as error:
        assert str(file) in str(error)
        return
    assert [plain_row(r) for r in rows] == [expected_row(o) for o in given_objects]


@steady
@given(st.text(max_size=100), st.integers(1, 5), st.integers(1, 5))
def test_any_text_is_cut_so_that_no_word_is_lost_or_twice(text, prompt, answer):
    words, found = text.split(), texts.pieces(text, WordsConfig(prompt, answer))
    if len(words) < 2:
        assert found == []
        return
    assert [w for _, said in found for w in said.split()] == words[len(found[0][0].split()) :]
    assert all(1 <= len(said.split()) <= answer and 1 <= len(asked.split()) <= prompt for asked, said in found)


@steady
@given(st.binary(max_size=200))
def test_any_bytes_as_plain_lines(tmp_path, content):
    file = tmp_path / "refusals.txt"
    file.write_bytes(content)
    try:
        found = lines(file)
    except DataError as error:
        assert str(file) in str(error)
        return
    assert found and all(line == line.strip() != "" for line in found)
