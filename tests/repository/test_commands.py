"""The frame that all commands share, and ``unlearn VERB …``, which finds every one of them."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from support.helpers import ROOT, python

from unlearn import command as frame
from unlearn.config.schema import ConfigError, help_text
from unlearn.config.setting import finite, one_of, setting
from unlearn.grid.refusal import folded
from unlearn.store import runlog

HEAVY = {"torch", "transformers", "pandas", "scipy", "wandb", "evaluate", "datasets", "matplotlib", "accelerate"}


@dataclass
class Keys:
    folder: str
    overrides: list[str]
    alpha: list[float] = setting([], finite("must be finite numbers"))
    how: str = setting("sum", one_of("sum", "mean"))
    count: int | None = None
    yes: bool = False


def test_keys_are_typed_and_the_rest_are_settings_of_the_run():
    given = ["folder=a", "alpha=[1,0.5]", "alpha=2", "how=mean", "count=3", "yes=true", "eval.alphas=[1]", "word"]
    assert frame.parse(Keys, given) == Keys("a", ["eval.alphas=[1]", "word"], [1, 0.5, 2], "mean", 3, True)
    assert frame.parse(Keys, ["folder=a", "folder="]) == Keys("", [])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["alpha=1"], "folder=FOLDER must be given"),
        (["folder=a", "alpha=1,x"], "alpha=1,x: must be finite numbers"), (["folder=a", "alpha=nan"], "alpha=nan: m"),
        (["folder=a", "how=max"], "how='max': must be one of sum, mean"), (["folder=a", "count=1.5"], "whole number"),
        (["folder=a", "yes=maybe"], "yes=maybe: must be true or false"),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        frame.parse(Keys, given)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as error:
        frame.parse(Keys, ["count=x", "yes=maybe"])
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (ConfigError("a=1: b"), 2, "Refused before any work:\n  a=1: b\n"), (frame.Failed("no disk"), 1, "no disk\n"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT"),
    ],
)  # fmt: skip
def test_how_a_call_ends(raised, status, said, capsys):
    @frame.verb(Keys)
    def main(keys: Keys) -> int:
        raise raised

    assert main(["folder=a"]) == status
    assert said in capsys.readouterr().err
    assert main([]) == 2 and main(["folder=a", "--help"]) == 0
    assert capsys.readouterr().out == f"{__doc__}\n" * 2


def unlearn(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return python("-m", "unlearn", *arguments, cwd=cwd, check=False)


def test_every_verb_is_listed_with_one_line_and_nothing_else_is(tmp_path):
    said = unlearn("--help", cwd=tmp_path)
    listed = [line.split()[0] for line in said.stdout.splitlines()[2:]]
    assert said.returncode == 0 and len(set(listed)) == len(listed) and list(tmp_path.iterdir()) == []
    assert {"run", "evaluate", "store", "request", "tradeoff", "report", "table"} <= set(listed)
    assert not {"command", "config", "runs", "caption", "style", "__main__", "unlearn"} & set(listed)
    assert all(len(line.split()) > 2 for line in said.stdout.splitlines()[2:])


def test_a_manifest_says_version_and_commit_of_a_checkout_and_of_a_wheel(tmp_path, monkeypatch):
    """The wheel's commit is written down when it is built; a repository that it is installed in is somebody else's."""
    here = runlog.environment()
    assert here["versions"]["delta-unlearning"] == version("delta-unlearning")
    assert len(here["git"]["commit"]) == 40
    interface = ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = object
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    spec = spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    hook, data = module.CommitHook(), {"force_include": {}}
    hook.root = str(ROOT)
    hook.initialize("standard", data)
    ((written, place),) = data["force_include"].items()
    installed = tmp_path / "theirs" / "site-packages"
    (installed / "unlearn" / "store").mkdir(parents=True)
    shutil.copy(written, installed / place)
    subprocess.run(["git", "init", "-q", tmp_path / "theirs"], check=True)
    monkeypatch.setattr(runlog, "__file__", str(installed / "unlearn" / "store" / "runlog.py"))
    assert runlog.environment()["git"] == here["git"]
    (installed / place).unlink()
    runlog._commit.cache_clear()
    assert runlog.environment()["git"] is None


def test_the_version_is_ours_and_unknown_verbs_are_refused(tmp_path):
    assert unlearn("run", "--version", cwd=tmp_path).stdout == f"unlearn {version('delta-unlearning')}\n"
    assert unlearn("--version", cwd=tmp_path).stdout == f"unlearn {version('delta-unlearning')}\n"
    done = unlearn("frob", cwd=tmp_path)
    assert done.returncode == 2 and "frob: must be one of calibrate" in done.stderr
    assert unlearn(cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("arguments", [("run", "algo=gaa"), ("algo=gaa",), ("-m", "algo=gaa,ga")])
def test_settings_without_a_verb_are_those_of_a_run(arguments, tmp_path):
    done = unlearn(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and "algo=gaa: must be one of" in done.stderr


def test_analysis_is_ours_and_never_a_users_own(tmp_path):
    (tmp_path / "analysis").mkdir()
    for name in ("__init__", "tradeoff", "runs"):
        (tmp_path / "analysis" / f"{name}.py").write_text("raise SystemExit('theirs')\n")
    code = (
        "import sys; from unlearn.grid import analysis; print(analysis.module().__file__, analysis.module().__name__,"
        " 'analysis' in sys.modules)"
    )
    done = python("-c", code, cwd=tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.stdout.split() == [str(ROOT / "analysis" / "__init__.py"), "unlearn.analysis", "False"]
    done = unlearn("tradeoff", "nope", cwd=tmp_path / "analysis")
    assert done.returncode == 2 and "no study 'nope'" in done.stderr


OURS = [name for name, (place, _) in frame.verbs().items() if not place.startswith("unlearn.analysis")]


def test_help_of_no_verb_imports_anything_heavy(tmp_path):
    code = (
        "import importlib, sys; from unlearn.command import verbs\n"
        f"for name in {OURS}: importlib.import_module(verbs()[name][0])\n"
        "try: sys.modules['unlearn.run'].main()\n"
        "except SystemExit: print(*sys.modules)\n"
        "import unlearn.evaluation.others; print(*sys.modules)"
    )
    done = python("-c", code, "--help", cwd=tmp_path)
    verbs, others = (set(line.split()) for line in done.stdout.splitlines()[-2:])
    assert len(OURS) == 12 and not verbs & HEAVY and not others & {"torch", "datasets", "transformers"}
    assert "python -m unlearn.run -m algo=ga,kl,npo alpha=0.5,1,2" in done.stdout
    choices = sorted(path.stem for path in (ROOT / "conf" / "algo").glob("*.yaml"))
    assert f"algo: {', '.join(choices)}" in done.stdout and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", [verb for verb in OURS if verb not in ("run", "prepare")])  # Hydra's
def test_every_verb_has_help(verb, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["unlearn", verb, "--help"])
    assert frame.main() == 0 and f"python -m unlearn.{verb} " in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 200])
def test_help_fits_the_terminal_and_loses_no_word(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    for verb in OURS:
        text = help_text() if verb == "run" else import_module(frame.verbs()[verb][0]).__doc__
        lines = folded(text).splitlines()
        assert " ".join(lines).split() == text.split()
        assert [line for line in lines if len(line) > width and " " in line.strip()] == []
    monkeypatch.delenv("COLUMNS")
    assert folded(text) == text  # into a file as it is written
