"""A loss or frozen row that is no number ends the run where it appears, and names the examples that it read."""

import json

import pytest
import torch
from support.helpers import execute, lines, random_examples, tiny_llama

from unlearn.data.readers import read
from unlearn.data.sampling import Sampler, held_out
from unlearn.ensemble.ensemble import Member
from unlearn.ensemble.frozen import stored
from unlearn.ensemble.kinds import NotFinite
from unlearn.grid import call as grid
from unlearn.learning.answers import Answers, PerToken
from unlearn.learning.loop import Diverged
from unlearn.learning.losses import FORGET
from unlearn.store.entries import Store

OPTIONS = ("algo=gd", "trainer.steps=9", "trainer.eval_every=0")


def test_a_loss_that_is_no_number_leaves_the_step_and_the_examples_that_it_read(config, monkeypatch):
    calls = []

    def ga(forget: Answers) -> PerToken:
        calls.append(1)
        return forget.logp * (torch.nan if len(calls) == 3 else 1.0)  # in the third step

    monkeypatch.setitem(FORGET, "ga", ga)
    cfg = config(*OPTIONS)
    with pytest.raises(Diverged) as error:
        execute(cfg)
    data = read(cfg)
    folder = grid.job(cfg, data.fingerprint()).folder
    found = json.loads(
        (folder / "diverged.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    forget, retain = data.splits["forget"], data.splits["retain"]
    draw = Sampler(len(forget), len(retain), 0, 2, 4, 0, held_out(len(retain), cfg.trainer.held_out)).draw(2)
    expected = {"forget": [forget[i].id for i in draw.forget], "retain": [retain[i].id for i in draw.retain]}
    assert found["step"] == 3 and found["loss"] == found["gradient_norm"] == found["parts"]["train/ga"] == "nan"
    assert found["parts"]["train/nll"] > 0 and found["examples"] == expected
    assert str(error.value).startswith(
        "step 3: loss nan, gradient norm nan; both must be finite; the step read forget "
    )
    assert all(id in str(error.value) for id in expected["forget"]) and "diverged.json" in str(error.value)
    assert [entry["step"] for entry in lines(folder)] == [1, 2]
    execute(cfg)  # the next try, which ends well, takes the record away
    assert not (folder / "diverged.json").exists() and len(lines(folder)) == 9


def member(change) -> Member:
    model = tiny_llama(0)
    with torch.no_grad():
        change(model)
    return Member("target", model, "print", 1.0, 0.0, False)


def test_rows_that_are_no_numbers_are_refused_with_member_and_examples_and_nothing_is_stored(tmp_path):
    def ruin(model):
        model.model.layers[0].mlp.down_proj.weight[0, 0] = torch.nan

    store, examples = Store(tmp_path), random_examples()
    for kind in ("fp32", "hidden", "fp16", "topk"):
        with pytest.raises(NotFinite, match="target: its rows as .* hold NaN or infinity for 7 .*: e0, e1, e2 …"):
            stored(store, member(ruin), examples, 0, kind=kind, k=3)
    assert not (tmp_path / "rows").exists() and not list((tmp_path / ".building").iterdir())

    def large(model):  # too large for half precision alone
        model.model.norm.weight *= 1e5

    with pytest.raises(NotFinite, match="rows as fp16"):
        stored(store, member(large), examples, 0, kind="fp16")
    assert torch.isfinite(stored(store, member(large), examples, 0).take([0, 1])).all()


def test_the_example_at_fault_is_the_one_that_is_named(tmp_path):
    """Only answers and prompts that hold the token have rows that are no numbers: the head is another matrix."""
    examples = random_examples()
    token = examples[4].prompt[0]
    held = [e.id for e in examples if token in (*e.prompt, *e.answer[:-1])]

    def untie(model):
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.model.embed_tokens.weight[token] = torch.nan

    with pytest.raises(NotFinite) as error:
        stored(Store(tmp_path), member(untie), examples, 0, batch_size=1)
    assert any(f": {id};" in str(error.value) for id in held), (held, str(error.value))
