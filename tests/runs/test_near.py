"""Near questions: about others than the forgotten, answered by the target, and read by the retain term."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from unlearn.config.schema import NearConfig
from unlearn.data.made_up import POOLS
from unlearn.runs.inputs import Inputs
from unlearn.runs.near import near, questions

FORGET = ["Where was Ann Ash born?", "When did Bo Birch die?"]
RETAIN = ["Where was Cy Cole born?", "When did Cy Cole die?", "Where was Di Dorn born?", "When did Di Dorn die?"]


def test_the_words_that_a_question_is_about_are_exchanged_for_those_of_others_and_no_other_words():
    found = questions(NearConfig(per=2, share=0.0), FORGET, RETAIN)
    assert len(found) == len(set(found)) == 4 and not set(found) & {*FORGET, *RETAIN}
    first, last = {"Ann", "Bo", "Cy", "Di"}, {"Ash", "Birch", "Cole", "Dorn"}
    for i, question in enumerate(found):
        one, two = ("Where was ", " born?") if i < 2 else ("When did ", " die?")
        name = question.removeprefix(one).removesuffix(two).split()
        assert name[0] in first and name[1] in last and name not in (["Ann", "Ash"], ["Bo", "Birch"])
    assert found == questions(NearConfig(per=2, share=0.0), FORGET, RETAIN)


def test_a_share_of_the_other_words_is_exchanged_too_and_nobody_forgotten_is_named():
    found = questions(NearConfig(per=50, share=0.5), FORGET, RETAIN)
    words = [set(question.rstrip("?").split()) for question in found]
    assert not any({"Ann", "Ash"} <= some or {"Bo", "Birch"} <= some for some in words)
    kept = np.mean([word in some for some in words[:50] for word in ("Where", "was", "born")])
    assert 0.4 < kept < 0.8


def test_questions_with_too_few_words_are_refused():
    with pytest.raises(ValueError, match="algo.near.per=9: .*too few words"):
        questions(NearConfig(per=9), ["Ann?"], ["Bo?"])


def test_near_questions_join_what_the_retain_term_draws_from_and_change_nothing_that_is_held_out(config, bench):
    plain = config("algo=npo", "trainer.held_out=0.5", "trainer.steps=40")
    cfg = replace(plain, algo=replace(plain.algo, near=NearConfig(per=3)))
    rows, before, after = near(cfg.algo.near, bench, 8), Inputs(plain, bench).sampler, Inputs(cfg, bench).sampler
    assert rows == near(cfg.algo.near, bench, 3) and 0 < len(rows) <= 3 * before.forget
    assert after.held_out == before.held_out and after.retain == before.retain + len(rows)
    examples, places = Inputs(cfg, bench).read("retain")
    drawn = {i for step in range(40) for i in after.draw(step).retain}
    ids = {examples[i if places is None else places[i]].id for i in drawn}
    assert {row.id for row in rows} & ids and not drawn & set(before.held_out)


def test_where_a_data_set_has_no_refusals_general_ones_are_taken():
    for own, expected in ((("No.",), ("No.",)), ((), POOLS["refusals"])):
        bench = SimpleNamespace(data=SimpleNamespace(refusals=own))
        assert Inputs._refusals.fget(SimpleNamespace(bench=bench)) == expected and len(expected) > 0
