"""The server as it is started: official clients against it, runs and exports, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import httpx
import openai
import pytest
import torch
from helpers import ROOT, TINY, compose, execute, weights
from served import ask, logp_of, tokens, told

from unlearn import serve
from unlearn.config import ConfigError
from unlearn.ensemble import Ensemble
from unlearn.generation import greedy
from unlearn.job import members
from unlearn.scoring import score
from unlearn.serving.app import create
from unlearn.serving.engine import Engine
from unlearn.serving.loading import load
from unlearn.serving.settings import Settings, parse
from unlearn.world import examples_of, the_world

harness = pytest.mark.skipif(
    find_spec("lm_eval") is None or find_spec("tenacity") is None,
    reason="needs lm-eval with its clients, lm-eval[api], which is not installed",
)


@pytest.fixture(scope="module")
def made(store, tmp_path_factory):
    """A run, another one that was trained beside the same models, and a third with another small pair."""
    root = tmp_path_factory.mktemp("serve")
    places = (*TINY, f"paths.store={store}", f"paths.runs={root}/runs", "eval.groups=[]", "trainer.lr=0.01")
    return [execute(compose(*places, o)) for o in ("algo=npo", "algo=ga", "pair.offset_init=full")]


@contextmanager
def serving(app, port: int = 0):
    """A real server in this process; its address."""
    import uvicorn

    place = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", proxy_headers=False))
    thread = threading.Thread(target=server.run, args=([place],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
        place.close()


@pytest.fixture(scope="module")
def loaded(made):
    return load(Settings(str(made[0].folder)))


@pytest.fixture(scope="module")
def address(loaded, made):
    with Engine(loaded.blend, loaded.encoder, max_batch=8) as engine:
        with serving(create(engine, Settings(str(made[0].folder)))) as url:
            yield engine, url


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=address[1], api_key="none", max_retries=0) as found:
        yield found


def questions(world, count: int = 16) -> list[str]:
    rows = [*world.data.splits["forget"], *world.data.splits["retain"]]
    return [row.question for row in rows][:count]


# --- the official client ----------------------------------------------------------------------------------------------


def test_the_official_client_completes_streams_and_stops(client, made):
    model = client.models.list().data[0].id
    job, world = made[0], the_world(made[0].cfg)
    prompt, ensemble = world.encoder.template.prompt.format(question=questions(world)[0]), None
    ensemble = members(job.cfg, world, job.folder)
    ids = greedy(ensemble, [world.encoder.prompt(questions(world)[0])], 1.0, 0, 1, 9, 1)[0]
    expected = world.encoder.tokenizer.decode(ids)
    asked = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 9}
    found = client.completions.create(**asked, logprobs=2)
    assert found.choices[0].text == expected and len(found.choices[0].logprobs.tokens) == found.usage.completion_tokens
    pieces = list(client.completions.create(**asked, stream=True))
    assert "".join(p.choices[0].text for p in pieces) == expected and len(pieces) > 2
    stopped = client.completions.create(**asked, stop=[expected[3:6]]).choices[0]
    assert stopped.text == expected[: expected.index(expected[3:6])] and stopped.finish_reason == "stop"
    several = client.completions.create(**(asked | {"temperature": 1.5}), n=3, seed=4)
    again = client.completions.create(**(asked | {"temperature": 1.5}), n=3, seed=4)
    assert [c.text for c in several.choices] == [c.text for c in again.choices]
    assert len({c.text for c in several.choices}) > 1


def test_the_official_client_chats(client, made):
    job, world = made[0], the_world(made[0].cfg)
    asked = {"model": job.folder.name, "messages": [{"role": "user", "content": questions(world)[1]}], "max_tokens": 9}
    ids = greedy(members(job.cfg, world, job.folder), [world.encoder.prompt(questions(world)[1])], 1.0, 0, 1, 9, 1)[0]
    found = client.chat.completions.create(**asked, temperature=0, logprobs=True, top_logprobs=3)
    assert found.choices[0].message.content == world.encoder.decode(ids)
    assert len(found.choices[0].logprobs.content[0].top_logprobs) == 3
    pieces = list(client.chat.completions.create(**asked, temperature=0, stream=True))
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == world.encoder.decode(ids) and pieces[-1].choices[0].finish_reason


def test_the_official_client_understands_refusals(client, made):
    with pytest.raises(openai.BadRequestError, match="temperature=-1") as error:
        client.completions.create(model=made[0].folder.name, prompt="x", temperature=-1)
    assert error.value.param == "temperature" and error.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="there is"):
        client.completions.create(model="other", prompt="x")


def test_sixteen_requests_at_once_are_answered_as_each_alone(address, made):
    world = the_world(made[0].cfg)
    _, url = address
    bodies = [
        {"messages": [{"role": "user", "content": q}], "max_tokens": 9, "seed": i, "temperature": float(i % 2)}
        for i, q in enumerate(questions(world, 16) * 2)
    ][:16]
    alone = [httpx.post(f"{url}/chat/completions", json=body).json()["choices"] for body in bodies]
    crowd: dict[int, list] = {}

    def ask(i: int) -> None:
        crowd[i] = httpx.post(f"{url}/chat/completions", json=bodies[i], timeout=60).json()["choices"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [crowd[i] for i in range(16)] == alone


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(loaded, made, monkeypatch, stream):
    monkeypatch.setattr("unlearn.serving.engine.ends_of", lambda *_: set())
    loaded.encoder.max_length, before = 10**6, loaded.encoder.max_length
    try:
        with Engine(loaded.blend, loaded.encoder, max_batch=1) as engine:
            settings = Settings(str(made[0].folder), max_tokens=10**6)
            with serving(create(engine, settings)) as url:
                body = json.dumps({"prompt": [5], "max_tokens": 10**5, "stream": stream, "temperature": 0}).encode()
                head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                head += f"content-length: {len(body)}\r\n\r\n"
                with socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0]))) as place:
                    place.sendall(head.encode() + body)
                    _until(lambda: engine.running == 1)
                    if stream:
                        assert place.recv(100)
                _until(lambda: engine.running == 0)
                assert httpx.post(f"{url}/completions", json={"prompt": [5], "max_tokens": 2}).status_code == 200
    finally:
        loaded.encoder.max_length = before


def _until(holds) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- lm-eval ----------------------------------------------------------------------------------------------------------


@harness
@pytest.mark.parametrize("concurrent", [1, 4])
def test_lm_evals_client_reads_our_own_likelihoods(address, made, concurrent):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    job, world = made[0], the_world(made[0].cfg)
    ensemble, encoder = members(job.cfg, world, job.folder), world.encoder
    rows = [*world.data.splits["forget"], *world.data.splits["retain"]][:9]
    scores = score(ensemble, examples_of(encoder, rows), [1.0], {}, encoder.tokenizer.pad_token_id, 4)[1.0]
    expected = [logp.sum() for logp in scores.before_eos(scores.logp)]
    template = job.cfg.data.template
    texts = [(template.prompt.format(question=r.question), template.answer.format(answer=r.answer)) for r in rows]
    lm = LocalCompletionsAPI(
        base_url=f"{address[1]}/completions", model=job.folder.name, tokenizer=str(job.folder / "offset"),
        tokenizer_backend="huggingface", max_length=encoder.max_length, num_concurrent=concurrent, batch_size=3,
    )  # fmt: skip
    found = lm.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(texts)])
    assert [logp for logp, _ in found] == pytest.approx(expected, abs=1e-4)
    greedy_ones = [bool(right.all()) for right in scores.before_eos(scores.right)]
    assert [is_greedy for _, is_greedy in found] == greedy_ones


# --- runs and exports -------------------------------------------------------------------------------------------------


def test_several_runs_share_target_and_anchor(made):
    both = load(Settings(str(made[0].folder), offsets=[str(made[1].folder)], alpha=[1, 0.5])).blend
    one, two = (both.parts[j.folder.name] for j in made[:2])
    assert [m.model for m in one.ensemble.members if not m.trained] == [
        m.model for m in two.ensemble.members if not m.trained
    ]
    assert one.weights != two.weights and (one.alpha, two.alpha) == (1.0, 0.5)
    assert len(both.members(((one.name, 1.0), (two.name, 0.5)))) == 4


def test_a_run_beside_another_small_pair_is_refused_with_both_fingerprints(made):
    said = "was trained beside a anchor with the fingerprint [0-9a-f]{16}, .* is [0-9a-f]{16}"
    with pytest.raises(ConfigError, match=said):
        load(Settings(str(made[0].folder), offsets=[str(made[2].folder)]))


def test_an_export_is_served_as_its_run_is(exported):
    job, folder = exported
    target = the_world(job.cfg).folder("target")
    of_run = load(Settings(str(job.folder)))
    of_export = load(Settings(str(folder), target=str(target), alpha=1.0), ["trainer.device=cpu"])
    run, export = (next(iter(x.blend.parts.values())) for x in (of_run, of_export))
    assert run.weights == export.weights is not None
    assert of_run.blend.target.fingerprint == of_export.blend.target.fingerprint
    prompts = [of_run.encoder.prompt(q) for q in questions(the_world(job.cfg), 3)]
    answers = [greedy(p.ensemble, prompts, 1.0, 0, 1, 9, 1) for p in (run, export)]
    assert answers[0] == answers[1] and of_export.encoder.max_length == of_run.encoder.max_length


def test_our_own_server_is_another_runs_black_box_which_is_served_in_its_turn(made, store, tmp_path):
    """The first serves the target alone, at α = 0; the second has its rows and its next tokens from there."""
    own, url_of = Settings(str(made[0].folder), alpha=0.0), "pair.target.http.url="
    places = (*TINY, f"paths.store={store}", f"paths.runs={tmp_path}/runs", "eval.groups=[]", "trainer.lr=0.01")
    first = load(own)
    with Engine(first.blend, first.encoder) as target, serving(create(target, own)) as url:
        there = f"{url_of}{url}", f"pair.target.http.model={made[0].folder.name}", "pair.target.http.k=0"
        job = execute(compose(*places, "algo=npo", "pair.target.kind=http", *there))
        local = weights(made[0].folder)
        for name, tensor in weights(job.folder).items():
            torch.testing.assert_close(tensor, local[name], atol=1e-4, rtol=1e-3)
        second = load(Settings(str(job.folder)))
        world = the_world(made[0].cfg)
        prompts = [world.encoder.prompt(q) for q in questions(world, 5)]
        part = next(iter(second.blend.parts.values()))
        at_home = [replace(m, model=world.model("target")) if m.name == "target" else m for m in part.ensemble.members]
        expected = greedy(Ensemble(tuple(at_home)), prompts, 1.0, 0, 1, 6, 1)
        with Engine(second.blend, second.encoder, max_batch=3) as engine:
            mix = ((part.name, 1.0),)
            found = told(engine, [ask(p, mix, limit=6) for p in prompts])
            assert [tokens(e) for e in found] == expected
            scored = told(engine, [ask(prompts[0], mix, limit=0, prompt_logprobs=2)])[0][0].scored
        row = logp_of(Ensemble(tuple(at_home)), prompts[0], 1.0)
        assert [s.logprob for s in scored] == pytest.approx(
            [row[t, i].item() for t, i in enumerate(prompts[0][1:])], abs=1e-4
        )


def test_folders_that_do_not_go_together_are_refused(exported, made, tmp_path):
    job, folder = exported
    target = str(the_world(job.cfg).folder("target"))
    for settings, said in (
        (Settings(str(made[0].folder), target=target), "target=.*: is for exports"),
        (Settings(str(folder)), "this export's target is on no hub; give target=FOLDER"),
        (Settings(str(folder), offsets=[str(made[0].folder)], target=target), "must be all runs, or all exports"),
        (Settings(str(tmp_path)), "not the folder of a trained run"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(settings)
    with pytest.raises(ConfigError, match="paths.store=x: of an export only trainer.device"):
        load(Settings(str(folder), target=target), ["paths.store=x"])


# --- the command ------------------------------------------------------------------------------------------------------

WRONG = {
    "port=70000": "port=70000: must be from 0",
    "port=web": "port",
    "prot=8000": "prot=8000: unknown key; known keys here: run, offsets",
    "alpha=x": "alpha=x: must be a finite number, or a list of 1",
    "alpha=[1,2]": "a list of 1, one for run and each of offsets",
    "max_batch=0": "max_batch=0: must be a whole number, at least 1",
    "max_choices=999": "max_choices=999: must be at most max_batch + max_waiting = 272",
    "grace=-1": "grace=-1.0: must be a number of seconds",
    "key_env=NOT_THERE_AT_ALL": "key_env=NOT_THERE_AT_ALL: there is no such environment variable",
    "key_env=my-secret-key": "must be the name of an environment variable",
    "host=300.1.1.1": "cannot be listened at",
}


@pytest.mark.parametrize("argument, said", WRONG.items())
def test_wrong_settings_are_refused_before_any_work(argument, said, capsys):
    assert serve.main(["run=x", argument]) == 2
    error = capsys.readouterr().err
    assert said in error and "my-secret-key" not in error


def test_settings_are_typed():
    settings, rest = parse(["run=a", "offsets=[b,c]", "alpha=[1,0.5,2]", "per_request=true", "trainer.device=cpu"])
    assert (settings.offsets, settings.per_request, rest) == (["b", "c"], True, ["trainer.device=cpu"])
    assert settings.alpha == [1, 0.5, 2]


def test_help_names_every_setting(capsys):
    from dataclasses import fields

    assert serve.main(["--help"]) == 0 and serve.main([]) == 2
    said = capsys.readouterr().out
    assert [f.name for f in fields(Settings) if f"{f.name}=" not in said] == ["target"] or "target=" in said


def test_a_port_that_is_taken_is_refused_before_models_are_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve.main(["run=x", f"port={port}"]) == 2
    assert f"port={port}: cannot be listened at" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_stopped_lets_running_requests_finish(made, tmp_path, number):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SERVE_KEY": "planted-key-0123456789"}
    command = [sys.executable, "-m", "unlearn.serve", f"run={made[0].folder}", "port=0", "key_env=SERVE_KEY"]
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        _wait_for(started, tmp_path / "log", r"http://127.0.0.1:\d+/v1")
        url = re.search(r"http://127.0.0.1:\d+/v1", (tmp_path / "log").read_text())[0]
        headers = {"authorization": "Bearer planted-key-0123456789"}
        body = {"prompt": [7, 9], "max_tokens": 300, "stream": True, "temperature": 0}
        with httpx.stream("POST", f"{url}/completions", json=body, headers=headers, timeout=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            started.send_signal(number)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert started.wait(timeout=60) == 0
    finally:
        started.kill()
    said = (tmp_path / "log").read_text()
    assert said.rstrip().endswith("stopped") and "planted-key" not in said and "Traceback" not in said


def _wait_for(started: subprocess.Popen, log: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while not re.search(pattern, log.read_text()):
        assert started.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
