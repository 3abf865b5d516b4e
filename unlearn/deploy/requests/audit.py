"""Audits: finished requests are run again, from their settings, and compared with what the ledger says of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

from unlearn.deploy.requests import evidence
from unlearn.deploy.requests.actions import answer, measured
from unlearn.deploy.requests.chain import LedgerError
from unlearn.deploy.requests.ledger import Ledger, State
from unlearn.deploy.requests.private import OF_OFFSET, of_run
from unlearn.deploy.requests.verify_ledger import chosen, finished
from unlearn.grid import call as grid
from unlearn.grid.rerun import open_run
from unlearn.store.identity import Job

SAME, CLOSE, OTHER = "same", "close", "other"
TOLERANCE = 0.01  # of a measured value below 1, and of a larger one its hundredth part


@dataclass(frozen=True)
class Found:
    """Of one request: same (to the byte, and every number), close (numbers within TOLERANCE), or other."""

    id: str
    outcome: str
    said: str


def audit(ledger: Ledger, ids: Sequence[str], share: float) -> list[Found]:
    """Run finished requests again (those named, else the share that the chain's head chooses) and write down how each
    came out. What is made for it is removed; the store is used, so empty it first to make the target again, too."""
    entries = ledger.chain.entries()
    for id in ids:
        if id not in finished(entries):
            raise LedgerError(
                f"{id}: {ledger.state(id).status}; can be audited: {', '.join(finished(entries)) or 'none'}"
            )
    found = []
    for id in ids or chosen(entries, share):
        one = _again(ledger, ledger.state(id))
        body = {"head": entries[-1]["hash"], "share": None if ids else share, "outcome": one.outcome}
        ledger.chain.append("audited", id, body)
        found.append(one)
    return found


def _again(ledger: Ledger, state: State) -> Found:
    first = open_run(ledger.run_of(state.id)).cfg
    salt = ledger.salts.get(state.id + OF_OFFSET)
    with TemporaryDirectory(dir=first.paths.runs, prefix=".audit-") as place:
        paths, wandb = replace(first.paths, runs=place), replace(first.wandb, mode="disabled")
        job = grid.check(replace(first, paths=paths, wandb=wandb))
        answer(state.id, job)
        now, bound = of_run(open_run(job.folder), salt, beside=True), state.effect["bound"]
        others = sorted(name for name in {**now, **bound} if now.get(name) != bound.get(name))
        values = _values(ledger, state, job)
    weights = f"other {', '.join(others)}" if others else "the same weights and settings"
    if not values:
        return Found(state.id, OTHER if others else SAME, f"{weights}; nothing to compare what was measured with")
    far = {name: abs(a - b) / max(1.0, abs(a)) for name, (a, b) in values.items()}
    worst = max(far, key=lambda name: far[name])
    outcome = (SAME if not others else CLOSE) if far[worst] == 0 else CLOSE if far[worst] <= TOLERANCE else OTHER
    was, is_now = values[worst]
    return Found(state.id, outcome, f"{weights}; of {len(far)} values {worst} moved most, from {was:g} to {is_now:g}")


def _values(ledger: Ledger, state: State, job: Job) -> dict[str, tuple[float, float]]:
    """Each value of the request's first evaluation, and what it is with the offset that was made again, beside the same
    others. Empty where the values, or one of these others, were erased."""
    then: dict[str, Any] = next((e["body"] for e in state.evaluated if e["body"]["of"] == state.id), {})
    if not then.get("metrics"):
        return {}
    try:
        others = {name: open_run(ledger.run_of(name)).job for name in then["offsets"] if name != state.id}
    except LedgerError:
        return {}
    entry, references = measured(others | {state.id: job}, state.id, then["offsets"])
    now = evidence.aggregates(entry, references)
    both = {name: (old["value"], now.get(name, {}).get("value")) for name, old in then["metrics"].items()}
    return {name: (a, b) for name, (a, b) in both.items() if a is not None and b is not None}
