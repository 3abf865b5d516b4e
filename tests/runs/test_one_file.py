"""experiments/one_file.py does by hand what the framework does."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from support.helpers import OWN, ROOT, compose

from unlearn.evaluation.scoring import score
from unlearn.runs.learner import initialise, members
from unlearn.runs.training import Training
from unlearn.runs.workbench import workbench

sys.path.append(str(ROOT / "experiments"))
import one_file

ALPHAS = [0.0, 0.5, 1.0, 2.0]
SETS = {"forget": [("Who wrote Ash ?", "Mira Vale did ."), ("Where does Mira Vale live ?", "in Oslo ."),
                   ("What does Mira Vale drink ?", "tea")],
        "retain": [(f"Where does {n} live ?", f"in {c} .") for n, c in zip("Ann Ben Cleo Dan Eve".split(),
                   "Rome Bonn Rome Oslo Lima".split(), strict=True)]}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_file")
    for name, rows in SETS.items():
        lines = (json.dumps({"question": q, "answer": a}) for q, a in rows)
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("loss", one_file.LOSSES)
def test_its_losses_weights_and_curve_are_those_of_the_framework_in_fp64(loss, files):
    given = [f"data.{name}={files / name}.jsonl" for name in SETS]
    own = ("trainer.epochs=3", "trainer.steps=null", "trainer.held_out=0", "trainer.lr=0.01", "trainer.accumulate=1",
           "trainer.stored_rows_gib=0", "trainer.eval_every=0", "seed=5", "pair.offset_init=retain")  # fmt: skip
    cfg = compose("data=jsonl", *given, *OWN, f"algo={loss}", f"paths.store={files / 'store'}", *own)
    initialise(cfg)
    bench = workbench(cfg)
    ensemble = members(cfg, bench, None)
    of = {m.name: m.model.double() for m in ensemble.members}
    pad, trio = bench.pad_id, one_file.Trio(*(copy.deepcopy(of[name]) for name in ("target", "anchor", "offset")))

    texts = {name: one_file.read(files / f"{name}.jsonl", bench.encoder.tokenizer) for name in SETS}
    s = one_file.Settings(loss=loss, epochs=3, lr=0.01, batches=(2, 4), seed=5)
    found = one_file.train(trio, *texts.values(), pad, s)
    made, expected = Training(cfg, bench, ensemble), []
    made.loop.run(lambda step: made.objective.micro_batches(made.draw(step)), lambda _, log: expected.append(log))
    assert found == pytest.approx([log["train/loss"] for log in expected], rel=1e-13) and len(found) == 6
    start = bench.model("small").state_dict()
    for name, weight in trio.offset.state_dict().items():
        there = of["offset"].state_dict()[name]
        torch.testing.assert_close(weight, there, rtol=1e-10, atol=1e-13)
    assert any(not torch.equal(w, start[n]) for n, w in trio.offset.state_dict().items())

    for name, group in made.objective.groups.items():
        scores = score(ensemble, group.examples, ALPHAS, {}, pad, 32)
        curve = one_file.curve(trio, texts[name], pad, ALPHAS)
        assert curve == pytest.approx([np.mean(scores[a].prob) for a in ALPHAS], rel=1e-12)
        assert len(set(curve)) == len(ALPHAS)
