"""The table at the end of a call: as wide as the terminal at most, in the words of the figures."""

import io
import re
from dataclasses import replace
from functools import partial

import pytest
from rich.console import Console
from support.helpers import TINY, compose

from analysis import goals, tradeoff
from unlearn.grid import table
from unlearn.store import runlog

METRICS = {key: 0.123 for key in table.COLUMNS} | {"forget/prob": 8e-18, "forget_quality": 1e-12}


def drawn(width: int) -> tuple[list[str], list[str]]:
    """The lines of a table of runs done before, on a terminal so wide, and the columns that it has no room for."""
    jobs = [replace(runlog.job(compose(*TINY, f"algo={algo}"), "data"), was_done=True) for algo in ("ga", "npo")]
    references = {"target": METRICS | {"settings": {"references": "one"}}, "retrained": METRICS}
    measured = {
        job.folder: {"alphas": {"1.0": METRICS | {"settings": job.settings}}, "references": references} for job in jobs
    }
    draw = partial(table._table, jobs, [], {job.folder: {"status": "done"} for job in jobs}, measured)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    shown = [key for key in table.COLUMNS if not re.search("known|guess|neighbours", key)]
    left = table._fitting(draw, shown, console)
    return console.file.getvalue().splitlines(), left


@pytest.mark.parametrize(
    ("width", "without"), [(80, table.LEAST[:5]), (100, table.LEAST[:3]), (140, ())], ids=["80", "100", "140"]
)
def test_the_table_of_the_demo_fits_a_terminal_and_says_what_has_no_room(width, without):
    lines, left = drawn(width)
    assert tuple(left) == without and max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[-5:] if line.strip()] == ["target", "retrained", "ga", "npo"]
    assert all(line.split()[-2:] == ["done", "before"] for line in lines[-2:])


def test_the_table_has_the_words_of_the_trade_off():
    for metric in sum(tradeoff.PANELS, ()):
        words = re.findall(r"[\w-]+", table.COLUMNS[metric].rpartition("\n")[0])
        assert words == re.findall(r"[\w-]+", goals.named(metric))
    assert set(table.LEAST) < set(table.COLUMNS) and "seconds" in table.LEAST
