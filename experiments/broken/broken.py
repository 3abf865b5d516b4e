"""Break the code in 30 places, one at a time, and see which test notices: ``python -m experiments.broken.broken``.

Each place is broken in a clone of the repository. The tests of the place's own packages run first, the whole suite
only where none of them failed. A place counts as caught by the first test that fails, which must pass unbroken.
``--before`` breaks the same places in the code before the redesign, whose tests lay in one folder.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEFORE = "c2fe983"
COLUMNS = ("room", "how", "file", "find", "before", "now")
MISSED = "not caught"


def broken(place: dict[str, Any], commit: str, before: bool, suite: str) -> str:
    """The first test that fails with the place broken, or ``MISSED``."""
    name = "before" if before else ""
    file = place["file_before" if before else "file"]
    find, replace = (place.get(f"{what}_{name}", place[what]) for what in ("find", "replace"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "code"  # a clone: runs say which commit they were made with
        subprocess.run(["git", "clone", "-q", "--shared", "--no-checkout", ".", root], check=True)
        subprocess.run(["git", "-C", root, "checkout", "-q", commit], check=True)
        text = (root / file).read_text(encoding="utf-8")
        if text.count(find) != 1:
            raise SystemExit(f"{file}: {find!r} stands there {text.count(find)} times; must be once")
        (root / file).write_text(text.replace(find, replace), encoding="utf-8")
        for tests in (place["tests_before" if before else "tests"].split(), ["-n", "2", *suite.split()]):
            failed = first_failure(root, tests)
            if failed is not None:
                (root / file).write_text(text, encoding="utf-8")
                if first_failure(root, [failed.split("[")[0]]) is not None:
                    raise SystemExit(f"{failed} fails in the code as it is, too")
                return failed
    return MISSED


def first_failure(root: Path, tests: list[str]) -> str | None:
    """Name of the first test that fails in a checkout; None where none does."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE)
    if ended.returncode != 0 and failed is None:
        raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout[-2000:]}{ended.stderr}")
    return failed[1] if failed else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", action="store_true", help=f"break {BEFORE} instead of --commit")
    parser.add_argument("--commit", default="HEAD")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of places, from 0")
    parser.add_argument("--suite", default="tests", help="what the whole suite is")
    asked = parser.parse_args()
    places = tomllib.loads((HERE / "places.toml").read_text(encoding="utf-8"))["place"]
    table = HERE / "caught.csv"
    known = list(csv.DictReader(table.open(encoding="utf-8"))) if table.is_file() else []
    column = "before" if asked.before else "now"
    for i, place in enumerate(places):
        if asked.only is not None and i not in asked.only:
            continue
        found = broken(place, BEFORE if asked.before else asked.commit, asked.before, asked.suite)
        print(f"[{i + 1}/{len(places)}] {place['room']}: {place['file']}: {found}", flush=True)
        key = {c: place[c] for c in ("room", "how", "file", "find")}
        row = next((r for r in known if {c: r[c] for c in key} == key), None)
        if row is None:
            known.append(row := key | {"before": "", "now": ""})
        row[column] = found
        with table.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(known)
    for name in ("before", "now"):
        done = [r[name] for r in known if r[name]]
        print(f"{name}: {sum(found != MISSED for found in done)} of {len(done)} caught")


if __name__ == "__main__":
    main()
