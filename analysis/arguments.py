"""The arguments that every command about a study takes: STUDY and --runs."""

from __future__ import annotations

import argparse


def parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of ``python -m analysis.<name>``, or of an installed ``unlearn.analysis.<name>``, to which a command
    adds its own options."""
    made = argparse.ArgumentParser(
        prog=f"python -m {__package__}.{name}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("study", metavar="STUDY", help="a study's name under --runs, or a path to its folder")
    made.add_argument("--runs", default="runs", metavar="DIR", help="the folder of all studies (default: runs)")
    return made
