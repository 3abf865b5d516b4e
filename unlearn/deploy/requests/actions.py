"""What is done with requests: answered by a run, measured, taken back, erased. Each act ends as an entry.

Acts can be called again: what a kill or a failing run left undone is done then, and nothing is written twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from unlearn.config.derived import algo_name, alpha_key, training_alpha
from unlearn.config.pair import PairConfig
from unlearn.config.schema import Config, ConfigError, conf_dir, register
from unlearn.data.readers import read
from unlearn.deploy.requests import evidence, fingerprints
from unlearn.deploy.requests.chain import Failed, LedgerError
from unlearn.deploy.requests.ledger import Ledger, check_id, weights_of
from unlearn.deploy.requests.states import State
from unlearn.grid import call as grid
from unlearn.grid.perform import perform
from unlearn.grid.rerun import load
from unlearn.grid.rules import parse, unknown_overrides
from unlearn.store import runlog
from unlearn.store.identity import Job, digest, run_identity
from unlearn.store.sources import is_folder

log = logging.getLogger(__name__)
USUAL = ("study=requests", "wandb=disabled")  # W&B's files would hold the forget set's text


@dataclass(frozen=True)
class Asked:
    """A deletion request as it came in."""

    id: str | None = None  # null: R1, R2, …
    received: str | None = None  # dates as given
    due: str | None = None
    subject: str | None = None  # whom it is about, by whatever name the controller's own register has; salted
    rule: Sequence[str] | None = None  # conditions, fixed before the run; null: the usual ones


def add(ledger: Ledger, overrides: Sequence[str], asked: Asked) -> State:
    """Write down what is asked, let the run that answers it go, write down that it is in effect and how forgotten.

    Called again with the same, it goes on where it stopped. ``LedgerError`` for the same id with another forget set,
    other settings or another rule, and where the run fails.
    """
    raw, cfg = config(overrides)
    job = grid.job(cfg, read(cfg).fingerprint())
    body = _asked(cfg, job, asked)
    with ledger.lock:
        id = _same(ledger, cfg, job, asked) or asked.id or ledger.next_id("R")
        state = ledger.states().get(check_id(id))
        if state is None:
            salt = ledger.salts.make(id)
            ledger.append("asked", id, body | _salted(cfg, job, asked, salt))
        else:
            given = body | _salted(cfg, job, asked, ledger.salts.get(id))
            if asked.rule is None:
                given.pop("rule")
            _check_same(state, given)
    if ledger.state(id).effective is None:
        _go(ledger, id, raw, job)
        with ledger.lock:
            if ledger.state(id).effective is None:
                ledger.link(id, job.folder)
                ledger.append("effective", id, effect(job))
    if not ledger.state(id).evaluated:
        evaluate(ledger, [id])
    return ledger.state(id)


def config(overrides: Sequence[str]) -> tuple[DictConfig, Config]:
    """The settings of a run, checked as ``python -m unlearn.run`` checks them."""
    problems = list(unknown_overrides(list(overrides)))
    if problems:
        raise ConfigError("\n".join(problems))
    keys = {o.split("=")[0] for o in overrides}
    usual = [o for o in USUAL if o.split("=")[0] not in keys]
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        raw = compose("config", overrides=[*usual, *overrides])
    cfg = parse(raw)
    grid.check(cfg)
    return raw, cfg


def effect(job: Job) -> dict[str, Any]:
    """What took effect: the offset by its weights, and all that it was made with."""
    cfg, manifest = job.cfg, runlog.manifest(job.folder)
    return {
        "alpha": cfg.alpha,
        "weights": weights_of(job.folder),
        "models": manifest.get("models"),
        "lineage": _lineage(cfg.pair),
        "seeds": {"seed": cfg.seed, "pair": cfg.pair.seed},
        "code": manifest.get("git"),
        "versions": manifest.get("versions"),
        "hardware": manifest.get("hardware"),
        "seconds": round(runlog.own_seconds(manifest), 1),
        "collapsed": manifest.get("collapsed") is not None,
    }  # fmt: skip


def _lineage(pair: PairConfig) -> dict[str, Any]:
    """Where the models come from: names on the hub, never paths, which may say more than they should."""
    named = {"target": pair.target, "small": pair.small, "tokenizer": pair.tokenizer}
    on_hub = {k: f"{s.source}@{s.revision or 'main'}" for k, s in named.items() if s.source and not is_folder(s.source)}
    how = {"pair": pair.name, "offset_init": pair.offset_init, "tuning": pair.tuning}
    return how | {"dtype": pair.target.dtype, "quantisation": pair.target.quantisation} | on_hub


def evaluate(ledger: Ledger, ids: Sequence[str] = (), overrides: Sequence[str] = ()) -> list[State]:
    """Measure how forgotten requests are under all offsets that are active now; all active requests unless some are
    named. ``overrides`` as of ``python -m unlearn.evaluate``."""
    known = ledger.states()
    wanted = list(ids) or [s.id for s in known.values() if s.active]
    answering = [a.id for a in ledger.active()]
    for id in wanted:
        if id not in known:
            raise LedgerError(f"{id}: no such request; there are {', '.join(known) or 'none'}")
        if known[id].effective is None or known[id].undone is not None:
            raise LedgerError(f"{id}: is {known[id].status}: there is nothing to measure")
        ledger.append("evaluated", id, measured(ledger, id, answering, overrides))
    return [ledger.state(id) for id in wanted]


def measured(ledger: Ledger, id: str, answering: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The body of an evaluation of one request under the sum of some offsets: aggregates, and the rule's verdict."""
    known = ledger.states()
    jobs = {name: load(ledger.run_of(name), overrides)[1] for name in {*answering, id}}
    alphas = {name: _alpha(ledger, name, jobs[name]) for name in answering}
    entry, references = _entry(jobs, id, alphas)
    conditions = evidence.rule(known[id].asked["body"]["rule"], jobs[id].cfg, read(jobs[id].cfg))
    verdict = evidence.judged(conditions, entry, references.get("target", {}))
    settings = {k: v for k, v in entry["settings"].items() if k != "references"}  # a plain hash of the data
    return {
        "of": id,
        "offsets": alphas,
        "weights": {name: weights_of(jobs[name].folder) for name in answering},
        "questions": len(read(jobs[id].cfg).splits["forget"]),
        "rule": verdict,
        "passed": all(condition["holds"] for condition in verdict),
        "settings": settings,
        "metrics": evidence.aggregates(entry, references),
    }


def _entry(jobs: dict[str, Job], id: str, alphas: dict[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The evaluation of the forget set of ``id`` under the sum, and those of target and retrained model."""
    job = jobs[id]
    if list(alphas) == [id] and runlog.is_done(job):
        found = runlog.evaluation(job.folder)
        if alpha_key(alphas[id]) in found["alphas"]:
            return found["alphas"][alpha_key(alphas[id])], found["references"]
    from unlearn.runs.sequence import Part, measure

    step = measure(job.cfg, [Part(jobs[name], alpha) for name, alpha in alphas.items()], 1)
    return step.metrics, step.references


def _alpha(ledger: Ledger, id: str, job: Job) -> float:
    """What took effect, or what will."""
    state = ledger.state(id)
    return float(state.effective["body"]["alpha"]) if state.effective is not None else job.cfg.alpha


def undo(ledger: Ledger, id: str) -> State:
    """Take an offset out of what is active; what a fusion had replaced is active again."""
    with ledger.lock:
        state = ledger.state(id)
        if state.fused_in is not None:
            raise LedgerError(f"{id}: is {state.status}; undo {state.fused_in} first, then {id}")
        if not state.active:
            raise LedgerError(f"{id}: is {state.status}; only what is active can be undone")
        ledger.append("undone", id, {})
    return ledger.state(id)


def erase(ledger: Ledger, id: str) -> State:
    """Remove the salt of a request: from now on nobody can link its fingerprint to a text."""
    with ledger.lock:
        state = ledger.state(id)
        if not ledger.salts.erase(id) and state.erased is not None:
            raise LedgerError(f"{id}: its salt was erased before, on {state.erased['time']}")
        if not state.active and state.fused_in is None:
            ledger.unlink(id)
        if state.erased is None:
            ledger.append("erased", id, {})
    return ledger.state(id)


# --- one request --------------------------------------------------------------------------------------------------


def _asked(cfg: Config, job: Job, asked: Asked) -> dict[str, Any]:
    """What is written before the run, and cannot be changed after."""
    if cfg.method.rule != "sum" or not any(m.trained and not m.constant for m in cfg.method.members):
        rule = "the answers to several requests are added up, so a request needs a method that trains what is added"
        raise LedgerError(f"method={cfg.method.name!r}: {rule}, e.g. method=offset")
    return {
        "received": asked.received, "due": asked.due,
        "rule": [condition.text for condition in evidence.rule(asked.rule, cfg, read(cfg))],
        "questions": len(read(cfg).splits["forget"]),
        "algorithm": algo_name(cfg), "method": cfg.method.name, "pair": cfg.pair.name, "data": cfg.data.reader,
        "alpha": {"training": training_alpha(cfg), "asked": cfg.alpha},
    }  # fmt: skip


def _salted(cfg: Config, job: Job, asked: Asked, salt: bytes) -> dict[str, Any]:
    """What would be guessed from a plain hash."""
    identity = digest(run_identity(cfg, job.data), 64)
    return {
        "fingerprint": fingerprints.of_rows(read(cfg).splits["forget"], salt),
        "config": fingerprints.of_text(identity, salt),
        "subject": None if asked.subject is None else fingerprints.of_text(asked.subject, salt),
    }


def _same(ledger: Ledger, cfg: Config, job: Job, asked: Asked) -> str | None:
    """The request, not undone, that asks for the same by its salted fingerprints; where no id was given."""
    if asked.id is not None:
        return None
    for state in ledger.states().values():
        if not state.is_fusion and state.undone is None and ledger.salts.has(state.id):
            own = _salted(cfg, job, asked, ledger.salts.get(state.id))
            if all(own[key] == state.asked["body"][key] for key in ("fingerprint", "config")):
                return state.id
    return None


def _check_same(state: State, body: dict[str, Any]) -> None:
    """What was asked cannot be changed afterwards. Dates that are left out are those given before."""
    if state.undone is not None:
        raise LedgerError(f"{state.id}: was undone on {state.undone['time']}; ask for it again under a new id")
    before = state.asked["body"]
    for key, value in body.items():
        left_out = key in ("received", "due", "subject") and value is None
        if before.get(key) != value and not left_out:
            what = {"fingerprint": "forget set", "config": "settings"}.get(key, key)
            raise LedgerError(
                f"{state.id}: was asked on {state.asked['time']} with another {what}, and that cannot be changed; "
                "undo it, or give a new id"
            )


def _go(ledger: Ledger, id: str, raw: DictConfig, job: Job) -> None:
    """The ordinary job, which goes on from its checkpoint where there is one."""
    perform(job)
    if not runlog.is_done(job):
        said = runlog.manifest(job.folder).get("error") or "it came to no end"
        raise Failed(f"{id}: its run {job.folder} is not done: {said}; the same command goes on from there")


def answer(ledger: Ledger, id: str, raw: DictConfig) -> Job:
    """Let the run of a config that is composed already go."""
    cfg = parse(raw)
    grid.check(cfg)
    job = grid.job(cfg, read(cfg).fingerprint())
    _go(ledger, id, raw, job)
    return job
