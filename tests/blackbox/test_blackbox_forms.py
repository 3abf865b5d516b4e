"""Requests and answers by hand: what is put, what is read, what becomes of k tokens; and answers that are rubbish."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.black_box_server import Faults, Numbered, Server
from support.helpers import tiny_llama

from unlearn.blackbox import forms
from unlearn.blackbox.forms import ECHO, PROMPT, Lacks, Texts, Way, Wrong
from unlearn.blackbox.questions import LEAST, NEXT, SAY, Answer, BlackBoxError, Question, cut, rows_of
from unlearn.ensemble.rows import spread

TEXTS = Texts(Numbered(size=4), 4)
ROWS = rows_of((3,), (2, 1))
HALF, QUARTER = math.log(0.5), math.log(0.25)


def prompt_rows(*rows):
    """An answer of vLLM's form, from log-probabilities by token for each position but the first."""
    listed = [None, *({str(i): {"logprob": p, "decoded_token": f"w{i}"} for i, p in row.items()} for row in rows)]
    return {"choices": [{"text": "", "prompt_logprobs": listed}]}


def generated(*rows, names="token_id:{}"):
    """Rows of (own token, log-probabilities by token)."""
    return {"choices": [{"logprobs": {
        "tokens": [names.format(own) for own, _ in rows],
        "token_logprobs": [entries[own] for own, entries in rows],
        "top_logprobs": [{names.format(i): p for i, p in entries.items()} for _, entries in rows],
    }}]}  # fmt: skip


def test_what_is_put():
    common = {"model": "m", "prompt": [3, 2, 1], "temperature": 0, "return_tokens_as_token_ids": True}
    assert forms.body(ROWS, "m", Way(PROMPT, 1), 5, 40) == common | {"max_tokens": 1, "prompt_logprobs": 5}
    assert forms.body(ROWS, "m", Way(PROMPT, 0), 0, 40) == common | {"max_tokens": 0, "prompt_logprobs": -1}
    assert forms.body(ROWS, "m", Way(ECHO, 1), 5, 40) == common | {"max_tokens": 1, "echo": True, "logprobs": 5}
    for form in (PROMPT, ECHO):
        following = Question(NEXT, (3, 2, 1))
        assert forms.body(following, "m", Way(form, 1), 5, 40) == common | {"max_tokens": 1, "logprobs": 5}
        said = Question(SAY, (3, 2, 1), most=9)
        plain = common | {"max_tokens": 9, "logprobs": 5, "repetition_penalty": 1.0}
        assert forms.body(said, "m", Way(form, 1), 5, 40) == plain


def test_rows_are_the_likeliest_in_order_and_the_texts_own_token():
    data = prompt_rows({0: QUARTER, 3: HALF, 2: math.log(0.125)}, {1: HALF, 3: QUARTER})
    found = forms.read(ROWS, PROMPT, 2, data, TEXTS)
    assert found.ids.tolist() == [[3, 0, 2], [1, 3, 1]]
    np.testing.assert_allclose(np.exp(found.logp), [[0.5, 0.25, 0.125], [0.5, 0.25, 0.5]], rtol=1e-6)


def test_an_echo_counts_its_own_token_beside_the_top():
    choice = generated(
        (3, {3: 0.0}), (2, {3: HALF, 0: QUARTER, 2: QUARTER}), (1, {1: HALF, 3: QUARTER}), (0, {0: HALF})
    )
    lists = choice["choices"][0]["logprobs"]
    lists["top_logprobs"][0] = lists["token_logprobs"][0] = None
    del lists["top_logprobs"][1]["token_id:2"]
    found = forms.read(ROWS, ECHO, 2, choice, TEXTS)
    assert found.ids.tolist() == [[3, 0, 2], [1, 3, 1]]
    lists["tokens"][1] = "token_id:3"
    with pytest.raises(Wrong, match="position 1 of the echo is 'token_id:3', and 2 "):
        forms.read(ROWS, ECHO, 2, choice, TEXTS)


def test_what_is_said_and_what_comes_next():
    data = generated((2, {2: HALF, 0: QUARTER}), (1, {1: HALF, 2: QUARTER}))
    found = forms.read(Question(SAY, (3,), most=4), PROMPT, 2, data, TEXTS)
    assert found.said == (2, 1) and found.ids.tolist() == [[2, 0, 2], [1, 2, 1]]
    with pytest.raises(Wrong, match="2 tokens generated, and 1 were asked for"):
        forms.read(Question(NEXT, (3,)), PROMPT, 2, data, TEXTS)
    drawn = generated((0, {2: HALF, 0: QUARTER}))  # a server that draws
    assert forms.read(Question(NEXT, (3,)), PROMPT, 2, drawn, TEXTS).ids.tolist() == [[2, 0, 2]]
    texts = generated((2, {2: HALF, 0: QUARTER}), names="w{}")
    assert forms.read(Question(NEXT, (3,)), PROMPT, 2, texts, TEXTS).ids.tolist() == [[2, 0, 2]]
    with pytest.raises(Wrong, match="is called by its text .* 'w2' is the text of the tokens 2, 3"):
        forms.read(Question(NEXT, (3,)), PROMPT, 2, texts, Texts(Numbered(size=4, same=(2, 3)), 4))


@pytest.mark.parametrize(
    ("rows", "k", "said"),
    [
        ([{2: HALF}], 2, "prompt_logprobs of 2 positions, and the text has 3 tokens"),
        ([{2: HALF, 0: 0.2}, {1: HALF, 0: HALF}], 2, "position 1: 0.2 is above 0"),
        ([{2: HALF, 0: float("nan")}, {1: HALF, 0: HALF}], 2, "nan is not a log-probability"),
        ([{2: HALF, 0: True}, {1: HALF, 0: HALF}], 2, "True is not a log-probability"),
        ([{2: HALF, 0: 10**400}, {1: HALF, 0: HALF}], 2, "is"),
        ([{2: HALF, 0: "x"}, {1: HALF, 0: HALF}], 2, "'x' is not a log-probability"),
        ([{2: HALF, 0: -0.1}, {1: HALF, 0: HALF}], 2, "position 1: probabilities sum to 1.4"),
        ([{3: HALF, 0: QUARTER}, {1: HALF, 0: HALF}], 2, "the text's own token 2 is not among those given"),
        ([{2: HALF}, {1: HALF, 0: HALF}], 2, "position 1: 1 tokens given, and 2 asked for"),
        ([{2: HALF, 0: HALF}, {1: HALF, 0: HALF}], 0, "2 tokens given, and all asked for, of which .* has 4"),
        ([{2: HALF, 0: HALF, 1: -50.0, 4: -50.0}, {1: HALF, 0: HALF, 2: -50.0, 4: -50.0}], 0, "some are missing"),
        ([{2: -9.0, 0: HALF, 1: -50.0, 3: -50.0}, {1: HALF, 0: HALF, 2: -50.0, 3: -50.0}], 0, "sum to 0.5"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_rows_is_said(rows, k, said):
    with pytest.raises(Wrong, match=said):
        forms.read(ROWS, PROMPT, k, prompt_rows(*rows), TEXTS)


def test_whole_vocabularies_may_be_padded_there():
    row = {0: QUARTER, 1: QUARTER, 2: QUARTER, 3: QUARTER, 4: -60.0, 5: -9999.0}
    found = forms.read(ROWS, PROMPT, 0, prompt_rows(row, row), TEXTS)
    assert found.ids is None and found.logp.shape == (2, 6)
    assert cut(found, (2, 1), 0, 4).logp.shape == (2, 4)


def test_a_field_that_is_not_there_is_told_from_one_that_is_wrong():
    for form in (PROMPT, ECHO):
        with pytest.raises(Lacks):
            forms.read(ROWS, form, 2, {"choices": [{"text": ""}]}, TEXTS)


# --- from k tokens to a row -----------------------------------------------------------------------------------------


ROW = {  # of tokens 0 … 5: what is listed of it, with the row's own token in the last slot, and all probabilities
    "what is left is shared by all that are not listed": (
        (3, 0, 2), (0.5, 0.25, 0.05), [0.25, 0.2 / 3, 0.05, 0.5, 0.2 / 3, 0.2 / 3]),
    "token 7 is padding of the server's vocabulary: its mass is left, too": (
        (3, 7, 2), (0.5, 0.25, 0.05), [0.45 / 4, 0.45 / 4, 0.05, 0.5, 0.45 / 4, 0.45 / 4]),
    "a label that is listed anyway counts once": (
        (3, 0, 0), (0.5, 0.25, 0.25), [0.25, 0.0625, 0.0625, 0.5, 0.0625, 0.0625]),
    "the likeliest token, and so what is said, is padding": (
        (7, 3, 7), (0.5, 0.25, 0.5), [0.15, 0.15, 0.15, 0.25, 0.15, 0.15]),
}  # fmt: skip


@pytest.mark.parametrize("case", ROW)
def test_k_tokens_become_a_row(case):
    ids, values, expected = ROW[case]
    rows = cut(Answer(np.array([ids], np.int32), np.log(np.array([values], np.float32))), ids[-1:], 2, 6)
    assert rows.rows(6, torch.device("cpu")).exp()[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_fewer_tokens_of_an_answer_and_tokens_of_a_whole_row():
    listed = Answer(np.array([[3, 0, 5, 2]], np.int32), np.log(np.array([[0.5, 0.25, 0.1, 0.05]], np.float32)))
    whole = Answer(None, np.log(np.array([[0.25, 0.04, 0.05, 0.5, 0.06, 0.1]], np.float32)))
    for answer in (listed, whole):
        rows = cut(answer, (2,), 2, 6)
        assert rows.ids.tolist() == [[3, 0, 2]] and np.exp(rows.residual) == pytest.approx([0.2], abs=1e-6)
    none_left = cut(Answer(np.array([[3, 0]], np.int32), np.array([[0.0, -30.0]], np.float32)), (0,), 1, 6)
    assert np.exp(none_left.residual) == pytest.approx([LEAST], rel=1e-4)
    arrays = none_left.ids, none_left.logp, none_left.residual
    assert spread(*map(torch.from_numpy, arrays), 6).isfinite().all()
    with pytest.raises(BlackBoxError, match="lie beyond the pair's 6"):
        cut(Answer(np.array([[7, 8, 7]], np.int32), np.log(np.array([[0.5, 0.25, 0.5]], np.float32))), (7,), 2, 6)


# --- rubbish --------------------------------------------------------------------------------------------------------

SERVER = Server(tiny_llama(0), Numbered(), Faults())
WIDE = Texts(SERVER.tokenizer, 40)
QUESTIONS = [(rows_of((5, 6), (7, 1)), PROMPT), (rows_of((5, 6), (7, 1)), ECHO), (Question(NEXT, (5, 6)), PROMPT),
             (Question(SAY, (5, 6), most=3), ECHO)]  # fmt: skip
GOOD = [SERVER.complete(forms.body(q, "m", Way(form, 1), 4, 40))[1] for q, form in QUESTIONS]
RUBBISH = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=5),
    st.just([]), st.just({}), st.lists(st.floats(), max_size=3), st.dictionaries(st.text(max_size=3), st.floats()),
)  # fmt: skip


def paths(value, path=()):
    """Of every part of an answer."""
    yield path
    if isinstance(value, dict | list):
        for key, part in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
            yield from paths(part, (*path, key))


@settings(max_examples=150, deadline=None)
@given(which=st.integers(0, len(GOOD) - 1), part=st.integers(0, 10**6), rubbish=RUBBISH, drop=st.booleans())
def test_no_rubbish_is_taken_for_an_answer_and_none_ends_in_another_error(which, part, rubbish, drop):
    (question, form), data = QUESTIONS[which], copy.deepcopy(GOOD[which])
    all_paths = list(paths(data))
    path = all_paths[part % len(all_paths)]
    if not path:
        data = rubbish
    else:
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        if drop:
            del parent[path[-1]]
        else:
            parent[path[-1]] = rubbish
    try:
        found = forms.read(question, form, 4, json.loads(json.dumps(data)), WIDE)
    except Wrong:
        return
    n = len(question.ids) - question.first if question.first else len(found.logp)
    assert found.ids.shape == found.logp.shape == (n, 5) and found.ids.dtype == np.int32
    assert np.isfinite(found.logp).all() and (found.logp <= 0).all()
    assert all(len(set(row[:-1])) == 4 for row in found.ids.tolist())
    if question.first:
        assert tuple(found.ids[:, -1]) == question.ids[question.first :]
