"""What docs/scale.md hands to other schedulers: as short as it says, with a command of ours, as their schemas ask."""

import re
import shlex
from importlib import import_module

import pytest
import yaml
from support.helpers import ROOT, compose

TEXT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
JOB, TASK = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))
(CONTAINER,) = JOB["spec"]["template"]["spec"]["containers"]
ARRAY = re.search(r"    #!/bin/bash\n(?:    .*\n)+", TEXT)[0]
COMMANDS = {
    "queue": re.search(r"^    (python -m unlearn.run .*)$", TEXT, re.MULTILINE)[1],
    "array": ARRAY.strip().splitlines()[-1].strip().removeprefix("srun "),
    "kubernetes": shlex.join(CONTAINER["command"]),
    "skypilot": TASK["run"].strip().splitlines()[-1],
}


def test_each_example_has_at_most_fifteen_lines():
    for block in [*re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL), ARRAY]:
        assert block.count("\n") <= 15


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_one_of_ours(name):
    python, m, module, multirun, *settings = shlex.split(COMMANDS[name])
    assert (python, m, module, multirun) == ("python", "-m", "unlearn.run", "-m")
    compose(*(setting.partition(",")[0] for setting in settings))  # the first job of the grid


@pytest.mark.nightly
def test_the_indexed_job_is_one_by_the_models_of_kubernetes():
    client = pytest.importorskip("kubernetes.client", reason="pip install kubernetes==37.0.2")
    job = client.V1Job.from_dict(JOB)
    known = client.ApiClient().sanitize_for_serialization(job)
    assert known == JOB, "a key that Kubernetes does not know is dropped"
    assert known["spec"]["completions"] == known["spec"]["parallelism"] == 4


@pytest.mark.nightly
def test_the_task_is_one_by_the_schema_of_skypilot():
    pytest.importorskip("sky.utils.schemas", reason="pip install skypilot==0.14.1")
    schemas, check = import_module("sky.utils.schemas"), import_module("jsonschema").validate
    check(TASK, schemas.get_task_schema())
    check(TASK["resources"], schemas.get_resources_schema())
    assert set(TASK["volumes"]) == {"/shared"}
