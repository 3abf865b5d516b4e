"""What the commands that draw a study share: STUDY, --runs and --out, one line for what is wrong, PNG and PDF."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from . import arguments, style
from .runs import Study, StudyError, load


def parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of a command that draws, to which a figure adds its own options."""
    made = arguments.parser(name, description, examples)
    made.add_argument("--out", metavar="DIR", help="where to write (default: figures/ in the study's folder)")
    return made


def add_alpha(made: argparse.ArgumentParser) -> None:
    """The option of figures that show every run at one alpha."""
    made.add_argument(
        "--alpha", type=float, metavar="α", help="show what was evaluated at this α (default: at the one nearest to "
        "each run's training)",
    )  # fmt: skip


def said(alpha: float | None) -> str | None:
    """An alpha as part of a file's name."""
    return None if alpha is None else f"alpha{alpha:g}"


def stem(name: str, *said: object) -> str:
    """A file's name without its ending, such that other options never overwrite the default figure."""
    return "-".join([name, *(str(word).replace("/", "_") for word in said if word is not None)])


def run(
    made: argparse.ArgumentParser,
    given: Sequence[str] | None,
    figure: Callable[[Study, argparse.Namespace], Figure],
    named: Callable[[argparse.Namespace], str],
) -> int:
    """Draws and saves; returns the exit status: 0, or 2 for what cannot be drawn, or not written."""
    asked = made.parse_args(given)
    try:
        study = load(asked.study, asked.runs)
        drawn = figure(study, asked)
        paths = style.save(drawn, Path(asked.out) if asked.out else study.folder / "figures", named(asked))
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in paths:
        print(path)
    return 0
