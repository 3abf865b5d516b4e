"""Dialects of the metrics: what each changes, and that it changes nothing else."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from support.helpers import TINY, build, tiny_llama

from unlearn import evaluate
from unlearn.config.data import TemplateConfig
from unlearn.config.pair import TokenizerConfig
from unlearn.config.schema import EvalConfig
from unlearn.data.encoding import Encoder, Examples
from unlearn.data.rows import DataError, Row
from unlearn.data.sets import bios
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.evaluation import evaluation, measures
from unlearn.evaluation.evaluation import evaluate as measure
from unlearn.evaluation.metrics.semantics import SEMANTICS
from unlearn.evaluation.scoring import Scores
from unlearn.evaluation.suite import Split, suite
from unlearn.models import tokenizers


def alone(model) -> Ensemble:
    return Ensemble((Member("model", model, "", 1.0, 0.0, False),))


# --- epsilon and the floor of extraction strength ---------------------------------------------------------------------
def split_and_scores(name: str, nll: list[float], right: list[list[bool]]) -> tuple[Split, Scores]:
    """Rows with a right and two wrong answers each, in this order; ``nll`` is that of each token."""
    rows = [Row(f"{name}/{i}", "Who?", "Me.", None, None, ("You.", "Them.")) for i in range(len(right) // 3)]
    first = list(range(0, len(right), 3))
    split = Split(
        name, rows, Examples(), first, first, [[i + 1, i + 2] for i in first], [], *[[r.answer for r in rows]] * 2
    )
    starts = np.cumsum([0, *(len(r) for r in right)])
    logp = np.concatenate([np.full(len(r), -v) for v, r in zip(nll, right, strict=True)])
    return split, Scores(starts, logp, np.concatenate(right), logp, logp)


# Of four tokens and EOS: the second row's right answer ends with a wrong token, so it has no right suffix.
RIGHT = [[True, False, True, True, True], *[[True] * 2] * 2, [True, True, True, False, True], *[[True] * 2] * 2]


def values(name: str, semantics: str, nll: list[float]):
    return measures.measure(*split_and_scores(name, nll, RIGHT), ["Me.", "Me."], SEMANTICS[semantics])


def test_epsilon_decides_a_truth_ratio_only_where_the_answer_is_all_but_impossible():
    nll = [1.0, 2.0, 3.0, 30.0, 29.0, 30.0]  # of the second row everything is e^-30
    (_, plain), (metrics, ou) = (values("forget", s, nll) for s in ("default", "ou"))
    assert plain["truth_ratio"].tolist() == pytest.approx([math.exp(1 - 2.5), math.exp(30 - 29.5)])
    ratios = [math.exp(-wrong) / (math.exp(-right) + 1e-10) for right, wrong in ((1, 2.5), (30, 29.5))]
    assert ou["truth_ratio"].tolist() == pytest.approx(ratios)
    assert ou["truth_ratio"][0] == pytest.approx(plain["truth_ratio"][0], rel=1e-9)
    assert ou["truth_ratio"][1] < 2e-3 < plain["truth_ratio"][1]  # an accident: no knowledge, and yet near 0
    r = ou["truth_ratio"].to_numpy()
    assert metrics["forget/truth_ratio"] == pytest.approx(np.minimum(r, 1 / (r + 1e-10)).mean(), rel=1e-12)


def test_epsilon_takes_the_share_of_options_from_a_collapsed_model():
    nll = [1.0, 2.0, 3.0, 40.0, 40.0, 40.0]
    plain, ou = (values("world_facts", s, nll)[1]["prob_options"].tolist() for s in ("default", "ou"))
    expected = 1 / (1 + math.exp(-1) + math.exp(-2))
    assert plain == pytest.approx([expected, 1 / 3])
    assert ou == pytest.approx([expected, math.exp(-40) / (3 * math.exp(-40) + 1e-10)])


@pytest.mark.parametrize("name", ["forget", "world_facts"])
def test_extraction_strength_has_a_floor_in_one_dialect_and_they_agree_on_everything_else(name):
    for semantics, floor in (("default", 0), ("tofu", 0), ("ou", 1 / 4)):
        _, table = values(name, semantics, [1.0] * 6)
        assert table["extraction_strength"].tolist() == [0.5, floor]
        assert table["exact_memorization"].tolist() == [0.75, 0.75]
    changed = {"truth_ratio", "prob_options", "extraction_strength"}
    one, other = (values(name, s, [1.0, 2.0, 3.0, 2.0, 3.0, 1.0])[1] for s in ("default", "ou"))
    for column in set(one) - changed:
        assert one[column].tolist() == other[column].tolist(), column
    for column in (changed & set(one)) - {"extraction_strength"}:
        assert one[column].tolist() == pytest.approx(other[column].tolist(), rel=1e-8)


def test_a_model_evaluated_in_both_dialects(made, tmp_path):
    """Padding is no token of these texts, and no answer impossible: only the floor is left."""
    bench = [o for o in TINY if o.startswith(("data.", "eval.", "trainer."))]
    found = {}
    for name in ("default", "ou"):
        out = tmp_path / f"{name}.json"
        rest = ("eval.groups=[privacy]", "eval.max_examples=3", f"eval.semantics={name}")
        assert evaluate.main([f"model={made('llama')}", f"out={out}", *bench, *rest]) == 0
        found[name] = json.loads(out.read_text())["metrics"]
        found[name].pop("intervals")
    floors = {k for k in found["ou"] if k.endswith("/extraction_strength")}
    one, other = ({k: v for k, v in found[name].items() if k not in floors} for name in found)
    assert one == pytest.approx(other, rel=1e-5, abs=1e-9)  # the epsilon beside answers of e^-10
    assert any(found["ou"][k] > found["default"][k] for k in floors)


# --- hidden padding tokens --------------------------------------------------------------------------------------------
@torch.no_grad()
def by_forward(model, example, hide: bool, eos: int) -> list[float]:
    """Log-probability of each label by the whole model, masked as public code masks it."""
    ids = torch.tensor([example.prompt + example.answer])
    mask = (ids != eos).long() if hide else torch.ones_like(ids)
    logp = model(input_ids=ids, attention_mask=mask).logits[0].double().log_softmax(-1)
    return [logp[len(example.prompt) - 1 + t, token].item() for t, token in enumerate(example.answer)]


def generated(model, prompts, hide: bool, steps: int, eos: int) -> list[list[int]]:
    """transformers' own greedy generation of one left-padded batch."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[eos] * (longest - len(p)) + list(p) for p in prompts])
    whole = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    mask, ends = (ids != eos).long() if hide else whole, {"pad_token_id": eos, "eos_token_id": eos}
    said = model.generate(ids, attention_mask=mask, max_new_tokens=steps, do_sample=False, **ends)
    return [s[: s.index(eos)] if eos in s else s for s in said[:, longest:].tolist()]


@pytest.fixture(scope="module")
def tagged(bench):
    """The tiny world in prompts with an end of turn inside, read by a tokenizer that pads with EOS."""
    tokenizer = copy.deepcopy(bench.encoder.tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    encoder = Encoder(tokenizer, TemplateConfig("plain", "{question}<eos>\n", " {answer}"), 200)
    return bench.data, encoder, tiny_llama(3, vocabulary=len(tokenizer))


@pytest.mark.parametrize(("semantics", "batch_size"), [("default", 4), ("ou", 1), ("ou", 128)])
def test_an_evaluation_masks_as_its_dialect_says(tagged, semantics, batch_size):
    """Scores and generations are transformers' own with or without that mask."""
    data, encoder, model = tagged
    ensemble, eos, differ = alone(model), encoder.tokenizer.eos_token_id, 0
    cfg = EvalConfig(semantics=semantics, groups=["privacy"], max_examples=3, max_new_tokens=16, resamples=0)
    cfg.batch_size = batch_size
    made = suite(data, encoder, cfg, {}, 1.0)
    _, table = measure(ensemble, made, [1.0], None, None)
    for name in ("forget", "holdout"):
        split, rows = made.split(name), table[table["split"] == name]
        for i, row in zip(split.right, rows.itertuples(), strict=True):
            example = split.examples[i]
            assert eos in example.prompt
            hide = semantics == "ou"
            assert row.nll == pytest.approx(-np.mean(by_forward(model, example, hide, eos)), abs=1e-5)
            if name == "forget":
                (said,), (plain,) = (generated(model, [example.prompt], h, 16, eos) for h in (hide, False))
                assert row.generation == encoder.decode(said)
                differ += said != plain
    assert (differ > 0) == (semantics == "ou")  # or the comparison of generations says nothing


# --- TOFU's own ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def many():
    """320 forget rows, 40 retain rows, and their encoder."""
    data = build(bios, people=18, forget_people=16, holdout_people=1, known_people=2, countries=2)
    return data, Encoder(tokenizers.train(TokenizerConfig("words"), data, TemplateConfig()), TemplateConfig(), 300)


def test_tofu_takes_the_first_300_rows_and_no_dialect_takes_others_away(many):
    configs = {name: EvalConfig(semantics=name, max_examples=None) for name in SEMANTICS}
    rows = {name: suite(*many, cfg, {}, 1.0).split("forget").rows for name, cfg in configs.items()}
    forget = list(many[0].splits["forget"])
    assert len(forget) == 320 and rows["default"] == rows["ou"] == forget
    assert rows["tofu"] == forget[:300]


def test_tofu_cuts_prompt_and_generation_at_200_tokens_together(many, monkeypatch):
    token = many[1].tokenizer.convert_tokens_to_ids("?")
    monkeypatch.setattr(evaluation, "greedy", lambda ensemble, prompts, *rest: [[token] * 50 for _ in prompts])
    prompts = [(5,) * n for n in (10, 150, 190, 200, 260)]
    said = {}
    for name in SEMANTICS:
        cfg = EvalConfig(semantics=name, max_examples=None, max_new_tokens=50)
        found = suite(*many, cfg, {}, 1.0)
        split = Split("forget", [], Examples(), [], [], [], prompts, [], [])
        said[name] = [len(text) for text in evaluation.generations(None, split, 1.0, found)]
    assert said == {"default": [50] * 5, "ou": [50] * 5, "tofu": [50, 50, 10, 0, 0]}


def test_answers_longer_than_the_limit_are_refused_but_where_the_dialect_cuts_them_on_purpose(many):
    for name in ("default", "ou"):
        with pytest.raises(DataError, match="eval.max_new_tokens=3 would cut generations short"):
            suite(*many, EvalConfig(semantics=name, max_new_tokens=3), {}, 1.0)
    assert suite(*many, EvalConfig(semantics="tofu", max_new_tokens=3), {}, 1.0).splits
