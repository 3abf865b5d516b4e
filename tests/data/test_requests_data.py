"""Requests: forget sets asked for one after another, over one target; and that nothing changed for runs without."""

import json
import re

import pytest
from support.helpers import OWN, TINY, build, compose, execute

from unlearn.config.schema import ConfigError
from unlearn.data.people import who
from unlearn.data.readers import read
from unlearn.data.rows import DataError, check
from unlearn.data.sets import bios
from unlearn.deploy.export.traces import forget_rows
from unlearn.runs.workbench import workbench
from unlearn.store import runlog
from unlearn.store.identity import run_folder
from unlearn.store.runlog import job

# The hashes that these runs had before there were requests (and in whose folders finished runs lie).
GOLDEN = ("ga-offset-a0.5-s0-c60ce847b3", "ga-offset-a1-s0-3c04e7c6c3", "kl-offset-a2-s0-d92f04f369",
          "npo-offset-a1-s0-f648185a4e", "npo-offset-a2-s0-778c68395e")  # fmt: skip
TINY3 = (*TINY, "data.people=6", "data.requests=[[5],[2],[3]]")


def test_the_hash_of_a_run_without_requests_is_what_it_was():
    for name in GOLDEN:
        algo, _, alpha, *_ = name.split("-")
        cfg = compose(f"algo={algo}", f"alpha={alpha[1:]}")
        assert run_folder(cfg, read(cfg).fingerprint()).name == name


def data(*overrides):
    return read(compose(*TINY3, *overrides))


def people(rows) -> list[int]:
    return sorted({int(row.id.split("/")[1]) for row in rows})


def test_one_request_some_or_all_are_forgotten_and_the_others_are_splits_of_their_own():
    found = data("data.request=2")
    assert people(found.splits["forget"]) == [2] and people(found.splits["retain"]) == [0, 1, 4]
    assert found.requests() == ("request_1", "request_3")
    assert people(found.splits["request_1"]) == [5] and people(found.splits["request_3"]) == [3]
    assert people(data().splits["forget"]) == [2, 3, 5] and data().requests() == ()
    some = data("data.request=[1,3]")
    assert people(some.splits["forget"]) == [3, 5] and some.requests() == ("request_2",)


def test_models_know_what_they_should_and_the_retain_set_may_hold_other_requests():
    for request, left in (
        (1, [0, 1, 2, 3, 4]), (2, [0, 1, 3, 4]), (3, [0, 1, 4]), ("null", [0, 1, 4]), ("[1,2]", [0, 1, 3, 4]),
    ):  # fmt: skip
        found = data(f"data.request={request}")
        general = len(found.general())
        assert len(found.known()) == 6 * 3 + general
        assert people(found.left()[:-general]) == left
        assert people(found.unnamed()[:-general]) == [0, 1, 4]
    for retained, request, expected in (
        ("later", 2, [0, 1, 3, 4]), ("earlier", 2, [0, 1, 4, 5]), ("others", 2, [0, 1, 3, 4, 5]),
        ("later", 3, [0, 1, 4]),
    ):  # fmt: skip
        found = data(f"data.request={request}", f"data.retained={retained}")
        assert people(found.splits["retain"]) == expected
        assert people(found.evaluated("retain")) == [0, 1, 4]
        assert people(found.unnamed()[: -len(found.general())]) == [0, 1, 4]


def test_numbers_of_people_are_the_last_ones_and_an_export_looks_for_every_request():
    assert who([1, 2, 1], 10) == [[6], [7, 8], [9]]
    assert who([[4], [1, 2]], 10) == [[4], [1, 2]]
    by_number, by_name = (data(f"data.requests={r}", "data.request=1") for r in ("[1,2]", "[[3],[4,5]]"))
    assert by_number.fingerprint() == by_name.fingerprint()
    assert people(forget_rows(data("data.request=2"))) == [2, 3, 5]


def test_data_sets_differ_by_request_and_share_all_that_a_request_does_not_change():
    sets = [data(f"data.request={n}") for n in (1, 2, 3, "null")]
    assert len({found.fingerprint() for found in sets}) == 4
    wholes = {found.whole().fingerprint() for found in sets}
    other_order, fewer = data("data.requests=[[3],[5],[2]]", "data.request=2"), data("data.requests=[[5]]")
    retaining = data("data.request=1", "data.retained=others")
    assert wholes == {d.whole().fingerprint() for d in (other_order, fewer, retaining)}
    assert other_order.known() == fewer.known() == data().known()


def test_the_models_are_the_same_whatever_is_asked_for(store):
    """Target, tokenizer and anchor: else offsets of several requests could not be added up."""
    asked = ("data.request=1", "data.request=3", "data.request=null", "data.requests=[[0]]")
    worlds = [workbench(compose(*TINY3, f"paths.store={store}", o)) for o in asked]
    for name in ("target", "small_general"):
        assert len({w.fingerprint(name) for w in worlds}) == 1
    assert len({w.fingerprint("retrained") for w in worlds[:3]}) == 2  # requests 3 and all leave the same behind


def test_impossible_requests_are_refused():
    for overrides, message in (
        (["data.request=1"], "data.request=1: is one of data.requests, and there are none"),
        (["data.requests=[]"], "must be a list of forget sets"),
        (["data.requests=[[0],[0]]"], "disjoint lists"),
        (["data.requests=[[0],2]"], "disjoint lists"),
        (["data.requests=[[9]]"], "of some of 0 to 5"),
        (["data.requests=[3,3]"], "together fewer than data.people=6"),
        (["data.requests=[1,1]", "data.request=3"], "data.request=3: must be a number from 1 to 2"),
        (["data.requests=[1,1]", "data.request=[1,1]"], "a list of different ones"),
        (["data.requests=[1,1]", "data.retained=all"], "must be one of later, earlier, others"),
        (["data=muse_news", "data.requests=[1]"], "every reader but muse"),
        (["data=tofu", "data.requests=[3]"], "each must be one of forget01, forget05, forget10, or a file"),
        (["data=jsonl", "data.requests=[a]", "data.forget=b", "data.retain=c"], "data.forget='b'"),
    ):
        given = (*TINY, "data.people=6") if overrides[0].startswith("data.request") else OWN
        with pytest.raises(ConfigError, match=re.escape(message)):
            compose(*given, *overrides)


def rows_of(*names):
    return "".join(json.dumps({"question": f"Who is {n}?", "answer": f"{n} is a baker."}) + "\n" for n in names)


@pytest.fixture
def files(tmp_path):
    for name, people in {"all": "abcdef", "one": "be", "two": "c", "three": "gh"}.items():
        (tmp_path / f"{name}.jsonl").write_text(rows_of(*people))
    return tmp_path


def from_files(folder, requests, *overrides):
    named = ",".join(str(folder / f"{r}.jsonl") for r in requests)
    return read(compose("data=jsonl", f"data.retain={folder}/all.jsonl", f"data.requests=[{named}]",
                        "pair.offset_init=retain", *overrides))  # fmt: skip


def names(rows) -> str:
    return "".join(row.question.split()[2][0] for row in rows)


def test_what_files_ask_for_is_taken_out_of_the_retain_file_and_changes_nothing_of_the_target(files):
    found = from_files(files, ("one", "two", "three"), "data.request=1")
    assert names(found.splits["forget"]) == "be" and names(found.splits["retain"]) == "adf"
    assert names(found.splits["request_2"]) == "c" and names(found.splits["request_3"]) == "gh"
    assert names(found.known()) == "abcdefgh" and names(found.left()) == "acdfgh"
    later = from_files(files, ("one", "two", "three"), "data.request=1", "data.retained=later")
    assert names(later.splits["retain"]) == "acdfgh" and names(later.evaluated("retain")) == "adf"
    one, two = from_files(files, ("one",)), from_files(files, ("two", "one"), "data.request=2")
    assert one.known() == two.known() and one.whole().fingerprint() == two.whole().fingerprint()


def test_requests_must_be_disjoint_and_there(files):
    (files / "again.jsonl").write_text(rows_of("b"))
    with pytest.raises(DataError, match="'Who is b.' is in requests 1 and 2"):
        from_files(files, ("one", "again"))
    with pytest.raises(DataError, match=r"data.requests\[1\]=.*no such file"):
        from_files(files, ("one", "nowhere"))
    with pytest.raises(DataError, match="request 2 names no row"):
        build(bios, people=4, forget_people=1, known_people=1, countries=1, requests=[[1], []])
    with pytest.raises(DataError, match="requests must be disjoint"):
        build(bios, people=4, forget_people=1, known_people=1, countries=1, requests=[[1], [1]])
    check(data("data.request=1", "data.retained=others"))


def test_splits_of_tofu_ask_for_what_smaller_ones_before_them_left_and_files_may_stand_beside_them(
    tofu_folder, tmp_path
):
    tofu = "data=tofu", f"data.path={tofu_folder}", "data.retain_rows=100"
    asked = (*tofu, "data.requests=[forget01,forget05]")
    first, second = (read(compose(*asked, f"data.request={n}")) for n in (1, 2))
    assert [len(d.splits["forget"]) for d in (first, second)] == [40, 160]
    assert len(first.splits["request_2"]) == 160 and len(first.splits["retain"]) == 100
    general = len(first.general())
    assert len(first.known()) == 100 + 200 + general
    alone = {r.question for r in read(compose(*tofu, "data.forget=forget05")).splits["forget"]}
    assert alone == {r.question for r in first.sequence.requests[0] + first.sequence.requests[1]}
    assert [len(d.left()) - general for d in (first, second)] == [260, 100]
    tofu, some = ("data=tofu", f"data.path={tofu_folder}"), tmp_path / "some.jsonl"
    retain = read(compose(*tofu)).splits["retain"][:3]
    some.write_text("".join(json.dumps({"question": r.question, "answer": r.answer}) + "\n" for r in retain))
    asked = f"data.requests=[forget01,{some}]", "data.request=2", "data.retain_rows=50"
    found = read(compose(*tofu, *asked))
    assert [r.question for r in found.splits["forget"]] == [r.question for r in retain]
    assert len(found.splits["request_1"]) == 40 and len(found.splits["retain"]) == 47


def test_a_run_measures_every_request(store, tmp_path):
    places = f"paths.store={store}", f"paths.runs={tmp_path}/runs"
    done = execute(compose(*TINY3, "algo=npo", "data.request=2", "eval.groups=[]", *places))
    metrics = runlog.evaluation(done.folder)["alphas"]["1.0"]
    for name in ("forget", "request_1", "request_3", "retain", "real_authors"):
        assert 0 <= metrics[f"{name}/prob"] <= 1 and f"{name}/truth_ratio" in metrics["intervals"]
    assert "request_2/prob" not in metrics
    assert job(compose(*TINY3, "algo=npo", "data.request=2", *places), done.data).folder == done.folder
