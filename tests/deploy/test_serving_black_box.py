"""A target that is a server itself: what it is asked for grows by a token at a time, and nothing else changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.served import PROMPTS, STEPS, ask, engine, parts, plain, seeded, tokens, told

from unlearn.blackbox.questions import Top
from unlearn.blackbox.remote import Place, RemoteModel
from unlearn.config.pair import HttpConfig
from unlearn.models.llama import vocabulary


class Shown(RemoteModel):
    """Gives the rows of a local model, all of them or the likeliest, and keeps what it was asked."""

    def __init__(self, model, k: int = 0):
        super().__init__(HttpConfig(k=k), Place(Path(), None, vocabulary(model), torch.device("cpu")))
        self.model, self.asked = [model], []  # in a list: it is no part of this module

    @torch.no_grad()
    def following(self, texts, count=1):
        self.asked += [(tuple(text), count) for text in texts]
        rows = torch.cat([self.model[0](torch.tensor([text])).logits[0, -count:] for text in texts]).log_softmax(-1)
        if not self.k:
            return Top(None, rows.numpy(), None)
        logp, ids = rows.topk(self.k, dim=-1)
        rest = (1 - logp.exp().sum(-1)).clamp(min=1e-7).log()
        return Top(ids.int().numpy(), logp.numpy(), rest.numpy().astype(np.float32))

    def nothing(self, *given):
        raise AssertionError("only next rows are asked for")

    answers = say = note = facts = nothing

    def spent(self):
        return {}


def behind(k: int = 0):
    """A part whose target is shown, and that target."""
    part = parts()[0]
    target = part.ensemble.members[0]
    shown = Shown(target.model, k)
    members = (replace(target, model=shown), *part.ensemble.members[1:])
    return replace(part, ensemble=replace(part.ensemble, members=members)), shown


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_answers_are_those_beside_the_local_target_whoever_joins_and_leaves(alpha):
    part, shown = behind()
    asks = [ask(p, ((part.name, alpha),), limit=3 + i % 4) for i, p in enumerate(PROMPTS[:6])]
    with engine(part, max_batch=3) as running:
        found = told(running, asks)
    assert [tokens(e) for e in found] == [plain(p, alpha)[: 3 + i % 4] for i, p in enumerate(PROMPTS[:6])]
    assert {count for _, count in shown.asked} == {1}
    assert all(any(text[: len(p)] == tuple(p) for p in PROMPTS[:6]) for text, _ in shown.asked)


def test_a_prompt_s_own_probabilities_come_from_one_question():
    part, shown = behind()
    local, prompt = parts()[0], PROMPTS[0]
    found = []
    for one in (part, local):
        with engine(one) as running:
            found.append(told(running, [ask(prompt, ((one.name, 1.0),), limit=1, prompt_logprobs=2)])[0][0].scored)
    assert len(found[0]) == len(prompt) - 1
    for mine, theirs in zip(*found, strict=True):
        assert mine.token == theirs.token and mine.rank == theirs.rank
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-5)
    assert (tuple(prompt), len(prompt)) in shown.asked or (tuple(prompt), len(prompt) - 1) in shown.asked


def test_of_few_tokens_the_rest_is_even():
    part, _ = behind(k=5)
    asked = ask(PROMPTS[1], ((part.name, 1.0),), draw=seeded(PROMPTS[1], 7))
    with engine(part) as running:
        said = tokens(told(running, [ask(PROMPTS[1], ((part.name, 0.0),))])[0])
        drawn = [tokens(told(running, [asked])[0]) for _ in range(2)]
    assert said == plain(PROMPTS[1], 0.0)[:STEPS]  # without an offset the likeliest is among those shown
    assert drawn[0] == drawn[1]
