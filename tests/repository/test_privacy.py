"""docs/privacy.md says what each file holds of the forget set: every file of a run, and what it says is so."""

import io
import logging
import re
import subprocess
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import pytest
from support.helpers import ROOT, TINY, compose, execute
from support.privacy_page import PAGE, PLANTED, kind, table

from analysis.report.__main__ import main as report
from unlearn.data.readers import read
from unlearn.deploy.export.traces import Traces, forget_rows, header
from unlearn.evaluation.retrained import Measured
from unlearn.grid import overview
from unlearn.grid import table as table_of_runs
from unlearn.store import mirror as mirrors
from unlearn.store import runlog
from unlearn.store.mirror import Mirror
from unlearn.store.runlog import RunLog

HOME = {"HOME": "home", "XDG_DATA_HOME": "home/data", "XDG_CACHE_HOME": "home/cache", "WANDB_DATA_DIR": "others",
        "WANDB_CACHE_DIR": "others", "WANDB_DIR": "others", "WANDB_CONFIG_DIR": "home/config"}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run and its study's report, made with secrets in the environment and in a home of its own."""
    root = tmp_path_factory.mktemp("privacy")
    places = f"paths.store={root}/store", f"paths.runs={root}/runs"
    given = (*TINY[:-1], "eval.groups=[leak]", "wandb=offline", "algo=altpo", *places)
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said), logged(said):
        for name, value in PLANTED.items():
            patch.setenv(name, value)
        for name, place in HOME.items():  # where W&B would keep artifacts
            (root / place).mkdir(parents=True, exist_ok=True)
            patch.setenv(name, str(root / place))
        job = execute(compose(*given))
        patch.setattr(overview, "_figures", lambda study: {})  # images: seconds, and no text
        overview.log_studies([job])
        table_of_runs.summarise(job.folder.parent)
        assert report([str(job.folder.parent)]) == 0
    (root / "printed.txt").write_text(said.getvalue())
    return job, root / "store"


@contextmanager
def logged(said: io.StringIO):
    """What is logged is written into ``said``, too."""
    handler, root = logging.StreamHandler(said), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield
    root.removeHandler(handler)
    root.setLevel(level)


def files(folder: Path) -> dict[str, bytes]:
    """What each file says; of weights and rows, which are numbers, their header."""
    found = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and ".locks" not in p.parts]
    said = (header(p) if p.suffix == ".safetensors" else p.read_bytes() for p in found)
    said = (data[:128] if p.suffix == ".npy" else data for p, data in zip(found, said, strict=True))
    return {p.relative_to(folder).as_posix(): data for p, data in zip(found, said, strict=True)}


@pytest.mark.parametrize("place", ["A run's folder", "A study's folder", "The store"])
def test_the_page_says_what_each_file_holds(made, place):
    job, store = made
    places = {"A run's folder": job.folder, "A study's folder": job.folder.parent, "The store": store}
    said, found = table(f"**{place}**"), files(places[place])
    if place == "A study's folder":
        found = {name: data for name, data in found.items() if not name.startswith(job.folder.name)}
        assert {"report.html", "summary.csv", "wandb"} <= {name.split("/")[0] for name in found}
    assert len(said) >= 6 and len(found) >= 7
    assert [name for name in found if kind(name, said) is None] == []
    traces = Traces(forget_rows(read(job.cfg)))
    for name, data in found.items():
        holds = kind(name, said)
        if "text" not in holds and "token ids" not in holds:
            assert traces.in_bytes(data) is None, f"{name} holds text, and the page says {holds}"
    readable = [name for name in found if name.endswith(("examples.parquet", "report.html"))]
    assert readable and all("text" in kind(name, said) for name in readable)
    assert all(traces.in_bytes(found[name]) is not None for name in readable)


def test_a_run_writes_and_prints_no_secret_anywhere_and_no_text_of_the_forget_set_elsewhere(made):
    job, store = made
    written = list(job.folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert [p.stem for p in written] == [f"run-{runlog.manifest(job.folder)['wandb']}"]
    assert written[0].stat().st_size > 1000
    parts = {value[i : i + 12] for value in PLANTED.values() for i in range(len(value) - 11)}  # files have blocks
    secret = re.compile("|".join(map(re.escape, parts)).encode())
    assert "probability at" in (store.parent / "printed.txt").read_text()  # it is among what is searched
    everything = {p.relative_to(store.parent): p.read_bytes() for p in store.parent.rglob("*") if p.is_file()}
    assert [name for name, content in everything.items() if secret.search(content)] == []
    traces = Traces(forget_rows(read(job.cfg)))
    outside = [name for name in everything if not (name.is_relative_to("runs") or name.is_relative_to("store"))]
    assert [name for name in outside if traces.in_bytes(everything[name]) is not None] == []


def test_what_the_pages_commands_make_is_not_committed():
    """Ledgers, records, exports, data of one's own: whatever README and docs name in a command."""
    pages = "\n".join(p.read_text() for p in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    lines = [line for line in pages.splitlines() if re.match(r" {4}|```", line) or "data.retain=" in line]
    keys = r"\b(?:ledger|to|out|data\.forget|data\.retain)=(?!hub:)([\w./-]+)"
    named = {m[1] for line in lines for m in re.finditer(keys, line) if not re.fullmatch(r"[A-Z/]+|forget\d+", m[1])}
    assert {"ledger", "records", "deployed", "secrets.jsonl", "keep.jsonl", "head.json"} <= named
    named |= {"mine/terms.py", "runs/default/report.html", "runs/default/wandb/x"}
    named = {name if "." in name else f"{name}/x" for name in named}
    ignored = subprocess.run(["git", "check-ignore", *named], cwd=ROOT, capture_output=True, text=True)
    assert named - set(ignored.stdout.split()) == set()


def test_every_kind_of_entry_was_looked_at(made):
    made_here = {p.name for p in made[1].iterdir() if not p.name.startswith(".")}
    assert made_here == {"tokenizer", "model", "rows", "reference", "draft", "alternates"}
    assert {"answers", "harness", "hashes", "read", ".building"} == {
        p.split("/")[0] for p in table("**The store**")
    } - made_here


class Recorded:
    """Stands for a W&B run: the names of the files that it is given."""

    def __init__(self, names: list[str]):
        self.names = names
        self.summary: dict = {}

    def given(self, paths) -> None:
        folder = {"offset", "adapter"}
        self.names += [f"{p.parent.name}/{p.name}" if p.parent.name in folder else p.name for p in paths]

    def log(self, *_, **__) -> None:
        pass


def test_the_page_names_what_w_and_b_is_given(made, monkeypatch):
    """What the run handed to W&B: its artifacts and files, as a run's log of them holds."""
    given: list[str] = []
    mirror = Mirror()
    mirror._do = lambda act: act(Recorded(given))
    job, _ = made
    for name in ("_save", "_artifact"):
        monkeypatch.setattr(mirrors, name, lambda run, *rest: run.given(rest[-1]))
    monkeypatch.setattr(mirrors, "_chart", lambda found: None)
    monkeypatch.setattr(mirrors, "_table", lambda *tables: None)
    record = object.__new__(RunLog)
    record.folder, record.mirror = job.folder, mirror
    found = runlog.evaluation(job.folder)
    examples = pd.read_parquet(job.folder / "examples.parquet")
    references = {name: Measured(m, examples.drop(columns="alpha"), {}) for name, m in found["references"].items()}
    record.evaluated({float(a): m for a, m in found["alphas"].items()}, examples, references)
    assert set(given) >= {"eval.json", "examples.parquet", "references.parquet", "offset/model.safetensors"}
    sentence = " ".join(PAGE.split("**Weights & Biases**")[1].split("\n\n")[0].split())
    for name in given:
        assert f"`{name}`" in sentence or f"`{name.split('/')[0]}/*`" in sentence, name
    assert "**`examples.parquet` and `references.parquet` (text)**" in sentence


def test_the_page_s_numbers_are_the_program_s():
    from unlearn.config.redaction import SHORTEST
    from unlearn.config.setting import NAME
    from unlearn.deploy.export.traces import RUN

    assert RUN == 4 and "- four words in a row" in PAGE
    assert SHORTEST == 8 and "of 8 characters or more" in PAGE
    assert NAME.endswith("{0,79}") and "at most 80" in PAGE
