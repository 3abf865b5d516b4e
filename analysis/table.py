"""The table of a study: every setting's means with intervals over seeds, beside target and retrained model.

    python -m analysis.table STUDY

The best value of a column is marked only where its interval lies apart from all others'. On the forget set, best is
nearest to the retrained model. Failed, unfinished and collapsed runs are counted in the last column.
"""

from __future__ import annotations

import sys

from . import arguments
from .runs import StudyError, load
from .table_differences import differences
from .table_formats import FORMATS
from .table_rows import Table, table

__all__ = ["FORMATS", "Table", "differences", "main", "table"]
EXAMPLES = """  python -m analysis.table default                                 the study runs/default, on the terminal
  python -m analysis.table default --format latex > table.tex      with booktabs, for a paper
  python -m analysis.table default --metrics "retain/*" seconds    other columns
  python -m analysis.table default --differences npo               each algorithm minus npo, paired by pair seed
  python -m analysis.table default --differences method=direct     each method minus direct
"""


def main(given: list[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 for a study that cannot be read."""
    parser = arguments.parser(
        "table", "Prints the table of a study: means with 95 % intervals over pair seeds.", EXAMPLES
    )
    parser.add_argument("--format", choices=list(FORMATS), default="terminal", help="default: terminal")
    parser.add_argument("--metrics", nargs="+", default=[], metavar="METRIC", help="names or patterns of metrics")
    parser.add_argument("--by", nargs="+", default=[], metavar="COLUMN", help="the settings that make a row")
    parser.add_argument(
        "--differences", metavar="BASE", help="differences from the rows of this value of one setting, paired by pair "
        "seed, with bootstrap intervals; * where zero lies outside",
    )  # fmt: skip
    asked = parser.parse_args(given)
    try:
        study = load(asked.study, asked.runs)
        chosen = (asked.metrics, asked.by)
        found = differences(study, asked.differences, *chosen) if asked.differences else table(study, *chosen)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(FORMATS[asked.format](found), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
