"""What is done with requests: answered by a run, measured, undone, erased. Each act ends as an entry.

Acts can be called again: what an interrupted or failed run left undone is done then, and nothing is written twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from unlearn.config.derived import algo_name, alpha_key, training_alpha
from unlearn.config.schema import raise_for
from unlearn.config.setting import Bound, setting
from unlearn.data.readers import read
from unlearn.deploy.requests import evidence
from unlearn.deploy.requests.chain import Failed, LedgerError
from unlearn.deploy.requests.ledger import Ledger, State, check_id
from unlearn.deploy.requests.private import OF_OFFSET, of_rows, of_run, of_text
from unlearn.grid import call as grid
from unlearn.grid.perform import perform
from unlearn.grid.queue import share
from unlearn.grid.rerun import open_run
from unlearn.grid.rules import as_typed, composed, unknown_overrides
from unlearn.store import runlog
from unlearn.store.identity import Job, digest, run_identity
from unlearn.store.sources import is_folder

USUAL = ("study=requests", "wandb=disabled")  # W&B's files would hold the forget set's text


def _is_date(text: str) -> bool:
    try:
        return bool(date.fromisoformat(text))
    except ValueError:
        return False


A_DATE = Bound(_is_date, "must be a date, e.g. 2026-11-19; it is written down in plain words")


@dataclass
class Request:
    """A deletion request as it came in."""

    id: str | None = None  # null: R1, R2, …
    received: str | None = setting(None, A_DATE)
    due: str | None = setting(None, A_DATE)
    subject: str | None = None  # whom it is about, by whatever name the controller's own register has; salted
    rule: list[str] | None = None  # conditions, fixed before the run; null: the usual ones


def add(ledger: Ledger, overrides: Sequence[str], request: Request) -> State:
    """Write down what is asked, run what answers it, write down that it is in effect and how forgotten it is; again:
    resumes. ``LedgerError`` for the same id with another forget set, settings or rule, and where the run fails."""
    job = job_of(overrides)
    with ledger.lock:
        id = _write_down(ledger, job, request)
    if ledger.state(id).effective is None:
        answer(id, job)
        with ledger.lock:
            if ledger.state(id).effective is None:
                ledger.link(id, job.folder)
                ledger.chain.append("effective", id, effect(ledger, id))
    if not ledger.state(id).evaluated:
        evaluate(ledger, [id], once=True)
    return ledger.state(id)


def job_of(overrides: Sequence[str]) -> Job:
    """The job of some settings, checked as ``python -m unlearn.run`` checks them."""
    raise_for(unknown_overrides(list(overrides)))
    keys = {o.split("=")[0] for o in overrides}
    usual = [o for o in USUAL if o.split("=")[0] not in keys]
    return grid.check(composed([*usual, *map(as_typed, overrides)]))


def answer(id: str, job: Job) -> None:
    """Run the ordinary job, from its checkpoint where there is one."""
    share(perform, [job])
    if not runlog.is_done(job):
        why = runlog.manifest(job.folder).get("error") or "it was interrupted"
        raise Failed(f"{id}: its run {job.folder} is not done: {why}; rerun the same command to resume")


def effect(ledger: Ledger, id: str) -> dict[str, Any]:
    """What took effect: the offset by all that decides what it does, and what it was made with."""
    run = open_run(ledger.run_of(id))
    cfg, pair, manifest = run.cfg, run.cfg.pair, runlog.manifest(run.folder)
    # models by their names on the hub, never by paths, which may say more than they should
    named = {"target": pair.target, "small": pair.small, "tokenizer": pair.tokenizer}
    on_hub = {k: f"{s.source}@{s.revision or 'main'}" for k, s in named.items() if s.source and not is_folder(s.source)}
    how = {"pair": pair.name, "offset_init": pair.offset_init, "tuning": pair.tuning}
    how |= {"dtype": pair.target.dtype, "quantisation": pair.target.quantisation}
    return {
        "alpha": cfg.alpha,
        "bound": of_run(run, ledger.salts.make(id + OF_OFFSET), beside=True),
        "target": (manifest.get("models") or {}).get("target"),
        "lineage": how | on_hub,
        "seeds": {"seed": cfg.seed, "pair": pair.seed},
        "code": manifest.get("git"),
        "versions": manifest.get("versions"),
        "hardware": manifest.get("hardware"),
        "seconds": round(runlog.own_seconds(manifest), 1),
        "collapsed": manifest.get("collapsed") is not None,
    }


def evaluate(ledger: Ledger, ids: Sequence[str] = (), overrides: Sequence[str] = (), once: bool = False) -> list[State]:
    """Measure how forgotten requests are under all offsets that are active now; all active requests unless some are
    named. ``overrides`` as of ``python -m unlearn.evaluate``."""
    known, answering = ledger.states(), [a.id for a in ledger.active()]
    wanted = list(ids) or answering
    for id in wanted:
        if id not in known:
            raise LedgerError(f"{id}: no such request; there are {', '.join(known) or 'none'}")
        if known[id].effective is None or known[id].undone is not None:
            raise LedgerError(f"{id}: is {known[id].status}: there is nothing to measure")
        measure(ledger, id, id, answering, overrides, once)
    return [ledger.state(id) for id in wanted]


def measure(
    ledger: Ledger, under: str, id: str, answering: Sequence[str], overrides: Sequence[str] = (), once: bool = False
) -> None:
    """Write down, under a request or a fusion, how forgotten a request is under the sum of some offsets: the rule's
    verdict, and a fingerprint of the aggregates, which can be erased. ``once``: unless another process did."""
    known = ledger.states()
    jobs = {name: open_run(ledger.run_of(name), overrides).job for name in {*answering, id}}
    alphas = {name: float(known[name].effect.get("alpha", jobs[name].cfg.alpha)) for name in answering}
    entry, references = measured(jobs, id, alphas)
    data = read(jobs[id].cfg)
    conditions = evidence.conditions(known[id].rule, jobs[id].cfg, data)
    verdict, found = evidence.judged(conditions, entry, references.get("target", {}))
    body = {
        "of": id,
        "offsets": alphas,
        "questions": len(data.splits["forget"]),
        "rule": verdict,
        "passed": all(condition["holds"] for condition in verdict),
        "settings": {k: v for k, v in entry["settings"].items() if k != "references"},  # that is a plain hash of data
    }
    with ledger.lock:
        if not (once and id in ledger.state(under).latest):
            values = {"metrics": evidence.aggregates(entry, references), "found": found}
            ledger.chain.append("evaluated", under, body | {"values": ledger.values.keep(id, values)})


def measured(jobs: dict[str, Job], id: str, alphas: dict[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The evaluation of the forget set of ``id`` under the sum, and those of target and retrained model."""
    if list(alphas) == [id] and runlog.is_done(jobs[id]):
        found, key = runlog.evaluation(jobs[id].folder), alpha_key(alphas[id])
        if key in found["alphas"]:
            return found["alphas"][key], found["references"]
    from unlearn.runs import sequence

    parts = [sequence.Part(jobs[name], alpha) for name, alpha in alphas.items()]
    step = sequence.measure(jobs[id].cfg, parts, 1)
    return step.metrics, step.references


def undo(ledger: Ledger, id: str) -> State:
    """Take an offset out of what is active; what a fusion had replaced is active again."""
    with ledger.lock:
        state = ledger.state(id)
        if state.fused_in is not None:
            raise LedgerError(f"{id}: is {state.status}; undo {state.fused_in} first, then {id}")
        if not state.active:
            raise LedgerError(f"{id}: is {state.status}; only what is active can be undone")
        ledger.chain.append("undone", id, {})
        if not ledger.salts.has(id):  # it was erased while it answered
            ledger.forget(id)
    return ledger.state(id)


def erase(ledger: Ledger, id: str) -> State:
    """Remove the salt of a request and what was measured of it, alone and with others in a fusion: from now on nobody
    can link its entries to a text."""
    with ledger.lock:
        known, state = ledger.states(), ledger.state(id)
        there = [ledger.forget(one) for one in (id, *(s.id for s in known.values() if id in s.parts))]
        if not there[0] and state.erased is not None:
            raise LedgerError(f"{id}: its salt was erased before, on {state.erased['time']}")
        if state.erased is None:
            ledger.chain.append("erased", id, {})
    return ledger.state(id)


# --- one request --------------------------------------------------------------------------------------------------


def _write_down(ledger: Ledger, job: Job, request: Request) -> str:
    """The id of a request, written down unless it was before; ``LedgerError`` where it was with something else."""
    cfg, data, known = job.cfg, read(job.cfg), ledger.states()
    if cfg.method.rule != "sum" or not any(m.trained and not m.constant for m in cfg.method.members):
        needs = "the answers to several requests are added up, so a request needs a method that trains what is added"
        raise LedgerError(f"method={cfg.method.name!r}: {needs}, e.g. method=offset")
    body = {  # all that is written in plain words
        "received": request.received, "due": request.due,
        "rule": [condition.text for condition in evidence.conditions(request.rule, cfg, data)],
        "questions": len(data.splits["forget"]),
        "algorithm": algo_name(cfg), "method": cfg.method.name, "pair": cfg.pair.name, "data": cfg.data.reader,
        "alpha": {"training": training_alpha(cfg), "asked": cfg.alpha},
    }  # fmt: skip
    same = (s.id for s in known.values() if not s.is_fusion and s.undone is None and _asks_for(ledger, s, job))
    id = check_id(request.id or next(same, None) or ledger.next_id("R"))
    state = known.get(id)
    salt = ledger.salts.make(id) if state is None else ledger.salts.get(id)
    body |= _fingerprints(job, salt) | {"subject": None if request.subject is None else of_text(request.subject, salt)}
    if state is None:
        ledger.chain.append("asked", id, body)
        return id
    if state.undone is not None:
        raise LedgerError(f"{id}: was undone on {state.undone['time']}; ask for it again under a new id")
    left_out = {key for key in ("received", "due", "subject", "rule") if getattr(request, key) is None}
    for key, value in body.items():
        if key not in left_out and state.asked["body"].get(key) != value:
            what = {"fingerprint": "forget set", "config": "settings"}.get(key, key)
            rule = f"another {what}, and that cannot be changed; undo it, or give a new id"
            raise LedgerError(f"{id}: was asked on {state.asked['time']} with {rule}")
    return id


def _fingerprints(job: Job, salt: bytes) -> dict[str, str]:
    """What would be guessed from a plain hash: forget set and settings."""
    settings = of_text(digest(run_identity(job.cfg, job.data), 64), salt)
    return {"fingerprint": of_rows(read(job.cfg).splits["forget"], salt), "config": settings}


def _asks_for(ledger: Ledger, state: State, job: Job) -> bool:
    """Whether a request asked for the same forget set with the same settings, as far as its salt is there."""
    found = ledger.salts.has(state.id) and _fingerprints(job, ledger.salts.get(state.id))
    return bool(found) and found.items() <= state.asked["body"].items()
