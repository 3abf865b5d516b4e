"""Several active offsets replaced by one: a run that begins where they ended (``begin.runs``) and trains nothing.

The fused offset is measured before it takes effect, on the forget sets of all its parts; one that does not meet the
rule is written down and not used. Its parts stay, so a fusion can be undone.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unlearn.config.derived import tuning
from unlearn.config.pair import LAYERS
from unlearn.config.schema import BeginConfig
from unlearn.data.readers import read
from unlearn.deploy.requests import evidence
from unlearn.deploy.requests.actions import answer, effect, measure
from unlearn.deploy.requests.chain import Failed, LedgerError
from unlearn.deploy.requests.ledger import Ledger, State, check_id
from unlearn.grid import call as grid
from unlearn.grid.rerun import open_run
from unlearn.grid.rules import parse
from unlearn.runs.sequence import one_list
from unlearn.store.identity import Job


def fuse(ledger: Ledger, ids: Sequence[str] = (), id: str | None = None, rule: Sequence[str] | None = None) -> State:
    """Fuse active offsets (all, unless some are named) into one; again: resumes. ``LedgerError`` where they do not fit
    each other, the run fails, or the fused offset does not meet the rule."""
    with ledger.lock:
        state = _begun(ledger, ids, id, rule) or _write_down(ledger, ids, id, rule)
    if state.effective is not None:
        return state
    id, job = state.id, grid.check(parse(_config(ledger, state)))
    answer(id, job)
    ledger.link(id, job.folder)
    others = [s.id for s in ledger.in_effect() if s.id not in state.parts]
    for one in (id, *state.parts):  # the union, and each request for itself
        if one not in state.latest:
            measure(ledger, id, one, [*others, id], once=True)
    now = ledger.state(id)
    if not now.passed:
        unmet, parts = ", ".join(now.unmet()), ", ".join(state.parts)
        raise Failed(f"{id}: does not meet its rule and did not take effect ({unmet}); {parts} stay active")
    with ledger.lock:
        ledger.in_effect(state.parts)  # undone in the meantime?
        ledger.chain.append("effective", id, effect(ledger, id))
    return ledger.state(id)


def _begun(ledger: Ledger, ids: Sequence[str], id: str | None, rule: Sequence[str] | None) -> State | None:
    """The fusion that was asked for before, by its id or its parts; ``LedgerError`` where it is another one."""
    known = ledger.states()
    going = (s for s in known.values() if s.is_fusion and s.effective is None and s.passed is not False)
    state = known.get(id) if id is not None else next((s for s in going if not ids or {*ids} == {*s.parts}), None)
    if state is None:
        return None
    wrong = None
    if not state.is_fusion or (ids and {*ids} != {*state.parts}):
        wrong = f"is of {', '.join(state.parts) or 'a request'}"
    elif rule is not None and [evidence.condition(text).text for text in rule] != state.rule:
        wrong = f"its rule is {state.rule}, fixed before it was made"
    elif state.effective is None and state.passed is False:
        wrong = "was measured and does not meet its rule"
    if wrong:
        raise LedgerError(f"{state.id}: {wrong}; give a new id")
    return state


def _write_down(ledger: Ledger, ids: Sequence[str], id: str | None, rule: Sequence[str] | None) -> State:
    """A new fusion, written down; ``LedgerError`` where runs differ in more than in what they were asked to forget."""
    parts = [state.id for state in ledger.in_effect(ids)]
    if len(parts) < 2:
        raise LedgerError(f"fuse: needs two active offsets or more, and got {parts}")
    first, *others = jobs = _jobs(ledger, parts)
    one_list([job.cfg for job in jobs])
    for job in others:
        if (job.cfg.pair, job.cfg.method) != (first.cfg.pair, first.cfg.method):
            raise LedgerError(f"fuse: {job.folder} has another pair or method than {first.folder}")
        if _retained(job.cfg.data) != _retained(first.cfg.data):
            rule = f"what may differ is data.request{' or data.forget' if first.cfg.data.reader == 'jsonl' else ''}"
            raise LedgerError(f"fuse: {first.folder} and {job.folder} have different data sets; {rule}")
    conditions = evidence.conditions(rule, first.cfg, read(first.cfg))
    id = check_id(id or ledger.next_id("F"))
    ledger.salts.make(id)
    ledger.chain.append("fusing", id, {"parts": parts, "rule": [c.text for c in conditions]})
    return ledger.state(id)


def _jobs(ledger: Ledger, parts: Sequence[str]) -> list[Job]:
    return [open_run(ledger.run_of(part)).job for part in parts]


def _retained(data: Any) -> dict[str, Any]:
    """The settings of a data set without what is asked to be forgotten; data.requests may have grown."""
    own = {"forget"} if data.reader == "jsonl" else set()
    left_out = {"request", "requests"} if data.requests is not None else own
    return {k: v for k, v in vars(data).items() if k not in left_out}


def _config(ledger: Ledger, state: State) -> DictConfig:
    """The config of the fusion: that of its first part, which asks for all of them and begins where they ended."""
    jobs = _jobs(ledger, state.parts)
    known, first, configs = ledger.states(), jobs[0].cfg, [job.cfg for job in jobs]
    if first.data.requests is None:
        asked = {"forget": _flat([vars(cfg.data)["forget"] for cfg in configs])}
    else:
        numbers = [cfg.data.request for cfg in configs]
        if None in numbers:
            raise LedgerError("fuse: one of the runs answers all of data.requests; there is nothing to fuse it with")
        asked = {"requests": one_list(configs), "request": sorted(set(_flat(numbers)))}
    alphas = [known[part].effect["alpha"] / first.alpha for part in state.parts]
    runs = [str(ledger.run_of(part)) for part in state.parts]
    begin = BeginConfig(runs, alphas=None if tuning(first) == LAYERS else alphas)
    changes = {"algo": {"name": "fused"}, "begin": asdict(begin), "trainer": {"steps": 0}, "data": asked}
    if first.pair.tuning == "lora":  # low-rank updates begin at zero: what they learnt is added to whole weights
        changes["pair"] = {"tuning": "full"}
    return OmegaConf.merge(OmegaConf.structured(first), changes)


def _flat(given: Sequence[Any]) -> list[Any]:
    return [one for each in given for one in (each if isinstance(each, list) else [each])]
