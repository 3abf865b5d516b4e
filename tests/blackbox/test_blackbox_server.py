"""A server with faults: each is retried or refused, nothing wrong is kept, no budget is passed, nothing asked twice."""

import gc
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.black_box_server import Faults, Numbered, serve
from support.black_boxes import EXAMPLES, MODEL, TEST, TOKENIZER, box, check, kept
from support.helpers import ROOT, forked, random_examples, tiny_llama

from unlearn.blackbox import remote
from unlearn.blackbox.questions import NEXT, Answer, BlackBoxError, Memo, Question
from unlearn.blackbox.remote import Place
from unlearn.config.pair import HttpConfig
from unlearn.models.llama import vocabulary
from unlearn.models.prompts import shared_rows
from unlearn.store import locks

WORDS = {"429": "slow down", "429-date": "slow down", "500": "out of order", "503": "503", "half": "no JSON",
         "cut": "RemoteProtocolError", "reset": "Error", "nan": "nan is not a log-probability",
         "positive": "0.5 is above 0", "length": "positions, and the text has", "own": "own token",
         "mass": "sum to", "list": "not one choice", "empty": "not one choice"}  # fmt: skip


class Shifted(Numbered):
    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": 5000 * [i + 1 for i in super().__call__(text)["input_ids"]]}


def refused(model, words):
    with pytest.raises(BlackBoxError, match=words) as error:
        list(model.answers(EXAMPLES))
    return str(error.value)


@pytest.mark.parametrize("form", ["prompt_logprobs", "echo"])
def test_rows_are_the_models_own_and_asked_for_once(tmp_path, form):
    with serve(MODEL, TOKENIZER) as server:
        model = box(server.url, tmp_path, form=form)
        check(model, [*EXAMPLES, *EXAMPLES])
        asked = server.requests
        assert asked - len(EXAMPLES) <= TEST + (form == "echo")  # which is asked for the texts of tokens, too
        assert [b for b in server.asked if tuple(b["prompt"]) == (*EXAMPLES[0].prompt, *EXAMPLES[0].answer)][1:] == []
        check(box(server.url, tmp_path, form=form))
        assert server.requests == asked and not list(model.parameters()) and vocabulary(model) == 40
    check(box(server.url, tmp_path))  # the server is off, and the form plays no part
    assert {(e.prompt, e.answer) for e in EXAMPLES} and len(kept(model, tmp_path)) == len(EXAMPLES)


def nightly(*kinds):
    """Of faults whose like is tried every time."""
    return [pytest.param(kind, marks=pytest.mark.nightly) for kind in kinds]


OFTEN = ("429-date", "500", "half", "cut", "reset", "nan", "length", "mass", "empty")
RARE = nightly(*(kind for kind in WORDS if kind not in OFTEN))


@pytest.mark.parametrize("kind", [*OFTEN, *RARE])
@pytest.mark.parametrize("form", ["prompt_logprobs", *nightly("echo")])
def test_a_fault_that_passes_is_tried_again_and_leaves_nothing_wrong(tmp_path, kind, form):
    """Every third question goes wrong, in the self-test and after it."""
    if (kind, form) == ("own", "echo"):
        pytest.skip("an echo has no such field")
    with serve(MODEL, TOKENIZER, Faults(at=lambda n, _: kind if n % 3 == 0 else None)) as server:
        model = box(server.url, tmp_path, form=form, concurrency=1)
        check(model)
        assert server.requests >= 1.4 * len(EXAMPLES)
    assert len(kept(model, tmp_path)) == len(EXAMPLES)


@pytest.mark.parametrize(
    "kind", ["429", "503", "reset", "nan", "own", "list", *nightly(*OFTEN[:4], *OFTEN[6:], "positive")]
)
def test_a_fault_that_stays_is_refused_with_what_was_got(tmp_path, kind):
    def late(number, body):
        return kind if "prompt_logprobs" in body and number > TEST else None

    with serve(MODEL, TOKENIZER, Faults(at=late)) as server:
        model = box(server.url, tmp_path, concurrency=2)
        refused(model, f"(?s){WORDS[kind]}.*after 4 tries.*what was fetched stays")
        before = server.requests
        assert kept(model, tmp_path) == []
        server.faults.at = {}
        check(model)
        assert server.requests - before == len(EXAMPLES)


LONGEST = max(len(e.prompt) + len(e.answer) for e in EXAMPLES)
NO_USE = {
    "4 tokens given, and 6 asked for.*http.k=4": (Faults(cap=4, quiet_cap=True), {}),
    "(?s)take pair.target.http.k=4.*greater than max allowed: 4": (Faults(cap=4), {}),
    "400: maximum context length is 8 tokens": (Faults(context=8), {}),
    "(?s)a chat API alone never can.*no prompt_logprobs in it.*no logprobs in it": (Faults(forms=()), {}),
    "log-probabilities of a text are off by one": (Faults(shift=True), {"form": "echo"}),
    "its tokenizer is not that of the pair: token": (Faults(named_by=Numbered(prefix="v"), tokenize=False), {}),
    "its tokenizer is not that of the pair: token [0-9]": (Faults(named_by=Numbered(prefix="v")), {}),
    "its tokenizer is not that of the pair: token .* here": (
        Faults(forms=("echo",), named_by=Numbered(prefix="v"), tokenize=False), {}
    ),
    "its tokenizer is not that of the pair: 'w": (Faults(named_by=Shifted()), {}),
}  # fmt: skip


@pytest.mark.parametrize("words", NO_USE)
def test_a_server_that_is_of_no_use_is_refused_at_once_with_what_it_lacks(tmp_path, words):
    faults, settings = NO_USE[words]
    with serve(MODEL, TOKENIZER, faults) as server:
        assert len(refused(box(server.url, tmp_path, **settings), words)) < 3000
        assert server.requests <= 15 and (settings != {"form": "echo"} or server.requests <= 4)
        if faults.context:
            assert server.requests <= 6, "a request that is refused is not tried again"
        if faults.shift:
            check(box(server.url, tmp_path))  # its prompt_logprobs are right
        if faults.cap:
            assert next(box(server.url, tmp_path, k=4).answers(EXAMPLES)).ids.shape[1] == 5


def none_behind(number, body):
    return "400" if body["max_tokens"] == 1 and "prompt_logprobs" in body else None


@pytest.mark.parametrize(
    ("faults", "form"),
    [(Faults(forms=("echo",)), "echo"), (Faults(forms=("echo",), strict=True), "echo"),
     (Faults(at=none_behind, context=LONGEST), "prompt_logprobs")],
    ids=["ignored", "refused", "a text that fills the context"],
)  # fmt: skip
@pytest.mark.parametrize("end", ["/v1/", ""])
def test_the_form_that_works_is_found(tmp_path, faults, form, end):
    with serve(MODEL, TOKENIZER, faults) as server:
        model = box(server.url.removesuffix("/v1") + end, tmp_path)
        check(model)
        assert model.facts()["form"] == form and server.asked[-1]["max_tokens"] == (not faults.context)
        refused(box(server.url + "/elsewhere", tmp_path / "b"), "404")


def test_tokens_that_are_called_by_their_texts(tmp_path):
    faults = Faults(forms=("echo",), texts=True)
    with serve(MODEL, TOKENIZER, faults) as server:
        check(box(server.url, tmp_path))  # every text is one token's
    with serve(MODEL, TOKENIZER, faults) as server:
        model = box(server.url, tmp_path / "other")
        model.where = Place(tmp_path / "other", Numbered(same=tuple(range(2, 40, 2))), 40, torch.device("cpu"))
        server.tokenizer = model.where.tokenizer
        refused(model, "a token is called by its text|tokens given, and 6 asked for")
        assert kept(model, tmp_path) == []


def test_another_model_under_the_same_name_is_refused_later(tmp_path):
    with serve(MODEL, TOKENIZER) as server:
        check(box(server.url, tmp_path), EXAMPLES[:6])
        remote._tested.clear()  # another process
        again = box(server.url, tmp_path)
        check(again, EXAMPLES[6:9])
        assert again.facts()["drift"] == 0
        remote._tested.clear()
        server.model = tiny_llama(0)
        with torch.no_grad():
            for p in server.model.parameters():
                p.mul_(1.0005)
        again = box(server.url, tmp_path)
        list(again.answers(EXAMPLES[9:10]))
        assert 0 < again.facts()["drift"] < 1e-2
        server.model = tiny_llama(1)
        remote._tested.clear()
        refused(box(server.url, tmp_path), "another model answers as 'tiny' than before.*pair.target.http.revision")
        check(box(server.url, tmp_path), EXAMPLES[:9])  # the server is not asked
        fresh = box(server.url, tmp_path, revision="two")
        assert len(list(fresh.answers(EXAMPLES))) == len(EXAMPLES)


def test_two_servers_of_one_name_whose_tokenizers_differ_are_not_mixed_up(tmp_path):
    """The same ids are then other texts: neither is given the other's answers, and no drift is seen between them."""
    other = Numbered(prefix="v")
    with serve(MODEL, TOKENIZER) as server:
        check(box(server.url, tmp_path))
    with serve(tiny_llama(1), other) as server:
        model = box(server.url, tmp_path)
        model = type(model)(model.http, replace(model.where, tokenizer=other))
        rows = next(iter(model.answers(EXAMPLES[:1])))
        true = shared_rows(tiny_llama(1), EXAMPLES[:1], 0).log_softmax(-1).numpy()
        np.testing.assert_allclose(rows.logp, np.take_along_axis(true, rows.ids.astype(int), 1), atol=1e-5)
        assert model.facts()["drift"] is None
    check(box(server.url, tmp_path))  # both servers are off


# --- keys and budgets -----------------------------------------------------------------------------------------------


def test_a_key_is_sent_and_never_shown(tmp_path, monkeypatch, caplog):
    with serve(MODEL, TOKENIZER, Faults(key="sesame-0123456789")) as server:
        monkeypatch.setenv("MY_API_KEY", "sesame-0123456789")
        check(box(server.url, tmp_path, key_env="MY_API_KEY"))
        monkeypatch.setenv("MY_API_KEY", "wrong")
        error = refused(box(server.url, tmp_path / "b", key_env="MY_API_KEY"), r"401: \*\*\* key: Bearer \*\*\*")
        monkeypatch.delenv("MY_API_KEY")
        refused(box(server.url, tmp_path / "c", key_env="MY_API_KEY"), "MY_API_KEY.*is not set")
    files = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert b"sesame" not in files and "sesame" not in caplog.text + error


@pytest.mark.parametrize("limit", [{"max_requests": 12}, {"max_tokens": 150}], ids=str)
@pytest.mark.parametrize("at", [{}, {n: "500" for n in range(1, 99, 3)}], ids=["fine", "faulty"])
def test_no_budget_is_passed_by_any_number_of_threads_or_calls(tmp_path, limit, at):
    ((name, most),) = limit.items()
    with serve(MODEL, TOKENIZER, Faults(at=at, slow=0.01)) as server:
        for _ in range(3):
            remote._tested.clear()
            model = box(server.url, tmp_path, concurrency=8, retries=40, **limit)
            with pytest.raises(BlackBoxError, match=rf"(?s){name}={most}.*were spent.*so far.*What was fetched stays"):
                list(model.answers(EXAMPLES))
            spent = model.memo.spent()
            assert spent[name.removeprefix("max_")] <= most
            assert server.requests <= spent["requests"] and server.tokens <= spent["tokens"]
        more = box(server.url, tmp_path, retries=40, **{name: 10_000})
        check(more)
        assert len(kept(more, tmp_path)) == len(EXAMPLES)


def test_machines_share_one_memo_and_one_budget_over_a_network(tmp_path, monkeypatch):
    """Without the write-ahead log that one machine has: it needs memory that all share."""
    (question, other), answer = (Question(NEXT, (n,)) for n in (3, 4)), Answer(None, np.zeros((1, 2), np.float32))
    Memo(tmp_path, "m").put(question, 0, answer)  # on one machine
    gc.collect()
    (tmp_path / "mounts").write_text(f"36 35 0:32 / {tmp_path} rw shared:1 - nfs4 server:/x rw\n")
    limits = HttpConfig(model="tiny", max_requests=12)
    with monkeypatch.context() as patch:
        patch.setattr(locks, "MOUNTS", tmp_path / "mounts")
        machines = [Memo(tmp_path, "m"), Memo(tmp_path, "m")]
        assert all(m.get(question, 0) is not None for m in machines)
        machines[0].put(other, 0, answer)
        assert machines[1].get(other, 0) is not None
        assert not [p.name for p in (tmp_path / "answers").iterdir() if p.name.endswith(("-wal", "-shm"))]

        def spend(machine):
            for _ in range(9):
                with suppress(BlackBoxError):
                    machine.reserve(1, limits)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(spend, machines))
        assert [m.spent()["requests"] for m in machines] == [12, 12] == [sum(m.own["requests"] for m in machines)] * 2
    again = Memo(tmp_path, "m")  # once more on one machine: others may still be at work
    assert again._db.execute("pragma journal_mode").fetchone() != ("wal",) and again.get(other, 0) is not None


def test_a_budget_that_ends_amid_retries_keeps_what_was_answered(tmp_path):
    def some(number, body):
        return "500" if number > TEST + 4 else None

    with serve(MODEL, TOKENIZER, Faults(at=some)) as server:
        model = box(server.url, tmp_path, concurrency=1, retries=50, max_requests=TEST + len(EXAMPLES) + 4)
        with pytest.raises(BlackBoxError):
            list(model.answers(EXAMPLES))
        have = len(kept(model, tmp_path))
        assert 3 <= have < len(EXAMPLES) and server.requests <= TEST + len(EXAMPLES) + 3
        server.faults.at = {}
        before = server.requests
        check(box(server.url, tmp_path))
        assert server.requests - before == len(EXAMPLES) - have


def test_no_more_are_asked_at_once_than_allowed_and_a_timeout_is_tried_again(tmp_path):
    with serve(MODEL, TOKENIZER, Faults(slow=0.02)) as server:
        list(box(server.url, tmp_path, concurrency=3).answers(EXAMPLES))
        assert 2 <= server.most_at_once <= 3
    with serve(MODEL, TOKENIZER, Faults(at={TEST + 2: "stall"})) as server:
        check(box(server.url, tmp_path / "b", timeout_s=0.3, concurrency=2))


KILLED = """
import itertools, os, signal, sys
sys.path.insert(0, {tests!r})
from support.black_boxes import box
from support.helpers import random_examples
from unlearn.blackbox.questions import Memo
def put(self, *given, real=Memo.put, count=itertools.count(1)):
    real(self, *given)
    if next(count) == 25: os.kill(os.getpid(), signal.SIGKILL)
Memo.put = put
list(box({url!r}, {store!r}, concurrency=2).answers(random_examples(60, seed=8)))
"""


@pytest.mark.nightly
def test_after_sigkill_only_the_rest_is_asked(tmp_path):
    """Killed while it fetches: what was answered is there, and nothing is asked twice but what was on its way."""
    examples = random_examples(60, seed=8)
    with serve(MODEL, TOKENIZER) as server:
        code = KILLED.format(tests=str(ROOT / "tests"), url=server.url, store=str(tmp_path))
        (tmp_path / "killed.py").write_text(code)
        assert forked("killed", cwd=tmp_path).returncode == -signal.SIGKILL
        model, before = box(server.url, tmp_path), server.requests
        have = len(kept(model, tmp_path))
        assert 25 <= have < 60
        check(model, examples)
        assert server.requests - before <= 60 - have + TEST
        assert server.requests <= 60 + 2 * TEST + 2
