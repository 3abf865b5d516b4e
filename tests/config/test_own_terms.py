"""A user's own objective: a Python file beside a YAML, no fork. The README shows this very file."""

import re

import pytest
import torch
from support.helpers import ROOT, TINY, command, compose

from unlearn.config.own import OwnFileError
from unlearn.learning.answers import Answers, ObjectiveError
from unlearn.learning.binding import bind
from unlearn.store import runlog
from unlearn.store.identity import run_folder


def readme_block(kind: str, holding: str) -> str:
    blocks = re.findall(rf"```{kind}\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    return next(b for b in blocks if holding in b)


@pytest.fixture
def own(tmp_path):
    """The README's two files, as the README names them."""
    (tmp_path / "mine" / "algo").mkdir(parents=True)
    (tmp_path / "mine" / "terms.py").write_text(readme_block("python", "def hinge"))
    (tmp_path / "mine" / "algo" / "hinge.yaml").write_text(readme_block("yaml", "forget: hinge"))
    return tmp_path


def test_the_readmes_own_objective_runs_from_the_command_line(own, store):
    command("unlearn.run", "--config-dir", "mine", *TINY, f"paths.store={store}", "algo=hinge", cwd=own)
    (folder,) = (own / "runs" / "default").glob("hinge-*")
    assert runlog.manifest(folder)["status"] == "done"
    assert "train/hinge" in (folder / "metrics.jsonl").read_text()


def test_what_the_file_says_is_part_of_the_runs_hash(own, monkeypatch):
    monkeypatch.chdir(own)
    options = ("algo=ga", "algo.name=hinge", "algo.forget=hinge", "algo.file=mine/terms.py")
    first = run_folder(compose(*options), "data")
    (own / "mine" / "terms.py").write_text((own / "mine" / "terms.py").read_text() + "\n# another\n")
    assert run_folder(compose(*options), "data") != first


WRONG = {
    "def mine(rows): return 0": (ObjectiveError, "one or more of forget, refusal, alternates, forget_text, retain"),
    "def mine(forget): return forget.logp": (ObjectiveError, "return PerToken or PerAnswer"),
    "def mine(forget: Answers) -> PerToken: return forget.logp": (
        OwnFileError, "annotations cannot be read|cannot be imported",
    ),
    "from unlearn.learning.answers import *\ndef mine(forget: 'Answers.nope') -> PerToken: return forget.logp": (
        OwnFileError, "term 'mine': its annotations cannot be read",
    ),
    "import nothing_of_this_name": (OwnFileError, "algo.file=.*cannot be imported: ModuleNotFoundError"),
    "def other(): pass": (ObjectiveError, "no such forget term; there are ga, .*other"),
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_a_file_with_another_signature_is_refused(tmp_path, text):
    error, message = WRONG[text]
    (tmp_path / "terms.py").write_text(text)
    with pytest.raises(error, match=message):
        bind("mine", "none", 1.0, 1.0, {}, str(tmp_path / "terms.py"))


IMPORTS = "from __future__ import annotations\nfrom unlearn.learning.answers import Answers, PerToken\n"


def test_the_defaults_of_a_users_term_hold_where_no_number_is_given(tmp_path):
    (tmp_path / "terms.py").write_text(
        IMPORTS + "def mine(forget: Answers, beta: float, scale: float = 3.0, gamma: float = 2.0) -> PerToken:\n"
        "    return beta * scale * gamma * forget.logp\n"
    )
    file = str(tmp_path / "terms.py")
    answers = {"forget": Answers(torch.zeros(2, 4), torch.tensor([1, 2]), torch.tensor([0, 0]))}
    logp = answers["forget"].logp
    for given, factor in (({}, 6.0), ({"scale": 5.0}, 10.0), ({"gamma": 0.5, "scale": 5.0}, 2.5)):
        (term,) = bind("mine", "none", 1.0, 1.0, {"beta": 1.0, "gamma": None} | given, file)
        torch.testing.assert_close(term.function(**answers), factor * logp)
    with pytest.raises(ObjectiveError, match="term 'mine' needs algo.beta"):  # it has no default
        bind("mine", "none", 1.0, 1.0, {"scale": 5.0}, file)


def test_a_file_with_postponed_annotations_and_a_dataclass_is_imported(tmp_path):
    (tmp_path / "terms.py").write_text(
        IMPORTS + "from dataclasses import dataclass\n\n@dataclass\nclass Line:\n    slope: float = 2.0\n\n"
        "def mine(forget: Answers) -> PerToken:\n    return Line().slope * forget.logp\n"
    )
    (term,) = bind("mine", "none", 1.0, 1.0, {}, str(tmp_path / "terms.py"))
    answers = Answers(torch.zeros(2, 4), torch.tensor([1, 2]), torch.tensor([0, 0]))
    assert term.per_token
    torch.testing.assert_close(term.function(forget=answers), 2.0 * answers.logp)


def test_a_file_that_is_not_python_is_refused_and_only_what_it_defines_itself_is_a_term(tmp_path):
    (tmp_path / "terms.txt").write_text("")
    with pytest.raises(OwnFileError, match="algo.file=.*its name must end in .py"):
        bind("ga", "none", 1.0, 1.0, {}, str(tmp_path / "terms.txt"))
    (tmp_path / "terms.py").write_text(
        "from unlearn.learning.losses import ga as borrowed\ndef _hidden(forget): pass\n"
    )
    with pytest.raises(ObjectiveError, match="no such forget term") as error:
        bind("nothing", "none", 1.0, 1.0, {}, str(tmp_path / "terms.py"))
    assert "borrowed" not in str(error.value) and "_hidden" not in str(error.value)


def test_the_readmes_own_method_runs_from_the_command_line(tmp_path, store):
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "rules.py").write_text(readme_block("python", "def capped"))
    (tmp_path / "mine" / "method" / "capped.yaml").write_text(readme_block("yaml", "rule: capped"))
    options = ("--config-dir", "mine", *TINY, f"paths.store={store}", "method=capped", "algo=npo", "trainer.lr=1e-3")
    command("unlearn.run", *options, cwd=tmp_path)
    (folder,) = (tmp_path / "runs" / "default").glob("npo-capped-*")
    assert runlog.manifest(folder)["status"] == "done"
