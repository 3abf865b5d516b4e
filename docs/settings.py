"""Write settings.md from the schema: ``python docs/settings.py > docs/settings.md``. A test compares the two."""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import typing
from collections.abc import Iterator, Set
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from omegaconf import MISSING

from unlearn.config.data import DataConfig
from unlearn.config.schema import Config, conf_dir
from unlearn.config.setting import A_NAME
from unlearn.data.readers import SETTINGS

HEAD = """\
# Settings

Every key, as the schema declares it (`unlearn/config/`, `unlearn/data/sets/`). This page is written by
`python docs/settings.py > docs/settings.md`; do not edit it.

A key is given on the command line (`trainer.epochs=10`), or in a YAML file of `conf/` or of your own
(`--config-dir DIR`). `python -m unlearn.run KEY=VALUE … --cfg job` prints the whole config of a call. An unknown key, a
wrong type or a value out of bounds is refused before any work, with the rule. Defaults are those of the schema, for
`eval`, `trainer` and `wandb` those of the file that is taken when none is named; YAML files of `algo`, `method`, `pair`
and `data` set their own."""
SHORTER = {"must be ": "", "must lie ": "", "must ": "", "a finite number of ": "", "a finite number above": "above"}
DEFAULTS = {"eval": "default", "trainer": "default", "wandb": "offline"}  # as conf/config.yaml has them


@cache
def comments(kind: type) -> dict[str, str]:
    """What stands behind each field of a class, in its source."""
    source = textwrap.dedent(inspect.getsource(kind))
    found = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith("# fmt")
    }
    fields = [node for node in ast.parse(source).body[0].body if isinstance(node, ast.AnnAssign)]
    return {
        field.target.id: " ".join(found[line] for line in range(field.lineno, field.end_lineno + 1) if line in found)
        for field in fields
    }


def parts(hint: Any) -> list[type]:
    """The schema classes in a type: of ``list[MemberConfig]``, ``DualConfig | None``."""
    return [hint] if dataclasses.is_dataclass(hint) else [p for a in typing.get_args(hint) for p in parts(a)]


def places(kind: type, prefix: str, found: dict[type, list[str]]) -> dict[type, list[str]]:
    """Every schema class under a class, in the order of its first key, with all keys that it stands at."""
    found.setdefault(kind, []).append(prefix)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        for part in parts(hints[field.name]):
            many = "[]" if typing.get_origin(hints[field.name]) is list else ""
            places(part, f"{prefix}{field.name}{many}.", found)
    return found


def type_of(hint: Any) -> str:
    names = {NoneType: "null", Any: "any"}
    one = typing.get_args(hint) if typing.get_origin(hint) not in (list, dict) else ()
    return " or ".join(names.get(h, getattr(h, "__name__", "") if type(h) is type else str(h)) for h in one or (hint,))


def default(field: dataclasses.Field, key: str) -> str:
    group, _, name = key.partition(".")
    if group in DEFAULTS:
        chosen = yaml.safe_load(Path(conf_dir(), group, f"{DEFAULTS[group]}.yaml").read_text("utf-8")) or {}
        if name in chosen:
            return text(chosen[name])
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    return "" if value is MISSING or value == MISSING else text(value)


def text(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    said = words[value] if isinstance(value, bool | NoneType) else str(value)
    return "`" + said.replace("\n", "\\n") + "`"


def rules(field: dataclasses.Field) -> str:
    """The bounds in words; what a file or folder must be depends on where one stands, and the comment says it."""
    bounds = field.metadata.get("bounds", ())
    said = "; ".join("a name" if b is A_NAME else b.words for b in bounds if isinstance(b.words, str))
    for long, short in SHORTER.items():
        said = said.replace(long, short)
    return said


def rows(kind: type, prefix: str, known: Set[str]) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name in known or parts(hints[field.name]):
            continue
        said = next((c[field.name] for c in map(comments, kind.__mro__[:-1]) if field.name in c), "")
        key = prefix + field.name
        cells = (f"`{key}`", type_of(hints[field.name]), default(field, key), rules(field), said)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def section(kind: type, keys: list[str], title: str = "", known: Set[str] = frozenset()) -> Iterator[str]:
    """A table of what a class has, beyond the keys that are known already."""
    table = list(rows(kind, keys[0], known))
    if not table:
        return
    yield "## " + (title or ", ".join("`" + key.removesuffix(".") + "`" for key in keys))
    about = (kind.__doc__ or "").split("\n\n")[0]
    if not about.startswith(f"{kind.__name__}("):  # what dataclass writes where there is none
        yield " ".join(about.replace("``", "`").split())
    yield "\n".join(["| key | type | default | must be | what it is |", "|---|---|---|---|---|", *table])


def page() -> str:
    blocks, found = [HEAD], places(Config, "", {})
    shared = {field.name for field in dataclasses.fields(DataConfig)}
    for kind, keys in found.items():
        blocks += section(kind, keys, "" if keys[0] else "At the top")
        if kind is DataConfig:
            inside: dict[type, list[str]] = {}
            for name, reader in SETTINGS.items():
                blocks += section(reader, ["data."], f"`data`, of reader `{name}`", shared)
                inside |= {part: at for part, at in places(reader, "data.", {}).items() if part is not reader}
            for part, at in inside.items():
                blocks += section(part, at) if part not in found else ()
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    print(page(), end="")
