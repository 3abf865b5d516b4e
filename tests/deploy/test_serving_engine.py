"""One engine for all requests: what it says to one does not depend on the others."""

import queue
import threading
import time
from dataclasses import replace

import pytest
import torch
from support.helpers import tiny_llama
from support.served import PROMPTS, STEPS, Client, ask, engine, parts, plain, seeded, tokens, told, until_end

from unlearn.config.schema import ConfigError
from unlearn.decoding.generation import Decoding, greedy
from unlearn.deploy.parts import Blend, Part
from unlearn.deploy.serving import answers
from unlearn.deploy.serving.answers import Failed
from unlearn.deploy.serving.engine import Busy, Engine
from unlearn.ensemble.combination import bind_rule
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.models import llama, states

ON = "request0"


@pytest.fixture(scope="module")
def one():
    with engine(max_batch=5) as running:
        yield running


# --- greedy -----------------------------------------------------------------------------------------------------------


def test_answers_given_at_once_are_those_of_plain_greedy_decoding(one):
    """16 requests share five places, so they come and go between the steps of the others."""
    asked = [(p, (0.0, 0.5, 1.0, 2.0)[i % 4], 1 + 3 * (i % 5)) for i, p in enumerate(PROMPTS)]
    found = told(one, [ask(p, ((ON, a),), limit=n) for p, a, n in asked])
    expected = [plain(*each) for each in asked]
    assert [tokens(e) for e in found] == expected
    assert len(set(map(len, expected))) > 2  # some end by themselves and some do not
    for events, answer, (*_, n) in zip(found, expected, asked, strict=True):
        assert events[-1].finish == ("stop" if len(answer) < n else "length")


def test_a_request_that_comes_late_joins_those_that_run(one):
    first = queue.Queue()
    one.submit([(ask(PROMPTS[0], limit=30), first.put)])
    while not first.qsize() > 3:
        time.sleep(0.001)
    late = told(one, [ask(p) for p in PROMPTS[1:4]])
    assert [tokens(e) for e in late] == [plain(p, 1.0) for p in PROMPTS[1:4]]
    assert tokens(until_end(first)) == plain(PROMPTS[0], 1.0, steps=30)


def doubled() -> list[Part]:
    """Members for which tokens 20 to 39 are 3 to 22 again: wherever one is the likeliest, two are."""
    made = parts()
    for m in made[0].ensemble.members:
        weight = m.model.get_input_embeddings().weight
        weight.data[23:40] = weight.data[3:20]
    return made


@pytest.mark.parametrize("exact", [True, False])
def test_where_two_tokens_tie_the_answer_is_gone_through_again_alone(monkeypatch, exact):
    apart = []
    monkeypatch.setattr(Engine, "_apart", lambda self, a, real=Engine._apart: (apart.append(a), real(self, a)))
    with engine(*doubled(), exact=exact) as running:
        found = [tokens(e) for e in told(running, [ask(p) for p in PROMPTS])]
        alone = [tokens(told(running, [ask(p)])[0]) for p in PROMPTS[:3]]
    expected = [plain(p, 1.0, made=doubled) for p in PROMPTS]
    assert alone == expected[:3]
    assert (found == expected and len(apart) > 8) if exact else not apart


def test_in_half_precision_ties_stay_in_the_batch_unless_it_is_asked_otherwise():
    made = parts()
    assert engine(*made).exact and not engine(*made, exact=False).exact
    made[0].ensemble.members[0].model.bfloat16()  # one is enough: its ties are the sum's
    assert not engine(*made).exact and engine(*made, exact=True).exact


def test_a_method_with_another_rule_says_what_it_says_alone():
    weights = ("target", 0, 1.0, 0.0), ("full", 1, 0.0, -1.0), ("retain", 2, 0.0, 1.0)
    members = [Member(n, tiny_llama(s, hidden=8 + 4 * s), n, c, w, False) for n, s, c, w in weights]
    ensemble = Ensemble(tuple(members), bind_rule("rank", {"k": 5.0}))
    with engine(Part(ON, ensemble, None, 1.0)) as running:
        found = told(running, [ask(p) for p in PROMPTS[:8]])
    assert [tokens(e) for e in found] == greedy(ensemble, PROMPTS[:8], 1.0, Decoding(0, 1, STEPS, 1))


# --- drawn ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_p", [pytest.param(1.0, marks=pytest.mark.nightly), 0.8])
def test_a_seeded_answer_is_the_same_whatever_is_beside_it(one, top_p):
    asked = [ask(p, draw=seeded(p, i, top_p=top_p)) for i, p in enumerate(PROMPTS)]
    found = [tokens(e) for e in told(one, asked)]
    assert found == [tokens(told(one, [a])[0]) for a in asked]
    others = [ask(p, draw=seeded(p, 90 + i)) for i, p in enumerate(PROMPTS)]
    mixed = told(one, [a if i % 2 else o for i, (a, o) in enumerate(zip(asked, others, strict=True))])
    assert [tokens(e) for e in mixed[1::2]] == found[1::2] and [tokens(e) for e in mixed[::2]] != found[::2]


# --- log-probabilities ------------------------------------------------------------------------------------------------


def test_scores_of_a_prompt_are_the_same_to_the_last_digit_in_a_crowd_and_nearly_so_in_blocks(one, monkeypatch):
    scored = ask(PROMPTS[2], limit=0, prompt_logprobs=5)
    alone = told(one, [scored])[0]
    crowd = told(one, [*(ask(p) for p in PROMPTS), scored, *(ask(p, limit=0, prompt_logprobs=0) for p in PROMPTS)])
    assert crowd[len(PROMPTS)] == alone and alone[0].finish == "length"
    monkeypatch.setattr(answers, "block", lambda width, device: 3)
    for a, b in zip(alone[0].scored, told(one, [scored])[0][0].scored, strict=True):
        assert (a.token, a.rank, a.logprob) == (b.token, b.rank, pytest.approx(b.logprob, abs=1e-6))


# --- several offsets --------------------------------------------------------------------------------------------------


def summed(made, prompt, mix, steps=STEPS):
    """target + Σ α (offset − anchor), by hand and without a cache."""
    ids = list(prompt)
    target, _, anchor = made[0].ensemble.members
    while len(ids) < len(prompt) + steps:
        rows = {m.name: m.model(input_ids=torch.tensor([ids])).logits[0, -1] for m in (target, anchor)}
        logits = rows["target"]
        for part in made:
            offset = part.ensemble.members[1].model(input_ids=torch.tensor([ids])).logits[0, -1]
            logits = logits + dict(mix).get(part.name, 0.0) * (offset - rows["anchor"])
        token = logits.argmax().item()
        if token == 1:
            break
        ids.append(token)
    return ids[len(prompt) :]


@torch.no_grad()
def test_two_offsets_are_added_and_what_is_off_is_not_computed():
    made = parts(2)
    mixes = [(), (("request0", 1.0),), (("request1", 0.5),), (("request0", 1.0), ("request1", 2.0))]
    expected = {mix: [summed(made, p, mix) for p in PROMPTS[:4]] for mix in mixes}
    assert len({str(answers) for answers in expected.values()}) == 4
    ran = []
    for part in made:
        hook = part.ensemble.members[1].model.base_model
        hook.register_forward_pre_hook(lambda *_, name=part.name: ran.append(name))
    with engine(*made) as running:
        for mix in mixes:
            ran.clear()
            assert [tokens(e) for e in told(running, [ask(p, mix) for p in PROMPTS[:4]])] == expected[mix]
            assert set(ran) == {name for name, _ in mix}
        ran.clear()
        asks = [ask(p, mix) for mix in mixes for p in PROMPTS[:4]]  # all of them at once
        assert [tokens(e) for e in told(running, asks)] == [answer for mix in mixes for answer in expected[mix]]


def test_a_model_that_is_target_and_anchor_is_served_as_one_and_at_alpha_one_not_at_all():
    part = parts()[0]
    target, offset, anchor = part.ensemble.members
    own = replace(anchor, model=target.model, fingerprint=target.fingerprint)
    blend = Blend([replace(part, ensemble=Ensemble((target, offset, own)))])
    for mix, names in (((), ["target"]), (((ON, 1.0),), [f"{ON}/offset"]), (((ON, 0.5),), ["target", f"{ON}/offset"])):
        assert [m.name for m in blend.members(mix)] == names


def test_offsets_of_other_models_are_refused_with_both_fingerprints():
    a, b = parts(2)
    members = b.ensemble.members
    other = Ensemble((*members[:2], Member("anchor", members[2].model, "z", 0.0, -1.0, False)))
    with pytest.raises(ConfigError, match="request1 was trained beside a anchor .* z, and that .* is a"):
        Blend([a, Part("request1", other, "w", 1.0)])
    with pytest.raises(ConfigError, match="each may be given once"):
        Blend([a, a])
    ranked = Ensemble(members, bind_rule("rank", {"k": 1.0}))
    with pytest.raises(ConfigError, match="its rule is 'rank', and only sums"):
        Blend([a, Part("request1", ranked, "w", 1.0)])
    whole = Ensemble((Member("model", members[0].model, "t", 1.0, 0.0, True),))
    with pytest.raises(ConfigError, match="are a whole model, and no offset"):
        Blend([a, Part("request1", whole, "w", 1.0)])
    with pytest.raises(ValueError, match="cannot be switched off"):
        Blend([Part("m", whole, "w", 1.0)]).switch("m", False, None)


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def endless(monkeypatch):
    """Answers that come to no end by themselves."""
    monkeypatch.setattr("unlearn.deploy.serving.engine.ends_of", lambda *_: set())


def test_who_is_cancelled_frees_the_place(endless):
    with engine(max_batch=1, max_waiting=1) as running:
        first, second = queue.Queue(), queue.Queue()
        answers = running.submit([(ask(PROMPTS[0], limit=10**6), first.put)])
        while first.qsize() < 3:
            time.sleep(0.001)
        running.submit([(ask(PROMPTS[1]), second.put)])
        with pytest.raises(Busy, match="1 answers wait already; at most 1 may"):
            running.submit([(ask(PROMPTS[2]), first.put)])
        assert (running.running, running.waiting) == (1, 1) and second.empty()
        running.cancel(answers)
        assert len(tokens(until_end(second))) == STEPS


def test_a_step_that_does_not_end_is_noticed_and_not_waited_for(monkeypatch):
    """Health is asked while the engine's only thread is at work."""
    going, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(Engine, "_say", lambda *_: (going.set(), ended.wait(30)))
    running, events = engine().start(), queue.Queue()
    client = Client(running, patience=0.05)
    assert client.get("/health").json()["status"] == "ok" and running.busy == 0
    running.submit([(ask(PROMPTS[0]), events.put)])
    assert going.wait(10)
    time.sleep(0.06)
    found = client.get("/health")
    assert found.status_code == 503 and found.json() == {"status": "stalled", "running": 1, "waiting": 0}
    assert running.close(0.05) is False
    ended.set()
    assert running.close() and client.get("/health").json()["status"] == "stopped"


def test_a_server_that_stops_tells_those_that_run_and_wait(endless):
    running, events = engine(max_batch=1).start(), [queue.Queue() for _ in range(2)]
    running.submit([(ask(PROMPTS[0], limit=10**6), q.put) for q in events])
    while events[0].qsize() < 3:
        time.sleep(0.001)
    running.close()
    for q in events:
        assert until_end(q)[-1] == Failed("the server is stopping")
    with pytest.raises(Busy, match="the server is stopping"):
        running.submit([(ask(PROMPTS[0]), events[0].put)])
    assert not running.alive


@pytest.mark.filterwarnings("error")
def test_a_fault_ends_what_it_concerns_and_nothing_else(monkeypatch, caplog):
    real = llama.head
    with engine(*parts(2)) as running:

        def broken(model, hidden):
            if model is running.blend.parts["request1"].ensemble.members[1].model:
                raise ZeroDivisionError("planted")
            return real(model, hidden)

        monkeypatch.setattr(states, "head", broken)
        both = [ask(PROMPTS[0]), ask(PROMPTS[0], (("request1", 1.0),)), ask(PROMPTS[3])]
        found = told(running, both)
        assert [isinstance(e[-1], Failed) for e in found] == [False, True, False]
        assert tokens(found[2]) == plain(PROMPTS[3], 1.0)
        monkeypatch.setattr(states, "head", real)
        assert tokens(told(running, both[1:2])[0]) and running.alive
    assert "ZeroDivisionError" in caplog.text
