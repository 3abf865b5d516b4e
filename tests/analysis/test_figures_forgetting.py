"""The figure of single questions: changes by hand, and the KS test's p-value as a true run's eval.json has it."""

import json

import numpy as np
import pandas as pd
import pytest
from support.helpers import execute
from support.made_up import lines, note, probs, write_run

from analysis import forgetting
from analysis.runs import StudyError, load


def write_examples(folder, own: dict[float, list], target: list, retrained: list) -> None:
    """Probabilities of the questions a, b, … on the forget split, and truth ratios of the same values."""

    def rows(values, **more):
        found = {"split": "forget", "id": [chr(97 + i) for i in range(len(values))], "prob": values}
        return pd.DataFrame(found | {"truth_ratio": values} | more)

    pd.concat([rows(values, alpha=a) for a, values in own.items()]).to_parquet(folder / "examples.parquet")
    both = [rows(target, model="target"), rows(retrained, model="retrained")]
    pd.concat(both).to_parquet(folder / "references.parquet")


def test_the_distribution_is_the_mean_over_pair_seeds_and_has_a_band(tmp_path):
    values, share, half = forgetting.distribution([np.array([0.1, 0.3]), np.array([0.3, 0.3])])
    assert (values.tolist(), share.tolist()) == ([0.1, 0.3], [0.25, 1.0])
    assert half == pytest.approx([12.7062 * 0.25, 0.0], rel=1e-4)  # Student's of two: t(0.975, 1) · |a − b| / 2
    for pair_seed in (0, 1):
        folder = write_run(tmp_path / "s", {1.0: probs(0.2, 0.9)}, pair_seed=pair_seed)
        write_examples(folder, {1.0: [0.4, 0.1 + pair_seed / 10]}, [1.0, 0.8], [0.5, 0.2])
    fig = forgetting.figure(load(tmp_path / "s"))
    assert "95 % over 2 pair seeds" in note(fig) and len(fig.axes[0].collections) == 2
    assert sum("(n=2)" in text.get_text() for text in fig.axes[-1].get_legend().get_texts()) == 1


def test_changes_are_from_the_target_question_by_question(tmp_path):
    folder = write_run(tmp_path / "s", {0.5: probs(0.6, 0.9), 1.0: probs(0.25, 0.9)})
    write_examples(folder, {0.5: [0.7, 0.5], 1.0: [0.4, 0.1]}, target=[1.0, 0.8], retrained=[0.5, 0.2])
    study = load(tmp_path / "s")
    for alpha, change in ((None, [-0.7, -0.6]), (0.5, [-0.3, -0.3])):
        table = forgetting.questions(study, alpha=alpha)
        assert table.loc[table["model"] == "run", "change"].sort_values().tolist() == pytest.approx(change)
        changes, ratios = forgetting.figure(study, alpha=alpha).axes[:2]
        assert [x for x, _ in lines(changes)[1]][1:] == pytest.approx(sorted(set(np.round(change, 9))))
    retrained = [x for x, _ in lines(changes)[0]]
    assert retrained[1:] == pytest.approx([-0.6, -0.5]) and changes.get_title(loc="left") == "forget set, 2 questions"
    assert lines(ratios)[0] == ((0.2, 0.0), (0.2, 0.5), (0.5, 1.0))


def test_runs_without_examples_are_counted(tmp_path):
    folder = write_run(tmp_path / "s", {1.0: probs(0.2, 0.9)})
    write_run(tmp_path / "s", {1.0: probs(0.2, 0.9)}, algo="ga")
    write_run(tmp_path / "s", {}, algo="kl", status="failed")
    write_examples(folder, {1.0: [0.4, 0.1]}, [1.0, 0.8], [0.5, 0.2])
    said = note(forgetting.figure(load(tmp_path / "s")))
    assert "not drawn: 1 failed, 1 done without the numbers shown of 3 runs" in said
    with pytest.raises(StudyError, match="no metric 'rouge' per question; choices: prob, truth_ratio"):
        forgetting.figure(load(tmp_path / "s"), "rouge")
    (folder / "references.parquet").unlink()
    with pytest.raises(StudyError, match="no examples of the target"):
        forgetting.figure(load(tmp_path / "s"))


def test_p_is_the_forget_quality_of_eval_json(config):
    folder = execute(config("algo=ga", "eval.alphas=[0,1]", "eval.groups=[]")).folder
    study = load(folder.parent)
    logged = json.loads((folder / "eval.json").read_text())["alphas"]
    for alpha in (0.0, 1.0):
        fig = forgetting.figure(study, alpha=alpha)
        tests = forgetting.quality(forgetting.questions(study, alpha=alpha), ["algo"])
        assert tests["p"].tolist() == [pytest.approx(logged[str(alpha)]["forget_quality"], rel=1e-12)]
        said = fig.axes[-1].get_legend().get_texts()[1].get_text()
        assert said == f"ga   {logged[str(alpha)]['forget_quality']:.2g}" and "semantics" not in note(fig)
    ratios = pd.read_parquet(folder / "examples.parquet").query("split == 'forget' and alpha == 1")["truth_ratio"]
    drawn = fig.axes[4]
    assert [x for x, _ in lines(drawn)[1]][1:] == pytest.approx(sorted(set(ratios)))
