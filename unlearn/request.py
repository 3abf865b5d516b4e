"""Deletion requests over one target, kept in a ledger. docs/requests.md goes through them step by step.

python -m unlearn.request init ledger=FOLDER [hmac=VARIABLE]
    Begin a ledger. VARIABLE is the name of the environment variable that holds the key of its HMACs.
python -m unlearn.request add ledger=FOLDER [id=R1] [received=DATE] [due=DATE] [subject=REFERENCE] [rule=[…]] SETTINGS
    Write down what is asked and the rule that will judge it, train the offset that answers (SETTINGS as of
    python -m unlearn.run), write down that it is in effect and how forgotten the request is. Again: goes on.
    rule=[forget/leak_gap<=0.05,kept:retain/prob>=0.95] is the usual one, with .9 kept of general splits where there are
    some; upper: and lower: are ends of 95 % intervals.
python -m unlearn.request list ledger=FOLDER
python -m unlearn.request undo ID ledger=FOLDER
python -m unlearn.request fuse [ID ID …] ledger=FOLDER [id=F1] [rule=[…]]
    Replace active offsets by one, which is measured before it takes effect.
python -m unlearn.request evaluate [ID …] ledger=FOLDER [eval.*]
    Measure requests again, under all offsets that are active now.
python -m unlearn.request record ID ledger=FOLDER [out=FOLDER]
    The evidence record, as Markdown and JSON, with what is not claimed.
python -m unlearn.request verify ledger=FOLDER [head=FILE] [hmac=VARIABLE]
    Walk the chain; exit status 1 with the first bad entry and what is wrong with it.
python -m unlearn.request head ledger=FOLDER [out=FILE]
    The state of the chain, to be kept by somebody else.
python -m unlearn.request erase ID ledger=FOLDER
    Remove the salt, so that nobody can link the request's fingerprint to a text.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from unlearn.config.redaction import in_logs, is_secret, redacted
from unlearn.config.schema import ConfigError, register
from unlearn.deploy.requests import ledger as ledgers
from unlearn.deploy.requests.chain import Failed, Head, LedgerError
from unlearn.grid.refusal import REFUSED, refuse, said
from unlearn.store import runlog
from unlearn.store.files import FileError, read_json, write_json, write_text

OWN = {
    "init": ("hmac",), "add": ("id", "received", "due", "subject", "rule"), "list": (), "undo": (),
    "fuse": ("id", "rule"), "evaluate": (), "record": ("out",), "verify": ("head", "hmac"), "head": ("out",),
    "erase": (),
}  # fmt: skip
SETTINGS = ("add", "evaluate")  # that take settings of a run or of its evaluation
IDS = {"undo": 1, "record": 1, "erase": 1, "fuse": None, "evaluate": None}  # how many; None: any number


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or not arguments:
        print(__doc__.strip())
        return 0 if arguments else 2
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    in_logs()
    register()
    try:
        act, folder, given, ids, settings = _asked(arguments)
        return ACTS[act](folder, given, ids, settings)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    except REFUSED as error:
        return refuse(said(error), error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _asked(arguments: Sequence[str]) -> tuple[str, Path, dict[str, str], list[str], list[str]]:
    """The act, the ledger's folder, the act's own keys, ids, and settings that are a run's."""
    act, rest = arguments[0], list(arguments[1:])
    if act not in OWN:
        raise ConfigError(f"{act}: must be one of {', '.join(OWN)}")
    secret = [a.split("=")[0] for a in rest if "=" in a and is_secret(a.split("=")[0])]
    if secret:
        raise ConfigError(f"{secret[0]}: a key belongs in the environment, never on a command line")
    keys = ("ledger", *OWN[act])
    given = dict(a.split("=", 1) for a in rest if "=" in a and a.split("=")[0] in keys)
    settings = [a for a in rest if "=" in a and a.split("=")[0] not in keys]
    ids = [a for a in rest if "=" not in a]
    if "ledger" not in given:
        raise ConfigError(f"{act}: ledger=FOLDER must be given")
    if settings and act not in SETTINGS:
        raise ConfigError(f"{settings[0]}: {act} takes {', '.join(f'{k}=' for k in keys)}")
    wanted = IDS.get(act, 0)
    if wanted is not None and len(ids) != wanted:
        raise ConfigError(f"{act}: takes {wanted or 'no'} id{'s' * (wanted == 0)} of a request, and got {ids}")
    return act, Path(given["ledger"]), given, ids, settings


def _init(folder: Path, given: dict[str, str], ids: list[str], settings: list[str]) -> int:
    ledger = ledgers.begin(folder, given.get("hmac"))
    print(f"begun: {ledger.chain.path}{'' if ledger.chain.key is None else ', with an HMAC'}")
    return 0


def _add(folder: Path, given: dict[str, str], ids: list[str], settings: list[str]) -> int:
    from unlearn.deploy.requests.actions import Asked, add

    if ids:
        raise ConfigError(f"{ids[0]}: give the id as id={ids[0]}, and settings as key=value")
    os.environ[runlog.COMMAND] = json.dumps(["unlearn.request", "add", *redacted(settings)])  # whom it is about is not
    asked = Asked(given.get("id"), given.get("received"), given.get("due"), given.get("subject"), _rule(given))
    state = add(ledgers.opened(folder), settings, asked)
    _show(ledgers.opened(folder))
    verdict = "met" if state.passed else f"NOT met: {', '.join(state.unmet())}"
    print(f"{state.id}: {state.status}; the rule was {verdict}")
    return 0 if state.passed else 1


def _list(folder: Path, given: dict[str, str], ids: list[str], settings: list[str]) -> int:
    _show(ledgers.opened(folder, key=None))
    return 0


def _undo(folder: Path, given: dict[str, str], ids: list[str], settings: list[str]) -> int:
    from unlearn.deploy.requests.actions import undo

    undo(ledgers.opened(folder), ids[0])
    _show(ledgers.opened(folder))
    return 0


def _fuse(folder: Path, given: dict[str, str], ids: list[str], settings: list[str]) -> int:
    from unlearn.deploy.requests.fusing import fuse

    state = fuse(ledgers.opened(folder), ids, given.get("id"), _rule(given))
    _show(ledgers.opened(folder))
    print(f"{state.id}: {state.status}, in the place of {', '.join(state.parts)}")
    return 0


def _evaluate(folder: Path, given: dict[str, str], ids: list[str], settings: list[str]) -> int:
    from unlearn.deploy.requests.actions import evaluate

    states = evaluate(ledgers.opened(folder), ids, settings)
    _show(ledgers.opened(folder))
    return 0 if all(state.passed for state in states) else 1


def _record(folder: Path, given: dict[str, str], ids: list[str], settings: list[str]) -> int:
    from unlearn.deploy.requests.records import markdown, record

    found = record(ledgers.opened(folder, key=None), ids[0])
    if "out" not in given:
        print(markdown(found))
        return 0
    place = Path(given["out"])
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / f"record-{ids[0]}.json", found)
    write_text(place / f"record-{ids[0]}.md", markdown(found))
    print(f"written: {place / f'record-{ids[0]}.md'} and .json")
    return 0


def _verify(folder: Path, given: dict[str, str], ids: list[str], settings: list[str]) -> int:
    head = _head_in(Path(given["head"])) if "head" in given else None
    key, variable = None, given.get("hmac") or _variable(folder)
    if "hmac" in given or _set(variable):
        key = ledgers.key_of(variable)
    wrong = ledgers.checked(folder, head, key)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    count = len(ledgers.opened(folder, key=None).chain.entries())
    signed = "HMACs are right" if key else "there are no HMACs"
    if key is None and variable is not None:
        signed = f"HMACs were NOT checked: the environment variable {variable} is not set"
    print(f"{count} entries, each after the one before it; {signed}; {'goes' if head else 'not compared with a head'}"
          f"{' on from the exported head' if head else ''}")  # fmt: skip
    return 0


def _head(folder: Path, given: dict[str, str], ids: list[str], settings: list[str]) -> int:
    ledger = ledgers.opened(folder, key=None)
    head, first = ledger.chain.head(), ledger.chain.entries()[0]["body"]
    if "out" in given:
        write_json(Path(given["out"]), {"ledger": first["ledger"], "count": head.count, "hash": head.hash})
    print(f"{first['ledger']} {head.count} {head.hash}")
    return 0


def _erase(folder: Path, given: dict[str, str], ids: list[str], settings: list[str]) -> int:
    from unlearn.deploy.requests.actions import erase

    state = erase(ledgers.opened(folder), ids[0])
    print(f"{state.id}: its salt is gone; its fingerprint can no longer be linked to a text")
    return 0


def _rule(given: dict[str, str]) -> list[str] | None:
    return [part.strip() for part in given["rule"].strip("[]").split(",") if part.strip()] if "rule" in given else None


def _head_in(path: Path) -> Head:
    found = read_json(path)
    try:
        return Head(int(found["count"]), str(found["hash"]))
    except (TypeError, KeyError, ValueError):
        raise FileError(f"{path}: no head of a ledger; make one: python -m unlearn.request head out={path}") from None


def _variable(folder: Path) -> str | None:
    """The name that the first entry has; None where it cannot be read, which the walk will say."""
    try:
        return ledgers.opened(folder, key=None).chain.entries()[0]["body"]["hmac"]
    except LedgerError:
        return None


def _set(variable: str | None) -> bool:
    return variable is not None and variable in os.environ


def _show(ledger: ledgers.Ledger) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from unlearn.deploy.requests.records import rows

    table = Table("id", "asked", "status", "α", "leak (retrained)", "passed", box=box.SIMPLE)
    for row in rows(ledger.states()):
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)


ACTS: dict[str, Callable[[Path, dict[str, str], list[str], list[str]], int]] = {
    "init": _init, "add": _add, "list": _list, "undo": _undo, "fuse": _fuse, "evaluate": _evaluate,
    "record": _record, "verify": _verify, "head": _head, "erase": _erase,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
