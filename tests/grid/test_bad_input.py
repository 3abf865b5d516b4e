"""Wrong calls of every command, by the true path: each is refused before any work, with one message and status 2."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.helpers import TINY, command, compose, execute, tiny_llama
from support.refusals import assert_refused, call, check
from support.wrong_calls import CHECKED, COMMANDS, DATA, EVALUATE, MODELS, RUN, VALUES, own

from unlearn.config.schema import ConfigError
from unlearn.grid.refusal import flags_first
from unlearn.models import hub


@pytest.fixture(scope="module")
def place(tmp_path_factory, store, made):
    """A working directory with a trained run, and with files and models of every wrong kind."""
    root = tmp_path_factory.mktemp("bad")
    job = execute(compose(*TINY, f"paths.store={store}", f"paths.runs={root}/runs"))
    (root / "run").symlink_to(job.folder)
    _data(root)
    _models(root, made)
    _runs(root, job.folder)
    return root


def _data(root: Path) -> None:
    row = {"question": "Who wrote it?", "answer": "Ada."}
    texts = {
        "good": [row], "other": [{"question": "And who read it?", "answer": "Bob."}],
        "empty_question": [row | {"question": ""}], "long": [row | {"answer": "word " * 5000}],
        "ids": [row | {"n": 1}, row | {"answer": "C", "n": 1}],
    }  # fmt: skip
    for name, rows in texts.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (root / "key_twice.jsonl").write_text('{"question": "a", "answer": "b", "answer": "c"}\n')
    (root / "deep.jsonl").write_text("[" * 100_000)
    (root / "utf16.jsonl").write_text(json.dumps(row), encoding="utf-16")
    (root / "binary.csv").write_bytes(bytes(range(256)))
    (root / "folder.jsonl").mkdir()
    (root / "mine" / "algo").mkdir(parents=True)
    (root / "mine" / "algo" / "npo.yaml").write_text("name: npo\nforget: npo\nretain: none\nbeta: 5\nlr: {offset: 1}\n")
    (root / "void").mkdir()
    (root / "file").write_text("x")
    (root / "broken.json").write_text('{"a": ')


def _models(root: Path, made) -> None:
    good = made("llama")

    def variant(name: str) -> Path:
        shutil.copytree(good, root / name)
        return root / name

    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        tensors = load_file(variant(name) / "model.safetensors")
        tensors["model.norm.weight"][3] = value
        save_file(tensors, root / name / "model.safetensors", {"format": "pt"})
    whole = (variant("cut") / "model.safetensors").read_bytes()
    (root / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (variant("garbage") / "model.safetensors").write_bytes(b"\xff" * 4096)
    (variant("no_weights") / "model.safetensors").unlink()
    (variant("no_config") / "config.json").unlink()
    (variant("bad_config") / "config.json").write_text("{")
    (variant("pickle") / "model.safetensors").unlink()
    torch.save(load_file(good / "model.safetensors"), root / "pickle" / "pytorch_model.bin")
    (variant("no_tokenizer") / "tokenizer.json").unlink()
    (root / "no_tokenizer" / "tokenizer_config.json").unlink()
    (variant("bad_tokenizer") / "tokenizer.json").write_text('{"version": 1')
    tokenizer = json.loads((variant("other_ids") / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    one, two = list(ids)[10:12]
    ids[one], ids[two] = ids[two], ids[one]
    (root / "other_ids" / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((variant("short") / "config.json").read_text())
    (root / "short" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))
    tensors = load_file(variant("narrow") / "model.safetensors")
    (root / "narrow" / "config.json").write_text(json.dumps(config | {"vocab_size": 7}))
    save_file({k: v[:7] if v.shape[0] == config["vocab_size"] else v for k, v in tensors.items()},
              root / "narrow" / "model.safetensors", {"format": "pt"})  # fmt: skip
    save_file({f"_orig_mod.{k}": v for k, v in tensors.items()}, variant("compiled") / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    (variant("adapted") / "adapter_config.json").write_text("{}")
    (variant("index") / "model.safetensors").unlink()
    (root / "index" / "model.safetensors.index.json").write_text('{"weight_map": 5}')
    variant("good_model")


def _runs(root: Path, run: Path) -> None:
    for name, file, content in (
        ("torn", "config.yaml", b"a: ["), ("listed", "config.yaml", b"- 1"), ("bytes", "config.yaml", b"\xff\xfe\x00"),
        ("manifest", "manifest.json", b"[1]"), ("format", "manifest.json", b'{"format": 99, "trained": true}'),
        ("results", "eval.json", b'{"alphas": 5}'), ("steps", "metrics.jsonl", b"\xff\n"),
        ("table", "examples.parquet", b"PAR1"),
    ):  # fmt: skip
        copy = root / "studies" / name / "a_run"
        shutil.copytree(run, copy)
        (copy / file).write_bytes(content)
    copy = root / "studies" / "weights" / run.name
    shutil.copytree(run, copy)
    with (copy / "offset" / "model.safetensors").open("r+b") as stream:
        stream.seek(-4, 2)
        stream.write(b"\0\1\2\3")


@pytest.mark.parametrize(("override", "said"), VALUES)
def test_a_call_that_hydra_refuses(place, override, said):
    assert_refused(call(RUN, *TINY, *override.split(" "), cwd=place), said)


@pytest.mark.parametrize(("override", "said"), CHECKED)
def test_a_value_that_is_refused(place, store, override, said):
    assert_refused(check(*TINY, f"paths.store={store}", *override.split(" "), cwd=place), said)


@pytest.mark.parametrize(("arguments", "said"), DATA, ids=[said[:40] for _, said in DATA])
def test_a_data_file_that_is_refused(place, store, arguments, said):
    assert_refused(check(*arguments, f"paths.store={store}", cwd=place), said)


@pytest.mark.parametrize(("arguments", "said"), MODELS, ids=[said[:40] for _, said in MODELS])
def test_a_model_that_is_refused(place, store, arguments, said):
    assert_refused(check(*arguments, f"paths.store={store}", cwd=place), said)


@pytest.mark.parametrize(("module", "arguments", "said"), COMMANDS, ids=[f"{m} {s[:30]}" for m, _, s in COMMANDS])
def test_a_command_that_is_refused(place, module, arguments, said):
    assert_refused(call(module, *arguments, cwd=place), said)


@pytest.mark.nightly
def test_the_true_command_line_refuses_with_one_message_and_status_2(tmp_path):
    done = command(RUN, *TINY, "-m", "alpha=1,nan", cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Refused before any work:\n  alpha=nan: must be a finite number, e.g. 0.5, 1 or 2\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "arguments"), [(RUN, ("algo=gaa",)), (RUN, (*TINY, "alpha=nan")), (EVALUATE, ("run=nowhere",))]
)
def test_the_traceback_is_shown_where_it_is_asked_for(tmp_path, monkeypatch, module, arguments):
    found = call(module, *arguments, cwd=tmp_path)
    assert found.status == 2 and "Traceback" not in found.err
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    asked = call(module, *arguments, cwd=tmp_path)
    assert asked.status == 2 and asked.err.startswith("Traceback")
    assert asked.err.endswith(found.err)
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_a_call_leaves_the_environment_as_it_was(tmp_path, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    assert call(RUN, *TINY, "algo=gaa", cwd=tmp_path).status == 2
    assert call(RUN, *TINY, f"paths.store={tmp_path}/store", cwd=tmp_path).status == 1  # it began to work
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_file_that_may_not_be_read_is_named(place, monkeypatch):
    """By injection: root may read everything."""

    def shut(self, *arguments, real=Path.read_text, **more):
        if self.name == "good.jsonl":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", shut)
    assert_refused(check(*own("good.jsonl", "other.jsonl", "data.name=shut"), cwd=place), "good.jsonl: cannot be read")


@pytest.mark.parametrize("key", ["runs", "store"])
def test_a_folder_that_may_not_be_written_is_named(place, monkeypatch, key):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "void")
    given = (*TINY, "study=fresh", "paths.store=here", f"paths.{key}=void")
    assert_refused(check(*given, cwd=place), f"paths.{key}='void': must be a folder that can be written")


def test_weights_that_were_found_sound_are_not_read_again(place, tmp_path, monkeypatch):
    hub.check_files("pair.target.source", place / "good_model", tmp_path)
    monkeypatch.setattr(hub, "_check_file", lambda *_: pytest.fail("read again"))
    hub.check_files("pair.target.source", place / "good_model", tmp_path)


def test_weights_of_a_loaded_model_are_checked_too():
    model = tiny_llama(0)
    assert hub.check_head(model, "mine") is model
    with torch.no_grad():
        model.model.norm.weight[2] = float("inf")
    with pytest.raises(ConfigError, match="mine: the tensor 'model.norm.weight' holds NaN or infinity"):
        hub.check_head(model, "mine")


def test_flags_may_stand_wherever_people_put_them():
    given = ["algo=ga", "--config-dir", "mine", "alpha=1", "-m", "seed=1"]
    assert flags_first(given) == ["--config-dir", "mine", "-m", "algo=ga", "alpha=1", "seed=1"]
    assert flags_first(["algo=npo", "--cfg", "job"]) == ["--cfg", "job", "algo=npo"]
    assert flags_first(["x=1", "--config-dir"]) == ["--config-dir", "x=1"] and flags_first([]) == []
