"""An exported folder answers as the run did, beside its target and no other."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.helpers import contents, execute, python, run_and_export
from transformers import AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

from unlearn import export
from unlearn.config.pair import ModelConfig, PairConfig, SourceConfig, StageConfig
from unlearn.config.schema import ConfigError
from unlearn.deploy.export import loading as deployed
from unlearn.deploy.serving import loading as serving
from unlearn.deploy.serving.settings import Settings
from unlearn.ensemble.engines import custom_generate
from unlearn.ensemble.engines.live import causal_lm
from unlearn.ensemble.engines.modeling_unlearned import UnlearnedForCausalLM
from unlearn.runs.learner import members
from unlearn.runs.workbench import workbench
from unlearn.store import sources
from unlearn.store.files import read_json

IDS = torch.tensor([[5, 9, 14, 22, 7], [3, 3, 8, 30, 11]])


def run_logits(job, alpha: float) -> torch.Tensor:
    bench = workbench(job.cfg)
    return causal_lm(members(job.cfg, bench, job.folder), alpha)(IDS).logits


def logits(folder: Path, **where) -> torch.Tensor:
    return UnlearnedForCausalLM.from_pretrained(folder, **where)(IDS).logits


def serve(folder: Path, **how):
    """The export as the server has it."""
    settings = Settings(run=str(folder), overrides=["trainer.device=cpu"], **{k: str(v) for k, v in how.items()})
    return serving.load(settings)


def blocks(folder: Path, **places: Path) -> list[str]:
    """The code of the card, with its places filled in as a reader would."""
    text = (folder / "README.md").read_text()
    for key, place in places.items():
        text = text.replace(f"PATH/TO/THE/{key.upper()}", str(place))
    return [c.replace("'.'", repr(str(folder))) for c in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Code of exports is copied into the test's own folder."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def test_the_code_of_the_card_gives_what_the_run_does(exported, capsys, modules):
    job, folder = exported
    scope: dict = {}
    for block in blocks(folder, target=workbench(job.cfg).folder("target")):
        exec(block, scope)
    assert torch.equal(scope["model"](IDS).logits, run_logits(job, 1.0))
    assert capsys.readouterr().out.endswith("\n")


def test_an_export_answers_as_the_run_does(exported):
    """Asked by its own chat template, through transformers alone."""
    job, folder = exported
    model = UnlearnedForCausalLM.from_pretrained(folder, target=workbench(job.cfg).folder("target"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = pd.read_parquet(job.folder / "examples.parquet")
    for _, row in examples[(examples["alpha"] == 1.0) & (examples["split"] == "retain")].iterrows():
        chat = [{"role": "user", "content": row["prompt"]}]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        said = model.generate(**asked, max_new_tokens=job.cfg.eval.max_new_tokens)[0, asked["input_ids"].shape[1] :]
        assert tokenizer.decode(said, skip_special_tokens=True).strip() == row["generation"]


def NIGHTLY(*overrides: str):
    return pytest.param(overrides, marks=pytest.mark.nightly)


@pytest.mark.parametrize(
    "overrides",
    [("method=uld", "algo=uld"), NIGHTLY("method=dd"), ("method=dd_rank",), ("method=direct", "algo=npo"),
     ("method=defer", "algo=me_kl", "method.numbers.tau=0"),
     NIGHTLY("method=refuse", "algo=idk", "trainer.lr=0.001", "method.numbers.tau=0"),
     NIGHTLY("method=direct", "algo=npo", "pair.tuning=lora"), NIGHTLY("method=proxy", "algo=npo", "pair.tuning=lora"),
     NIGHTLY("method=uld", "algo=uld", "pair.tuning=lora")],
    ids=lambda o: " ".join(o),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own use of it
def test_every_method_is_exported_and_gives_the_logits_of_the_run(store, tmp_path, overrides):
    job, folder = run_and_export(store, tmp_path, *overrides)
    about, card = read_json(folder / "offset.json"), (folder / "README.md").read_text()
    target = workbench(job.cfg).folder("target")
    assert torch.equal(logits(folder, target=target), run_logits(job, about["alpha"]))
    part = next(iter(serve(folder, target=target).blend.parts.values()))
    assert torch.equal(causal_lm(part.ensemble, part.alpha)(IDS).logits, run_logits(job, about["alpha"]))
    if job.cfg.pair.tuning == "lora":
        trained = next(name for name, m in about["members"].items() if "began_as" in m)
        assert {p.name for p in (folder / trained).iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
        bases = {"method=direct": [], "method=proxy": ["anchor"], "method=uld": ["assistant.base"]}[overrides[0]]
        assert [p.parent.name for p in folder.glob("*/model.safetensors")] == bases  # trained here: nobody else has it
    plain = job.cfg.method.rule == "sum"
    assert ("custom_generate='.'" in card, "vllm serve" in card) == (plain, plain) and "unlearn.serve" in card
    assert plain or "Not by vLLM: its rule is not a sum" in card
    assert ("| 1 α, watched: -1 |" in card) == (overrides[0] in ("method=defer", "method=refuse"))
    assert ("a whole model, not an offset" in card.replace("**", "")) == (overrides == ("method=direct", "algo=npo"))
    guarded = {"method=uld": "`assistant`", "method=dd": "`small_full`", "method=dd_rank": "`small_full`"}
    assert ("to be guarded" in card) == (overrides[0] in guarded)
    assert f"{guarded.get(overrides[0], '')} learnt the forget set on" in card or overrides[0] not in guarded


def test_a_pretrained_pair_of_other_widths_is_exported_without_its_places(pair, made, tmp_path):
    folders = made("llama", 0, 5), made("tied", 1)
    job = execute(pair(*folders, "eval.retrained=none", "algo=npo", f"paths.runs={tmp_path}/runs"))
    assert export.main([f"run={job.folder}", f"to={tmp_path}/out", "collapsed=yes"]) == 0
    about, config = (read_json(tmp_path / "out" / name) for name in ("offset.json", "config.json"))
    assert config["vocab_size"] == about["tokenizer"]["size"] == config["members"][0]["config"]["vocab_size"] - 5
    assert about["tokenizer"]["words_of_the_forget_set_alone"] is None
    assert not [d for d in contents(tmp_path / "out").values() for f in folders if str(f).encode() in d]
    assert torch.equal(logits(tmp_path / "out", target=folders[0]), run_logits(job, 1.0))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own use of it
def test_low_rank_updates_are_exported_without_the_model_that_they_belong_to_and_loaded_with_no_other(
    pair, made, tmp_path, capsys, modules
):
    target, small = made("llama", 0, 5), made("tied", 1)
    options = ("eval.retrained=none", "algo=npo", "pair.tuning=lora", f"paths.runs={tmp_path}/runs")
    job, out = execute(pair(target, small, *options)), tmp_path / "out"
    assert export.main([f"run={job.folder}", f"to={out}", "collapsed=yes"]) == 0
    assert [p.relative_to(out).as_posix() for p in out.rglob("*.safetensors")] == ["offset/adapter_model.safetensors"]
    expected = run_logits(job, 1.0)
    assert torch.equal(logits(out, target=target, base=small), expected)
    served = serve(out, target=target, base=small)
    weights = read_json(out / "offset.json")["members"]["offset"]["fingerprint"]
    assert [p.weights for p in served.blend.parts.values()] == [weights]
    with pytest.raises(ConfigError, match="base='x': is for exports; a run knows its own"):
        serving.load(Settings(run=str(job.folder), base="x"))
    scope: dict = {}
    for block in blocks(out, target=target, base=small):
        exec(block, scope)
    assert torch.equal(scope["model"](IDS).logits, expected)
    for load in (serve, logits):
        with pytest.raises(ValueError, match="base=None: this export does not hold its base"):
            load(out, target=target)
        with pytest.raises(ValueError, match="with another model it unlearns nothing") as error:
            load(out, target=target, base=made("tied", 2))
        assert str(made("tied", 2)) in str(error.value)
    for more, folders in (("offset=merged", ["anchor", "offset"]), ("weights=all", ["anchor"])):
        whole = tmp_path / more
        assert export.main([f"run={job.folder}", f"to={whole}", "collapsed=yes", more]) == 0
        assert sorted(p.parent.name for p in whole.glob("*/model.safetensors")) == folders
        torch.testing.assert_close(logits(whole, target=target), expected, atol=1e-5, rtol=1e-5)
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
    target, out = workbench(job.cfg).folder("target"), tmp_path / "bare"
    assert export.main([f"run={job.folder}", f"to={out}", "tokenizer=no", "alpha=0.5", "collapsed=yes"]) == 0
    assert not [*out.glob("token*"), *out.glob("chat*")]
    card = (out / "README.md").read_text()
    assert "no tokenizer in this folder" in card and "α = 0.5" in card
    assert "vllm serve . --tokenizer PATH/TO/THE/TARGET --hf-overrides" in card
    assert torch.equal(logits(out, target=target), run_logits(job, 0.5))


# --- several requests -------------------------------------------------------------------------------------------------


def test_several_requests_are_one_sum_with_the_anchor_once(served_runs, tmp_path, capsys):
    """Each at its own α; checked as the server checks them."""
    runs, out = [j.folder for j in served_runs], tmp_path / "out"
    target = workbench(served_runs[0].cfg).folder("target")
    own = ["trainer.device=cpu", "collapsed=yes"]
    assert export.main([f"run={runs[0]}", f"offsets=[{runs[1]}]", "alpha=[1,0.5]", f"to={out}", *own]) == 0
    assert {p.name for p in out.iterdir() if p.is_dir()} == {"offset", "offset_2", "anchor", "custom_generate"}
    weights = {m["name"]: (m["constant"], m["slope"]) for m in read_json(out / "config.json")["members"]}
    assert weights == {"target": (1, 0), "offset": (0, 1), "offset_2": (0, 0.5), "anchor": (0, -1.5)}
    served = serving.load(Settings(str(runs[0]), offsets=[str(runs[1])], alpha=[1, 0.5])).blend
    expected = causal_lm(*served.joined(served.mix()))(IDS).logits
    part = next(iter(serve(out, target=target).blend.parts.values()))
    for found in (logits(out, target=target), causal_lm(part.ensemble, part.alpha)(IDS).logits):
        torch.testing.assert_close(found, expected)
    assert part.weights == "+".join(p.weights for p in served.parts.values())
    assert [(r["run"], r["alpha"], set(r["alone"])) for r in read_json(out / "offset.json")["requests"]] == [
        (runs[0].name, 1, {"offset", "anchor"}), (runs[1].name, 0.5, {"offset_2"})
    ]  # fmt: skip
    assert "Each request was measured alone; their sum was not." in (out / "README.md").read_text()
    capsys.readouterr()
    for arguments, said in (
        ([f"offsets=[{runs[2]}]"], "was trained beside a anchor with the fingerprint"),
        ([f"offsets=[{runs[1]}]", "alpha=[1,3]"], "alpha=3: must be one of those the run was evaluated at, 0.5, 1"),
        ([f"offsets=[{runs[1]}]", "alpha=[1,1,1]"], "must be one α, or a list of 2, one for run and each of offsets"),
        ([f"offsets=[{runs[0]}]"], "each may be given once"),
    ):
        assert export.main([f"run={runs[0]}", f"to={tmp_path}/none", *own, *arguments]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "none").exists()


# --- without this package ---------------------------------------------------------------------------------------------


def test_a_loaded_target_generates_with_the_sum_and_another_does_not(exported, modules):
    job, folder = exported
    bench = workbench(job.cfg)
    target = AutoModelForCausalLM.from_pretrained(bench.folder("target"), dtype=torch.bfloat16)
    other = AutoModelForCausalLM.from_pretrained(bench.folder("retrained"))
    how = {"custom_generate": str(folder), "trust_remote_code": True, "max_new_tokens": 6}
    expected = UnlearnedForCausalLM.from_pretrained(folder, target=target).generate(IDS, max_new_tokens=6)
    assert torch.equal(target.generate(IDS, **how), expected)
    made = dict(getattr(target, custom_generate.MADE))
    assert torch.equal(target.generate(IDS, **how), expected) and getattr(target, custom_generate.MADE) == made
    assert custom_generate.MADE not in "".join(target.state_dict())
    with pytest.raises(ValueError, match="weights are not those of the target that the offset was trained for"):
        other.generate(IDS, **how)
    with pytest.raises(ValueError, match="must be the folder of an export"):
        custom_generate.generate(target)


def test_a_loaded_target_follows_the_folder_that_an_export_is_in(exported, modules, tmp_path, monkeypatch):
    job, folder = exported
    target = AutoModelForCausalLM.from_pretrained(workbench(job.cfg).folder("target"))
    for i, alpha in enumerate((0, 60)):
        shutil.copytree(folder, tmp_path / str(i) / folder.name)
        path = tmp_path / str(i) / folder.name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha": alpha}))
    how = {"custom_generate": folder.name, "trust_remote_code": True, "max_new_tokens": 6}
    found = []
    for place in ("0", "1"):
        monkeypatch.chdir(tmp_path / place)
        found.append(target.generate(IDS, **how))
    assert torch.equal(found[0], target.generate(IDS, max_new_tokens=6)) and not torch.equal(*found)
    path.write_text((tmp_path / "0" / folder.name / "config.json").read_text())
    assert torch.equal(found[0], target.generate(IDS, **how))  # it was exported again


def test_a_loaded_target_may_be_asked_by_several_threads_at_once(exported, modules):
    job, folder = exported
    other, target = (AutoModelForCausalLM.from_pretrained(workbench(job.cfg).folder("target")) for _ in range(2))
    how = {"custom_generate": str(folder), "trust_remote_code": True, "max_new_tokens": 4}
    other.generate(IDS[:1], **how)  # transformers reads the code: not in several threads, where Python may fail
    with ThreadPoolExecutor(4) as pool:  # the first of them loads
        found = list(pool.map(lambda i: target.generate(IDS[i % 2, None], **how), range(8)))
    for i, text in enumerate(found):
        assert torch.equal(text, target.generate(IDS[i % 2, None], **how))
    assert len(getattr(target, custom_generate.MADE)) == 1


def test_the_fingerprint_of_weights_is_that_of_the_model_in_any_precision_but_not_of_another(bench):
    folder = bench.folder("target")
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=d) for d in (torch.float32, torch.bfloat16)]
    found = [custom_generate.fingerprint(model) for model in models]
    with torch.no_grad():
        models[0].model.norm.weight[3] += 0.01
    assert found[0] == found[1] != custom_generate.fingerprint(models[0])
    layers = models[1].model.layers  # tensors of one shape in each other's places are another model, too
    layers[0].mlp.up_proj, layers[0].mlp.gate_proj = layers[0].mlp.gate_proj, layers[0].mlp.up_proj
    assert found[1] != custom_generate.fingerprint(models[1])


ALONE = """
import sys
sys.modules["unlearn"] = None  # an import of it fails
import torch
from transformers import AutoModelForCausalLM
folder, target = sys.argv[1:]
ids = torch.tensor([[5, 9, 14, 22, 7], [3, 3, 8, 30, 11]])
model = AutoModelForCausalLM.from_pretrained(target)
print(model.generate(ids, custom_generate=folder, trust_remote_code=True, max_new_tokens=6).tolist())
model = AutoModelForCausalLM.from_pretrained(folder, target=target, trust_remote_code=True)
print(model.generate(ids, max_new_tokens=6).tolist())
"""


@pytest.mark.nightly
def test_where_this_package_is_not_the_sum_generates_all_the_same(exported, tmp_path):
    job, folder = exported
    target = workbench(job.cfg).folder("target")
    done = python("-c", ALONE, str(folder), str(target), cwd=tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules"))
    expected = UnlearnedForCausalLM.from_pretrained(folder, target=target).generate(IDS, max_new_tokens=6).tolist()
    assert [json.loads(line) for line in done.stdout.splitlines()] == [expected, expected]


# --- what is refused --------------------------------------------------------------------------------------------------


def escaping(text: bytes) -> bytes:
    about = json.loads(text)
    return json.dumps(about | {"files": {"../secret": {"bytes": 1, "sha256": "0"}}}).encode()


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("offset/model.safetensors", lambda b: b[:-4] + b"\0\0\0\1", "is missing, or not the file"),
        ("tokenizer.json", lambda b: b + b" ", "is missing, or not the file"),
        ("config.json", lambda b: b.replace(b'"alpha": 1.0', b'"alpha": 0.0', 1), "is missing, or not the file"),
        ("offset.json", lambda b: b.replace(b'"format": 3', b'"format": 2', 1), "format is 2; export the run again"),
        ("offset.json", escaping, "lists '../secret', which lies outside the folder"),
        (
            "offset/adapter_config.json",
            lambda b: b'{"peft_type": "LORA"}',
            "is not a file of the export; libraries may",
        ),
        ("offset/pytorch_model.bin", lambda b: b"x", "is not a file of the export"),
        ("offset.json", lambda b: b"[]", "there is none"),
    ],
)
def test_a_damaged_export_is_refused(exported, tmp_path, name, change, said):
    job, folder = exported
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / name).write_bytes(change((copy / name).read_bytes() if (copy / name).exists() else b""))
    with pytest.raises(ConfigError, match=re.escape(said)):
        serve(copy, target=workbench(job.cfg).folder("target"))


def test_another_target_or_none_is_refused(exported, tmp_path):
    job, folder = exported
    for load in (serve, logits):
        with pytest.raises(ValueError, match="with another model it unlearns nothing"):
            load(folder, target=workbench(job.cfg).folder("retrained"))
    with pytest.raises(ConfigError, match="needs an offset.json of format 3, and there is none"):
        deployed.checked(tmp_path)
