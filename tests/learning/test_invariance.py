"""For every objective: neither the order of a batch, nor its padding, nor how it is split changes loss and gradient."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.helpers import EACH_TERM

from unlearn.ensemble.frozen import FrozenRows, LiveRows
from unlearn.runs.inputs import Inputs
from unlearn.runs.learner import members


def loss_and_gradient(found, draw):
    """Of one optimiser step, summed over its micro-batches; each is padded to its own longest example."""
    model = found.ensemble.trained.model
    model.zero_grad()
    total = 0.0
    for micro_batch in found.micro_batches(draw):
        loss, _ = micro_batch()
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def shuffled(draw):
    """The same draw in another order; answers stay with their questions."""
    forget, retain = np.random.default_rng(1).permutation(3), np.random.default_rng(2).permutation(6)
    by = {"forget": forget, "refusal": forget, "alternates": forget, "retain": retain, "retain_refusal": retain}
    kept = {name: getattr(draw, name) for name in by if getattr(draw, name)}
    return replace(draw, **{name: [values[i] for i in by[name]] for name, values in kept.items()})


def objective(config, bench, algo, *more):
    """Of a step away from the start, where many gradients vanish, and its draw; both sets are in one step."""
    method = {"uld": "uld", "rmu": "direct"}.get(algo, "offset")
    cfg = config(f"algo={algo}", f"method={method}", "algo.interleave=none", *more)
    inputs, ensemble = Inputs(cfg, bench, steps=1), members(cfg, bench)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for p in ensemble.trained.model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    return inputs.objective(ensemble), inputs.sampler.draw(0)


@pytest.mark.parametrize("algo", EACH_TERM)
def test_order_padding_splitting_and_stored_rows_change_neither_loss_nor_gradient(config, bench, algo):
    sizes = "trainer.forget_batch=3", "trainer.retain_batch=6"
    one, draw = objective(config, bench, algo, *sizes)
    assert len(draw.forget) == 3 and len(draw.retain) == 6
    lengths = {len(e.prompt) + len(e.answer) for g in one.groups.values() for e in g.examples}
    assert len(lengths) > 1  # or there would be no padding to speak of
    live, _ = objective(config, bench, algo, *sizes, "trainer.stored_rows_gib=0")  # rows are computed in every step
    for step, kind in ((one, FrozenRows), (live, LiveRows)):
        assert {type(rows) for group in step.groups.values() for rows in group.rows.values()} == {kind}
    loss, gradient = loss_and_gradient(one, draw)
    assert gradient and any(g.abs().max() > 1e-6 for g in gradient.values())
    for other, how in ((one, shuffled(draw)), (replace(one, accumulate=3), draw), (live, draw)):
        again, gradient_again = loss_and_gradient(other, how)
        assert again == pytest.approx(loss, rel=1e-5, abs=1e-6 if other is not live else 1e-5)
        for name, g in gradient.items():
            torch.testing.assert_close(gradient_again[name], g, rtol=1e-3, atol=2e-6)
