"""What a stopped evaluation has measured is not measured again, and nothing is taken for what it is not."""

from dataclasses import replace

import pandas as pd
import pytest
from support.helpers import near

from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation import evaluation
from unlearn.evaluation.scoring import Parts
from unlearn.runs.baselines import suite_of
from unlearn.runs.learner import members

ALPHAS = [0.5, 1.0]


class Killed(BaseException):
    pass


@pytest.fixture
def evaluated(config, bench):
    """Ensemble, suite, and what an evaluation finds that nothing stops."""
    cfg = config("algo=npo", "eval.groups=[]", "eval.max_examples=3")
    ensemble = members(cfg, bench)
    changed = near(ensemble.trained.model, 0.1)
    ensemble = Ensemble(tuple(replace(m, model=changed) if m.trained else m for m in ensemble.members))
    suite = suite_of(cfg, bench)
    return ensemble, suite, evaluation.evaluate(ensemble, suite, ALPHAS, bench.store, None)


def test_an_evaluation_that_is_stopped_anywhere_goes_on_there_and_finds_the_same(
    evaluated, bench, tmp_path, monkeypatch
):
    ensemble, suite, (metrics, examples) = evaluated
    written, stop = [], None
    real = evaluation.generations

    def generations(ensemble, split, alpha, *rest):
        if len(written) == stop:
            raise Killed
        written.append((split.name, alpha))
        return real(ensemble, split, alpha, *rest)

    monkeypatch.setattr(evaluation, "generations", generations)
    every = [(split.name, alpha) for split in suite.splits if split.generated for alpha in ALPHAS]
    for n in (0, 1, 3, len(every) - 1):
        parts = Parts(tmp_path / str(n), ensemble, suite, "weights")
        written, stop = [], n
        with pytest.raises(Killed):
            evaluation.evaluate(ensemble, suite, ALPHAS, bench.store, None, parts=parts)
        written, stop = [], None
        found, table = evaluation.evaluate(ensemble, suite, ALPHAS, bench.store, None, parts=parts)
        assert written == every[n:]
        assert found == metrics
        pd.testing.assert_frame_equal(table, examples, check_exact=True)
        parts.clear()
        assert not (tmp_path / str(n)).exists()


def test_parts_of_other_weights_settings_data_or_members_and_damaged_ones_are_not_taken(evaluated, bench, tmp_path):
    ensemble, suite, _ = evaluated
    own = Parts(tmp_path, ensemble, suite, "weights")
    evaluation.evaluate(ensemble, suite, [1.0], bench.store, None, parts=own)
    split = suite.splits[0]
    assert own.get(split, 1.0) is not None and own.get(split, 0.5) is None
    for other in (
        Parts(tmp_path, ensemble, suite, "other weights"),
        Parts(tmp_path, ensemble, replace(suite, settings=suite.settings | {"max_new_tokens": 3}), "weights"),
        Parts(tmp_path, ensemble, replace(suite, splits=[split.part([0])]), "weights"),
        Parts(tmp_path, Ensemble(ensemble.members[:2]), suite, "weights"),
    ):
        assert other.get(split, 1.0) is None
    file = next(tmp_path.rglob("forget-1.0.npz"))
    for content in (file.read_bytes()[:-40], b"", b"nothing"):
        file.write_bytes(content)
        assert own.get(split, 1.0) is None
