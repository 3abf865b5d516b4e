"""Rules that join logits: what every rule must keep, what each one does, and how one is bound or brought along."""

import math
from dataclasses import replace

import pytest
import torch
from support.helpers import FEW, execute

from unlearn.ensemble.combination import RULES, SUM, bind_rule, defer, plausible, rank, threshold
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.grid.fitting import problems
from unlearn.store import runlog

ROWS, VOCABULARY = 40, 30
NUMBERS = {
    "sum": {}, "plausible": {"rate": 0.05, "top": 0.1}, "rank": {"k": 4.0}, "threshold": {"tau": 1.0},
    "defer": {"tau": 0.5},
}  # fmt: skip
RULE_NAMES = sorted(RULES)


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(ROWS, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def base() -> torch.Tensor:
    return logits(0)


@pytest.fixture
def change() -> torch.Tensor:
    return logits(1)


def joined(name: str, base: torch.Tensor, change: torch.Tensor, alpha: float, shift: float = 0.0) -> torch.Tensor:
    watched = [logits(3).to(base) + shift] if name == "defer" else []
    return RULES[name](base, change, alpha, *watched, **NUMBERS[name])


@pytest.mark.parametrize("name", RULE_NAMES)
def test_every_rule_is_base_at_alpha_zero_bit_for_bit_and_notices_no_constant_added_to_a_row(base, change, name):
    for kind in (torch.float32, torch.float64):
        assert torch.equal(joined(name, base.to(kind), change.to(kind), 0.0), base.to(kind))
    constants = 50 * torch.randn(ROWS, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for alpha in (0.5, 1.0, 2.5):
        expected = joined(name, base, change, alpha).softmax(-1)
        for b, c in ((base + constants, change), (base, change + constants), (base - constants, change + constants)):
            found = joined(name, b, c, alpha, 7.0).softmax(-1)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(expected, base.softmax(-1))  # the rule did something at all


@pytest.mark.parametrize("name", RULE_NAMES)
def test_rules_and_their_gradients_are_finite_where_logits_are_extreme(base, change, name):
    for size in (1.0, 1e4):
        b, c = ((size * x).float().requires_grad_(True) for x in (base, change))
        out = joined(name, b, c, 2.0)
        assert out.isfinite().all() and out.shape == base.shape
        out.log_softmax(-1).sum().backward()
        for leaf in (b, c):
            assert leaf.grad is None or leaf.grad.isfinite().all()
        assert b.grad.any()


def inside_of(base: torch.Tensor, rate: float, top: float) -> torch.Tensor:
    """Plausible tokens from the definition: row by row, token by token."""
    inside = torch.zeros_like(base, dtype=torch.bool)
    for row, values in enumerate(base.softmax(-1).tolist()):
        first = sorted(range(VOCABULARY), key=lambda v: -values[v])[: max(1, round(top * VOCABULARY))]
        inside[row] = torch.tensor([v in first or values[v] >= rate * max(values) for v in range(VOCABULARY)])
    return inside


@pytest.mark.parametrize(("rate", "top"), [(0.05, 0.1), (0.9, 0.2), (1e-9, 0.01), (0.01, 0.01)])
def test_implausible_tokens_keep_their_probability_and_the_others_share_the_rest_as_the_sum_does(
    base, change, rate, top
):
    inside = inside_of(base, rate, top)
    before, after = base.softmax(-1), plausible(base, change, 1.5, rate, top).softmax(-1)
    torch.testing.assert_close(after[~inside], before[~inside], rtol=0, atol=1e-6)
    moved = (base + 1.5 * change).exp() * inside
    shares = moved / moved.sum(-1, keepdim=True)
    torch.testing.assert_close((after * inside) / (after * inside).sum(-1, keepdim=True), shares)


def test_at_least_the_top_share_is_plausible_however_sure_base_is(change):
    base = torch.zeros(1, VOCABULARY, dtype=torch.float64)
    base[0, :4] = torch.tensor([40.0, 20.0, 10.0, 5.0])  # by its rate, only token 0 would be plausible
    after = plausible(base, change[:1], 1.0, rate=0.5, top=3 / VOCABULARY)
    moved = after - base
    assert moved[0, :3].ne(0).all() and moved[0, 3:].eq(0).all()
    alone = plausible(base, change[:1], 1.0, rate=0.5, top=0.0)
    torch.testing.assert_close(alone, base)  # one plausible token keeps the mass it had


def test_where_all_tokens_are_plausible_the_rule_is_the_sum(base, change):
    found = plausible(base, change, 0.8, rate=1e-30, top=0.0).softmax(-1)
    torch.testing.assert_close(found, (base + 0.8 * change).softmax(-1))


def below(value: float) -> float:
    return math.nextafter(value, -math.inf)


@pytest.mark.parametrize(("k", "alpha", "n"), [(4.0, 1.0, 4), (3.0, 0.5, 2), (20.0, 0.1, 2), (5.0, 1.3, 6)])
def test_rank_lowers_the_tokens_that_change_most_against_and_raises_none(base, change, k, alpha, n):
    after = rank(base, change, alpha, k)
    assert after.isfinite().all()
    for row in range(ROWS):
        order = sorted(range(VOCABULARY), key=lambda v: change[row, v].item())
        level = sorted(base[row].tolist(), reverse=True)[n]  # the largest that is not among the first n
        expected = base[row].clone()
        for v in order[:n]:
            expected[v] = min(expected[v].item(), below(level))
        assert torch.equal(after[row], expected)
        assert after[row].argmax().item() not in order[:n]
    assert (after <= base).all() and (after < base).any()


def test_pushed_out_tokens_fall_just_below_the_first_that_could_be_left_so_that_no_tie_brings_them_back():
    base, change = torch.tensor([[[5.0, 4.0, 3.0, 0.0]], [[-9.0, -1.0, 0.0, 1.0]]], dtype=torch.float64)
    assert rank(base, change, 1.0, 1.0).tolist() == [[below(4.0), 4.0, 3.0, 0.0]]
    assert rank(base, change, 1.0, 2.0).tolist() == [[below(3.0), below(3.0), 3.0, 0.0]]
    assert rank(base, change, 1.0, 3.0).tolist() == [[below(0.0), below(0.0), below(0.0), 0.0]]
    for k in (1, 2, 3):
        assert rank(base.float(), change.float(), 1.0, float(k)).argmax(-1).tolist() == [k]  # in single precision too


@pytest.mark.parametrize("k", [VOCABULARY, VOCABULARY + 1, 1e9])
def test_rank_takes_any_k_leaves_one_token_and_does_nothing_for_less_than_half_a_token_or_a_negative_alpha(
    base, change, k
):
    after = rank(base, change, 1.0, float(k))
    lowest = base.amin(-1, keepdim=True).apply_(below).expand_as(base)
    best = change.argmax(-1, keepdim=True)
    assert torch.equal(after, lowest.scatter(-1, best, base.gather(-1, best)))
    assert torch.equal(rank(base, change, 0.1, 4.0), base) and torch.equal(rank(base, change, -1.0, 4.0), base)


def test_a_threshold_leaves_out_small_changes_and_brings_others_nearer_to_the_median():
    base, change = torch.zeros(1, 5), torch.tensor([[-7.0, 1.0, 2.0, 3.0, 12.0]])  # −9, −1, 0, 1 and 10 from the median
    assert threshold(base, change, 2.0, 1.5).tolist() == [[-15.0, 0.0, 0.0, 0.0, 17.0]]


def test_defer_is_the_target_while_offset_and_anchor_agree_and_goes_to_the_anchor_as_they_part():
    target, anchor, offset = (logits(seed).double() for seed in (4, 5, 6))
    near = anchor + 0.01 * offset
    for said, tau in ((anchor, 0.0), (near, 0.01)):
        assert torch.equal(defer(target, anchor - target, 3.0, said - anchor, tau), target)
    p, q = anchor.softmax(-1), offset.softmax(-1)
    apart = (p * (p / q).log()).sum(-1, keepdim=True)  # KL(anchor ‖ offset), by its definition
    for alpha, tau in ((0.3, 0.0), (1.0, 2.0), (1e3, 0.0)):
        share = 1 - (-alpha * (apart - tau).clamp_min(0)).exp()
        expected = (1 - share) * target + share * anchor
        torch.testing.assert_close(defer(target, anchor - target, alpha, offset - anchor, tau), expected)
    members = Member("target", None, "t", 1.0, -1.0), Member("offset", None, "o", 0.0, 0.0, True, 1.0)
    ensemble = Ensemble(
        (*members, Member("anchor", None, "a", 0.0, 1.0, False, -1.0)), bind_rule("defer", {"tau": 0.0})
    )
    rows = {"target": target, "offset": offset, "anchor": anchor}
    found = ensemble.logits(rows, 1e3)
    torch.testing.assert_close(found.softmax(-1), p)  # the forgotten answers are the anchor's guesses
    assert torch.equal(ensemble.logits(rows | {"offset": anchor}, 1e3), target)
    assert [m.name for m in ensemble.needed([0.0])] == ["target"]
    same = replace(ensemble, members=(*members, Member("anchor", None, "t", 0.0, 1.0, False, -1.0))).once
    assert [(m.name, m.constant, m.slope, m.watch) for m in same.members] == [
        ("target", 1.0, 0.0, -1.0), ("offset", 0.0, 0.0, 1.0),
    ]  # fmt: skip


def test_refuse_is_the_target_until_the_offset_parts_from_its_anchor_and_then_the_offset():
    target, anchor, offset = (logits(seed).double() for seed in (4, 5, 6))
    members = (
        Member("target", None, "t", 1.0, -1.0), Member("offset", None, "o", 0.0, 1.0, True, -1.0),
        Member("anchor", None, "a", 0.0, 0.0, False, 1.0),
    )  # fmt: skip
    ensemble = Ensemble(members, bind_rule("defer", {"tau": 0.5}))
    p, q = offset.softmax(-1), anchor.softmax(-1)
    share = 1 - (-2.0 * ((p * (p / q).log()).sum(-1, keepdim=True) - 0.5).clamp_min(0)).exp()
    rows = {"target": target, "offset": offset, "anchor": anchor}
    torch.testing.assert_close(ensemble.logits(rows, 2.0), (1 - share) * target + share * offset)
    assert torch.equal(ensemble.logits(rows | {"anchor": offset}, 1e3), target)


def test_binding_fills_in_the_numbers_and_keeps_the_plain_sum_plain(base, change):
    rule = bind_rule("plausible", {"rate": 0.05, "top": 0.1})
    torch.testing.assert_close(rule(base, change, 2.0), plausible(base, change, 2.0, 0.05, 0.1), rtol=0, atol=0)
    assert bind_rule("sum", {}) is SUM


def test_unknown_rules_and_wrong_numbers_are_refused_with_the_choices():
    for name, numbers, message in (
        ("median", {}, r"method.rule='median': no such rule; there are sum, plausible, rank"),
        ("plausible", {"rate": 0.1}, r"rule 'plausible' needs method.numbers.top: give .method.numbers.top=NUMBER"),
        ("rank", {"k": 3, "top": 0.5}, r"method.numbers.top=0.5: rule 'rank' has no top; it takes k"),
        ("sum", {"k": 3}, r"method.numbers.k=3: rule 'sum' has no k; it takes no numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            bind_rule(name, numbers)


HEADER = "from unlearn.ensemble.combination import Logits\n"
GOOD = HEADER + (
    "def clipped(base: Logits, change: Logits, alpha: float, most: float) -> Logits:\n"
    "    return base + (alpha * change).clamp(-most, most)\n"
)


def test_a_rule_of_the_users_own_comes_before_ours_and_its_defaults_hold_where_no_number_is_given(
    tmp_path, base, change
):
    text = HEADER + "def sum(base: Logits, change: Logits, alpha: float) -> Logits:\n    return base - alpha * change\n"
    (tmp_path / "rules.py").write_text(text)
    rule = bind_rule("sum", {}, str(tmp_path / "rules.py"))
    assert rule is not SUM
    torch.testing.assert_close(rule(base, change, 2.0), base - 2.0 * change)
    (tmp_path / "rules.py").write_text(GOOD.replace("most: float", "least: float, most: float = 2.0"))
    file = str(tmp_path / "rules.py")
    left, given = (bind_rule("clipped", {"least": 0.0} | more, file) for more in ({}, {"most": 0.5}))
    torch.testing.assert_close(left(base, change, 1.5), base + (1.5 * change).clamp(-2.0, 2.0))
    torch.testing.assert_close(given(base, change, 1.5), base + (1.5 * change).clamp(-0.5, 0.5))
    with pytest.raises(ValueError, match="rule 'clipped' needs method.numbers.least"):  # it has no default
        bind_rule("clipped", {"most": 0.5}, file)


def test_a_users_own_rule_trains_and_evaluates_unless_no_gradient_passes_it(config, tmp_path):
    (tmp_path / "rules.py").write_text(GOOD)
    own = ["algo=ga", *FEW, f"method.file={tmp_path}/rules.py", "method.rule=clipped", "trainer.lr=1e-2"]
    tight, loose, plain = (
        execute(config(*options)).folder
        for options in (
            [*own, "+method.numbers.most=1e-9"], [*own, "+method.numbers.most=100"],
            ["algo=ga", *FEW, "trainer.lr=1e-2"],
        )
    )  # fmt: skip
    assert len({tight.name, loose.name, plain.name}) == 3  # the rule and its numbers are part of what a run is
    prob = {f: runlog.evaluation(f)["alphas"]["1.0"]["forget/prob"] for f in (tight, loose, plain)}
    target = runlog.evaluation(tight)["references"]["target"]["forget/prob"]
    assert prob[tight] == pytest.approx(target, rel=1e-5)  # nothing may move a logit by more than 1e-9 …
    assert prob[loose] == pytest.approx(prob[plain], rel=1e-5)  # … and nothing is moved by more than 100
    assert abs(prob[plain] - target) > 1e-3 * target
    # Which tokens `rank` pushes out is a choice, and below a threshold nothing moves: no offset could learn there.
    for rule in ("rank", "+method.numbers.k=3"), ("threshold", "+method.numbers.tau=1"):
        with pytest.raises(ValueError, match=f"method.rule='{rule[0]}': has no gradient to learn from"):
            execute(config(f"method.rule={rule[0]}", rule[1]))
    # One that has learnt is taken as it is, without a step.
    taken = ["algo=ga", *FEW, f"begin.runs=[{plain}]", "trainer.steps=0", "method.rule=threshold"]
    for tau, same in ((0, prob[plain]), (1e3, target)):
        found = execute(config(*taken, f"+method.numbers.tau={tau}")).folder
        assert runlog.evaluation(found)["alphas"]["1.0"]["forget/prob"] == pytest.approx(same, rel=1e-5)


def test_a_rule_that_watches_and_members_that_are_watched_go_together(config):
    alone = ["method.alone=true", "method.train_alpha=1", "+method.numbers.tau=1"]
    for given, said in (
        (["method.rule=defer", *alone], "method.rule='defer': takes watched: a member needs watch"),
        (["method=defer", "algo=me_kl", "method.rule=threshold"],
         "method.rule='threshold': does not take watched, and ['offset', 'anchor'] have watch"),
        (["method=defer", "algo=me_kl"], None),
    ):  # fmt: skip
        assert list(problems([config("algo=npo", *given)])) == ([said] if said else [])


def test_only_a_plain_sum_drops_a_member_whose_constant_and_slope_cancel(base, change):
    target, tuned = Member("target", None, "t", 1.0, -1.0, False), Member("tuned", None, "t", 0.0, 1.0, True)
    other = bind_rule("rank", {"k": 4.0})
    for rule, names in ((SUM, []), (other, ["target"])):
        ensemble = Ensemble((target, tuned), rule)
        assert [m.name for m in ensemble.frozen(1.0)] == names
        assert [m.name for m in ensemble.needed([1.0])] == [*names, "tuned"]
        assert [m.name for m in ensemble.needed([0.0])] == ["target"]  # with no α, the tuned model has no weight
    rows = {"target": base, "tuned": change}
    found = Ensemble((target, tuned), other).logits(rows, 1.0)
    torch.testing.assert_close(found, rank(base, change - base, 1.0, 4.0), rtol=0, atol=0)
    assert torch.equal(Ensemble((target, tuned), SUM).logits({"tuned": change}, 1.0), change)


@pytest.mark.parametrize("name", RULE_NAMES)
def test_an_ensemble_under_any_rule_is_the_target_at_alpha_zero_and_where_nothing_changed(base, change, name):
    offset, anchor = ((0.0, 1.0), (1.0, -1.0)) if name == "defer" else ((1.0, 0.0), (-1.0, 0.0))
    members = (
        Member("target", None, "t", 1.0, -1.0 if name == "defer" else 0.0, False),
        Member("offset", None, "o", 0.0, offset[0], True, offset[1]),
        Member("anchor", None, "a", 0.0, anchor[0], False, anchor[1]),
    )
    ensemble = Ensemble(members, bind_rule(name, NUMBERS[name]))
    assert torch.equal(ensemble.logits({"target": base}, 0.0), base)
    if name != "rank":  # among equal changes the tokens to push out are anyone's choice
        same = ensemble.logits({"target": base, "offset": change, "anchor": change.clone()}, 2.0)
        assert torch.equal(same, base)
