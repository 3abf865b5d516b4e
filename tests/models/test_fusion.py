"""Fusion of requests: least squares on stacked inputs, from inner products alone."""

import shutil
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.helpers import TINY, compose, execute, random_examples, tiny_llama
from test_layers import made, moved
from test_tuned_runs import HOW

from unlearn import evaluate, generate
from unlearn.config.pair import LAYERS, LayersConfig
from unlearn.config.schema import BeginConfig, ConfigError
from unlearn.data.encoding import Example, Examples, examples_of
from unlearn.data.readers import read
from unlearn.deploy.export.traces import Traces, forget_rows
from unlearn.grid.rerun import open_run
from unlearn.models import fusion, layers, llama
from unlearn.models.layers import LayerError
from unlearn.models.tuning import merged
from unlearn.runs import learner
from unlearn.store import runlog
from unlearn.store.identity import run_folder

NAME = "w"


def request(seed: int, tokens: int = 30, wide: int = 6, out: int = 4):
    """Inputs [tokens, in] and a weight [out, in] of one linear."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(tokens, wide)), rng.normal(size=(out, wide))


def given(requests):
    weights = [{NAME: torch.from_numpy(w)} for _, w in requests]
    return weights, [{NAME: torch.from_numpy(x.T @ x)} for x, _ in requests]


def test_fusion_is_least_squares_on_the_stacked_inputs():
    requests = [request(seed, tokens=20 + 5 * seed) for seed in range(4)]
    found = fusion.fuse(*given(requests), ridge=0.0)
    x, y = np.concatenate([x for x, _ in requests]), np.concatenate([x @ w.T for x, w in requests])
    expected, squares, rank, singular = np.linalg.lstsq(x, y, rcond=None)
    np.testing.assert_allclose(found.weights[NAME].numpy(), expected.T, rtol=1e-8, atol=1e-10)
    assert found.weights[NAME].dtype == torch.float64
    residual = found.residuals[NAME]
    assert residual.rank == rank == 6 and residual.condition == pytest.approx((singular[0] / singular[-1]) ** 2)
    assert residual.equation < 1e-12
    assert residual.outputs == pytest.approx(np.sqrt(squares.sum() / (y**2).sum()))


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0])
def test_one_request_is_given_back_as_it_is(ridge):
    few = request(0, tokens=3)  # less tokens than inputs: most directions were never seen
    found = fusion.fuse(*given([few]), ridge)
    assert np.array_equal(found.weights[NAME].numpy(), few[1])
    assert found.residuals[NAME].outputs == 0 and found.residuals[NAME].rank == (3 if ridge == 0 else 6)


def test_requests_with_orthogonal_inputs_keep_their_own_outputs():
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    requests = []
    for seed in range(3):  # two directions each; two of the eight are nobody's
        x, w = request(seed, wide=8)
        requests.append((x @ axes[:, 2 * seed : 2 * seed + 2] @ axes[:, 2 * seed : 2 * seed + 2].T, w))
    found = fusion.fuse(*given(requests), ridge=0.0)
    for x, w in requests:
        np.testing.assert_allclose(x @ found.weights[NAME].numpy().T, x @ w.T, atol=1e-9)
    assert found.residuals[NAME].outputs < 1e-8 and found.residuals[NAME].rank == 6
    nobodys = axes[:, 6:]  # there it is the average
    mean = np.mean([w for _, w in requests], axis=0)
    np.testing.assert_allclose(found.weights[NAME].numpy() @ nobodys, mean @ nobodys, atol=1e-9)


def test_order_does_not_matter_and_fusing_one_by_one_is_fusing_all():
    requests = [request(seed) for seed in range(3)]
    weights, grams = given(requests)
    together = fusion.fuse(weights, grams, 0.0).weights[NAME]
    turned = fusion.fuse(weights[::-1], grams[::-1], 0.0).weights[NAME]
    torch.testing.assert_close(turned, together, rtol=1e-12, atol=1e-12)
    two = fusion.fuse(weights[:2], grams[:2], 0.0).weights
    of_two = {NAME: grams[0][NAME] + grams[1][NAME]}
    torch.testing.assert_close(fusion.fuse([two, weights[2]], [of_two, grams[2]], 0.0).weights[NAME], together)


def test_a_ridge_pulls_towards_the_average():
    weights, grams = given([request(seed) for seed in range(2)])
    mean = fusion.average(weights)[NAME]
    away = [(fusion.fuse(weights, grams, r).weights[NAME] - mean).norm().item() for r in (0, 0.1, 1, 1e6)]
    assert away[0] > away[1] > away[2] > away[3] and away[3] < 1e-4
    # by the formula: W̄ + (ΣG + r I)⁻¹ Σ G (W − W̄), r = ridge · the mean diagonal
    total = sum(g[NAME] for g in grams)
    r = 0.1 * total.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    move = torch.linalg.solve(total + r, sum(g[NAME] @ (w[NAME] - mean).T for w, g in zip(weights, grams, strict=True)))
    torch.testing.assert_close(fusion.fuse(weights, grams, 0.1).weights[NAME], mean + move.T)


def test_what_cannot_be_fused_is_refused():
    weights, grams = given([request(0), request(1)])
    with pytest.raises(LayerError, match="nothing to fuse"):
        fusion.fuse([], [], 0.0)
    with pytest.raises(LayerError, match="2 requests need as many inner products"):
        fusion.fuse(weights, grams[:1], 0.0)
    with pytest.raises(LayerError, match="ridge=-1"):
        fusion.fuse(weights, grams, -1)
    with pytest.raises(LayerError, match="must have the same shapes"):
        fusion.average([weights[0], {NAME: torch.zeros(2, 2)}])


# --- layers -------------------------------------------------------------------------------------------------------


def layered(seed: int, kind: str = "llama"):
    return moved(layers.add(llama.freeze(made(kind)), LayersConfig(bottleneck=3), seed=0), seed)


def test_summed_layers_change_what_each_block_says_by_the_sum_of_their_changes(tmp_path):
    models = [layered(seed) for seed in range(3)]
    fused = fusion.summed([layers.weights(m) for m in models])
    config = layers.UnlearningLayersConfig(target_modules=list(layers.feed_forward(tiny_llama(0))), bottleneck=9)
    layers.write({n: w.float() for n, w in fused.items()}, config, tmp_path)
    both = layers.load(llama.freeze(tiny_llama(0)), tmp_path)
    x = torch.randn(4, 16)
    plain, *changed = (m.model.layers[1].mlp(x) for m in (tiny_llama(0), *models))
    torch.testing.assert_close(both.model.layers[1].mlp(x), plain + sum(y - plain for y in changed))
    with pytest.raises(LayerError):
        fusion.summed([layers.weights(models[0]), {}])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_inner_products_are_those_of_what_went_in_whatever_the_batches(kind):
    model, examples = layered(0, kind), random_examples()
    found, other = (fusion.gram(model, examples, 0, size) for size in (3, 100))
    assert set(found) == set(layers.weights(model))
    for name, g in found.items():
        wide = layers.weights(model)[name].shape[1]
        assert g.shape == (wide, wide) and g.dtype == torch.float64
        torch.testing.assert_close(g, other[name], rtol=1e-4, atol=1e-4)
    total = {name: sum(fusion.gram(model, [e], 0)[name] for e in examples) for name in found}
    for name, g in found.items():  # padding counts nothing
        torch.testing.assert_close(g, total[name], rtol=1e-4, atol=1e-4)


def test_inner_products_by_hand():
    model, example = layered(0), random_examples()[0]
    ids, seen = torch.tensor([[*example.prompt, *example.answer]]), {}
    block = model.model.layers[1].mlp
    hook = block.register_forward_hook(lambda m, args, out: seen.update(x=m.base_layer(args[0])[0]))
    model(input_ids=ids)
    hook.remove()
    own = layers.weights(model)
    place = "base_model.model.model.layers.1.mlp.unlearning_{}.weight"
    x = seen["x"].double()
    z = torch.relu(x @ own[place.format("down")].double().T)
    found = fusion.gram(model, [example], 0)
    torch.testing.assert_close(found[place.format("down")], x.T @ x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[place.format("up")], z.T @ z, rtol=1e-5, atol=1e-5)


def test_layers_are_fused_with_themselves_and_with_those_of_a_single_example():
    model, other = layered(0), layered(1)
    own, g = layers.weights(model), fusion.gram(model, random_examples(), 0)
    found = fusion.fuse([own, own], [g, g], 1e-6)
    for name, w in own.items():
        torch.testing.assert_close(found.weights[name].float(), w)
    short = fusion.gram(other, Examples([Example("a", (2,), (3, 1))]), 0)
    found = fusion.fuse([own, layers.weights(other)], [g, short], 1e-6)
    assert all(w.isfinite().all() for w in found.weights.values())
    assert all(residual.condition < 1e8 for residual in found.residuals.values())
    with pytest.raises(layers.LayerError, match="has no unlearning layers"):
        fusion.gram(tiny_llama(0), random_examples(), 0)


# --- runs that begin at a fusion ----------------------------------------------------------------------------------


ON, WHOLE = HOW[LAYERS], HOW["lora"][2:]


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """Function to the jobs of two runs of the same models, with layers or whole."""
    place = [f"paths.store={store}", f"paths.runs={tmp_path_factory.mktemp('requests')}/runs"]
    return cache(lambda how: [execute(compose(*TINY, *place, *how, f"seed={seed}")) for seed in (0, 1)])


@pytest.fixture(scope="module")
def requests(trained):
    return trained(ON)


@pytest.fixture
def apart(requests, tmp_path):
    """Their folders, copied, to be damaged."""
    shutil.copytree(requests[0].folder.parent, tmp_path / "apart" / "runs")
    return [tmp_path / "apart" / "runs" / r.folder.name for r in requests]


def test_a_run_keeps_inner_products_of_its_request_and_nothing_else(config, bench, requests, apart):
    done = replace(requests[0], folder=apart[0])
    found = load_file(done.folder / "adapter" / "gram.safetensors")
    model = learner.members(done.cfg, bench, done.folder).trained.model
    pad = bench.encoder.tokenizer.pad_token_id
    expected = fusion.gram(model, examples_of(bench.encoder, bench.data.splits["forget"]), pad, 128)
    assert all(torch.equal(found[name], g) for name, g in expected.items())
    assert set(found) == set(expected) == set(layers.weights(model))
    traces = Traces(forget_rows(read(done.cfg)))
    for path in (done.folder / "adapter").iterdir():
        assert traces.in_bytes(path.read_bytes()) is None
    (done.folder / "adapter" / "gram.safetensors").unlink()  # it may be erased: nothing but fusion reads it
    assert evaluate.main([f"run={done.folder}", "eval.alphas=[0.5]", "trainer.progress=false"]) == 0
    with pytest.raises(ConfigError, match="gram.safetensors is missing"):
        execute(config(*ON, f"begin.runs=[{done.folder}]", "trainer.steps=0"))


def fused(config, runs, *more):
    """The folder of the run that is the fusion of others."""
    folders = ",".join(str(getattr(run, "folder", run)) for run in runs)
    return execute(config(*more, f"begin.runs=[{folders}]", "trainer.steps=0")).folder


@pytest.mark.parametrize("how", ["regmean", *(pytest.param(h, marks=pytest.mark.nightly) for h in ("sum", "average"))])
def test_fused_runs_are_one_run_that_can_be_evaluated_and_asked(config, requests, bench, capsys, how):
    to = fused(config, requests, *ON, f"begin.how={how}")
    own = [load_file(r.folder / "adapter" / "adapter_model.safetensors") for r in requests]
    grams = [load_file(r.folder / "adapter" / "gram.safetensors") for r in requests]
    closed = fusion.fuse(own, grams, BeginConfig().ridge)
    expected = {"regmean": closed.weights, "average": fusion.average(own), "sum": fusion.summed(own)}[how]
    found = load_file(to / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(found[name], w.float()) for name, w in expected.items())
    begun = runlog.manifest(to)["begin"]
    assert begun["how"] == how and [r["run"] for r in begun["runs"]] == [r.folder.name for r in requests]
    residuals = closed.residuals if how == "regmean" else {}
    assert begun["residuals"] == {name: asdict(r) for name, r in residuals.items()}

    again = open_run(to).job
    assert again.folder == to
    assert evaluate.main([f"run={to}", "eval.alphas=[0,1]", "trainer.progress=false"]) == 0
    entries = runlog.evaluation(to)["alphas"]
    assert set(entries) == {"0.0", "1.0"} and entries["0.0"]["forget/prob"] != entries["1.0"]["forget/prob"]
    assert open_run(to).job.was_done and runlog.manifest(to)["status"] == "done"
    assert generate.main([f"run={to}", "prompt=Where was", "alpha=1"]) == 0
    member = learner.members(again.cfg, bench, to).trained.model
    assert torch.equal(layers.weights(member)[next(iter(found))], found[next(iter(found))])
    if how == "regmean":  # it can be fused on: the inner products are the sum
        total = load_file(to / "adapter" / "gram.safetensors")
        assert all(torch.equal(g, grams[0][name] + grams[1][name]) for name, g in total.items())
        on = runlog.manifest(fused(config, [to, requests[0]], *ON))["begin"]
        assert [r["run"] for r in on["runs"]] == [to.name, requests[0].folder.name] and on["residuals"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("how", "tuning"), [pytest.param("average", "full", marks=pytest.mark.nightly), ("sum", "lora")]
)
def test_offsets_that_were_trained_whole_or_by_low_rank_updates_are_fused_into_whole_weights(
    config, bench, trained, how, tuning
):
    runs = trained((*WHOLE, f"pair.tuning={tuning}"))
    to = fused(config, runs, *WHOLE, f"begin.how={how}")
    base = dict(bench.model("small").named_parameters())
    assert [(r.folder / "offset").exists() for r in runs] == 2 * [tuning == "full"]
    own = [dict(merged(learner.members(r.cfg, bench, r.folder).trained.model).named_parameters()) for r in runs]
    found = dict(llama.load(to / "offset").named_parameters())
    for name, b in base.items():
        change = sum(m[name] - b for m in own) / (1 if how == "sum" else 2)
        torch.testing.assert_close(found[name], b + change)
    assert evaluate.main([f"run={to}", "trainer.progress=false"]) == 0
    with pytest.raises(ConfigError, match="begin.how='regmean': is for unlearning layers"):
        fused(config, runs, *WHOLE, "begin.how=regmean")


def test_a_run_begins_at_the_fused_layers_of_others(config, apart, caplog):
    """And ends there without a step. With a warning, as they began with the layers of other seeds."""
    begun = *ON, f"begin.runs=[{','.join(map(str, apart))}]", "begin.ridge=0.25", "trainer.steps=0"
    with caplog.at_level("INFO"):
        found = load_file(execute(config(*begun)).folder / "adapter" / "adapter_model.safetensors")
    assert "the units of their bottlenecks do not match" in caplog.text
    assert "Begins at 2 runs by regmean" in caplog.text and "Changed at most" in caplog.text
    own, grams = ([load_file(folder / "adapter" / f"{name}.safetensors") for folder in apart]
                  for name in ("adapter_model", "gram"))  # fmt: skip
    expected = fusion.fuse(own, grams, 0.25).weights
    assert set(found) == set(expected) and all(torch.equal(found[name], w.float()) for name, w in expected.items())
    with pytest.raises(ConfigError, match=r"not those of this .* \[3, 8\] beside \[4, 8\]"):
        execute(config(*begun, "pair.layers.bottleneck=4"))
    with pytest.raises(ConfigError, match="fused with no weights"):
        execute(config(*begun, "begin.alphas=[1,2]"))
    (apart[1] / "adapter" / "gram.safetensors").unlink()
    with pytest.raises(ConfigError, match="gram.safetensors is missing"):
        execute(config(*begun, "begin.ridge=0.5"))


def test_how_runs_are_fused_is_a_part_of_what_they_become_unless_it_is_the_usual_way(config, requests):
    names = {how: run_folder(config(*ON, f"begin.runs=[{requests[0].folder}]", f"begin.how={how}"), "data").name
             for how in ("null", "regmean", "average", "sum")}  # fmt: skip
    assert names["null"] == names["regmean"] and len(set(names.values())) == 3


def test_runs_that_do_not_belong_together_are_refused(config, trained, requests):
    whole, layered = trained(WHOLE)[0].folder, requests[0].folder
    gelu = execute(config(*ON, "pair.layers.activation=gelu", "trainer.steps=1")).folder
    for runs, more, message in (
        ([layered, whole], (*ON, "begin.how=sum"), "adapter_model.safetensors is missing; needs a run of the same"),
        ([whole, layered], (), "offset/model.safetensors is missing; needs a run of the same tuning"),
        ([layered, gelu], ON, "pair.layers.activation must be 'relu' in all runs"),
        ([layered], (*ON, "begin.how=mean"), "begin.how='mean': must be one of regmean, average, sum"),
        ([layered], (*ON, "begin.ridge=-1"), "begin.ridge=-1.0: must be a finite number of at least 0"),
        (["nowhere"], ON, "not the folder of a run"),
        ([], ON, "must be different run folders"),
    ):
        with pytest.raises(ConfigError) as error:
            fused(config, runs, *more)
        assert message in str(error.value)
    with pytest.raises(ConfigError, match="begin.how='sum': is how begin.runs are fused, and there are none"):
        config("begin.how=sum")
