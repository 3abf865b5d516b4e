"""``python -m unlearn.serve``: runs and exports that it loads, what it refuses, and how it ends."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import fields

import httpx
import pytest
from support.helpers import ROOT
from support.served import questions

from unlearn import serve
from unlearn.command import parse
from unlearn.config.schema import ConfigError
from unlearn.decoding.generation import Decoding, greedy
from unlearn.deploy.serving.engine import Engine
from unlearn.deploy.serving.loading import load
from unlearn.deploy.serving.settings import Settings
from unlearn.runs.workbench import workbench

# --- runs and exports -------------------------------------------------------------------------------------------------


def test_several_runs_share_target_and_anchor(served_runs):
    both = load(Settings(str(served_runs[0].folder), offsets=[str(served_runs[1].folder)], alpha=[1, 0.5])).blend
    one, two = (both.parts[j.folder.name] for j in served_runs[:2])
    frozen = [[m.model for m in part.ensemble.members if not m.trained] for part in (one, two)]
    assert frozen[0] == frozen[1]
    assert one.weights != two.weights and (one.alpha, two.alpha) == (1.0, 0.5)
    assert len(both.members(((one.name, 1.0), (two.name, 0.5)))) == 4


def test_a_run_beside_another_small_pair_is_refused_with_both_fingerprints(served_runs):
    said = "was trained beside a anchor with the fingerprint [0-9a-f]{16}, .* is [0-9a-f]{16}"
    with pytest.raises(ConfigError, match=said):
        load(Settings(str(served_runs[0].folder), offsets=[str(served_runs[2].folder)]))


def test_an_export_is_served_as_its_run_is(exported):
    job, folder = exported
    target = workbench(job.cfg).folder("target")
    of_run = load(Settings(str(job.folder)))
    of_export = load(Settings(str(folder), target=str(target), alpha=[1.0], overrides=["trainer.device=cpu"]))
    run, export = (next(iter(x.blend.parts.values())) for x in (of_run, of_export))
    assert run.weights == export.weights is not None
    assert of_run.blend.target.fingerprint == of_export.blend.target.fingerprint
    prompts = [of_run.encoder.prompt(q) for q in questions(workbench(job.cfg), 3)]
    answers = [greedy(p.ensemble, prompts, 1.0, Decoding(0, 1, 9, 1)) for p in (run, export)]
    assert answers[0] == answers[1] and of_export.encoder.max_length == of_run.encoder.max_length


def test_folders_that_do_not_go_together_are_refused(exported, served_runs, tmp_path):
    job, folder = exported
    target, run = str(workbench(job.cfg).folder("target")), str(served_runs[0].folder)
    for settings, said in (
        (Settings(run, target=target), "target=.*: is for exports"),
        (Settings(str(folder)), "target=None: this export does not hold its target; say where it is: target=FOLDER"),
        (Settings(str(folder), offsets=[run], target=target), "must be all runs, or all exports"),
        (Settings(str(tmp_path)), "not the folder of a trained run"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(settings)
    with pytest.raises(ConfigError, match="paths.store=x: of an export only trainer.device"):
        load(Settings(str(folder), target=target, overrides=["paths.store=x"]))


# --- the command ------------------------------------------------------------------------------------------------------

WRONG = {
    "port=70000": "port=70000: must be from 0",
    "port=web": "port",
    "prot=8000": "prot=8000: unknown key, nearest is port; known keys here: run, offsets",
    "alpha=x": "alpha=x: must be a finite number, or a list of one for run and each of offsets",
    "alpha=[1,2]": "a list of 1, one for run and each of offsets",
    "max_batch=0": "max_batch=0: must be a whole number, at least 1",
    "max_choices=999": "max_choices=999: must be at most max_batch + max_waiting = 272",
    "grace=-1": "grace=-1.0: must be a number of seconds",
    "key_env=NOT_THERE_AT_ALL": "key_env=NOT_THERE_AT_ALL: there is no such environment variable",
    "key_env=my-secret-key": "must be the name of an environment variable",
    "host=300.1.1.1": "cannot bind",
    "hmac=KEY": "hmac=KEY: is of a ledger",
    "patience=-1": "patience=-1.0: must be a number of seconds",
}


@pytest.mark.parametrize("argument, said", WRONG.items())
def test_wrong_settings_are_refused_before_any_work(argument, said, capsys):
    assert serve.main(["run=x", argument]) == 2
    error = capsys.readouterr().err
    assert said in error and "my-secret-key" not in error


def test_settings_are_typed_and_help_names_each(capsys):
    given = ["run=a", "offsets=[b,c]", "alpha=[1,0.5,2]", "per_request=true", "trainer.device=cpu"]
    settings = parse(Settings, given)
    assert (settings.offsets, settings.per_request, settings.overrides) == (["b", "c"], True, ["trainer.device=cpu"])
    assert settings.alpha == [1, 0.5, 2]
    assert serve.main(["--help"]) == 0 and serve.main([]) == 2
    said = capsys.readouterr().out
    assert [f.name for f in fields(Settings) if f"{f.name}=" not in said] == ["overrides"]


def test_a_port_that_is_taken_is_refused_before_models_are_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve.main(["run=x", f"port={port}"]) == 2
    assert f"port={port}: cannot bind" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)])
def test_a_server_that_is_stopped_lets_running_requests_finish(served_runs, monkeypatch, caplog, number):
    """The server has this thread, and who asks and stops it another one."""
    monkeypatch.setenv("SERVE_KEY", "planted-key-0123456789")
    caplog.set_level(logging.INFO)
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(_ask_and_stop, caplog, number)
        assert serve.main([f"run={served_runs[0].folder}", "port=0", "key_env=SERVE_KEY"]) == 0
        assert rest.result()[-1] == "data: [DONE]"
    assert caplog.messages[-1] == "stopped" and "planted-key" not in caplog.text and "Traceback" not in caplog.text


@pytest.mark.nightly
def test_a_server_whose_engine_does_not_end_ends_with_status_1(served_runs, monkeypatch, caplog, capsys):
    caplog.set_level(logging.INFO)
    ended = threading.Event()
    monkeypatch.setattr(Engine, "_say", lambda *_: ended.wait(60))

    def ask_and_stop():
        body = {"prompt": [7, 9], "max_tokens": 300}
        with suppress(httpx.HTTPError), ThreadPoolExecutor(1) as pool:
            asking = pool.submit(httpx.post, f"{_address(caplog)}/completions", json=body, timeout=60)
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGTERM)
            asking.result()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(ask_and_stop)
        assert serve.main([f"run={served_runs[0].folder}", "port=0", "grace=1"]) == 1
        ended.set()
    assert "the engine did not end within 1 s" in capsys.readouterr().err


@pytest.mark.nightly
def test_a_true_server_answers_beside_a_thousand_connections_that_do_not_ask(served_runs, tmp_path):
    """At 400 open files: it answers, and its log stays short."""
    log, environment = tmp_path / "log", os.environ | {"PYTHONPATH": str(ROOT)}
    call = f"ulimit -n 400; exec {sys.executable} -m unlearn.serve run={served_runs[0].folder} port=0"
    with log.open("w") as stream:
        started = subprocess.Popen(["bash", "-c", call], cwd=tmp_path, env=environment, stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"http://127.0.0.1:(\d+)/v1", log.read_text())):
            assert started.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        with ExitStack() as opened:
            for _ in range(1000):
                place = opened.enter_context(socket.create_connection(("127.0.0.1", int(found[1]))))
                place.sendall(b"POST /v1/completions HTTP/1.1\r\n")
            assert httpx.get(f"{found[0]}/models", timeout=20).status_code == 200
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 0 and log.stat().st_size < 10_000
    finally:
        started.kill()
        started.wait()


def _ask_and_stop(caplog, number: int) -> list[str]:
    """Stop the server as soon as an answer has begun; the rest of that answer."""
    headers = {"authorization": "Bearer planted-key-0123456789"}
    body = {"prompt": [7, 9], "max_tokens": 300, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{_address(caplog)}/completions", json=body, headers=headers, timeout=60) as reply:
        lines = reply.iter_lines()
        next(lines)
        os.kill(os.getpid(), number)
        return [line for line in lines if line]


def _address(caplog) -> str:
    """What the server says of itself once it can be asked."""
    deadline = time.monotonic() + 60
    while not (found := re.search(r"http://127.0.0.1:\d+/v1", caplog.text)):
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.02)
    return found[0]
