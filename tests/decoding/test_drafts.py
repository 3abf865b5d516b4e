"""Decoding with drafts, stored ones or a small member's: token for token what plain decoding says."""

from contextlib import contextmanager
from functools import cache
from itertools import takewhile
from operator import eq

import numpy as np
import pytest
import torch
from support.helpers import near, offset_ensemble, random_examples, tiny_llama
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config

from unlearn.data.encoding import Example, Examples, collate
from unlearn.decoding import drafts
from unlearn.decoding.choosing import LEAST, decide, tolerance
from unlearn.decoding.drafts import drafts_of, greedy_drafted, greedy_from_drafts
from unlearn.decoding.generation import Decoding, decode, greedy
from unlearn.ensemble import kinds
from unlearn.ensemble.combination import SUM, bind_rule
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.ensemble.frozen import rows_of
from unlearn.evaluation import evaluation
from unlearn.evaluation.scoring import score
from unlearn.models import prompts, seen
from unlearn.models.llama import answer_rows
from unlearn.store.entries import Store

PROMPTS = [e.prompt for e in random_examples(12, seed=3)]
RULES = {
    "sum": SUM,
    "plausible": bind_rule("plausible", {"rate": 0.05, "top": 0.05}),
    "rank": bind_rule("rank", {"k": 6}),
}
STEPS = 12


def near_ensemble(scale: float = 0.1) -> Ensemble:
    target, anchor = tiny_llama(0), tiny_llama(2, hidden=8)
    with torch.no_grad():
        target.get_output_embeddings().weight[1] *= 1.7  # so that some answers end
    return offset_ensemble(target, near(anchor, scale), anchor)


def plain(ensemble, alpha, batch_size=5, steps=STEPS):
    return greedy(ensemble, PROMPTS, alpha, Decoding(0, 1, steps, batch_size))


def drafted(ensemble, alpha, store, batch_size=5, steps=STEPS, gib=1.0):
    return greedy_from_drafts(ensemble, PROMPTS, alpha, Decoding(0, 1, steps, batch_size), store, gib)


@contextmanager
def positions(model):
    """Counts the tokens that a model reads, without padding."""
    read = []

    def note(module, args, kwargs):
        read.append(int(kwargs["attention_mask"][:, -kwargs["input_ids"].shape[1] :].sum()))

    hook = model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    yield read
    hook.remove()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("drafts"))


SCALES = {"sum": 0.05, "plausible": 0.02, "rank": 0.3}


@cache
def said_by(rule: str, alpha: float) -> list[list[int]]:
    return plain(ruled(rule), alpha)


def ruled(rule: str) -> Ensemble:
    return Ensemble(near_ensemble(SCALES[rule]).members, RULES[rule])


@pytest.mark.parametrize("rule", RULES)
def test_what_drafts_begin_is_what_plain_decoding_says_token_for_token(kept, rule):
    ensemble = ruled(rule)
    for alpha, batch_size, steps in ((0.0, 12, STEPS), (0.5, 5, STEPS), (1.0, 1, 5), (2.0, 5, STEPS), (2.0, 5, 1)):
        found = drafted(ensemble, alpha, kept, batch_size, steps)
        assert found == [answer[:steps] for answer in said_by(rule, alpha)]


def test_these_ensembles_agree_with_their_drafts_for_a_while_and_then_do_not(kept):
    """The test above means something only if drafts are left early, late and never, some at their end."""
    ensemble = near_ensemble(0.05)
    how = Decoding(0, 1, STEPS, 5)
    found = drafts_of(kept, ensemble.members[0], PROMPTS, how)
    said = decode(ensemble, PROMPTS, 1.0, how)
    agreed = [sum(takewhile(bool, map(eq, a, d.answer))) for a, d in zip(said, found, strict=True)]
    assert len(set(agreed)) > 3 and any(n == len(d.answer) for n, d in zip(agreed, found, strict=True))
    assert {len(d.answer) for d in found} != {STEPS} and STEPS in {len(d.answer) for d in found}
    assert {d.answer[-1] == 1 for d in found} == {True, False}


@pytest.mark.parametrize("of", [0, 1])
def test_an_answer_ends_at_every_end_whether_or_not_the_drafting_member_knows_it(kept, of):
    """``of`` 1: the ensemble's first member knows more ends than the one that drafts."""
    target, offset, anchor = near_ensemble(0.02).members
    other = next(a[2] for a in plain(Ensemble((target, offset, anchor)), 1.0) if len(a) > 4)
    ensemble = Ensemble((target, offset, anchor) if of == 0 else (offset, target, anchor))
    ensemble.members[0].model.generation_config.eos_token_id = [1, other]
    said = plain(ensemble, 1.0)
    assert drafted(ensemble, 1.0, kept) == said and not any(other in a for a in said)
    if of == 0:
        offset.model.generation_config.eos_token_id = None
        swapped = Ensemble((offset, target, anchor))  # and now it is the drafting member that knows more
        assert any(other in a for a in plain(swapped, 1.0))
        assert drafted(swapped, 1.0, kept) == plain(swapped, 1.0)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_target_is_not_run_where_the_ensemble_agrees(kept, alpha):
    ensemble = near_ensemble(0.0)
    drafted(ensemble, alpha, kept)
    with positions(ensemble.members[0].model) as read:
        assert drafted(ensemble, alpha, kept) == plain(Ensemble(ensemble.members[:1]), 1.0)
        assert sum(read) > 0  # by the plain decoding that it is compared with
    with positions(ensemble.members[0].model) as read:
        drafted(ensemble, alpha, kept)
    assert read == []


def test_only_the_offset_checks_the_drafts_and_the_target_reads_never_more_than_in_plain_decoding(kept):
    ensemble = near_ensemble(0.005)
    target, offset, anchor = (m.model for m in ensemble.members)
    drafted(ensemble, 1.0, kept)
    with positions(target) as few, positions(anchor) as by_anchor, positions(offset) as by_offset:
        drafted(ensemble, 1.0, kept)
    with positions(target) as many:
        plain(ensemble, 1.0)
    assert sum(many) > 5 * sum(few) and sum(by_anchor) == sum(few)
    assert sum(by_offset) > sum(by_anchor)
    far = near_ensemble(0.3)
    with positions(far.members[0].model) as few:
        drafted(far, 1.0, kept)
    with positions(far.members[0].model) as many:
        plain(far, 1.0)
    assert 0 < sum(few) <= sum(many)


def test_drafts_are_made_once_and_anew_for_other_weights_prompts_lengths_and_ends_and_rows_over_the_limit_are_computed(
    tmp_path,
):
    store, target = Store(tmp_path), near_ensemble().members[0]

    def entries() -> int:
        return len(list((tmp_path / "draft").iterdir()))

    for _ in range(2):
        drafts_of(store, target, PROMPTS, Decoding(0, 1, STEPS, 5))
        drafts_of(store, target, PROMPTS, Decoding(0, 1, STEPS, 12))
        assert entries() == 1
    drafts_of(store, Member("t", tiny_llama(5), "other", 1.0, 0.0, False), PROMPTS, Decoding(0, 1, STEPS, 5))
    drafts_of(store, target, PROMPTS[:-1], Decoding(0, 1, STEPS, 5))
    drafts_of(store, target, PROMPTS, Decoding(0, 1, STEPS + 1, 5))
    drafts_of(store, target, PROMPTS, Decoding(0, 7, STEPS, 5))
    assert entries() == 5
    store, ensemble = Store(tmp_path), near_ensemble(0.3)
    assert drafted(ensemble, 1.0, store, gib=0.0) == plain(ensemble, 1.0)
    assert not (tmp_path / "rows").exists()
    assert drafted(ensemble, 1.0, store, gib=1.0) == plain(ensemble, 1.0)
    assert len(list((tmp_path / "rows").iterdir())) == 2  # target and anchor


def test_a_model_alone_is_its_own_draft_and_one_that_replaces_the_target_is_held_against_it(tmp_path):
    target, tuned = tiny_llama(0), near(tiny_llama(0), 0.1)
    direct = Ensemble((Member("target", target, "t", 1.0, -1.0, False), Member("tuned", tuned, "u", 0.0, 1.0, True)))
    store = Store(tmp_path)
    assert drafted(direct, 1.0, store) == plain(direct, 1.0)
    with positions(target) as read:
        assert drafted(Ensemble(direct.members[:1]), 0.0, store) == plain(direct, 0.0)
        assert sum(read) > 0  # by the plain decoding that it is compared with
        read.clear()
        drafted(Ensemble(direct.members[:1]), 0.0, store)
        assert not read
    for alpha in (0.0, 0.5):
        assert drafted(direct, alpha, store) == plain(direct, alpha)


def test_evaluation_generates_the_same_texts_with_and_without_a_store(config, bench, tmp_path):
    from unlearn.runs.baselines import suite_of
    from unlearn.runs.learner import members

    cfg = config("method=offset", "algo=npo")
    ensemble = members(cfg, bench)
    with torch.no_grad():
        ensemble.trained.model.get_input_embeddings().weight[::3] *= 1.2
    suite, store = suite_of(cfg, bench), Store(tmp_path / "own")
    texts = {}
    for alpha in (0.0, 1.0):
        for split in suite.splits:
            if split.generated:
                texts[split.name, alpha] = evaluation.generations(ensemble, split, alpha, suite, store)
                assert texts[split.name, alpha] == evaluation.generations(ensemble, split, alpha, suite)
    assert any(texts[name, 0.0] != texts[name, 1.0] for name, _ in texts)
    assert len(list((tmp_path / "own" / "draft").iterdir())) == len(texts) // 2


def twins(model):
    """Tokens of the upper half of the vocabulary become twins of those below: 1e-5 apart, where logits are 10."""
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight[21:40] = weight[2:21] * (1 + 1e-6)
    return model


@pytest.mark.parametrize("rule", ["sum", *(pytest.param(r, marks=pytest.mark.nightly) for r in ("rank", "plausible"))])
def test_where_tokens_tie_plain_decoding_decides(tmp_path, rule, monkeypatch):
    """All tokens come in twins, and what is computed at once is made to differ by more than it does.

    Plain decoding of one prompt at a time, because that does not depend on the other prompts.
    """
    ensemble = offset_ensemble(twins(tiny_llama(0)), twins(tiny_llama(1, hidden=8)), twins(tiny_llama(2, hidden=12)))
    ensemble = Ensemble(ensemble.members, RULES[rule])
    real, random = prompts.head, torch.Generator().manual_seed(0)

    def blurred(model, hidden):
        rows = real(model, hidden)
        return rows + 5e-5 * (2 * torch.rand(rows.shape, generator=random) - 1)

    for module in (prompts, kinds):
        monkeypatch.setattr(module, "head", blurred)
    said = plain(ensemble, 1.0, 1)
    assert drafted(ensemble, 1.0, Store(tmp_path), 1) == said
    monkeypatch.setattr(
        drafts, "decide", lambda *args: (decide(*args)[0], torch.tensor(True).expand(len(args[1]["target"])))
    )
    assert drafted(ensemble, 1.0, Store(tmp_path), 1) != said  # else this would test nothing


@pytest.mark.parametrize(
    ("seed", "rule"),
    [
        pytest.param(seed, rule, marks=[] if (seed, rule) == (0, "sum") else pytest.mark.nightly)
        for seed in range(2)
        for rule in RULES
    ],
)
def test_answers_go_on_from_what_was_read_of_their_prompts_and_drafts(tmp_path, monkeypatch, rule, seed):
    """Scores and answers of several α's from one reading of each prompt; another process reads what this one stored."""
    monkeypatch.setattr(seen, "WORTH", 0)
    target, anchor, store = tiny_llama(seed), tiny_llama(seed + 2, hidden=8), Store(tmp_path)
    ensemble = Ensemble(offset_ensemble(target, near(anchor, 0.05, seed), anchor).members, RULES[rule])
    gold = Examples(Example(e.id, e.prompt, e.answer) for e in random_examples(12, seed=3))
    alphas = (0.0, 0.5, 1.0, 2.0)
    said = {alpha: plain(ensemble, alpha) for alpha in alphas}
    scores = score(ensemble, gold, alphas, {}, 0, 5)
    with seen.remembered(1.0):  # the target's own answers, as they are before any run's
        drafted(Ensemble(ensemble.members[:1]), 0.0, store)
    for again in range(2):
        with seen.remembered(1.0), positions(target) as by_target, positions(ensemble.members[1].model) as by_offset:
            found = score(ensemble, gold, alphas, {"target": rows_of(store, ensemble.members[0], gold, 0, 1.0)}, 0, 5)
            assert {alpha: drafted(ensemble, alpha, store) for alpha in alphas} == said
            for alpha in alphas:
                np.testing.assert_allclose(found[alpha].logp, scores[alpha].logp, atol=1e-4)
        if again:  # only tokens that no draft holds
            assert sum(by_target) <= sum(len(a) + 1 for answers in said.values() for a in answers)
    with positions(ensemble.members[1].model) as many:
        score(ensemble, gold, alphas, {}, 0, 5)
        for alpha in alphas:
            drafted(ensemble, alpha, store)
    assert sum(by_offset) < 0.75 * sum(many)  # prompts of 2 to 8 tokens, drafts of 12


def test_in_half_precision_a_doubt_is_decided_token_by_token_from_there_on(tmp_path):
    """No answer is begun again, and each token is one that plain decoding may say after those before it."""
    made = near_ensemble(0.3)
    for m in made.members[:1]:
        m.model.to(torch.bfloat16)
    store = Store(tmp_path)
    drafted(made, 1.0, store)  # the drafts are made, and rows along them
    with positions(made.members[0].model) as read:
        said = drafted(made, 1.0, store)
    assert sum(read) <= sum(len(p) + len(a) + 1 for p, a in zip(PROMPTS, said, strict=True))
    for prompt, answer in zip(PROMPTS, said, strict=True):
        told = Examples([Example("", prompt, (*answer, 1)[:STEPS])])
        found = {m.name: answer_rows(m.model, collate(told, 0)) for m in made.members}
        logits = made.logits(found, 1.0)
        lead = logits.amax(-1) - logits.gather(-1, torch.tensor(told[0].answer)[:, None])[:, 0]
        assert lead.max() <= 2 * sum(map(tolerance, made.members))


def rows(*values) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([v]) for name, v in zip(("target", "offset", "anchor"), values, strict=True)}


def test_a_choice_is_beyond_doubt_where_the_lead_is_large_and_a_rule_that_jumps_is_in_doubt_at_its_edge():
    ensemble = offset_ensemble(*(tiny_llama(i) for i in range(3)))
    zero = [0.0, 0.0, 0.0]
    for lead, alpha, expected in ((3 * LEAST, 0.0, True), (LEAST, 0.0, False), (3 * LEAST, 1.0, False), (1, 1.0, True)):
        token, sure = decide(ensemble, rows([1.0, 1.0 + lead, 0.0], zero, zero), alpha)
        assert (token.item(), sure.item()) == (1, expected)
    # Two tokens tie for being pushed out, and one of them is the target's favourite.
    jumping, zero = Ensemble(ensemble.members, bind_rule("rank", {"k": 1})), [0.0] * 4
    for gap, expected in ((1e-6, False), (1e-2, True)):
        _, sure = decide(jumping, rows([5.0, 1.0, 0.0, -1.0], [-1.0, 0.0, -1.0 - gap, 0.0], zero), 1.0)
        assert sure.item() is expected


def spoken(ensemble, alpha, gamma, batch_size=5, steps=STEPS, drafter=1):
    return greedy_drafted(ensemble, PROMPTS, alpha, Decoding(0, 1, steps, batch_size), ensemble.members[drafter], gamma)


@pytest.mark.parametrize("rule", RULES)
def test_greedy_answers_are_those_of_plain_decoding_token_for_token(rule):
    """The target, 0, drafts well, the offset, 1, badly."""
    for alpha, *how in ((0.0, 3, 5, STEPS, 1), (0.5, 1, 12, STEPS, 0), (1.0, 3, 5, STEPS, 1), (2.0, 1, 12, STEPS, 0)):
        assert spoken(ruled(rule), alpha, *how) == said_by(rule, alpha)


@pytest.mark.nightly
def test_so_they_are_for_one_prompt_long_drafts_a_small_limit_and_prompts_of_one_token():
    ensemble, prompts = near_ensemble(0.1), [(5,), (9,), (9, 3)]
    for gamma, batch_size, steps in ((3, 1, STEPS), (20, 12, STEPS), (3, 5, 1), (3, 5, 4)):
        assert spoken(ensemble, 1.0, gamma, batch_size, steps) == plain(ensemble, 1.0, batch_size, steps)
    for few in (prompts, prompts[:2]):  # nothing is read before the token that the offset drafts from
        said = greedy_drafted(ensemble, few, 1.0, Decoding(0, 1, STEPS, 5), ensemble.members[1], 3)
        assert said == greedy(ensemble, few, 1.0, Decoding(0, 1, STEPS, 5))


KINDS = {
    "window": Gemma2Config(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                           num_key_value_heads=1, intermediate_size=32, head_dim=8, sliding_window=4,
                           initializer_range=1.0, max_position_embeddings=64, pad_token_id=0, eos_token_id=1),
    "learned positions": GPT2Config(vocab_size=40, n_positions=8 + STEPS, n_embd=16, n_layer=2, n_head=2,
                                    initializer_range=0.5, eos_token_id=1, bos_token_id=1),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "batch_size"), [("window", 12), ("learned positions", 5)])
def test_models_that_see_a_window_and_models_whose_positions_end(kind, batch_size):
    torch.manual_seed(0)
    target = AutoModelForCausalLM.from_config(KINDS[kind]).eval()
    ensemble = offset_ensemble(target, tiny_llama(1, hidden=8), tiny_llama(2, hidden=8))
    said = plain(ensemble, 0.2, batch_size)
    assert len({t for a in said for t in a}) > 5
    for drafter in (0, 1):
        assert spoken(ensemble, 0.2, 6, batch_size, drafter=drafter) == said


def test_a_good_drafter_lets_the_target_run_less_often_and_no_token_drafted_is_refused():
    ensemble = near_ensemble(0.005)
    with positions(ensemble.members[2].model) as few:
        spoken(ensemble, 1.0, 5, 12, drafter=0)
    with positions(ensemble.members[2].model) as many:
        plain(ensemble, 1.0, 12)
    assert 2 * len(few) < len(many)
    with pytest.raises(ValueError, match="gamma=0: must be at least 1"):
        spoken(near_ensemble(), 1.0, 0)
