"""Choosing tokens, and their text as it comes: stop strings across tokens, characters of several bytes."""

import math
import random
import sys
from itertools import accumulate

import pytest
import torch
from support.served import bytewise, tokenizer

from unlearn.decoding.choosing import Draw, choose, key, nucleus
from unlearn.deploy.serving.answers import Stop, Text

# --- text -------------------------------------------------------------------------------------------------------------


def said(tok, text: str, stop=(), strip=False) -> list[str]:
    """What each byte of a text adds, until it is stopped."""
    found, made, ids = [], Text(tok, tok("So:")["input_ids"], stop, strip), tok(text)["input_ids"]
    for i, token in enumerate(ids):
        found.append(made.add(token, last=i == len(ids) - 1))
        if made.stopped:
            break
    return found


def test_characters_of_several_bytes_come_whole():
    tok = bytewise()
    assert said(tok, " né€🙂.") == [" ", "n", "", "é", "", "", "€", "", "", "", "🙂", "."]
    half = tok("é")["input_ids"][0]
    assert Text(tok, [1, 2]).add(half, last=True) == "\ufffd"
    made = Text(tok, [1, 2])  # bytes that never become a character are not waited for
    assert "".join(made.add(half) for _ in range(9)) == "\ufffd" * 8


def test_a_token_costs_the_same_however_long_stop_strings_and_the_answer_are():
    """In steps of the search: quadratic, it would be 16 × 1,000 a character."""
    stops, steps = [Stop("a" * 999 + chr(98 + i)) for i in range(16)], 0
    tok = bytewise()
    made = Text(tok, [], [])
    made._stops = stops

    def counted(frame, event, _):
        nonlocal steps
        steps += event == "line" and frame.f_code is Stop._after.__code__
        return counted

    tokens = tok("a" * 2000)["input_ids"]
    sys.settrace(counted)
    try:
        told = "".join([made.add(token) for token in tokens])
    finally:
        sys.settrace(None)
    assert steps <= 16 * 6 * 2000 and told + made._held == "a" * 2000


@pytest.mark.parametrize(
    "text, stop, expected",
    [
        ("one two. three", ["."], "one two"),
        ("one two. three", [". th"], "one two"),  # across tokens
        ("one two. three", ["three", "two"], "one "),  # the first in the text, not in the list
        ("ababac", ["abac"], "ab"),  # what began before in vain
        ("aaab", ["aab"], "a"),
        ("né€🙂.", ["€🙂"], "né"),
        ("one two", ["twos"], "one two"),  # held back, and said in the end
        ("stop", ["stop"], ""),
    ],
)
def test_nothing_of_a_stop_string_is_said(text, stop, expected):
    so_far = list(accumulate(said(bytewise(), text, stop)))
    assert so_far[-1] == expected and all(expected.startswith(s) for s in so_far)  # at no time


def test_any_text_with_any_stop_strings_ends_where_it_should():
    chance, tok = random.Random(0), bytewise()
    for _ in range(300):
        text = "".join(chance.choices("abé ", k=chance.randint(1, 12)))
        stop = ["".join(chance.choices("abé ", k=chance.randint(1, 3))) for _ in range(chance.randint(0, 2))]
        ends = [text.index(s) + len(s) for s in stop if s in text]
        first = text[: min(ends)] if ends else text  # generation ends with the first stop string that is whole
        cut = [first.index(s) for s in stop if s in first]
        assert "".join(said(tok, text, stop)) == (first[: min(cut)] if cut else first), (text, stop)


def test_white_space_at_the_beginning_is_dropped_where_it_is_no_part_of_the_answer():
    assert said(bytewise(), "  a b", strip=True) == ["", "", "a", " ", "b"]
    assert "".join(said(tokenizer(), " w3 w4", strip=True)) == "w3 w4"
    assert "".join(said(tokenizer(), " w3 w4")) == " w3 w4"


# --- tokens -----------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -9.0]).log_softmax(-1)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (2.0, 1.0), (1.0, 0.8), (0.5, 0.9), (1.0, 0.5)])
def test_tokens_come_as_often_as_they_should(temperature, top_p):
    n = 4000
    draws = [Draw(temperature, top_p, key(0, [1, 2], i)) for i in range(n)]
    found, sure = choose(LOGITS.expand(n, -1), draws, [3] * n, 1e-5)
    p = (LOGITS / temperature).softmax(-1)
    kept = p * (p.cumsum(0) - p < top_p)  # already the likeliest first
    kept /= kept.sum()
    share = torch.bincount(found, minlength=5) / n
    assert ((share - kept).abs() <= 4 * (kept * (1 - kept) / n).sqrt()).all()
    assert sure.float().mean() > 0.998


def test_noise_is_that_of_its_key_and_step_and_is_gumbels():
    def gumbel(key: int, step: int, width: int) -> torch.Tensor:
        return -Draw(1.0, 1.0, key).noise(step, width).log()

    a = gumbel(key(7, [1], 0), 2, 100_000)
    assert torch.equal(a, gumbel(key(7, [1], 0), 2, 100_000))
    assert a.mean() == pytest.approx(0.57722, abs=0.02) and a.var() == pytest.approx(math.pi**2 / 6, abs=0.05)
    others = [(key(7, [1], 0), 3), (key(7, [1], 1), 2), (key(8, [1], 0), 2), (key(7, [2], 0), 2)]
    assert all(not torch.equal(gumbel(key(7, [1], 0), 2, 9), gumbel(*other, 9)) for other in others)
    again = Draw(1.0, 1.0, key(7, [1], 0))
    for step in (5, 2, 2, 3, 2):  # in whatever order it is asked for
        assert torch.equal(again.noise(step, 9), Draw(1.0, 1.0, key(7, [1], 0)).noise(step, 9))


def test_a_choice_is_sure_only_if_no_last_digit_can_change_it():
    """Logits that are moved within the error never change a sure choice; and most choices are sure."""
    torch.manual_seed(0)
    n, error = 600, 5e-3
    logits = torch.randn(n, 50)
    draws = [Draw((0.0, 0.7, 1.5)[i % 3], (1.0, 0.6, 0.9)[i % 3], key(i, [i], 0)) for i in range(n)]
    token, sure = choose(logits, draws, [0] * n, error)
    assert 0.8 < sure.float().mean() < 1
    changed = torch.zeros(n, dtype=torch.bool)
    for _ in range(50):
        other, _ = choose(logits + error * (2 * torch.rand_like(logits) - 1), draws, [0] * n, error)
        changed |= other != token
    assert changed.any() and not (changed & sure).any()


def test_the_nucleus_by_hand():
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25]], dtype=torch.double)
    found = {0.4: [1], 0.5: [1], 0.51: [1, 3], 0.75: [1, 3], 0.8: [1, 2, 3], 1.0: [0, 1, 2, 3]}
    for top_p, expected in found.items():
        inside, outer, core = nucleus(p.log(), torch.tensor([top_p]), torch.tensor([[1e-9]], dtype=torch.double))
        assert inside[0].nonzero()[:, 0].tolist() == expected, top_p
        assert (inside <= outer).all() and (core <= inside).all()


def test_a_tie_of_two_tokens_is_never_sure_and_goes_to_the_first_as_argmax_does():
    token, sure = choose(torch.tensor([[0.0, 1.0, 1.0]]), [Draw(0.0, 1.0, 0)], [0], 0.0)
    assert token.tolist() == [1] and sure.tolist() == [False]
