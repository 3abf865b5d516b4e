"""README and docs: short, linked, and true of the program."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pandas as pd
import pytest
import yaml
from support.helpers import ALGOS, METHODS, ROOT, UNTOUCHED

from unlearn.config.groups import GROUPS
from unlearn.config.schema import Config
from unlearn.data.readers import SETTINGS

EXAMPLES = sorted((ROOT / "examples").glob("*.sh"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *EXAMPLES]
README, INDEX = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/README.md"))
DEMO = ROOT / "experiments" / "demo"
COLUMNS = {"forget/prob": 3, "forget/leak_gap": 3, "retain/prob": 3, "model_utility": 3}


def anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def headings(page: Path) -> set[str]:
    return {anchor(h) for h in re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)}


def test_every_link_of_readme_docs_and_studies_leads_somewhere():
    broken = []
    for page in (*PAGES, *(ROOT / "experiments").rglob("*.md")):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            name, _, part = target.partition("#")
            file = page.parent / name if name else page
            lost = part and file.suffix == ".md" and file.is_file() and part not in headings(file)
            if not target.startswith(("https://", "http://")) and (not file.exists() or lost):
                broken.append((str(page.relative_to(ROOT)), target))
    assert broken == []


def test_every_page_is_in_the_index_and_in_llms_txt():
    short = (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8")
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert names == {n for n in names if f"]({n})" in INDEX} == {n for n in names if f"]({n})" in short}


def test_the_readme_fits_on_a_few_screens_and_its_tables_have_six_columns():
    assert len(README.splitlines()) <= 150
    assert max(line.count("|") - 1 for line in README.splitlines() if line.startswith("|")) <= 6


SPEC = spec_from_file_location("settings_page", ROOT / "docs" / "settings.py")
WRITER = module_from_spec(SPEC)
SPEC.loader.exec_module(WRITER)


def test_examples_are_short():
    assert len(EXAMPLES) == 3 and max(len(path.read_text("utf-8").splitlines()) for path in EXAMPLES) <= 40


@pytest.mark.nightly
def test_the_examples_on_own_data_and_on_serving_work_as_they_stand(tmp_path):
    environment = UNTOUCHED | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }

    def script(name: str, *given: str) -> str:
        command = ["sh", str(ROOT / "examples" / name), *given]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    assert "Mira Holt lives in Larch Lane 12." in script("own_data.sh", "wandb=disabled")
    (run,) = (tmp_path / "runs" / "own").glob("simnpo-*")
    assert script("serve_and_ask.sh", str(run), "What is the door code of Jon Brandt?").strip()


def test_settings_are_those_of_the_schema():
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert WRITER.page() == written, "python docs/settings.py > docs/settings.md"


def test_every_key_that_the_pages_set_is_one_of_the_schema():
    found = WRITER.places(Config, "", {})
    for reader in SETTINGS.values():
        WRITER.places(reader, "data.", found)
    keys = {at + field.name for kind, places in found.items() for at in places for field in fields(kind)}
    open_ended = ("algo.numbers.", "algo.lr.", "algo.lr_pretrained.", "method.numbers.")
    group = r"(?<![\w./-])((?:algo|method|pair|data|eval|trainer|begin|wandb|paths)\.[a-z_0-9.]+)="
    for page in PAGES:
        given = set(re.findall(group, page.read_text(encoding="utf-8"))) if page.stem != "CHANGELOG" else set()
        assert {key for key in given - keys if not key.startswith(open_ended)} == set(), page.name


def test_the_readme_names_every_method_objective_package_and_folder():
    methods = re.findall(r"^\| `(\w+)` \| target", README, re.MULTILINE)
    assert sorted(methods) == METHODS
    objectives = README.split("Objectives (`algo=`)")[1].split("([OpenUnlearning")[0]
    assert sorted(re.findall(r"`(\w+)`", objectives)) == sorted({*ALGOS} - {"finetune"})
    tree = README.split("## The tree")[1].split("## Add one")[0]
    for parent in ("unlearn", "conf"):
        named = {path.name for path in (ROOT / parent).iterdir() if path.is_dir() and path.name[0] not in "._"}
        assert named == {name for name in named if f"{name}/" in tree}


def test_the_page_on_metrics_names_every_group():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [name for name in GROUPS if f"\n| `{name}`" not in page] == []


def test_every_command_of_the_pages_is_one_of_ours():
    commands = {
        m for page in PAGES for m in re.findall(r"python -m ((?:unlearn|analysis)\.\w+)", page.read_text("utf-8"))
    }
    assert len(commands) > 15 and [name for name in commands if find_spec(name) is None] == []


def test_the_choices_in_the_pages_commands_exist():
    for page in (*PAGES, *(ROOT / "experiments").rglob("README.md")):
        for line in re.findall(r"python -m unlearn\.(?:run|prepare) ([^`\n\\]*)", page.read_text("utf-8")):
            for group, names in re.findall(r"(?<![\w./])(algo|method|pair|data|eval|experiment)=([\w,]+)", line):
                for name in names.split(","):
                    known = (ROOT / "conf" / group / f"{name}.yaml").is_file() or name in ("mine", "hinge", "capped")
                    assert known or not name.islower(), (page.name, line)


def test_the_readmes_table_and_costs_are_those_of_the_demos_study():
    def row(name: str, alpha: str, found: dict) -> str:
        return f"| {name} | {alpha} | " + " | ".join(f"{found[c]:.{d}f}" for c, d in COLUMNS.items()) + " |"

    runs = pd.read_csv(DEMO / "summary.csv")
    passing = runs.loc[runs["forget_quality"] >= 0.05, ["method", "eval_alpha"]].values.tolist()
    assert passing == [["defer", 16.0]] and "only `defer` at α = 16 passes" in README
    names = {"offset": "{algo}", "defer": "{algo}, `defer`"}
    records = runs.to_dict("records")
    lines = [row(names[r["method"]].format(**r), f"{r['eval_alpha']:g}", r) for r in records]
    references = json.loads((DEMO / "references.json").read_text(encoding="utf-8"))
    lines += [row(f"*{name}*", "", found) for name, found in references.items()]
    assert [line for line in lines if line not in README.splitlines()] == []
    study = (DEMO / "README.md").read_text(encoding="utf-8")
    for said in ("157 seconds", "0.80 GB of memory"):
        assert said in re.sub(r"\s+", " ", README) and said in re.sub(r"\s+", " ", study)
    for said, key in (("50 people", "people"), ("five of them", "forget_people")):
        assert said in README and yaml.safe_load((ROOT / "conf/data/bios.yaml").read_text()).get(key) in (None, 50, 5)


def test_the_container_runs_verbs_of_the_makefile_on_what_is_let_in():
    container, ignored, makefile = ((ROOT / n).read_text("utf-8") for n in ("Dockerfile", ".dockerignore", "Makefile"))
    verbs = [
        *re.findall(r"^RUN make (\w+)$", container, re.MULTILINE),
        *json.loads(container.rpartition("CMD ")[2])[1:],
    ]
    assert verbs == ["setup", "demo"] and all(re.search(f"^{verb}:", makefile, re.MULTILINE) for verb in verbs)
    let_in = {name for name in ignored.splitlines() if name.startswith("!")}
    assert [name for name in let_in if not (ROOT / name[1:]).exists()] == [] and "*" in ignored.splitlines()
    assert {"!README.md", "!LICENSE", "!hatch_build.py", "!unlearn", "!analysis", "!conf"} < let_in  # of the build
