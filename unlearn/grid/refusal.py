"""How a call is refused: one message on stderr and exit status 2; a traceback only where HYDRA_FULL_ERROR=1 asks."""

import io
import logging
import os
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path

import hydra
import omegaconf
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from unlearn.config.redaction import is_secret, redact, visible
from unlearn.config.schema import ConfigError, unknown
from unlearn.data.rows import DataError
from unlearn.store.files import FileError

FULL = "HYDRA_FULL_ERROR"  # Hydra's own switch
STATUS = 2
REFUSED = (ConfigError, DataError, FileError, HydraException, OmegaConfBaseException, OSError)
LIBRARIES = tuple(str(Path(module.__file__).parent) for module in (hydra, omegaconf))
CONVERTED = re.compile(
    r"Value '.*' (?:of type '\w+' could not be converted to (Integer|Float)|is not a valid (bool).*)", re.S
)
TYPES = {"Integer": "must be a whole number", "Float": "must be a number", "bool": "must be true or false"}
NOISE = re.compile(r"\n? *(full_key|reference_type|object_type)[:=].*|\n?See https?://.*")
CHOICES = re.compile(r"In '.*': Could not find '(.+)/(.*)'\s+Available options in '.*':\n((?:\t.*\n?)+)")
OVERRIDE = re.compile(r"Error merging override (\S+=.*)\n(.*)")
LEXER = re.compile(r"LexerNoViableAlt|mismatched input|no viable alternative|extraneous input|token recognition error")
QUOTING = "\na value with letters such as ü, with '=' or a comma is quoted for Hydra, too: 'KEY=\"VALUE\"'"
WITH_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p", "--cfg", "-c",
              "--info", "-i", "--experimental-rerun")  # fmt: skip
_raising = False  # whether it is this program that asks Hydra to raise


class Failed(Exception):
    """Work that was begun and did not end well: exit status 1."""


def secrets(arguments: Sequence[str]) -> list[str]:
    """What is wrong with keys and tokens among a command's arguments: others see a command line."""
    rule = "a key or token belongs in the environment (WANDB_API_KEY, HF_TOKEN), never on a command line"
    names = [a.split("=")[0] for a in arguments if "=" in a or a.startswith("-")]
    return [f"{name}: {rule}" for name in names if is_secret(name)]


def flags_first(arguments: Sequence[str]) -> list[str]:
    """A command's arguments as Hydra's parser takes them: no flag between two overrides, where people put them."""
    flags, others, rest = [], [], iter(arguments)
    for argument in rest:
        (flags if argument.startswith("-") else others).append(argument)
        if argument in WITH_VALUE:
            flags += [value for value in [next(rest, None)] if value is not None]
    return flags + others


def printable() -> None:
    """Have characters replaced that the terminal's encoding lacks: printing may not end a call. A full disk cuts logs
    short, W&B's among them, and the job itself says so: no traceback for each line."""
    logging.raiseExceptions = False
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@contextmanager
def unread() -> Iterator[None]:
    """Continue after a block that prints where nobody reads any more (``| head``)."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        print_nowhere()


def print_nowhere() -> None:
    """Lose what is printed from here on: a closed pipe would be an error once more when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def folded(text: str) -> str:
    """Text for a terminal: a longer line continues below its last column, or indented where that is far right."""
    if not (sys.stdout.isatty() or "COLUMNS" in os.environ):
        return text
    width, lines = shutil.get_terminal_size().columns, []
    for line in text.splitlines():
        column = max([0, *(found.end() for found in re.finditer(r" {2,}", line))])
        below = column if column <= width // 2 else len(line) - len(line.lstrip()) + 4
        whole = {"break_long_words": False, "break_on_hyphens": False}
        lines.append(textwrap.fill(line, width, subsequent_indent=" " * below, **whole))
    return "\n".join(lines)


def print_help(text: str) -> None:
    with unread():
        print(folded(text))


def refuse(problems: str, error: BaseException | None = None) -> int:
    """Say why nothing is done; returns the exit status. The traceback is that of ``error``."""
    if error is not None and os.environ.get(FULL) == "1" and not _raising:
        print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    print(visible(redact("Refused before any work:\n  " + problems.replace("\n", "\n  "))), file=sys.stderr)
    return STATUS


def said(error: BaseException) -> str:
    """The message of an error: Hydra's and OmegaConf's without what is of no help, with the choices in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    if not came_from_hydra(error):
        return str(error) or type(error).__name__
    cause = error.__cause__
    key = getattr(error, "full_key", None) or getattr(cause, "full_key", None)
    text = f"{error}\n{cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
    text = text.split("\nConfig search path:")[0]
    if choices := CHOICES.search(text):
        group, name, options = choices.groups()
        return f"{group}={name}: must be one of {', '.join(options.split())}"
    kind = getattr(cause or error, "object_type", None)
    if key and "Key '" in text and is_dataclass(kind):
        return unknown(key, [f.name for f in fields(kind)])
    text = NOISE.sub("", text).strip()
    text = CONVERTED.sub(lambda m: TYPES[m[1] or m[2]], text)
    if override := OVERRIDE.match(text):
        return f"{override[1]}: {override[2]}"
    text += QUOTING if LEXER.search(text) else ""
    return f"{key}: {text}" if key and str(key) not in text else text


def came_from_hydra(error: BaseException) -> bool:
    """Whether Hydra or OmegaConf raised it: then it is about what was given to them, and no fault of this program."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and bool(frames) and frames[-1].filename.startswith(LIBRARIES)


@contextmanager
def raising() -> Iterator[None]:
    """Let Hydra raise what it would else print in its own way, and end with exit status 1; until ``as_before``."""
    global _raising
    if os.environ.get(FULL) != "1":
        _raising = True
        os.environ[FULL] = "1"
    try:
        yield
    finally:
        as_before()


def as_before() -> None:
    """Hydra's switch as the user has it: for jobs, which may be processes of their own."""
    global _raising
    if _raising:
        os.environ.pop(FULL, None)
    _raising = False
