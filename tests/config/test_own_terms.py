"""A user's own objective or rule: a Python file beside a YAML, no fork. docs/extending.md shows these very files."""

import re

import pytest
import torch
from support.helpers import FEW, ROOT, TINY, command, compose
from support.refusals import assert_refused, check

from unlearn.config.schema import ConfigError
from unlearn.ensemble.combination import bind_rule
from unlearn.learning.answers import Answers
from unlearn.learning.binding import bind
from unlearn.store import runlog
from unlearn.store.identity import run_folder


def shown_block(kind: str, holding: str) -> str:
    blocks = re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.S)
    return next(b for b in blocks if holding in b)


@pytest.fixture
def own(tmp_path):
    """The page's files, as the page names them."""
    for file, kind, holding in (
        ("terms.py", "python", "def hinge"), ("algo/hinge.yaml", "yaml", "forget: hinge"),
        ("rules.py", "python", "def capped"), ("method/capped.yaml", "yaml", "rule: capped"),
    ):  # fmt: skip
        (tmp_path / "mine" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / file).write_text(shown_block(kind, holding))
    return tmp_path


@pytest.mark.nightly
def test_the_pages_own_objective_and_method_run_from_the_command_line(own, store):
    options = ("--config-dir", "mine", *TINY, *FEW, f"paths.store={store}")
    for choice, name in (
        (("algo=hinge",), "hinge-"),
        (("method=capped", "algo=npo", "trainer.lr=1e-3"), "npo-capped-"),
    ):
        command("unlearn.run", *options, *choice, cwd=own)
        (folder,) = (own / "runs" / "default").glob(f"{name}*")
        assert runlog.manifest(folder)["status"] == "done"
        assert ("train/hinge" in (folder / "metrics.jsonl").read_text()) == (name == "hinge-")


def test_what_the_file_says_is_part_of_the_runs_hash(own, monkeypatch):
    monkeypatch.chdir(own)
    options = ("algo=ga", "algo.name=hinge", "algo.forget=hinge", "algo.file=mine/terms.py")
    first = run_folder(compose(*options), "data")
    (own / "mine" / "terms.py").write_text((own / "mine" / "terms.py").read_text() + "\n# another\n")
    assert run_folder(compose(*options), "data") != first


def bind_term(name: str, numbers: dict, file: str):
    return bind(name, "none", 1.0, 1.0, numbers, file)


TERMS = (
    ("def mine(rows): return 0", ValueError, "one or more of forget, refusal, alternates, forget_text, retain"),
    ("def mine(forget): return forget.logp", ValueError, "return PerToken or PerAnswer"),
    ("def mine(forget: Answers) -> PerToken: return forget.logp", ConfigError,
     "annotations cannot be read|cannot be imported"),
    ("from unlearn.learning.answers import *\ndef mine(forget: 'Answers.nope') -> PerToken: return forget.logp",
     ConfigError, "term 'mine': its annotations cannot be read"),
    ("import nothing_of_this_name", ConfigError, "algo.file=.*cannot be imported: ModuleNotFoundError"),
    ("def other(): pass", ValueError, "no such forget term; there are ga, .*other"),
)  # fmt: skip
RULES = (
    ("def mine(base, change): return base", ValueError, "must take base, change and alpha .* and return Logits"),
    ("def mine(change, base, alpha): return base", ValueError, "must take base, change and alpha"),
    ("def mine(base, change, alpha): return base", ValueError, r"return Logits; its signature is mine\(base, change"),
    ("from unlearn.ensemble.combination import Logits\ndef mine(base: 'Logits.nope', change, alpha): return base",
     ConfigError, "rule 'mine': its annotations cannot be read"),
    ("import nothing_of_this_name", ConfigError, "method.file=.*cannot be imported: ModuleNotFoundError"),
    ("def other(): pass", ValueError, "no such rule; there are sum, plausible, rank, threshold, defer, other"),
)  # fmt: skip


@pytest.mark.parametrize(("binds", "wrong"), [(bind_term, TERMS), (bind_rule, RULES)])
def test_a_file_with_another_signature_is_refused(tmp_path, binds, wrong):
    for text, error, message in wrong:
        (tmp_path / "mine.py").write_text(text)
        with pytest.raises(error, match=message):
            binds("mine", {}, str(tmp_path / "mine.py"))


def test_a_rule_with_a_wrong_signature_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.py").write_text("def mine(base, alpha): return base\n")
    refused = check(*TINY, "method.file=rules.py", "method.rule=mine", cwd=tmp_path)
    assert_refused(refused, "rule 'mine' must take base, change and alpha")


IMPORTS = "from __future__ import annotations\nfrom unlearn.learning.answers import Answers, PerToken\n"


def test_the_defaults_of_a_users_term_hold_and_its_file_may_have_postponed_annotations_and_a_dataclass(tmp_path):
    (tmp_path / "terms.py").write_text(
        IMPORTS + "def mine(forget: Answers, beta: float, scale: float = 3.0, gamma: float = 2.0) -> PerToken:\n"
        "    return beta * scale * gamma * forget.logp\n"
    )
    file = str(tmp_path / "terms.py")
    answers = {"forget": Answers(torch.zeros(2, 4), torch.tensor([1, 2]), torch.tensor([0, 0]))}
    logp = answers["forget"].logp
    for given, factor in (({}, 6.0), ({"scale": 5.0}, 10.0), ({"gamma": 0.5, "scale": 5.0}, 2.5)):
        (term,) = bind_term("mine", {"beta": 1.0, "gamma": None} | given, file)
        torch.testing.assert_close(term.function(**answers), factor * logp)
    with pytest.raises(ValueError, match="term 'mine' needs algo.beta"):  # it has no default
        bind_term("mine", {"scale": 5.0}, file)
    (tmp_path / "terms.py").write_text(
        IMPORTS + "from dataclasses import dataclass\n\n@dataclass\nclass Line:\n    slope: float = 2.0\n\n"
        "def mine(forget: Answers) -> PerToken:\n    return Line().slope * forget.logp\n"
    )
    (term,) = bind_term("mine", {}, str(tmp_path / "terms.py"))
    answers = Answers(torch.zeros(2, 4), torch.tensor([1, 2]), torch.tensor([0, 0]))
    assert term.per_token
    torch.testing.assert_close(term.function(forget=answers), 2.0 * answers.logp)


def test_a_file_that_is_not_python_is_refused_and_only_what_it_defines_itself_is_a_term(tmp_path):
    (tmp_path / "terms.txt").write_text("")
    with pytest.raises(ConfigError, match="algo.file=.*its name must end in .py"):
        bind_term("ga", {}, str(tmp_path / "terms.txt"))
    (tmp_path / "terms.py").write_text(
        "from unlearn.learning.losses import ga as borrowed\ndef _hidden(forget): pass\n"
    )
    with pytest.raises(ValueError, match="no such forget term") as error:
        bind_term("nothing", {}, str(tmp_path / "terms.py"))
    assert "borrowed" not in str(error.value) and "_hidden" not in str(error.value)
