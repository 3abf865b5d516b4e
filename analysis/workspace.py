"""The dashboard of a W&B project, as a saved workspace: what every study's reader looks at first.

    python -m analysis.workspace ENTITY/PROJECT [--group STUDY]

Needs W&B online (``wandb login``) and ``pip install -c constraints.txt -e .[workspaces]``. The panels read what
``unlearn/store/mirror.py`` logs: ``eval/…`` in the summary is the evaluation at the α nearest to the training's.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "Unlearning"
JOB_TYPE = "unlearn"
TRADEOFFS = (("eval/forget/prob", "eval/retain/prob"), ("eval/forget/rougeL_recall", "eval/retain/rougeL_recall"),
             ("eval/forget/leak_gap", "eval/model_utility"))  # fmt: skip
COORDINATES = ("eval/forget/prob", "eval/retain/prob", "eval/model_utility", "eval/forget_quality_log10")
TRAJECTORIES = ("forget/prob", "retain/prob", "real_authors/prob", "world_facts/prob", "held_out/prob", "train/loss")
COLUMNS = ("run:displayName", "run:group", "run:state", "config:algo.name", "config:method.name", "config:alpha",
           "config:pair.seed", *(f"summary:{m}" for m in COORDINATES), "summary:status")  # fmt: skip


def workspace(entity: str, project: str, group: str | None = None) -> Workspace:
    """The dashboard, not yet saved; with ``group`` it shows that study alone."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    chosen = [expr.Metric("JobType") == JOB_TYPE]
    if group is not None:
        chosen.append(expr.Metric("Group") == group)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME if group is None else f"{NAME}: {group}",
        sections=_sections(),
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=chosen,
            groupby=[expr.Config("algo.name"), expr.Config("method.name"), expr.Config("alpha")],
            pinned_columns=list(COLUMNS),
        ),
    )


def _sections() -> list:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    summary, config = wr.SummaryMetric, wr.Config
    scatter = [
        wr.ScatterPlot(title=f"{_short(y)} against {_short(x)}", x=summary(x), y=summary(y)) for x, y in TRADEOFFS
    ]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=config("alpha"), display_name="α")]
    columns += [wr.ParallelCoordinatesPlotColumn(metric=summary(m), display_name=_short(m)) for m in COORDINATES]
    lines = [
        wr.LinePlot(title=m, x="step", y=[m], groupby_aggfunc="mean", groupby_rangefunc="minmax") for m in TRAJECTORIES
    ]
    return [
        ws.Section(name="Trade-off", panels=scatter, is_open=True),
        ws.Section(name="Over α", panels=[wr.ParallelCoordinatesPlot(title="α", columns=columns)], is_open=True),
        ws.Section(name="Trajectories", panels=lines, is_open=True, panel_settings=ws.SectionPanelSettings("step")),
        ws.Section(name="Runs", panels=[wr.RunComparer(diff_only=True)], is_open=False),
    ]


def _short(metric: str) -> str:
    return metric.removeprefix("eval/")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 where nothing could be saved."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.workspace", description="Saves a dashboard of a W&B project, and prints its address."
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT")
    parser.add_argument("--group", metavar="STUDY", help="show this study alone")
    asked = parser.parse_args(arguments)
    entity, _, project = asked.project.partition("/")
    if not entity or not project or "/" in project:
        parser.error(f"{asked.project!r}: must be ENTITY/PROJECT")
    try:
        built = workspace(entity, project, asked.group)
    except ImportError as error:
        print(f"error: {error}; it comes with: pip install -c constraints.txt -e .[workspaces]", file=sys.stderr)
        return 2
    try:
        print(built.save().url)
    except Exception as error:  # of wandb, of its transport, of the server: whatever it is, nothing was saved
        print(f"error: W&B did not save the workspace ({type(error).__name__}: {error})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
