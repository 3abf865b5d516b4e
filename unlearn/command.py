"""The frame of every command: ``unlearn VERB …``, and ``python -m unlearn.VERB …`` likewise.

A verb declares its keys as a dataclass, with bounds as settings have them (``config/setting.py``), and does one thing
with them. A key without a default must be given, and names a folder. Everything else is here: ``key=value`` to typed
values (a list is ``[A,B]`` or ``A,B``), ``--help`` (the module's docstring), the log, and how a call ends: 0 done, 1
failed after it had begun, 2 refused before any work, 130 interrupted.
"""

import ast
import logging
import math
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from unlearn.config.redaction import in_logs
from unlearn.config.schema import ConfigError, raise_for
from unlearn.config.setting import out_of_bounds
from unlearn.grid import analysis
from unlearn.grid.refusal import REFUSED, STATUS, Failed, print_help, print_nowhere, printable, refuse, said, secrets
from unlearn.grid.together import one_process
from unlearn.store import runlog

REST = WORDS, OVERRIDES = "words", "overrides"  # fields for arguments without a ``=``, and for settings of a run
SWITCH = {"true": True, "yes": True, "false": False, "no": False}
USUAL = {bool: "must be true or false", int: "must be a whole number", float: "must be a finite number"}
Main = Callable[..., int]
Act = tuple  # what it does with its keys, and the names of those that it takes


def verb(keys: type) -> Callable[[Callable[[Any], int | None]], Main]:
    """Make a module's ``main`` of what it does with its keys; it returns an exit status, or nothing for 0."""
    return lambda do: acts(do.__globals__["__doc__"], keys, {"": (do, *(f.name for f in fields(keys)))})


def acts(doc: str, keys: type, known: Mapping[str, Act]) -> Main:
    """The ``main`` of a verb whose first word says what it does."""

    def called(arguments: Sequence[str]) -> int:
        raise_for(secrets(arguments))
        act, rest = ("", arguments) if "" in known else (arguments[0], arguments[1:])
        if act not in known:
            raise ConfigError(f"{act}: must be one of {', '.join(known)}")
        do, *names = known[act]
        return do(parse(keys, rest, act, names)) or 0

    def main(arguments: Sequence[str] | None = None) -> int:
        arguments = sys.argv[1:] if arguments is None else arguments
        if not arguments or {"--help", "-h"} & set(arguments):
            print_help(doc.strip())
            return 0 if arguments else STATUS
        if (status := one_process()) is not None:
            return status
        in_logs()
        printable()
        logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
        try:
            status = called(arguments)
            sys.stdout.flush()
            return status
        except BrokenPipeError:  # who read what is printed has read enough, as `| head` has
            print_nowhere()
            return 128 + signal.SIGPIPE
        except Failed as error:
            print(error, file=sys.stderr)
            return 1
        except REFUSED as error:
            return refuse(said(error), error)
        except KeyboardInterrupt as stop:
            print(f"stopped by {str(stop) or 'SIGINT'}; rerun the same command to resume", file=sys.stderr)
            return getattr(stop, "status", 130)

    return main


def parse(keys: type, arguments: Sequence[str], act: str = "", names: Sequence[str] | None = None) -> Any:
    """The keys of a call; an act takes those of ``names`` (None: all). ``ConfigError`` with all that is wrong."""
    hints = {name: get_args(h)[0] if isinstance(h, UnionType) else h for name, h in get_type_hints(keys).items()}
    taken = {f.name: f for f in fields(keys) if names is None or f.name in names or (_needed(f) and f.name not in REST)}
    known = {name: f for name, f in taken.items() if name not in REST}
    given: dict[str, list[str]] = {}
    values: dict[str, Any] = {name: [] for name in REST if name in hints}
    problems = []
    for argument in arguments:
        name, sign, text = argument.partition("=")
        if sign and name in known:
            given.setdefault(name, []).append(text)
        elif not sign and WORDS in taken:
            values[WORDS].append(argument)
        elif OVERRIDES in taken:
            values[OVERRIDES].append(argument)
        else:
            problems.append(f"{argument}: {act or 'this command'} takes {', '.join(f'{k}=' for k in known)}")
    for name, f in known.items():
        try:
            if name in given:
                values[name] = _value(f, hints[name], given[name])
            elif _needed(f):
                what = "FOLDER" if get_origin(hints[name]) is None else "[FOLDER,…]"
                problems.append(f"{name}={what} must be given")
        except ConfigError as error:
            problems.append(str(error))
    raise_for(problems)
    made = keys(**values)
    raise_for(out_of_bounds(made))
    return made


def _needed(f: Field) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _value(f: Field, hint: Any, texts: Sequence[str]) -> Any:
    """One typed value, or a list of them. Of several words for one value the last counts, as with Hydra."""
    parts, kind, whole = list(texts[-1:]), hint, texts[-1]
    if get_origin(hint) is list:
        kind, whole = get_args(hint)[0], ",".join(texts)
        parts = [part.strip() for text in texts for part in text.strip("[]").split(",") if part.strip()]
    try:
        values = [SWITCH[part.lower()] if kind is bool else kind(part) for part in parts]
        if kind is not float or all(map(math.isfinite, values)):
            return values if get_origin(hint) is list else values[0]
    except (ValueError, KeyError):
        pass
    bounds = f.metadata.get("bounds")
    raise ConfigError(f"{f.name}={whole}: {bounds[0].words if bounds else USUAL[kind]}")


def main() -> int:
    """``unlearn VERB …``. Without a verb, settings and options are those of ``unlearn run``."""
    name, *rest = sys.argv[1:] or ["--help"]
    known = verbs()
    if name in ("--help", "-h"):
        width = max(map(len, known))
        lines = ["unlearn VERB …    unlearn VERB --help says more; settings without a verb are those of unlearn run\n"]
        for verb, (_, path) in known.items():  # only the help parses the files of all verbs
            about, *_ = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")
            lines.append(f"  {verb:{width}}  {about}")
        print_help("\n".join(lines))
        return 0 if sys.argv[1:] else STATUS
    if name == "--version":
        print(f"unlearn {version(runlog.NAME)}")
        return 0
    if name.isidentifier() and name not in known:
        return refuse(f"{name}: must be one of {', '.join(known)}")
    name, rest = (name, rest) if name in known else ("run", sys.argv[1:])
    place, _ = known[name]
    if place.startswith(analysis.NAME):
        analysis.module()
    module = import_module(place)
    sys.argv = [str(module.__file__), *rest]  # as python -m has it
    return module.main()


def verbs() -> dict[str, tuple[str, Path]]:
    """By name, module and file of every verb: modules of program and analysis that can be run, read, not imported."""
    found = {}
    for package, folder in (("unlearn", Path(__file__).parent), (analysis.NAME, analysis.FOLDER)):
        for path in sorted([*folder.glob("*.py"), *folder.glob("*/__main__.py")]):
            if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8"):
                name = path.parent.name if path.name == "__main__.py" else path.stem
                found[name] = ".".join([package, *path.relative_to(folder).with_suffix("").parts]), path
    return found
