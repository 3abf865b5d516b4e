"""The dashboard: what it is made of, and that it is sent to the server (a fake) as it was built."""

import importlib.util
import json
import sys

import pytest
from support.fake_wandb import FakeWandb

from analysis import workspace
from unlearn.store import mirror

# the package's own, of pydantic; importorskip would meet them, too
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
if importlib.util.find_spec("wandb_workspaces") is None:
    pytest.skip("needs the extra 'workspaces'", allow_module_level=True)


@pytest.fixture
def spec() -> dict:
    model = workspace.workspace("entity", "project", "demo")._to_model()
    return json.loads(model.spec.model_dump_json(by_alias=True))["section"]


def panels(spec: dict) -> list[dict]:
    return [panel for section in spec["panelBankConfig"]["sections"] for panel in section["panels"]]


def test_it_has_tradeoff_alpha_trajectories_and_runs_of_the_group_alone(spec):
    assert [s["name"] for s in spec["panelBankConfig"]["sections"]] == ["Trade-off", "Over α", "Trajectories", "Runs"]
    axes = [(p["config"]["xAxis"], p["config"]["yAxis"]) for p in panels(spec) if p["viewType"] == "Scatter Plot"]
    assert axes[0] == ("summary:eval/forget/prob", "summary:eval/retain/prob") and len(axes) == 3
    (parallel,) = (p["config"] for p in panels(spec) if p["viewType"] == "Parallel Coordinates Plot")
    assert parallel["columns"][0]["accessor"] == "config:alpha.value" and len(parallel["columns"]) == 5
    lines = [p["config"] for p in panels(spec) if p["viewType"] == "Run History Line Plot"]
    assert {line["xAxis"] for line in lines} == {"step"} and ["forget/prob"] in [line["metrics"] for line in lines]
    (runset,) = spec["runSets"]
    said = json.dumps(runset["filters"])
    assert '"demo"' in said and '"unlearn"' in said and "jobType" in said
    assert runset["columnPinned"]["summary:eval/forget/prob"] if "columnPinned" in runset else True


def test_every_trajectory_is_logged_by_the_mirror_and_every_value_by_its_summary():
    logged = {f"{part}/{'loss' if part == 'train' else 'prob'}" for part in mirror.PARTS}
    assert set(workspace.TRAJECTORIES) <= logged
    shown = {name for pair in workspace.TRADEOFFS for name in pair} | set(workspace.COORDINATES)
    assert all(name.startswith("eval/") for name in shown) and workspace.JOB_TYPE == mirror.JOB_TYPE


def test_the_command_saves_it_and_prints_its_address(monkeypatch, capsys):
    server = FakeWandb()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert workspace.main(["tester/unlearn", "--group", "demo"]) == 0
    assert server.problems == [] and len(server.views) == 1
    sent = server.views[0]
    assert (sent["entityName"], sent["projectName"], sent["displayName"]) == ("tester", "unlearn", "Unlearning: demo")
    assert len(panels(json.loads(sent["spec"])["section"])) == 11
    assert "/tester/unlearn?nw=" in capsys.readouterr().out
    server.shutdown()
    server.server_close()


def test_a_project_that_is_none_and_a_lacking_package_are_refused(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert workspace.main(["tester/unlearn"]) == 2
    assert "pip install -c constraints.txt -e .[workspaces]" in capsys.readouterr().err
    for project in ("unlearn", "a/b/c", "/b"):
        with pytest.raises(SystemExit):
            workspace.main([project])
