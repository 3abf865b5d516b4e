"""A real server: official clients against it, many at once, some that go away, and another run whose target it is."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from unittest.mock import Mock

import httpx
import openai
import pytest
import torch
import uvicorn
from support.helpers import TINY, compose, execute, weights
from support.served import ask, logp_of, questions, tokens, told
from uvicorn.server import ServerState

from unlearn.data.encoding import examples_of
from unlearn.decoding.generation import Decoding, greedy
from unlearn.deploy.serving.app import create
from unlearn.deploy.serving.connections import bounded
from unlearn.deploy.serving.engine import Engine
from unlearn.deploy.serving.loading import load
from unlearn.deploy.serving.settings import Settings
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.scoring import score
from unlearn.runs.learner import members
from unlearn.runs.workbench import workbench

harness = pytest.mark.skipif(
    find_spec("lm_eval") is None or find_spec("tenacity") is None,
    reason="needs lm-eval with its clients, lm-eval[api], which is not installed",
)


@contextmanager
def serving(app, settings: Settings = Settings("x")):  # noqa: B008
    """A real server in this process; its address."""
    place = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=bounded(settings), log_config=None, lifespan="off", proxy_headers=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([place],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
        place.close()


@pytest.fixture(scope="module")
def loaded(served_runs):
    return load(Settings(str(served_runs[0].folder)))


@pytest.fixture(scope="module")
def address(loaded, served_runs):
    with Engine(loaded.blend, loaded.encoder, max_batch=8) as engine:
        with serving(create(engine, Settings(str(served_runs[0].folder)))) as url:
            yield engine, url


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=address[1], api_key="none", max_retries=0) as found:
        yield found


# --- the official client ----------------------------------------------------------------------------------------------


def test_the_official_client_completes_streams_and_stops(client, served_runs):
    model = client.models.list().data[0].id
    job, bench = served_runs[0], workbench(served_runs[0].cfg)
    prompt = bench.encoder.template.prompt.format(question=questions(bench)[0])
    ensemble = members(job.cfg, bench, job.folder)
    ids = greedy(ensemble, [bench.encoder.prompt(questions(bench)[0])], 1.0, Decoding(0, 1, 9, 1))[0]
    expected = bench.encoder.tokenizer.decode(ids)
    asked = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 9}
    found = client.completions.create(**asked, logprobs=2)
    assert found.choices[0].text == expected and len(found.choices[0].logprobs.tokens) == found.usage.completion_tokens
    pieces = list(client.completions.create(**asked, stream=True))
    assert "".join(p.choices[0].text for p in pieces) == expected and len(pieces) > 2
    stopped = client.completions.create(**asked, stop=[expected[3:6]]).choices[0]
    assert stopped.text == expected[: expected.index(expected[3:6])] and stopped.finish_reason == "stop"
    several, again = (client.completions.create(**asked | {"temperature": 1.5}, n=3, seed=4) for _ in range(2))
    assert [c.text for c in several.choices] == [c.text for c in again.choices]
    assert len({c.text for c in several.choices}) > 1


def test_the_official_client_chats_and_understands_refusals(client, served_runs):
    job, bench = served_runs[0], workbench(served_runs[0].cfg)
    asked = {"model": job.folder.name, "messages": [{"role": "user", "content": questions(bench)[1]}], "max_tokens": 9}
    how, prompt = Decoding(0, 1, 9, 1), bench.encoder.prompt(questions(bench)[1])
    expected = bench.encoder.decode(greedy(members(job.cfg, bench, job.folder), [prompt], 1.0, how)[0])
    found = client.chat.completions.create(**asked, temperature=0, logprobs=True, top_logprobs=3).choices[0]
    assert found.message.content == expected and len(found.logprobs.content[0].top_logprobs) == 3
    pieces = list(client.chat.completions.create(**asked, temperature=0, stream=True))
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == expected and pieces[-1].choices[0].finish_reason
    with pytest.raises(openai.BadRequestError, match="temperature=-1") as error:
        client.completions.create(model=served_runs[0].folder.name, prompt="x", temperature=-1)
    assert error.value.param == "temperature" and error.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="there is"):
        client.completions.create(model="other", prompt="x")


def test_sixteen_requests_at_once_are_answered_as_each_alone(address, served_runs):
    bench = workbench(served_runs[0].cfg)
    _, url = address
    bodies = [
        {"messages": [{"role": "user", "content": q}], "max_tokens": 9, "seed": i, "temperature": float(i % 2)}
        for i, q in enumerate(questions(bench, 16) * 2)
    ][:16]
    alone = [httpx.post(f"{url}/chat/completions", json=body).json()["choices"] for body in bodies]
    with ThreadPoolExecutor(16) as pool:
        crowd = pool.map(lambda body: httpx.post(f"{url}/chat/completions", json=body, timeout=60).json(), bodies)
        assert [reply["choices"] for reply in crowd] == alone


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(loaded, served_runs, monkeypatch, stream):
    monkeypatch.setattr("unlearn.deploy.serving.engine.ends_of", lambda *_: set())
    loaded.encoder.max_length, before = 10**6, loaded.encoder.max_length
    try:
        with Engine(loaded.blend, loaded.encoder, max_batch=1) as engine:
            settings = Settings(str(served_runs[0].folder), max_tokens=10**6)
            with serving(create(engine, settings)) as url:
                body = json.dumps({"prompt": [5], "max_tokens": 10**5, "stream": stream, "temperature": 0}).encode()
                head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
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


# --- bounds -----------------------------------------------------------------------------------------------------------

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def heard(place: socket.socket) -> bytes:
    """The next thing that a server says; nothing: it closed the connection."""
    place.settimeout(20)
    try:
        return place.recv(65536)
    except ConnectionError:
        return b""


@pytest.fixture(scope="module")
def impatient(loaded):
    settings = Settings("x", patience=0.4, max_connections=8)
    with Engine(loaded.blend, loaded.encoder, max_batch=8) as engine:
        with serving(create(engine, settings), settings) as url:
            yield url, ("127.0.0.1", int(url.split(":")[2].split("/")[0]))


@pytest.mark.parametrize(
    "sent, said",
    [
        (b"", b""), (b"GE", b""), (HEAD, b""), (HEAD + b"a: b\r\n" * 100, b""),  # half-open, of each length
        (HEAD + b"content-length: 20\r\n\r\n{", b" 408 "),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{", b" 408 "),
        (HEAD + b"a: " + b"b" * 2**17, b" 400 "), (b"a" * 2**17, b" 400 "), (b"\x16\x03\x01\x02\x00", b" 400 "),
        (HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}", b" 408 "),
        (HEAD + b"content-length: -1\r\n\r\n", b" 400 "), (HEAD + b"content-length: 99999999999\r\n\r\n{", b" 408 "),
        (HEAD + b"host: evil.example\r\n\r\n", b" 400 "), (HEAD + b"upgrade: websocket\r\n\r\n", b" 400 "),
        (b"GET http://evil.example/v1/models HTTP/1.1\r\nhost: evil.example\r\n\r\n", b" 403 "),
        (b"GET /v1/models HTTP/1.0\r\n\r\n", b" 403 "), (b"TRACE / HTTP/1.1\r\nhost: localhost\r\n\r\n", b" 404 "),
    ],
)  # fmt: skip
def test_no_connection_is_held_by_who_does_not_ask(impatient, sent, said):
    started = time.monotonic()
    with socket.create_connection(impatient[1]) as place:
        with suppress(ConnectionError):
            place.sendall(sent)
        found = heard(place)
    assert said in found.split(b"\r\n")[0] and (said or not found) and time.monotonic() - started < 8


def test_who_asks_is_answered_however_many_connections_do_not(impatient, loaded):
    url, where = impatient
    with ExitStack() as opened, httpx.Client() as asking:
        held = [opened.enter_context(socket.create_connection(where)) for _ in range(40)]
        for place in held[:20]:
            assert heard(place) == b""
        assert asking.get(f"{url}/models").status_code == 200


@pytest.mark.parametrize("reads_on", [True, False])
def test_who_does_not_read_what_is_answered_is_not_waited_for_and_a_flood_is_logged_once(reads_on, caplog):
    async def aborted() -> bool:
        config, transport = uvicorn.Config(lambda *_: None, log_config=None), Mock()
        protocol = bounded(Settings("x", patience=0.05))(config, ServerState(), {})
        protocol.connection_made(transport)
        protocol._asking.cancel()
        protocol.pause_writing()
        if reads_on:
            protocol.resume_writing()
        for number in (24, 24, 24):
            trouble = {"message": "accept", "exception": OSError(number, "full")}
            asyncio.get_running_loop().call_exception_handler(trouble)
        await asyncio.sleep(0.1)
        return transport.abort.called

    assert asyncio.run(aborted()) is not reads_on
    assert [said for said in caplog.messages if "accept" in said] == ["accept: [Errno 24] full"]


# --- lm-eval ----------------------------------------------------------------------------------------------------------


@harness
@pytest.mark.parametrize("concurrent", [1, 4])
def test_lm_evals_client_reads_our_own_likelihoods(address, served_runs, concurrent):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    job, bench = served_runs[0], workbench(served_runs[0].cfg)
    ensemble, encoder = members(job.cfg, bench, job.folder), bench.encoder
    rows = [*bench.data.splits["forget"], *bench.data.splits["retain"]][:9]
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


# --- a black box ----------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_our_own_server_is_another_runs_black_box_which_is_served_in_its_turn(served_runs, store, tmp_path):
    """The first serves the target alone, at α = 0; the second has its rows and its next tokens from there."""
    own, url_of = Settings(str(served_runs[0].folder), alpha=[0.0]), "pair.target.http.url="
    places = (*TINY, f"paths.store={store}", f"paths.runs={tmp_path}/runs", "eval.groups=[]", "trainer.lr=0.01")
    first = load(own)
    with Engine(first.blend, first.encoder) as target, serving(create(target, own)) as url:
        there = f"{url_of}{url}", f"pair.target.http.model={served_runs[0].folder.name}", "pair.target.http.k=0"
        job = execute(compose(*places, "algo=npo", "pair.target.kind=http", *there))
        local = weights(served_runs[0].folder)
        for name, tensor in weights(job.folder).items():
            torch.testing.assert_close(tensor, local[name], atol=1e-4, rtol=1e-3)
        second = load(Settings(str(job.folder)))
        bench = workbench(served_runs[0].cfg)
        prompts = [bench.encoder.prompt(q) for q in questions(bench, 5)]
        part = next(iter(second.blend.parts.values()))
        at_home = [replace(m, model=bench.model("target")) if m.name == "target" else m for m in part.ensemble.members]
        expected = greedy(Ensemble(tuple(at_home)), prompts, 1.0, Decoding(0, 1, 6, 1))
        with Engine(second.blend, second.encoder, max_batch=3) as engine:
            mix = ((part.name, 1.0),)
            found = told(engine, [ask(p, mix, limit=6) for p in prompts])
            assert [tokens(e) for e in found] == expected
            scored = told(engine, [ask(prompts[0], mix, limit=0, prompt_logprobs=2)])[0][0].scored
        row = logp_of(Ensemble(tuple(at_home)), prompts[0], 1.0)
        wanted = [row[t, i].item() for t, i in enumerate(prompts[0][1:])]
        assert [s.logprob for s in scored] == pytest.approx(wanted, abs=1e-4)
