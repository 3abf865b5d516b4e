"""``python -m unlearn.evaluate model=…``: any model on its own, and what it is compared with."""

import json
import shutil

import pandas as pd
import pytest
import torch
from scipy.stats import ks_2samp
from support.helpers import TINY

from unlearn import evaluate
from unlearn.grid import standalone
from unlearn.models import llama


def of(folder, out, *more: str) -> list[str]:
    """A random model on the embedded world."""
    bench = [o for o in TINY if o.startswith(("data.", "eval.", "trainer."))]
    return [f"model={folder}", f"out={out}", *bench, "eval.groups=[leak]", "eval.max_examples=3", *more]


def written(out) -> dict:
    return json.loads(out.read_text())


def test_a_result_file_and_the_model_itself_are_the_same_reference(made, tmp_path):
    groups = "eval.groups=[leak,privacy,summary]"
    alone = of(made("llama", 1), tmp_path / "retrained.json", "eval.groups=[leak,privacy]")
    assert evaluate.main(alone) == 0
    found = written(tmp_path / "retrained.json")
    assert not {"forget_quality", "privleak", "forget/leak_gap", "distance"} & set(found["metrics"])
    ends = []

    def examples_of(name: str) -> pd.DataFrame:
        return pd.read_parquet(tmp_path / f"{name}.examples.parquet")

    for reference in (tmp_path / "retrained.json", made("llama", 1)):
        assert evaluate.main(of(made("llama"), tmp_path / "out.json", groups, f"retrained={reference}")) == 0
        metrics = written(tmp_path / "out.json")["metrics"]
        assert metrics["forget/leak_gap"] == pytest.approx(
            metrics["forget/leak@2"] - found["metrics"]["forget/leak@2"], abs=1e-12
        )
        ends.append({k: v for k, v in metrics.items() if k not in ("distance", "intervals")})
    assert ends[0] == pytest.approx(ends[1], abs=1e-12)
    assert {"forget_quality", "privleak", "mia/reference", "ou/agg/ratio"} <= set(ends[0])
    ratio = [table.loc[table["split"] == "forget", "truth_ratio"] for table in map(examples_of, ("out", "retrained"))]
    assert ends[0]["forget_quality"] == pytest.approx(ks_2samp(*ratio).pvalue) and ends[0]["forget_quality_ks"] > 0


def test_a_model_alone_has_its_guess_level(made, tmp_path):
    rows = [{"question": f"Where is {n}?", "answer": f"In {n}land.", "guess_question": "Where is Vrelm?"} for n in "AB"]
    for name, some in (("forget", rows), ("retain", [{"question": "Who?", "answer": "She."}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    files = [f"data.{name}={tmp_path}/{name}.jsonl" for name in ("forget", "retain")]
    data = ["data=jsonl", "template=question_answer", *files]
    settings = ["eval.leak_samples=2", "eval.max_new_tokens=16", "eval.resamples=0", "eval.groups=[leak,guess]"]
    found = standalone.run(str(made("llama")), tmp_path / "out.json", None, None, [*data, *settings])
    gap = found["model"]["forget/leak@2"] - found["guess"]["forget/leak@2"]
    assert found["model"]["forget/leak_gap_guess"] == pytest.approx(gap, abs=1e-12)
    assert 0 < found["guess"]["forget/prob"] < 1 and "retain/prob" not in found["guess"]


def test_a_model_may_be_its_own_reference(made, tmp_path):
    more = ("eval.groups=[privacy,leak]", "data.questions=20", "eval.max_examples=null", "eval.resamples=0")
    more += (f"retrained={made('llama')}",)
    assert evaluate.main(of(made("llama"), tmp_path / "out.json", *more)) == 0
    metrics = written(tmp_path / "out.json")["metrics"]
    assert metrics["forget_quality"] == 1 and metrics["forget/leak_gap"] == 0
    assert metrics["mia/reference"] == 0.5 and metrics["mia/vulnerable"] == 0 and metrics["privleak"] == 0
    assert set(metrics["distance"].values()) == {0.0} and metrics["intervals"] == {}


def test_what_cannot_be_compared_is_refused_before_any_work(made, tmp_path, capsys):
    first, out = made("llama"), tmp_path / "out.json"
    reference = tmp_path / "retrained.json"
    assert evaluate.main(of(made("llama", 1), reference, "eval.groups=[leak]")) == 0
    shutil.copy(reference, tmp_path / "alone.json")
    for more, message in (
        (["eval.groups=[three_sample]"], "compares with the target as a model: leave it out, or give run=FOLDER"),
        (["eval.groups=[privacy,summary]"], "give retrained="),
        (["eval.groups=[privacy]", f"retrained={reference}"], "has no mia/min_k"),
        (["eval.leak_samples=3", f"retrained={reference}"], "was made with leak_samples 2, and this is with 3"),
        (["template=question_answer", f"retrained={reference}"], "was made with template"),
        (
            ["data.forget_people=2", "eval.max_examples=9", f"retrained={reference}"],
            "has 3 forget rows, and 6 are evaluated",
        ),
        (["pair.seed=5", f"retrained={reference}"], "others than are evaluated, or in another order"),
        ([f"retrained={tmp_path}/alone.json"], "its table of examples is missing"),
        ([f"retrained={tmp_path}/nothing"], "could not be loaded"),
        (["eval.groups=[nonsense]"], "must be one of artefact, contrast"),
        (["eval.semantics=nonsense"], "must be one of default, ou, tofu"),
    ):
        assert evaluate.main(of(first, out, *more)) == 2, more
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error, error
    assert not out.exists()


def test_a_log_without_drawn_answers_still_gives_forget_quality(made, tmp_path):
    assert evaluate.main(of(made("llama", 1), tmp_path / "retrained.json", "eval.groups=[]")) == 0
    reference = f"retrained={tmp_path}/retrained.json"
    assert evaluate.main(of(made("llama"), tmp_path / "out.json", "eval.groups=[leak]", reference)) == 0
    metrics = written(tmp_path / "out.json")["metrics"]
    assert "forget/leak_gap" not in metrics and {"forget/leak@2", "forget_quality"} <= set(metrics)


def test_models_that_would_be_read_as_others_are_refused(made, tmp_path, capsys):
    """Gemma 2 caps its logits; an adapter beside a model, and a config that names other weights, change it."""
    assert evaluate.main(of(made("gemma2"), tmp_path / "out.json", "eval.groups=[]")) == 2
    assert "does more to its logits than its output head does" in capsys.readouterr().err
    shutil.copytree(made("llama"), tmp_path / "other")
    (tmp_path / "other" / "adapter_config.json").write_text("{}")
    assert evaluate.main(of(tmp_path / "other", tmp_path / "out.json", "eval.groups=[]")) == 2
    assert "could not be loaded" in (said := capsys.readouterr().err) and "other holds an adapter" in said


def test_a_model_with_fewer_tokens_than_the_tokenizer_is_refused(made, tmp_path, capsys):
    small = llama.load(made("llama"))
    small.resize_token_embeddings(20)
    small.save_pretrained(tmp_path / "small")
    arguments = of(tmp_path / "small", tmp_path / "out.json", "eval.groups=[]", f"tokenizer={made('llama')}")
    assert evaluate.main(arguments) == 2
    assert "must share one vocabulary" in capsys.readouterr().err
    assert torch.is_grad_enabled()
