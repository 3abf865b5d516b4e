"""Several active offsets replaced by one: an ordinary run that begins at the sum of what they changed, and ends there.

The fused offset is measured before it takes effect, on the forget sets of all its parts; one that does not meet the
rule is written down and not used. Its parts stay, so a fusion can be undone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unlearn.config.data import JsonlConfig
from unlearn.config.derived import tuning
from unlearn.config.pair import LAYERS
from unlearn.config.schema import BeginConfig
from unlearn.data.readers import read
from unlearn.deploy.requests import evidence
from unlearn.deploy.requests.actions import answer, effect, measured
from unlearn.deploy.requests.chain import Failed, LedgerError
from unlearn.deploy.requests.ledger import Ledger, check_id, named
from unlearn.deploy.requests.states import State
from unlearn.grid.rerun import load
from unlearn.runs.sequence import one_list
from unlearn.store.identity import Job


def fuse(ledger: Ledger, ids: Sequence[str] = (), id: str | None = None, rule: Sequence[str] | None = None) -> State:
    """Fuse active offsets (all, unless some are named) into one.

    ``LedgerError`` where they do not fit each other, the run fails, or the fused offset does not meet the rule. Called
    again it goes on with a fusion of the same that came to no end.
    """
    with ledger.lock:
        id = _ask(ledger, ids, id, rule)
    state = ledger.state(id)
    if state.effective is not None:
        return state
    job = answer(ledger, id, _config(ledger, state))
    ledger.link(id, job.folder)
    others = [s.id for s in ledger.states().values() if s.active and s.id not in state.parts]
    for one in (id, *state.parts):  # the union, and each request for itself
        if one not in state.latest:
            ledger.append("evaluated", id, measured(ledger, one, [*others, id]))
    if not ledger.state(id).passed:
        unmet, parts = ", ".join(ledger.state(id).unmet()), ", ".join(state.parts)
        raise Failed(f"{id}: does not meet its rule and did not take effect ({unmet}); {parts} stay active")
    with ledger.lock:
        named(state.parts, ledger.states())  # undone in the meantime?
        ledger.append("effective", id, effect(job))
    return ledger.state(id)


def _ask(ledger: Ledger, ids: Sequence[str], id: str | None, rule: Sequence[str] | None) -> str:
    """Write down what is to be fused and the rule; the id. Of a fusion that was begun, check that it is the same."""
    known = ledger.states()
    going = (s for s in known.values() if s.is_fusion and s.effective is None and s.passed is not False)
    begun = known.get(id) if id is not None else next((s for s in going if not ids or {*ids} == {*s.parts}), None)
    if begun is not None:
        return _same(begun, ids, rule)
    parts = named(list(ids) or [s.id for s in known.values() if s.active], known)
    if len(parts) < 2:
        raise LedgerError(f"fuse: needs two active offsets or more, and got {[s.id for s in parts]}")
    jobs = [load(ledger.run_of(part.id))[1] for part in parts]
    _fit(jobs)
    conditions = evidence.rule(rule, jobs[0].cfg, read(jobs[0].cfg))
    id = check_id(id or ledger.next_id("F"))
    ledger.append("fusing", id, {"parts": [p.id for p in parts], "rule": [c.text for c in conditions]})
    return id


def _same(state: State, ids: Sequence[str], rule: Sequence[str] | None) -> str:
    before = state.asked["body"]
    if not state.is_fusion or (ids and {*ids} != {*state.parts}):
        raise LedgerError(f"{state.id}: is of {', '.join(state.parts) or 'a request'}; give a new id")
    if rule is not None and [evidence.condition(text).text for text in rule] != before["rule"]:
        raise LedgerError(f"{state.id}: its rule is {before['rule']}, fixed before it was made; give a new id")
    if state.effective is None and state.passed is False:
        raise LedgerError(f"{state.id}: was measured and does not meet its rule; give a new id")
    return state.id


def _fit(jobs: Sequence[Job]) -> None:
    """Whether the runs differ in what they were asked to forget alone."""
    first = jobs[0].cfg
    one_list([job.cfg for job in jobs])
    for job in jobs[1:]:
        cfg = job.cfg
        if cfg.pair != first.pair or cfg.method != first.method:
            raise LedgerError(f"fuse: {job.folder} has another pair or method than {jobs[0].folder}")
        if _but(cfg.data) != _but(first.data):  # data.requests may have grown: ``one_list``
            raise LedgerError(
                f"fuse: {jobs[0].folder} and {job.folder} have different data sets; what may differ is data.request"
                + (" or data.forget" if isinstance(first.data, JsonlConfig) else "")
            )


def _but(data: Any) -> dict[str, Any]:
    """The settings of a data set without what is asked to be forgotten."""
    own = {"forget"} if isinstance(data, JsonlConfig) else set()
    left_out = {"request", "requests"} if data.requests is not None else own
    return {k: v for k, v in vars(data).items() if k not in left_out}


def _config(ledger: Ledger, state: State) -> DictConfig:
    """The config of the fusion: that of its first part, which asks for all of them and begins where they ended."""
    found = [load(ledger.run_of(part)) for part in state.parts]
    raw, alpha = copy.deepcopy(found[0][0]), found[0][1].cfg.alpha
    alphas = [ledger.state(part).effective["body"]["alpha"] / alpha for part in state.parts]
    layered = tuning(found[0][1].cfg) == LAYERS
    changes: dict[str, Any] = {
        "algo": {"name": "fused"},
        "begin": asdict(BeginConfig([str(ledger.run_of(part)) for part in state.parts],
                                    alphas=None if layered else alphas)),
        "trainer": {"steps": 0},
        "data": _all_of([job for _, job in found]),
    }  # fmt: skip
    if raw.pair.tuning == "lora":  # what they learnt lies merged in offset/
        changes["pair"] = {"tuning": "full"}
    return OmegaConf.merge(raw, changes)


def _all_of(jobs: Sequence[Job]) -> dict[str, Any]:
    """What asks for the forget sets of all jobs."""
    data = jobs[0].cfg.data
    if data.requests is None:
        files = [job.cfg.data.forget for job in jobs]
        return {"forget": [name for given in files for name in (given if isinstance(given, list) else [given])]}
    numbers = [job.cfg.data.request for job in jobs]
    if None in numbers:
        raise LedgerError("fuse: one of the runs answers all of data.requests; there is nothing to fuse it with")
    requests = one_list([job.cfg for job in jobs])
    return {
        "requests": requests,
        "request": sorted({n for given in numbers for n in (given if isinstance(given, list) else [given])}),
    }
