"""The report of a study, one HTML page that needs no network:  python -m analysis.report STUDY"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from .. import arguments
from ..output import whole
from ..runs import StudyError, load
from .page import page

EXAMPLES = """  python -m analysis.report default                        writes runs/default/report.html
  python -m analysis.report default --out report.html      elsewhere
  python -m analysis.report default --alpha 1 --algo npo   examples of this setting, instead of the summary's first
"""


def main(given: list[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 for a study that cannot be read."""
    parser = arguments.parser(
        "report",
        "Writes one HTML page about a study: summary, figures, tables, examples, failures, commands.",
        EXAMPLES,
    )
    parser.add_argument("--out", metavar="FILE", help="where to write (default: report.html in the study's folder)")
    parser.add_argument("--algo", help="of the examples: the algorithm")
    parser.add_argument("--method", help="of the examples: the method")
    parser.add_argument("--alpha", type=float, help="of the examples: the evaluated alpha")
    asked = parser.parse_args(given)
    wanted = {"algo": asked.algo, "method": asked.method, "eval_alpha": asked.alpha}
    try:
        study = load(asked.study, asked.runs)
        again = shlex.join(["python", "-m", "analysis.report", *(sys.argv[1:] if given is None else given)])
        text = page(study, {k: v for k, v in wanted.items() if v is not None}, again)
        path = Path(asked.out) if asked.out else study.folder / "report.html"
        with whole(path) as half:
            half.write_text(text, encoding="utf-8")
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
