"""Metrics against values worked out by hand, against the libraries they come from, and against published logs."""

import json
import math

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from support.helpers import SHARED

from unlearn.evaluation.metrics.base import Metric
from unlearn.evaluation.metrics.forget_quality import forget_quality
from unlearn.evaluation.metrics.memorization import exact_memorization
from unlearn.evaluation.metrics.model_utility import PARTS, model_utility
from unlearn.evaluation.metrics.probability import probability, probability_with_options
from unlearn.evaluation.metrics.rouge import rouge_l_recall
from unlearn.evaluation.metrics.truth_ratio import truth_ratio

LN2 = math.log(2)


def test_probability_is_the_mean_of_per_example_probabilities():
    result = Metric(probability).compute(predictions=[LN2, 2 * LN2])
    assert result["prob"] == pytest.approx(0.375)
    assert list(result["values"]) == pytest.approx([0.5, 0.25])


def test_probability_with_options_is_the_share_of_the_right_answer():
    result = Metric(probability_with_options).compute(
        predictions=[LN2, LN2], references=[[2 * LN2, 2 * LN2], [LN2] * 3]
    )
    assert list(result["values"]) == pytest.approx([0.5, 0.25], abs=1e-9)


def test_truth_ratio_takes_the_geometric_mean_over_wrong_answers():
    # wrong: p = 1/2 and 1/8, geometric mean 1/4; right: 1/2 → R = .5 (the arithmetic mean would give .625)
    nll, wrong = [LN2, 2 * LN2], [[LN2, 3 * LN2], [LN2, LN2]]
    on_forget = Metric(truth_ratio).compute(predictions=nll, references=wrong, forget=True)
    assert list(on_forget["values"]) == pytest.approx([0.5, 2.0], abs=1e-8)
    assert on_forget["truth_ratio"] == pytest.approx((0.5 + 0.5) / 2, abs=1e-8)
    elsewhere = Metric(truth_ratio).compute(predictions=nll, references=wrong)
    assert elsewhere["truth_ratio"] == pytest.approx((0.5 + 0.0) / 2, abs=1e-8)
    assert elsewhere["truth_ratio_median"] == pytest.approx(1.25, abs=1e-8)


def test_exact_memorization_is_the_mean_share():
    assert Metric(exact_memorization).compute(predictions=[1.0, 0.5])["exact_memorization"] == 0.75


TEXTS = [
    ("The author's running shoes were bought in Kelvar.", "The authors ran; shoes bought in Kelvar, 1987!"),
    ("", "Nothing was said."),
    ("yes yes yes", "yes"),
    ("Completely different words here", "Los niños están jugando"),
    ("a b c d e", "e d c b a"),
    ("He was born on 12 March 1931.", "He was born on 12 March 1931."),
]


def test_rouge_equals_rouge_score_with_its_stemmer():
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    predictions, references = zip(*TEXTS, strict=True)
    result = Metric(rouge_l_recall).compute(predictions=predictions, references=references)
    expected = [scorer.score(target=r, prediction=p)["rougeL"].recall for p, r in TEXTS]
    assert list(result["values"]) == pytest.approx(expected, abs=1e-12)
    assert result["rougeL_recall"] == pytest.approx(np.mean(expected))


def test_forget_quality_is_one_for_equal_samples_and_reaches_its_floor_for_separated_ones():
    sample = np.linspace(0, 1, 40)
    assert Metric(forget_quality).compute(predictions=sample, references=sample)["forget_quality"] == 1.0
    apart = Metric(forget_quality).compute(predictions=sample, references=sample + 5)
    assert apart["forget_quality"] == pytest.approx(2 / math.comb(80, 40), rel=1e-6)  # 1.86e-23
    assert apart["forget_quality_ks"] == 1.0
    assert apart["forget_quality_log10"] == pytest.approx(math.log10(2 / math.comb(80, 40)))


def test_model_utility_is_the_harmonic_mean_of_nine_and_zero_if_one_is():
    metrics = dict(zip(PARTS, [0.5] * 8 + [1.0], strict=True))
    assert model_utility(metrics) == pytest.approx(9 / (8 / 0.5 + 1))
    assert model_utility(metrics | {PARTS[3]: 0.0}) == 0.0
    with pytest.raises(ValueError, match="missing: world_facts/truth_ratio"):
        model_utility({k: v for k, v in metrics.items() if k != "world_facts/truth_ratio"})


# --- the TOFU authors' published logs of Llama-2-7B --------------------------------------------------------------


@pytest.fixture(scope="module")
def logs():
    folder = SHARED / "data" / "tofu_eval_logs"
    if not folder.is_dir():
        pytest.skip(f"the published TOFU logs are not at {folder}")
    files = {"full": "llama2-7b_full_wd0.01", "retain90": "llama2-7b_retain90_wd0.01"}
    return {k: json.loads((folder / f"{v}.eval_log_aggregated.json").read_text()) for k, v in files.items()}


def log_ratios(log: dict) -> np.ndarray:
    """Truth ratio of each forget row from its logged mean NLLs."""
    keys = sorted(log["avg_paraphrased_loss"], key=int)
    right = [log["avg_paraphrased_loss"][k] for k in keys]
    return Metric(truth_ratio).compute(predictions=right, references=[log["average_perturb_loss"][k] for k in keys])[
        "values"
    ]


def test_forget_quality_of_the_published_logs(logs):
    forget = {name: log_ratios(log["eval_log_forget.json"]) for name, log in logs.items()}
    result = Metric(forget_quality).compute(predictions=forget["full"], references=forget["retain90"])
    assert result["forget_quality"] == pytest.approx(1.834066e-21, rel=1e-5)
    assert result["forget_quality_ks"] == pytest.approx(0.396667, abs=1e-6)


@pytest.mark.parametrize(("model", "expected"), [("full", 0.622677), ("retain90", 0.613745)])
def test_model_utility_of_the_published_logs(logs, model, expected):
    files = {"retain": "eval_log.json", "real_authors": "eval_real_author_wo_options.json",
             "world_facts": "eval_real_world_wo_options.json"}  # fmt: skip
    metrics = {}
    for split, file in files.items():
        log = logs[model][file]
        keys = sorted(log["avg_gt_loss"], key=int)
        nll, wrong = [log["avg_gt_loss"][k] for k in keys], [log["average_perturb_loss"][k] for k in keys]
        right = [log["avg_paraphrased_loss"][k] for k in keys]  # logged for every split
        metrics |= {
            f"{split}/prob": Metric(probability).compute(predictions=nll)["prob"],
            f"{split}/prob_options": Metric(probability_with_options).compute(predictions=nll, references=wrong)[
                "prob_options"
            ],
            f"{split}/rougeL_recall": np.mean(list(log["rougeL_recall"].values())),
            f"{split}/truth_ratio": Metric(truth_ratio).compute(predictions=right, references=wrong)["truth_ratio"],
        }
    assert model_utility(metrics) == pytest.approx(expected, abs=1e-6)
