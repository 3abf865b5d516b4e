"""An exported folder answers as the run did, beside its target and no other."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.helpers import contents, execute, run_and_export

from unlearn import export
from unlearn.config.pair import ModelConfig, PairConfig, SourceConfig, StageConfig
from unlearn.config.schema import ConfigError
from unlearn.deploy.export import loading as deployed
from unlearn.deploy.serving import loading as serving
from unlearn.deploy.serving.settings import Settings
from unlearn.engines.live import causal_lm
from unlearn.models import tokenizers
from unlearn.runs.learner import members
from unlearn.runs.workbench import workbench
from unlearn.store import sources
from unlearn.store.files import read_json

IDS = torch.tensor([[5, 9, 14, 22, 7], [3, 3, 8, 30, 11]])


def run_logits(job, alpha: float) -> torch.Tensor:
    bench = workbench(job.cfg)
    return causal_lm(members(job.cfg, bench, job.folder), alpha)(IDS).logits


def blocks(folder: Path, target: Path, base: Path | None = None) -> list[str]:
    """The code of the card, with its places filled in as a reader would."""
    text = (folder / "README.md").read_text().replace("PATH/TO/THE/TARGET", str(target))
    text = text.replace("PATH/TO/THE/BASE", str(base))
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [c.replace('load(".",', f'load("{folder}",').replace("TARGET, ALPHA, WIDTH = '.'",
            f"TARGET, ALPHA, WIDTH = '{folder}'") for c in found]  # fmt: skip


def test_the_code_of_the_card_gives_the_logits_of_the_run(exported, capsys):
    job, folder = exported
    target = workbench(job.cfg).folder("target")
    packaged, plain = blocks(folder, target)
    scope: dict = {}
    exec(packaged, scope)
    assert torch.equal(scope["model"].lm(IDS).logits, run_logits(job, 1.0))
    assert capsys.readouterr().out.endswith("\n")
    scope = {}
    exec(plain, scope)
    torch.testing.assert_close(scope["logits"](IDS), run_logits(job, 1.0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scope["logits"](IDS, alpha=0.5), run_logits(job, 0.5), atol=1e-5, rtol=1e-5)


def test_an_export_answers_as_the_run_does(exported):
    job, folder = exported
    model = deployed.load(folder, workbench(job.cfg).folder("target"))
    examples = pd.read_parquet(job.folder / "examples.parquet")
    for _, row in examples[(examples["alpha"] == 1.0) & (examples["split"] == "retain")].iterrows():
        assert model.answer(row["prompt"], job.cfg.eval.max_new_tokens) == row["generation"]


@pytest.mark.parametrize(
    "overrides",
    [("method=uld", "algo=uld"), ("method=dd",), ("method=dd_rank",), ("method=direct", "algo=npo"),
     ("method=direct", "algo=npo", "pair.tuning=lora"), ("method=proxy", "algo=npo", "pair.tuning=lora"),
     ("method=uld", "algo=uld", "pair.tuning=lora")],
    ids=lambda o: " ".join(o),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own use of it
def test_every_method_is_exported_and_gives_the_logits_of_the_run(store, tmp_path, overrides):
    job, folder = run_and_export(store, tmp_path, *overrides)
    about, card = read_json(folder / "offset.json"), (folder / "README.md").read_text()
    target = workbench(job.cfg).folder("target")
    model = deployed.load(folder, target)
    assert torch.equal(model.lm(IDS).logits, run_logits(job, about["alpha"]))
    if job.cfg.pair.tuning == "lora":
        trained = next(m["name"] for m in about["method"]["members"] if m["trained"])
        assert {p.name for p in (folder / trained).iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
        bases = {"method=direct": [], "method=proxy": ["anchor"], "method=uld": ["assistant.base"]}[overrides[0]]
        assert [p.parent.name for p in folder.glob("*/model.safetensors")] == bases  # trained here: nobody else has it
    if about["method"]["rule"] == "sum":
        scope: dict = {}
        exec(blocks(folder, target)[1], scope)
        torch.testing.assert_close(scope["logits"](IDS), run_logits(job, about["alpha"]), atol=1e-5, rtol=1e-5)
    assert ("whole model, not an offset" in card) == (overrides == ("method=direct", "algo=npo"))
    guarded = {"method=uld": "`assistant`", "method=dd": "`small_full`", "method=dd_rank": "`small_full`"}
    assert ("to be guarded" in card) == (overrides[0] in guarded)
    assert f"{guarded.get(overrides[0], '')} learnt the forget set on" in card or overrides[0] not in guarded


def test_a_pretrained_pair_of_other_widths_is_exported_without_its_places(pair, made, tmp_path):
    folders = made("llama", 0, 5), made("tied", 1)
    job = execute(pair(*folders, "eval.retrained=none", "algo=npo", f"paths.runs={tmp_path}/runs"))
    assert export.main([f"run={job.folder}", f"to={tmp_path}/out", "collapsed=yes"]) == 0
    about = read_json(tmp_path / "out" / "offset.json")
    assert about["logits"] == tokenizers.size(workbench(job.cfg).encoder.tokenizer)
    assert about["tokenizer"]["words_of_the_forget_set_alone"] is None
    assert not [d for d in contents(tmp_path / "out").values() for f in folders if str(f).encode() in d]
    model = deployed.load(tmp_path / "out", folders[0])
    assert torch.equal(model.lm(IDS).logits, run_logits(job, 1.0))
    scope: dict = {}
    exec(blocks(tmp_path / "out", folders[0])[1], scope)
    torch.testing.assert_close(scope["logits"](IDS), run_logits(job, 1.0), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own use of it
def test_low_rank_updates_are_exported_without_the_model_that_they_belong_to_and_loaded_with_no_other(
    pair, made, tmp_path, capsys
):
    target, small = made("llama", 0, 5), made("tied", 1)
    options = ("eval.retrained=none", "algo=npo", "pair.tuning=lora", f"paths.runs={tmp_path}/runs")
    job, out = execute(pair(target, small, *options)), tmp_path / "out"
    assert export.main([f"run={job.folder}", f"to={out}", "collapsed=yes"]) == 0
    assert [p.relative_to(out).as_posix() for p in out.rglob("*.safetensors")] == ["offset/adapter_model.safetensors"]
    expected, about = run_logits(job, 1.0), read_json(out / "offset.json")
    assert torch.equal(deployed.load(out, target, base=small).lm(IDS).logits, expected)
    assert about["format"] == 2 and about["method"]["members"][1]["base"]["content"] in (out / "README.md").read_text()
    served = serving.load(Settings(run=str(out), target=str(target), base=str(small)))
    assert [p.weights for p in served.blend.parts.values()] == [about["method"]["members"][1]["fingerprint"]]
    with pytest.raises(ConfigError, match="base='x': is for exports; a run knows its own"):
        serving.load(Settings(run=str(job.folder), base="x"))
    packaged, plain = blocks(out, target, small)
    assert f"base='{small}'" in packaged
    scope: dict = {}
    exec(plain, scope)
    torch.testing.assert_close(scope["logits"](IDS), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(deployed.ExportError, match="base=None: this export holds updates of a model with the finger"):
        deployed.load(out, target)
    with pytest.raises(deployed.ExportError, match="with another model it unlearns nothing") as error:
        deployed.load(out, target, base=made("tied", 2))
    assert str(made("tied", 2)) in str(error.value)
    for more, folders in (("offset=merged", ["anchor", "offset"]), ("weights=all", ["anchor"])):
        whole = tmp_path / more
        assert export.main([f"run={job.folder}", f"to={whole}", "collapsed=yes", more]) == 0
        assert sorted(p.parent.name for p in whole.glob("*/model.safetensors")) == folders
        torch.testing.assert_close(deployed.load(whole, target).lm(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    capsys.readouterr()


def test_what_the_hub_has_is_named_and_not_copied(tmp_path):
    (tmp_path / "local").mkdir()
    hub, here = ModelConfig(source="org/small", revision="abc"), ModelConfig(source=str(tmp_path / "local"))
    tuned = ModelConfig(source="org/small", general=StageConfig(epochs=1), finetune=StageConfig(epochs=1))
    assert sources.on_hub(PairConfig(small=hub), "small_general") is hub
    assert sources.on_hub(PairConfig(small=here), "small_general") is None
    assert sources.on_hub(PairConfig(small=tuned), "small_general") is None
    assert sources.on_hub(PairConfig(small=ModelConfig()), "small_general") is None
    own = SourceConfig(source="org/full")
    assert sources.on_hub(PairConfig(small=tuned, small_full=own), "small_full") is own


def test_without_a_tokenizer_none_is_written(exported, tmp_path):
    job, _ = exported
    assert export.main([f"run={job.folder}", f"to={tmp_path}/bare", "tokenizer=no", "alpha=0.5", "collapsed=yes"]) == 0
    assert not (tmp_path / "bare" / "tokenizer").exists()
    card = (tmp_path / "bare" / "README.md").read_text()
    assert "no tokenizer in this folder" in card and "α is **0.5**" in card
    model = deployed.load(tmp_path / "bare", workbench(job.cfg).folder("target"))
    assert torch.equal(model.lm(IDS).logits, run_logits(job, 0.5))


def escaping(text: bytes) -> bytes:
    about = json.loads(text)
    return json.dumps(about | {"files": {"../secret": {"bytes": 1, "sha256": "0"}}}).encode()


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("offset/model.safetensors", lambda b: b[:-4] + b"\0\0\0\1", "is missing, or not the file"),
        ("tokenizer/tokenizer.json", lambda b: b + b" ", "is missing, or not the file"),
        ("offset.json", lambda b: b.replace(b'"format": 1', b'"format": 7', 1), "its format is 7"),
        ("offset.json", escaping, "lists '../secret', which lies outside the folder"),
        ("offset/adapter_config.json", lambda b: b'{"peft_type": "LORA"}', "is no file of the export; libraries may"),
        ("offset/pytorch_model.bin", lambda b: b"x", "is no file of the export"),
        ("offset.json", lambda b: b"[]", "there is none"),
    ],
)
def test_a_damaged_export_is_refused(exported, tmp_path, name, change, said):
    job, folder = exported
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / name).write_bytes(change((copy / name).read_bytes() if (copy / name).exists() else b""))
    with pytest.raises(deployed.ExportError, match=re.escape(said)):
        deployed.load(copy, workbench(job.cfg).folder("target"))


def test_another_target_or_none_is_refused(exported, tmp_path):
    job, folder = exported
    with pytest.raises(deployed.ExportError, match="added to another model it unlearns nothing"):
        deployed.load(folder, workbench(job.cfg).folder("retrained"))
    with pytest.raises(deployed.ExportError, match="needs an offset.json of format 1 or 2, and there is none"):
        deployed.load(tmp_path, workbench(job.cfg).folder("target"))
