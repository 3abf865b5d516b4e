"""A run folder whose files were truncated, changed, deleted or added to is refused by name, and stops no other run."""

import shutil

import pytest
from support.helpers import TINY, compose, execute, job_of

from unlearn.grid.perform import perform
from unlearn.grid.table import report
from unlearn.store import runlog, seal
from unlearn.store.files import FileError


@pytest.fixture(scope="module")
def finished(tmp_path_factory, store):
    """A run that is done: its options (but for the place of its runs) and its folder."""
    options = ["algo=ga", *TINY, f"paths.store={store}", "eval.groups=[]", "eval.resamples=0", "eval.max_examples=3"]
    runs = tmp_path_factory.mktemp("sealed") / "runs"
    return options, execute(compose(*options, f"paths.runs={runs}")).folder


@pytest.fixture()
def run(finished, tmp_path):
    """A copy of it, to be damaged: options and folder."""
    options, folder = finished
    shutil.copytree(folder.parent.parent, tmp_path / "runs")
    return [*options, f"paths.runs={tmp_path / 'runs'}"], tmp_path / "runs" / folder.parent.name / folder.name


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


DAMAGE = {"flipped": flip, "truncated": truncate, "missing": lambda path: path.unlink()}


def test_both_seals_cover_every_file_that_matters(run):
    _, folder = run
    manifest = runlog.manifest(folder)
    assert set(manifest[seal.RESULTS]) >= {"config.yaml", "metrics.jsonl", "eval.json", "examples.parquet"}
    weights = {str(p.relative_to(folder)) for p in (folder / "offset").iterdir()}
    assert set(manifest[seal.WEIGHTS]) == weights and "offset/model.safetensors" in weights


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_finished_run_with_other_results_is_refused_by_name(run, kind):
    options, folder = run
    cfg = compose(*options)
    for name in ("eval.json", "metrics.jsonl", "examples.parquet"):
        before = (folder / name).read_bytes()
        DAMAGE[kind](folder / name)
        assert not job_of(cfg).was_done
        with pytest.raises(FileError, match=f"{name} (was changed|is missing)"):
            execute(cfg)
        (folder / name).write_bytes(before)


@pytest.mark.parametrize("kind", [*DAMAGE, "foreign"])
def test_damaged_and_foreign_weights_are_refused_before_they_are_evaluated(run, kind):
    options, folder = run
    if kind == "foreign":
        (folder / "offset" / "model-00002.safetensors").write_bytes(b"x")
    else:
        DAMAGE[kind](folder / "offset" / "model.safetensors")
    words = "model.safetensors (was changed|is missing)|model-00002.safetensors is not a file that the run wrote"
    with pytest.raises(FileError, match=words):
        execute(compose(*options, "eval.alphas=[2]"))


def test_evaluating_again_seals_again(run):
    options, folder = run
    before = runlog.manifest(folder)
    execute(compose(*options, "eval.alphas=[2]"))
    after = runlog.manifest(folder)
    assert after[seal.WEIGHTS] == before[seal.WEIGHTS]
    changed = {k for k, v in after[seal.RESULTS].items() if v != before[seal.RESULTS].get(k)}
    assert {"eval.json", "examples.parquet"} <= changed and "metrics.jsonl" not in changed
    seal.check_results(folder, after)


@pytest.mark.parametrize(
    ("text", "message"), [('{"status": "do', "manifest.json: not valid JSON"), ('{"format": 7}', "run format 7")]
)
def test_an_unreadable_manifest_or_another_format_is_named_in_the_table_and_kept(run, capsys, text, message):
    options, folder = run
    (folder / "manifest.json").write_text(text)
    job = job_of(compose(*options))
    perform(job)
    assert job.folder == folder and report([job]) == 1
    said = capsys.readouterr().out
    assert message in said and "damaged" in said and "Traceback" not in said
    assert (folder / "manifest.json").read_text() == text
