"""Pairs of pretrained models: what is loaded, read, fine-tuned and held. The models are tiny and random, of real
architectures, saved into folders; one that is really pretrained is used where the shared data has it."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.helpers import SHARED, execute, lines, offset_ensemble
from support.pretrained import AS_IT_IS, retrained
from transformers import AutoModelForCausalLM

from unlearn import evaluate
from unlearn.config.pair import TargetConfig
from unlearn.config.schema import ConfigError
from unlearn.data.encoding import Example, collate, examples_of
from unlearn.decoding.generation import Decoding, greedy
from unlearn.grid.rerun import open_run
from unlearn.models import hub, llama, tokenizers
from unlearn.runs.inputs import Inputs
from unlearn.runs.learner import members
from unlearn.runs.workbench import frozen_ensemble, workbench

STORIES = SHARED / "data" / "stories260K"


# --- whole runs ---------------------------------------------------------------------------------------------------


def test_a_run_with_pretrained_models_from_its_rows_to_its_results(pair, made):
    """The small model's head is the wider one: its offset is trained, saved and read again for the target's width."""
    cfg = pair(made("llama", 0, 3), made("tied", 1, 9), f"pair.retrained.source={made('llama', 2, 3)}",
               "eval.alphas=[0,1]", "trainer.lr=0.01")  # fmt: skip
    folder = execute(cfg).folder
    result = json.loads((folder / "eval.json").read_text())
    width = tokenizers.size(workbench(cfg).encoder.tokenizer) + 3
    assert json.loads((folder / "manifest.json").read_text())["status"] == "done"
    for key, value in result["references"]["target"].items():
        if "/prob" in key:
            assert result["alphas"]["0.0"][key] == pytest.approx(value, abs=1e-6)
    assert 0 < result["alphas"]["1.0"]["forget_quality"] <= 1
    assert result["alphas"]["1.0"]["forget/prob"] != result["alphas"]["0.0"]["forget/prob"]
    assert len(lines(folder)) == 3
    saved = llama.load(folder / "offset")
    assert llama.vocabulary(saved) == width and saved.get_output_embeddings().weight.shape[0] == width + 6
    job = open_run(folder, ["eval.alphas=[0.5]"]).job  # another α, with the weights from the folder
    execute(job.cfg)
    assert "0.5" in json.loads((folder / "eval.json").read_text())["alphas"]


def test_without_a_retrained_model_a_run_says_so_first_and_goes_on_when_told_to(pair, made, tmp_path):
    with pytest.raises(ConfigError, match=r"Give pair\.retrained\.source=.*eval\.retrained=FILE.*eval\.retrained=none"):
        pair(None, None, "eval.retrained=null")
    with pytest.raises(ConfigError, match="eval.retrained='nowhere.json': no such file"):
        pair(None, None, "eval.retrained=nowhere.json")
    alone = json.loads((execute(pair()).folder / "eval.json").read_text())
    assert list(alone["references"]) == ["target"]
    assert not {"forget_quality", "distance"} & set(alone["alphas"]["1.0"])


def test_a_result_file_stands_in_for_the_retrained_model(pair, made, tmp_path):
    """What evaluating the retrained model by itself wrote gives what having it in the pair gives."""
    whole = pair(None, None, retrained(made), "eval.groups=[leak]")
    inside = json.loads((execute(whole).folder / "eval.json").read_text())
    same = ["eval.max_examples=2", "eval.groups=[leak]", "eval.max_new_tokens=16", "eval.leak_samples=2",
            "eval.resamples=20"]  # fmt: skip
    data = [f"data.{k}={getattr(whole.data, k)}" for k in ("people", "forget_people", "holdout_people", "known_people",
                                                           "countries", "questions")]  # fmt: skip
    out = tmp_path / "retrained.json"
    assert evaluate.main([f"model={made('llama', 2)}", f"out={out}", *same, *data, f"pair.seed={whole.pair.seed}"]) == 0
    beside = pair(None, None, f"eval.retrained={out}", "eval.groups=[leak]", f"paths.runs={tmp_path}/beside")
    outside = json.loads((execute(beside).folder / "eval.json").read_text())
    own, theirs = inside["alphas"]["1.0"], outside["alphas"]["1.0"]
    assert {"forget_quality", "forget/leak_gap"} <= set(theirs)
    for key in ("forget/prob", "forget_quality", "forget/leak_gap"):
        assert theirs[key] == pytest.approx(own[key], abs=1e-5), key


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"no pretrained model at {STORIES}")
def test_a_really_pretrained_model_tells_stories_and_is_fine_tuned(config):
    of = f"pair.target.source={STORIES}", f"pair.small.source={STORIES}"
    cfg = config(*AS_IT_IS, *of, "pair.target.finetune.epochs=1", "pair.target.finetune.lr=1e-3")
    bench = workbench(cfg)
    once = bench.encoder.tokenizer("Once upon a time, there was a little", add_special_tokens=False)["input_ids"]
    told = greedy(bench.alone("small"), [(1, *once)], 1.0, Decoding(0, 2, 8, 1))[0]
    assert "girl" in bench.encoder.decode(told)
    facts, knows = examples_of(bench.encoder, bench.data.splits["retain"]), {}
    for name in ("small", "target", "retrained"):  # the same weights as they are, and fine-tuned on all or on the rest
        model, batch = bench.model(name), collate(facts, 0)
        logp = llama.answer_rows(model, batch).log_softmax(-1)
        knows[name] = logp.gather(1, batch.labels[:, None]).mean().item()
    assert knows["target"] > knows["small"] + 0.5 and knows["retrained"] > knows["small"] + 0.5
    assert knows["target"] != knows["retrained"]


def test_target_and_small_model_of_one_folder_are_in_memory_once(pair, made):
    same, other = made("llama"), made("tied", 1)
    for small, more, shared in ((same, (), True), (other, (), False), (same, ("pair.target.dtype=bfloat16",), False)):
        bench = workbench(pair(same, small, *more))
        target, started = bench.model("target"), bench.model("small")
        assert (target is started) == shared == (bench.fingerprint("target") == bench.fingerprint("small"))
    job = execute(pair(same, same, "eval.retrained=none", "algo=npo", "pair.tuning=lora"))
    bench = workbench(job.cfg)
    learner = members(job.cfg, bench, job.folder).trained.model
    places = {p.data_ptr() for p in bench.model("target").parameters()}
    assert places < {p.data_ptr() for p in learner.parameters()}
    before = llama.fingerprint(llama.load(same))
    assert llama.fingerprint(bench.model("target")) == before, "nothing was trained into the target"


# --- vocabulary ---------------------------------------------------------------------------------------------------


def test_heads_that_differ_by_padding_are_read_for_what_all_have(pair, made, bench):
    cfg = pair(made("llama", 0, 9, True), made("tied", 1, 4))
    width = tokenizers.size(bench.encoder.tokenizer) + 4
    there = workbench(cfg)
    assert there.width == width == llama.vocabulary(there.model("target")) == llama.vocabulary(there.model("small"))
    whole = AutoModelForCausalLM.from_pretrained(made("llama", 0, 9, True))
    prompt = there.encoder.prompt(there.data.splits["forget"][0].question)
    batch = collate([Example("x", prompt, (5, 6, 1))], 0)
    logits = whole(batch.ids).logits[0, len(prompt) - 1 : -1]
    torch.testing.assert_close(llama.answer_rows(there.model("target"), batch), logits[:, :width])
    assert logits.argmax(-1).min() >= width  # else the next lines would show nothing
    answer = greedy(there.alone("target"), [prompt], 1.0, Decoding(0, 1, 6, 1))[0]
    ids = torch.tensor([prompt])
    for token in answer:  # greedy, without a cache, over the cut logits
        assert token == whole(ids).logits[0, -1, :width].argmax()
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    ensemble = frozen_ensemble(cfg.method.members, there)
    rows = {m.name: llama.answer_rows(m.model, batch) for m in ensemble.members}
    assert torch.equal(ensemble.logits(rows, 1.0), rows["target"])  # offset = anchor


def test_rows_of_a_target_are_stored_for_the_width_they_are_read_for(pair, made):
    prints = []
    for padding in (4, 9):
        cfg = pair(made("llama", 0, 9), made("tied", 1, padding), "algo=ga", "method=offset")
        there = workbench(cfg)
        Inputs(cfg, there).objective(frozen_ensemble(cfg.method.members, there))
        prints.append(there.fingerprint("target"))
    assert prints[0] != prints[1]


REFUSED = [  # target, small, the model that is asked for, the message
    (("llama",), ("tied", 1, -7), None, r"has (?P<ids>[\d,]+) ids.*target '.*' (?P=ids), small '.*' [\d,]+"),
    (("llama",), ("gpt2",), None, "takes at most 64 tokens, and examples may have 320: lower"),
    (
        ("llama", 0, 5),
        ("tied", 1, 5),
        "retrained",
        r"pair\.retrained\.source=.*its head has .* stands beside them",
    ),
    (("gemma2",), ("tied", 1), "target", "Gemma2ForCausalLM does more to its logits than its output head does"),
]


@pytest.mark.parametrize(("target", "small", "asked", "message"), REFUSED)
def test_models_that_do_not_fit_are_refused_with_names_and_sizes(pair, made, target, small, asked, message):
    more = [retrained(made)] if asked == "retrained" else []
    with pytest.raises(ConfigError, match=message):
        workbench(pair(made(*target), made(*small), *more)).model(asked)


def test_other_tokenizers_are_refused_with_the_first_token_that_differs(pair, made, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(made("tied", 1), other)
    text = json.loads((other / "tokenizer.json").read_text())
    words = sorted(text["model"]["vocab"], key=text["model"]["vocab"].get)
    text["model"]["vocab"][words[20]], text["model"]["vocab"][words[30]] = 30, 20
    (other / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ConfigError) as error:
        workbench(pair(None, other))
    assert f"pair.small.source='{other}'" in str(error.value) and str(made("llama")) in str(error.value)
    assert f"id 20 is {words[30]!r} there and {words[20]!r} here" in str(error.value)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2", "phi"])
def test_members_of_every_architecture_give_the_logits_of_the_whole_model(kind, made):
    model = hub.check_head(llama.load(made(kind)), kind)
    if kind == "phi":
        torch.nn.init.normal_(model.lm_head.bias)  # an odd head: it has a bias
    batch = collate([Example("a", (5, 6, 7), (8, 1)), Example("b", (5, 6, 7, 9, 9), (8, 3, 1))], 0)
    whole = model(input_ids=batch.ids, attention_mask=batch.mask).logits.flatten(0, 1)[batch.where]
    torch.testing.assert_close(llama.answer_rows(model, batch), whole)
    ensemble = offset_ensemble(model, llama.load(made(kind, 1)), llama.load(made(kind, 2)))
    answers = greedy(ensemble, [(5, 6, 7), (9, 5, 6, 7, 3)], 0.7, Decoding(0, 1, 5, 2))
    for prompt, answer in zip([(5, 6, 7), (9, 5, 6, 7, 3)], answers, strict=True):
        ids = torch.tensor([prompt])
        for token in answer:  # without caches, padding or other prompts
            logits = {m.name: m.model(ids).logits[:, -1] for m in ensemble.members}
            assert token == ensemble.logits(logits, 0.7).argmax()
            ids = torch.cat([ids, torch.tensor([[token]])], 1)


# --- what is made of a pretrained model ---------------------------------------------------------------------------


def test_a_ready_made_target_has_no_retrained_reference_unless_one_is_named(pair, made):
    without = workbench(pair())
    assert without.has("target") and without.has("small") and not without.has("retrained")
    with pytest.raises(ConfigError, match=r"Give pair\.retrained\.source=NAME_OR_FOLDER.*pair\.target\.finetune"):
        without.model("retrained")
    named = workbench(pair(None, None, retrained(made)))
    assert named.has("retrained")
    own = AutoModelForCausalLM.from_pretrained(made("llama", 2)).state_dict()
    assert all(torch.equal(v, own[k]) for k, v in named.model("retrained").state_dict().items())


def test_small_models_are_taken_as_they_are_or_fine_tuned_or_named(pair, made):
    cfg = pair(None, None, "pair.small.finetune.epochs=1", f"pair.small_retain.source={made('tied', 3)}")
    there = workbench(cfg)
    as_is, named = (AutoModelForCausalLM.from_pretrained(made("tied", seed)).state_dict() for seed in (1, 3))
    general, full, retain = (there.model(f"small_{k}").state_dict() for k in ("general", "full", "retain"))
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(general[key], as_is[key]) and torch.equal(retain[key], named[key])
    moved = (full[key] - as_is[key]).abs().mean() / as_is[key].abs().mean()
    assert 0 < moved < 0.5  # fine-tuned from it, and not from scratch
    assert there.model("small") is there.model("small_general")


def test_target_and_twin_are_fine_tuned_from_the_same_source_and_found_by_its_content(pair, made, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(made("llama"), copied)
    cfg = pair(copied, None, "pair.target.finetune.epochs=1")
    there = workbench(cfg)
    assert there.has("retrained")
    first = there.fingerprint("target"), there.fingerprint("retrained")
    assert first[0] != first[1]
    moved = tmp_path / "moved"
    copied.rename(moved)
    elsewhere = workbench(pair(moved, None, "pair.target.finetune.epochs=1"))
    assert (elsewhere.fingerprint("target"), elsewhere.fingerprint("retrained")) == first
    other = workbench(pair(made("llama", 5), None, "pair.target.finetune.epochs=1"))
    assert other.fingerprint("target") not in first


def test_dropout_of_a_pretrained_model_does_not_see_the_seed_of_the_run(pair, made, tmp_path):
    fine_tuned = []
    for seed in (0, 1):
        more = "pair.small.general.epochs=1", "pair.small.max_length=64", f"paths.store={tmp_path}/{seed}"
        there = workbench(pair(made("gpt2", 0), made("gpt2", 1), *more))
        torch.manual_seed(seed)
        fine_tuned.append(there.fingerprint("small"))
    assert fine_tuned[0] == fine_tuned[1]


def test_a_data_set_without_general_facts_cannot_train_a_model_that_knows_nothing_else(config):
    there = workbench(config("pair.small.pretrain.epochs=0"))
    bare = {k: v for k, v in there.data.splits.items() if k in ("forget", "retain")}
    there = dataclasses.replace(there, data=dataclasses.replace(there.data, splits=bare, _fingerprint=[]), _models={})
    with pytest.raises(ConfigError, match="has no general facts to train the small_general model on"):
        there.model("small")
    assert there.model("small_retain")


def test_pair_scratch_trains_tokenizer_and_models_of_the_sizes_given_or_takes_a_pretrained_tokenizer(config, made):
    there = workbench(config("pair=scratch", "pair.tokenizer.vocab_size=300", "pair.tokenizer.kind=bpe"))
    assert len(there.encoder.tokenizer) == 300 == llama.vocabulary(there.model("target"))
    assert there.width == llama.vocabulary(there.model("small")) and there.model("small").config.hidden_size == 8
    given = workbench(config("pair.tokenizer.kind=pretrained", f"pair.tokenizer.source={made('llama', 0, 9)}"))
    assert llama.vocabulary(given.model("target")) == tokenizers.size(given.encoder.tokenizer)


# --- how the target is held ---------------------------------------------------------------------------------------


def test_the_target_may_be_held_in_bfloat16_and_its_rows_are_fp32(pair, made, tmp_path):
    coarse = tmp_path / "coarse"
    shutil.copytree(made("llama"), coarse)
    AutoModelForCausalLM.from_pretrained(coarse).to(torch.bfloat16).save_pretrained(coarse)
    batch = collate([Example("x", (5, 6, 7), (8, 9, 1))], 0)
    prints = {}
    for folder, dtype, held in [
        (made("llama"), "float32", torch.float32), (made("llama"), "auto", torch.float32),
        (made("llama"), "bfloat16", torch.bfloat16), (coarse, "auto", torch.bfloat16),
        (coarse, "float32", torch.float32),
    ]:  # fmt: skip
        there = workbench(pair(folder, None, f"pair.target.dtype={dtype}"))
        model = there.model("target")
        assert {p.dtype for p in model.parameters()} == {held}
        assert llama.answer_rows(model, batch).dtype == torch.float32
        assert {p.dtype for p in there.model("small").parameters()} == {torch.float32}
        prints[folder.name, dtype] = there.fingerprint("target")
    name = made("llama").name
    assert prints[name, "float32"] == prints[name, "auto"] and len(set(prints.values())) == 4


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_the_target_may_be_placed_apart_from_the_pair(pair, made, device):
    """No second device here: that placing changes neither rows nor generations is all that can be seen."""
    there, plain = workbench(pair(None, None, f"pair.target.device_map={device}")), llama.load(made("llama"))
    batch = collate([Example("x", (5, 6, 7), (8, 9, 1))], 0)
    torch.testing.assert_close(llama.answer_rows(there.model("target"), batch), llama.answer_rows(plain, batch))
    assert not any(p.requires_grad for p in there.model("target").parameters())


def test_a_target_whose_layers_lie_in_several_places_gives_the_same_rows(made, tmp_path):
    """What accelerate puts elsewhere (here: on the disk) comes and goes as it is needed; GPUs are no other to it."""
    there = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu",
             "model.norm": "cpu", "lm_head": "cpu"}  # fmt: skip
    plain = llama.load(made("llama"))
    spread = llama.exact(made("llama"), dtype=torch.float32, device_map=there, offload_folder=str(tmp_path)).eval()
    assert any(p.device.type == "meta" for p in spread.parameters())
    batch = collate([Example("x", (5, 6, 7), (8, 9, 1)), Example("y", (5,), (8, 1))], 0)
    for model in (hub.check_head(spread, "spread"), llama.narrow(spread, 30)):
        rows = llama.answer_rows(model, batch)
        torch.testing.assert_close(rows, llama.answer_rows(plain, batch)[:, : rows.shape[1]], rtol=0, atol=0)


def test_quantisation_is_asked_of_bitsandbytes(monkeypatch):
    asked = {}

    def loaded(**how):
        asked.update(how)
        return torch.nn.Linear(1, 1), {"missing_keys": (), "unexpected_keys": (), "mismatched_keys": ()}

    monkeypatch.setattr(hub, "precision", lambda folder, cfg: torch.bfloat16)
    monkeypatch.setattr(llama, "class_of", lambda folder: SimpleNamespace(from_pretrained=loaded))
    for kind in ("8bit", "4bit"):
        hub.load(Path("x"), TargetConfig(quantisation=kind), torch.device("cpu"))
        settings = asked["quantization_config"]
        assert (settings.load_in_8bit, settings.load_in_4bit) == (kind == "8bit", kind == "4bit")
        assert asked["device_map"] == {"": "cpu"} and asked["dtype"] == torch.bfloat16
