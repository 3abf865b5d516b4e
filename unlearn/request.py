"""Answer deletion requests over one target, and keep them in a ledger; docs/requests.md goes through it step by step.

python -m unlearn.request init ledger=FOLDER [hmac=VARIABLE] [sign=VARIABLE]
    Begin a ledger. A VARIABLE is the name of the environment variable that holds the key: of HMACs, any text; of
    signatures, an Ed25519 private key in PEM, whose public key is printed.
python -m unlearn.request add ledger=FOLDER [id=R1] [received=DATE] [due=DATE] [subject=REFERENCE] [rule=[…]] SETTINGS
    Write down what is asked and the rule that will judge it, train the offset that answers (SETTINGS as of
    python -m unlearn.run), write down that it is in effect and how forgotten the request is. Again: resumes.
    rule=[forget/leak_gap<=0.05,kept:retain/prob>=0.95] is the usual one, with .9 kept of general splits where there are
    some; upper: and lower: are ends of 95 % intervals.
python -m unlearn.request list ledger=FOLDER
python -m unlearn.request undo ID ledger=FOLDER
python -m unlearn.request fuse [ID ID …] ledger=FOLDER [id=F1] [rule=[…]]
    Replace active offsets by one, which is measured before it takes effect.
python -m unlearn.request evaluate [ID …] ledger=FOLDER [eval.*]
    Measure requests again, under all offsets that are active now.
python -m unlearn.request record ID ledger=FOLDER [out=FOLDER]
    The evidence record, as Markdown and JSON, with what is not claimed; beside it the verifier for who has only Python.
python -m unlearn.request audit [ID …] ledger=FOLDER [share=0.1]
    Run a share of the finished requests again, chosen by the chain's head, and compare; exit status 1 if one differs.
python -m unlearn.request verify ledger=FOLDER [head=FILE] [hmac=VARIABLE] [public=HEX]
    Walk the chain; exit status 1 with the first bad entry and what is wrong with it.
python -m unlearn.request head ledger=FOLDER [out=FILE]
    The state of the chain, to be kept by somebody else.
python -m unlearn.request erase ID ledger=FOLDER
    Remove the salt and what was measured, so that nobody can link the request's entries to a text.

A ledger with HMACs needs their key for all of these, a signed one its private key for those that write an entry;
hmac=VARIABLE and public=HEX say which keys they must be.
"""

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

from unlearn.command import acts
from unlearn.config.redaction import redacted
from unlearn.config.schema import ConfigError
from unlearn.config.setting import Bound, setting
from unlearn.deploy.requests import actions, evidence, verify_ledger
from unlearn.deploy.requests import ledger as ledgers
from unlearn.grid import table
from unlearn.grid.refusal import Failed
from unlearn.store import runlog
from unlearn.store.files import FileError, read_json, write_json, write_text

PUBLIC = Bound(re.compile("[0-9a-f]{64}").fullmatch, "must be an Ed25519 public key in 64 hex digits")


@dataclass(kw_only=True)
class Keys(actions.Request):
    ledger: Path
    words: list[str]  # ids of requests
    overrides: list[str]
    hmac: str | None = None
    public: str | None = setting(None, PUBLIC)
    sign: str | None = None
    share: float = setting(0.1, Bound(lambda v: 0 < v <= 1, "must be above 0 and at most 1"))
    head: Path | None = None
    out: Path | None = None

    @property
    def opened(self) -> ledgers.Ledger:
        return ledgers.opened(self.ledger, self.hmac, self.public)

    @property
    def request(self) -> str:
        """The one request that an act is about."""
        if len(self.words) != 1:
            raise ConfigError(f"takes 1 id of a request, and got {self.words}")
        return self.words[0]


def _init(keys: Keys) -> None:
    ledger = ledgers.begin(keys.ledger, keys.hmac, keys.sign)
    public = ledger.chain.entries()[0]["body"].get("ed25519")
    signed = "" if public is None else f", signed; public={public}"
    print(f"begun: {ledger.chain.path}{'' if ledger.chain.key is None else ', with an HMAC'}{signed}")


def _add(keys: Keys) -> int:
    for word in (o for o in keys.overrides if "=" not in o):
        raise ConfigError(f"{word}: give the id as id={word}, and settings as key=value")
    # whom it is about is not part of it
    os.environ[runlog.COMMAND] = json.dumps(["unlearn.request", "add", *redacted(keys.overrides)])
    state = actions.add(keys.opened, keys.overrides, keys)
    _list(keys)
    verdict = "met" if state.passed else f"NOT met: {', '.join(state.unmet())}"
    print(f"{state.id}: {state.status}; the rule was {verdict}")
    return 0 if state.passed else 1


def _list(keys: Keys) -> None:
    made = table.made(["id", "asked", "status", "α", "leak (retrained)", "passed"])
    for row in evidence.rows(keys.opened.states()):
        made.add_row(*row)
    table.show(made)


def _undo(keys: Keys) -> None:
    id = keys.request
    actions.undo(keys.opened, id)
    _list(keys)


def _fuse(keys: Keys) -> None:
    from unlearn.deploy.requests.fusing import fuse

    state = fuse(keys.opened, keys.words, keys.id, keys.rule)
    _list(keys)
    print(f"{state.id}: {state.status}, replaces {', '.join(state.parts)}")


def _evaluate(keys: Keys) -> int:
    states = actions.evaluate(keys.opened, keys.words, keys.overrides)
    _list(keys)
    return 0 if all(state.passed for state in states) else 1


def _record(keys: Keys) -> None:
    id = keys.request
    found = evidence.record(keys.opened, id)
    if keys.out is None:
        print(evidence.markdown(found))
        return
    keys.out.mkdir(parents=True, exist_ok=True)
    name = keys.out / f"record-{id}"
    write_json(Path(f"{name}.json"), found)
    write_text(Path(f"{name}.md"), evidence.markdown(found))
    copyfile(verify_ledger.__file__, keys.out / "verify_ledger.py")
    print(f"written: {name}.md and .json")


def _audit(keys: Keys) -> int:
    from unlearn.deploy.requests.audit import OTHER, audit

    found = audit(keys.opened, keys.words, keys.share)
    for one in found:
        print(f"{one.id}: {one.outcome}: {one.said}")
    return 1 if any(one.outcome == OTHER for one in found) else 0


def _verify(keys: Keys) -> None:
    head = None
    if keys.head is not None:
        found = read_json(keys.head)
        try:
            head = verify_ledger.Head(int(found["count"]), str(found["hash"]))
            if head.count < 1:
                raise ValueError
        except (TypeError, KeyError, ValueError, OverflowError):
            make = f"python -m unlearn.request head out={keys.head}"
            raise FileError(f"{keys.head}: no head of a ledger; make one: {make}") from None
    ledger = keys.opened
    lines, key = ledger.chain.lines(), ledger.chain.key
    fault = verify_ledger.verify(lines, key, head, keys.public)
    wrong = [str(fault)] if fault else ledger.strangers()
    if wrong:
        raise Failed("\n".join(wrong))
    signatures = "HMACs are right" if key else "there are no HMACs"
    public = ledger.chain.entries()[0]["body"].get("ed25519")
    signatures += f"; signatures are right, by {public}" if public else "; there are no signatures"
    compared = "continues the exported head" if head else "not compared with a head"
    print(f"{len(lines)} entries, each after the one before it; {signatures}; {compared}")


def _head(keys: Keys) -> None:
    ledger = keys.opened
    head, first = ledger.chain.head(), ledger.chain.entries()[0]["body"]
    if keys.out is not None:
        signed = {"ed25519": first["ed25519"]} if "ed25519" in first else {}
        write_json(keys.out, {"ledger": first["ledger"], "count": head.count, "hash": head.hash} | signed)
    print(f"{first['ledger']} {head.count} {head.hash}")


def _erase(keys: Keys) -> None:
    id = keys.request
    state = actions.erase(keys.opened, id)
    print(f"{state.id}: its salt and what was measured of it are gone; its entries can no longer be linked to a text")


main = acts(__doc__, Keys, {
    "init": (_init, "hmac", "sign"),
    "add": (_add, "hmac", "public", "id", "received", "due", "subject", "rule", "overrides"),
    "list": (_list, "hmac", "public"),
    "undo": (_undo, "hmac", "public", "words"),
    "fuse": (_fuse, "hmac", "public", "words", "id", "rule"),
    "evaluate": (_evaluate, "hmac", "public", "words", "overrides"),
    "record": (_record, "hmac", "public", "words", "out"),
    "audit": (_audit, "hmac", "public", "words", "share"),
    "verify": (_verify, "hmac", "public", "head"),
    "head": (_head, "hmac", "public", "out"),
    "erase": (_erase, "hmac", "public", "words"),
})  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
