"""Runs whose target is a server: as with the local one where the whole vocabulary is given, and with it off."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from support.black_box_server import Faults, serve
from support.helpers import TINY, compose, execute, lines, weights
from support.pretrained import AS_IT_IS

from unlearn.blackbox.questions import BlackBoxError
from unlearn.config.schema import ConfigError
from unlearn.data.encoding import examples_of
from unlearn.data.readers import read
from unlearn.ensemble.frozen import rows_of
from unlearn.ensemble.rows import TopRows
from unlearn.grid import call as grid
from unlearn.grid.rerun import open_run
from unlearn.models import llama, tokenizers
from unlearn.runs.learner import members
from unlearn.runs.workbench import workbench
from unlearn.store import runlog

LITTLE = ("eval.max_examples=3", "eval.max_new_tokens=12", "eval.resamples=2")
OWN = ("algo=npo", "eval.alphas=[0,1]", "eval.groups=[three_sample,contrast]", *LITTLE)
PLAIN = ("algo=ga", "eval.groups=[]", *LITTLE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("black_box")


@pytest.fixture(scope="module")
def local(store):
    """The world whose target the servers have."""
    found = workbench(compose(*TINY, f"paths.store={store}"))
    found.model("target"), found.model("small"), found.model("retrained")
    return found


def settings(store, place, url, *more):
    return (*TINY, f"paths.store={store}", f"paths.runs={place}/runs", "pair.target.kind=http",
            f"pair.target.http.url={url}", "pair.target.http.model=tiny", *more)  # fmt: skip


@contextmanager
def serving(local, faults=None):
    with serve(local.model("target"), local.encoder.tokenizer, faults) as server:
        yield server


@pytest.fixture(scope="module")
def both(store, local, place):
    """The same run with a local target and with a server that gives the whole vocabulary; the server's url."""
    mine = execute(compose(*TINY, f"paths.store={store}", f"paths.runs={place}/local", *OWN))
    with serving(local) as server:
        cfg = compose(*settings(store, place, server.url, "pair.target.http.k=0", "study=whole", *OWN))
        theirs = execute(cfg)
    return mine, theirs, server


def test_with_the_whole_vocabulary_a_run_is_that_with_the_local_target(both):
    mine, theirs, server = both
    for a, b in zip(lines(mine.folder), lines(theirs.folder), strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        numbers = [k for k in a if isinstance(a[k], float)]
        assert "train/loss" in a or a["step"] == 0
        np.testing.assert_allclose([a[k] for k in numbers], [b[k] for k in numbers], atol=1e-5, err_msg=str(numbers))
    ours, others = weights(mine.folder), weights(theirs.folder)
    assert ours.keys() == others.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], others[name], atol=1e-5, rtol=0)
    ours, others = runlog.evaluation(mine.folder), runlog.evaluation(theirs.folder)
    for part in ("alphas", "references"):
        for name, entry in ours[part].items():
            numbers = {k: v for k, v in entry.items() if isinstance(v, float)}
            assert len(numbers) > 20 and any("rouge" in k for k in numbers)
            for metric, value in numbers.items():
                assert others[part][name][metric] == pytest.approx(value, abs=2e-4, nan_ok=True), (part, name, metric)
    found = runlog.manifest(theirs.folder)["black_box"]
    assert found["model"] == "tiny" and found["k"] == 0 and found["form"] == "prompt_logprobs"
    assert found["requests"] == server.requests + 1  # and /tokenize
    assert found["tokens"] == server.tokens == found["in_all_calls"]["tokens"]
    assert set(found["decoding"]) == {"alone", "alpha 0", "alpha 1"}
    text = (theirs.folder / "config.yaml").read_text() + json.dumps(runlog.manifest(theirs.folder))
    assert "tiny" in text


def test_with_the_server_off_other_algorithms_alphas_and_seeds_train_and_repeat(both, store, place, caplog):
    _, theirs, server = both
    caplog.set_level("INFO")
    for more in ((*PLAIN, "eval.alphas=[0]"), (*PLAIN, "algo=kl", "alpha=0", "seed=3")):
        before = server.requests
        asked = ("pair.target.http.k=0", "study=off", "trainer.steps=3", *more)
        job = execute(compose(*settings(store, place, server.url, *asked)))
        assert runlog.manifest(job.folder)["status"] == "done" and server.requests == before
        assert runlog.manifest(job.folder)["black_box"]["requests"] == 0
        assert "tiny may be asked for 0 texts and 0 answers, up to 0 tokens" in caplog.text


def test_only_what_is_new_is_asked_of_a_server_that_is_back(both, local, store, place):
    """A third α: decoding goes other ways than before; every row and draft is there."""
    _, theirs, _ = both
    with serving(local) as server:
        more = ("pair.target.http.k=0", "study=whole", *OWN[:1], "eval.alphas=[0,1,7]", *OWN[2:])
        job = execute(compose(*settings(store, place, server.url, *more)))
        assert job.folder == theirs.folder, "neither url nor α's of evaluation are part of a run"
        new = [tuple(b["prompt"]) for b in server.asked[8:]]
    assert len(new) == len(set(new)), "no question twice"
    assert set(runlog.evaluation(job.folder)["alphas"]) == {"0.0", "1.0", "7.0"}


def test_a_run_trains_without_a_server_and_is_measured_when_there_is_one(both, local, store, place):
    more = ("pair.target.http.k=0", "pair.target.http.retries=0", "study=later", *OWN[:1], "eval.alphas=[9]", *OWN[2:])
    _, theirs, _ = both
    with pytest.raises(BlackBoxError, match="what was fetched stays: rerun the same command"):
        execute(compose(*settings(store, place, "http://127.0.0.1:9", *more)))
    folder = place / "runs" / "later" / theirs.folder.name
    assert runlog.manifest(folder)["trained"] and lines(folder) == lines(theirs.folder)
    with serving(local) as server:
        execute(compose(*settings(store, place, server.url, *more)))
    assert runlog.manifest(folder)["status"] == "done" and set(runlog.evaluation(folder)["alphas"]) == {"9.0"}


def test_a_run_with_the_likeliest_tokens_alone(local, store, place):
    more = ("pair.target.http.k=5", "study=top", *PLAIN, "pair.target.http.revision=even")
    with serving(local) as server:
        job = execute(compose(*settings(store, place, server.url, *more)))
        assert max(b.get("prompt_logprobs") or b["logprobs"] for b in server.asked) == 5
    rows = runlog.manifest(job.folder)["rows"]["forget"]["target"]
    assert rows["kind"] == "topk" and rows["k"] == 5
    assert 0 < rows["missing_mass"]["mean"] < rows["missing_mass"]["p95"] < 1
    execute(compose(*settings(store, place, server.url, *more, "seed=1")))  # the server is off


def test_the_rows_are_those_of_local_top_rows(local, store, place):
    """S is the k likeliest and the label; the local store has one token more where the label is among the k."""
    examples = examples_of(local.encoder, local.data.splits["retain"][:6])
    with serving(local) as server:
        cfg = compose(*settings(store, place, server.url, "pair.target.http.k=6"))
        bench = workbench(cfg)
        member = next(m for m in members(cfg, bench).members if m.name == "target")
        found = rows_of(bench.store, member, examples, 0, 1.0)
    mine = next(m for m in members(compose(*TINY, f"paths.store={store}"), local).members if m.name == "target")
    whole = rows_of(local.store, mine, examples, 0, 1.0).take(range(len(examples))).log_softmax(-1)
    assert isinstance(found, TopRows) and found.ids.shape[1] == 7
    logits = found.take(range(len(examples)))
    labels = torch.tensor([t for e in examples for t in e.answer])
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(len(logits)), atol=1e-5, rtol=0)
    for row, exact, label in zip(logits, whole, labels, strict=True):
        known = set(exact.topk(6).indices.tolist()) | {int(label)}
        others = [i for i in range(len(exact)) if i not in known]
        listed = sorted(known)
        torch.testing.assert_close(row[listed], exact[listed], atol=1e-5, rtol=0)
        even = exact[others].exp().sum() / len(others)
        torch.testing.assert_close(row[others].exp(), even.expand(len(others)), atol=1e-6, rtol=0)


def test_what_a_run_is_does_not_depend_on_where_and_how_it_is_asked(store, place):
    def folder(*more):
        cfg = compose(*settings(store, place, "http://a:1", *more))
        return grid.job(cfg, read(cfg).fingerprint()).folder.name

    key = "pair.target.http."
    same = ("url=https://b/v1", "key_env=MY_KEY", "concurrency=3", "timeout_s=9", "retries=1", "max_requests=7",
            "max_tokens=9", "price=2.5", "form=echo")  # fmt: skip
    assert {folder(key + s) for s in same} == {folder()}
    others = [folder(key + o) for o in ("model=other", "revision=two", "k=7")]
    assert len({folder(), *others}) == 4
    cfg = compose(*TINY, f"paths.store={store}")
    assert grid.job(cfg, read(cfg).fingerprint()).folder.name != folder()


REFUSED = {
    ("pair.target.http.url=null",): "url=None: must be the address of a server",
    ("pair.target.http.url='http://me:pass@host/v1'",): "pair.target.http.url",
    ("pair.target.http.url=ftp://x",): "must be the address of a server",
    ("pair.target.http.model=null",): "model=None: must be the model's name on the server",
    ("pair.target.http.key_env=sk-12345",): "must be the name of an environment variable",
    ("pair.target.http.key_env=MINE",): "that says it is secret",
    ("pair.target.http.k=-1",): "k=-1: must be a finite number of at least 0",
    ("pair.target.http.form=chat",): "must be one of auto, prompt_logprobs, echo",
    ("pair.target.http.concurrency=0",): "concurrency=0",
    ("pair.target.kind=grpc",): "must be one of model, http",
    ("method=direct",): "trains a copy of the target",
    ("eval.groups=[relearn]",): "relearn reads or changes the weights",
    ("eval.groups=[quantised]",): "quantised reads or changes the weights",
    ("eval.semantics=ou",): "a server reads whole texts",
    ("trainer.stored_rows=topk",): "pair.target.http.k to say",
    ("pair.target.finetune.epochs=0",): "there is no retrained reference, as pair.target.kind='http' is a server",
    ("pair.target.kind=model",): "needs pair.target.kind=http",
}


@pytest.mark.parametrize("more", REFUSED, ids=lambda v: ",".join(v))
def test_what_a_server_cannot_be_is_refused_before_any_work(store, place, more):
    with pytest.raises(ConfigError) as error:
        compose(*settings(store, place, "http://localhost:1/v1", *more))
    assert REFUSED[more] in str(error.value)


def test_rows_that_need_too_much_room_are_refused_before_anything_is_asked_and_so_is_no_server(local, store, place):
    more = ("pair.target.http.k=0", "trainer.stored_rows_gib=1e-6", "pair.target.http.revision=room")
    cfg = compose(*settings(store, place, "http://127.0.0.1:9", *more))
    bench = workbench(cfg)
    member = members(cfg, bench).members[0]
    with pytest.raises(ConfigError, match="not asked again at each step.*or pair.target.http.k=20"):
        rows_of(bench.store, member, examples_of(bench.encoder, local.data.splits["retain"]), 0, 1e-6)
    more = ("pair.target.http.revision=never", "pair.target.http.retries=1", "study=none", *PLAIN)  # no server
    with pytest.raises(BlackBoxError, match="ConnectError.*after 2 tries"):
        execute(compose(*settings(store, place, "http://127.0.0.1:9/v1", *more)))


def test_a_budget_ends_a_run_and_a_larger_one_goes_on(local, store, place):
    more = ("pair.target.http.k=3", "pair.target.http.revision=budget", "study=budget", *PLAIN)
    with serving(local, Faults(tokenize=False)) as server:
        with pytest.raises(BlackBoxError, match=r"max_requests=30: \d+ requests were spent"):
            execute(compose(*settings(store, place, server.url, *more, "pair.target.http.max_requests=30")))
        assert server.requests <= 30
        job = execute(compose(*settings(store, place, server.url, *more)))
    assert runlog.manifest(job.folder)["status"] == "done"


def pretrained(config, made, url, *more):
    """A pair of ready-made models of which the target, whose vocabulary is padded, is on a server."""
    small = made("tied", 1)
    return config(*AS_IT_IS, "pair.target.kind=http", f"pair.target.http.url={url}", "pair.target.http.model=padded",
                  f"pair.small.source={small}", f"pair.tokenizer.source={small}", "trainer.lr=0.01",
                  "eval.max_new_tokens=9", *more)  # fmt: skip


@pytest.mark.nightly
def test_a_pretrained_pair_trains_against_a_server_as_against_the_model(pair, config, made):
    target = made("llama", 0, 3)
    mine = execute(pair(target, made("tied", 1), "trainer.lr=0.01"))
    model, tokenizer = llama.load(target), tokenizers.load(target)
    with serve(model, tokenizer) as server:
        theirs = execute(pretrained(config, made, server.url, "pair.target.http.k=0"))
        top = execute(pretrained(config, made, server.url, "pair.target.http.k=20", "pair.target.http.revision=top"))
        ours, others = weights(mine.folder), weights(theirs.folder)
        for name in ours:
            torch.testing.assert_close(ours[name], others[name], atol=1e-5, rtol=0)
        assert runlog.manifest(top.folder)["rows"]["forget"]["target"]["kind"] == "topk"
        before = server.requests
    assert before > 0
    with serve(model, tokenizer) as server:  # elsewhere, later
        job = open_run(top.folder, ["eval.alphas=[0.5]", f"pair.target.http.url={server.url}"]).job
        execute(job.cfg)
    assert "0.5" in runlog.evaluation(top.folder)["alphas"]


def test_the_tokenizer_may_be_that_of_the_targets_source(config, made):
    given = (f"pair.target.source={made('llama')}", "pair.tokenizer.source=null")
    cfg = pretrained(config, made, "http://localhost:1", *given)
    assert workbench(cfg).encoder.tokenizer.get_vocab() == tokenizers.load(made("llama")).get_vocab()
    assert workbench(cfg).model("target").width == tokenizers.size(workbench(cfg).encoder.tokenizer)


def test_commands_that_need_the_targets_weights_say_so(both, tmp_path):
    from unlearn import export
    from unlearn.runs import harness
    from unlearn.runs.opened import Opened

    _, theirs, _ = both
    done = export.main([f"run={theirs.folder}", f"to={tmp_path}/out"])
    assert done == 2 and not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="the target is a server"):
        harness.of_run(Opened(theirs), [1.0], {}, None)
    with pytest.raises(ConfigError, match="the target.s weights are on a server"):
        workbench(theirs.cfg).folder("target")
