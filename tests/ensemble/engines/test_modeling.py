"""The unlearned model as a model of transformers: its logits are those of the sum, its texts those of a plain loop."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.engines import LORA, WIDTH, adapter, described, export, offset, tiny
from support.helpers import ROOT, python
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from unlearn.ensemble.combination import bind_rule
from unlearn.ensemble.engines import modeling_unlearned
from unlearn.ensemble.engines.configuration_unlearned import UnlearnedConfig, factors, identity, located, terms, weights
from unlearn.ensemble.engines.modeling_unlearned import UnlearnedForCausalLM, loaded

IDS = torch.tensor([[5, 9, 14, 22, 7], [3, 3, 8, 30, 11]])
KINDS = {  # layers and heads of target and pair; None: the pair is the target
    "same size": ((2, 2), (2, 2)), "other size": ((3, 4), (1, 2)), "same model": ((2, 2), None)}  # fmt: skip


@pytest.fixture(scope="module", params=[(k, w) for k in KINDS for w in ("whole", "adapter")], ids=" ".join)
def exported(request, tmp_path_factory):
    """Export, its target, its base, and the three models, each with weights of its own."""
    kind, written = request.param
    root, (of_target, of_small) = tmp_path_factory.mktemp("export"), KINDS[kind]
    target = tiny(root / "target", 0, *of_target)
    small = target if of_small is None else tiny(root / "small", 1, *of_small)
    updates, learnt = written == "adapter", root / "learnt"
    own = adapter(learnt, small, 2) if updates else tiny(learnt, 2, *(of_small or of_target))
    models = [LlamaForCausalLM.from_pretrained(f).eval() for f in (target, small if updates else own, small)]
    for name, a, b, scale in factors(own) if updates else ():
        models[1].get_submodule(name).weight.requires_grad_(False).add_(scale * b @ a)
    return offset(root / "export", target, small, own), target, small, models


def load(exported, **more) -> UnlearnedForCausalLM:
    folder, target, small, _ = exported
    base = {} if small == target else {"base": small}
    return AutoModelForCausalLM.from_pretrained(folder, target=target, **base, **more)


@torch.no_grad()
def expected(exported, ids: torch.Tensor, alpha: float) -> torch.Tensor:
    return sum(w * m(ids).logits for w, m in zip((1, alpha, -alpha), exported[3], strict=True))


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_logits_and_greedy_texts_are_those_of_the_sum(exported, alpha):
    model = load(exported, alpha=alpha)
    torch.testing.assert_close(model(IDS).logits, expected(exported, IDS, alpha), atol=2e-5, rtol=1e-5)
    ids = IDS
    for _ in range(6):
        ids = torch.cat([ids, expected(exported, ids, alpha)[:, -1:].argmax(-1)], 1)
    found = model.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert torch.equal(found, ids)


def test_the_auto_classes_know_the_type(exported):
    config = AutoConfig.from_pretrained(exported[0], alpha=0.5)
    assert (config.model_type, config.alpha, config.vocab_size) == ("unlearned", 0.5, WIDTH)
    lacking = {"anchor"} if exported[1] == exported[2] else set()
    assert dict(terms(config)).keys() == {"target", "offset", "anchor"} - lacking
    config.target, config.base = map(str, exported[1:3])
    assert located(exported[0], config)["target"].folder == exported[1]


@pytest.fixture(scope="module")
def updated(tmp_path_factory):
    """Export with an adapter, target and base of other sizes."""
    root = tmp_path_factory.mktemp("updated")
    target, base = tiny(root / "target", 0, 3, 4), tiny(root / "base", 1, 1, 2)
    return offset(root / "export", target, base, adapter(root / "learnt", base, 2)), target, base


def read(updated, **more) -> UnlearnedForCausalLM:
    folder, target, base = updated
    return UnlearnedForCausalLM.from_pretrained(folder, **{"target": target, "base": base} | more)


def test_updates_cost_no_second_copy_of_their_base(updated):
    model = read(updated)
    whole = [AutoModelForCausalLM.from_pretrained(f) for f in updated[1:]]
    learnt = sum(t.numel() for t in load_file(updated[0] / "offset" / "adapter_model.safetensors").values())
    assert model.num_parameters() == sum(m.num_parameters() for m in whole) + learnt
    parts, folder = model.members[1], updated[0]
    assert torch.equal(
        parts.model.layers[0].mlp.up_proj.layer.weight, model.members[2].model.layers[0].mlp.up_proj.weight
    )
    own = AutoConfig.from_pretrained(folder, alpha=None, target=updated[1], base=updated[2])
    assert weights(own) == {"target": (1, 0, 0), "offset": (0, 1, 0), "anchor": (0, -1, 0)}
    wholes: dict = {}  # two exports beside one target
    first, second = (loaded(own, located(folder, own, wholes), wholes=wholes) for _ in range(2))
    assert first["target"] is second["target"] and len(wholes) == 2


def test_of_one_model_at_alpha_1_the_offset_alone_is_run(tmp_path):
    target = tiny(tmp_path / "target", 0)
    folder = offset(tmp_path / "export", target, target, adapter(tmp_path / "learnt", target, 2))
    model = UnlearnedForCausalLM.from_pretrained(folder, target=target)
    assert list(model.weights) == ["offset"] and len(model.members) == 1
    assert torch.equal(model(IDS).logits, model.members[0](IDS).logits)
    at_2 = UnlearnedForCausalLM.from_pretrained(folder, target=target, alpha=2)
    assert at_2.weights == {"target": (1, -1, 0), "offset": (0, 1, 0)}
    frozen = offset(tmp_path / "same", target, target, target)  # nothing was learnt: the target, bit for bit
    assert torch.equal(UnlearnedForCausalLM.from_pretrained(frozen, target=target, alpha=3)(IDS).logits,
                       AutoModelForCausalLM.from_pretrained(target)(IDS).logits)  # fmt: skip


def test_what_a_model_of_transformers_takes(updated, monkeypatch):
    model = read(updated)
    logits = model(IDS).logits
    for keep in (2, torch.tensor([3, 4])):
        torch.testing.assert_close(model(IDS, logits_to_keep=keep).logits, logits[:, -2:])
    torch.testing.assert_close(model(IDS, logits_to_keep=9).logits, logits)  # more than there are
    loss, said, *_ = model(IDS, labels=IDS, return_dict=False)
    assert torch.equal(said, logits)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close([model(IDS, labels=IDS).loss, loss], [expected, expected])
    with pytest.raises(ValueError, match="embeddings of its own; give ids, not inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 2, 16))
    first = model(IDS[:, :3], use_cache=True)
    torch.testing.assert_close(model(IDS[:, 3:], past_key_values=first.past_key_values).logits, logits[:, 3:])
    with pytest.raises(ValueError, match="past_key_values has 4 layers, and the members have 5 together"):
        cache = first.past_key_values
        cache.layers.pop()
        model(IDS, past_key_values=cache)
    half = read(updated, dtype=torch.bfloat16, device_map={"": "cpu"})
    assert {m.dtype for m in half.members} == {torch.bfloat16} and half(IDS).logits.dtype == torch.float32
    own = [m(IDS).logits.float() for m in half.members]  # each rounds; their sum does not
    assert torch.equal(half(IDS).logits, own[0] + (own[1] - own[2]))
    assert {p.dtype for p in read(updated, dtype="auto").parameters()} == {torch.float32}  # as the export says
    assert load((*updated, ()), torch_dtype=torch.bfloat16).dtype == torch.bfloat16  # as before transformers 5
    assert load((*updated, ()), alpha=None).alpha == 1
    with pytest.raises(TypeError, match="expected str, bytes or os.PathLike object, not LlamaForCausalLM"):
        AutoModelForCausalLM.from_pretrained(updated[0], target=model.members[0])
    for save in (model.save_pretrained, model.push_to_hub):
        with pytest.raises(NotImplementedError, match="written by python -m unlearn.export"):
            save("me/mine")
    with pytest.raises(NotImplementedError, match="use generate, or serve the export with vLLM"):
        model.generate_batch([[1, 2]])
    for key in ("subfolder", "output_loading_info"):
        with pytest.raises(ValueError, match=f"{key}: an export is a folder of several models; leave it out"):
            read(updated, **{key: "x"})
    told = []
    real = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(modeling_unlearned.AutoModelForCausalLM, "from_pretrained",
                        lambda *a, **k: told.append(k) or real(*a, **k))  # fmt: skip
    read(updated, device_map="auto", attn_implementation="eager", trust_remote_code=True)
    assert [(t["device_map"], t["attn_implementation"], t["trust_remote_code"]) for t in told] == [
        ("auto", "eager", False)
    ] * 2


@pytest.mark.parametrize("alpha", [float("nan"), "high", [1]], ids=str)
def test_an_alpha_that_is_no_number_is_refused(updated, alpha):
    with pytest.raises(ValueError, match="alpha=.*: must be a finite number"):
        read(updated, alpha=alpha)


def test_a_target_that_is_in_memory_is_taken_as_it_is(updated):
    live = AutoModelForCausalLM.from_pretrained(updated[1])
    model = read(updated, target=live)
    assert model.members[0] is live and torch.equal(model(IDS).logits, read(updated)(IDS).logits)


def test_another_rule_joins_the_members_as_in_a_run(updated, tmp_path):
    about = json.loads((updated[0] / "config.json").read_text())
    shutil.copytree(updated[0], tmp_path / "export")
    numbers = {"rate": 0.1, "top": 0.2}
    (tmp_path / "export" / "config.json").write_text(json.dumps(about | {"rule": "plausible", "numbers": numbers}))
    model = read((tmp_path / "export", *updated[1:]), alpha=0.5)
    target, learnt, anchor = (m(IDS).logits for m in model.members)
    expected = bind_rule("plausible", numbers)(target.flatten(0, 1), (learnt - anchor).flatten(0, 1), 0.5)
    assert torch.equal(model(IDS).logits, expected.view_as(target))


@pytest.mark.parametrize("value, dtype", [(float("nan"), None), (float("inf"), None), (1e6, torch.float16)])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, value, dtype):
    target = tiny(tmp_path / "target", 0)
    held = load_file(target / "model.safetensors")
    held["model.norm.weight"][0] = value
    save_file(held, target / "model.safetensors", {"format": "pt"})
    folder = offset(tmp_path / "export", target, target, target)
    with pytest.raises(ValueError, match="target: model.norm.weight is NaN or infinite in torch.float"):
        UnlearnedForCausalLM.from_pretrained(folder, target=target, dtype=dtype)
    with pytest.raises(ValueError, match="lora_B is NaN"):
        modeling_unlearned._check(target, {"x.lora_B": torch.tensor(torch.nan)})


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")


@pytest.mark.parametrize(
    "change, given, said",
    [
        (lambda e, t, b: None, {"target": "base"}, "target='.*': its files are not those of the target"),
        (lambda e, t, b: None, {"base": "target"}, "base='.*': its files are not those of the base"),
        (lambda e, t, b: damaged(t / "model.safetensors"), {}, r"target='.*': its files are not .*model.safetensors\)"),
        (lambda e, t, b: damaged(e / "offset/adapter_model.safetensors"), {}, "offset: it is not as it was exported"),
        (lambda e, t, b: (t / "config.json").unlink(), {}, r"target='.*': its files are not .*\(config.json\)"),
        (lambda e, t, b: (b / "adapter_config.json").write_text("{}"), {}, "holds adapter_config.json, which"),
        (lambda e, t, b: None, {"target": None}, "target=None: this export does not hold its target; say where it is"),
        (lambda e, t, b: None, {"base": "/nowhere"}, "base='/nowhere': must be the folder of a model; there is none"),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)  # fmt: skip
def test_what_is_not_what_was_exported_is_refused_before_weights_are_loaded(
    updated, tmp_path, monkeypatch, change, given, said
):
    copies = [
        Path(shutil.copytree(f, tmp_path / n)) for f, n in zip(updated, ("export", "target", "base"), strict=True)
    ]
    change(*copies)
    monkeypatch.setattr(modeling_unlearned, "loaded", None)
    places = {name: tmp_path / folder if folder in ("target", "base") else folder for name, folder in given.items()}
    with pytest.raises(ValueError, match=said):
        read(copies, **places)


def test_files_of_other_folders_are_never_listed(updated):
    config = AutoConfig.from_pretrained(updated[0], target=updated[1], base=updated[2])
    config.members[0]["files"] = {"../base/config.json": "0"}
    with pytest.raises(ValueError, match="lists files of other folders"):
        located(updated[0], config)


@pytest.mark.parametrize(
    "change, said",
    [
        ([1, "name", "target"], "each must have a name of its own"),
        ([1, "slope", 1e999], "offset.slope='inf': must be a finite number"),
        ([0, "constant", "much"], "target.constant='much': must be a finite number"),
        ([1, "folder", "../learnt"], "lies outside the folder"),
        ([1, "folder", "/etc"], "lies outside the folder"),
        ([], "it has no members"),
    ],
    ids=str,
)
def test_an_export_that_was_written_to_mislead_is_refused(updated, tmp_path, change, said):
    folder = Path(shutil.copytree(updated[0], tmp_path / "export"))
    shutil.copytree(folder / "offset", tmp_path / "learnt")  # with the right checksums
    about = json.loads((folder / "config.json").read_text())
    if change:
        about["members"][change[0]][change[1]] = change[2]
    else:
        about["members"] = []
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=said):
        read((folder, *updated[1:]))


@pytest.mark.parametrize("more", [{"r": 4}, {"r": 0}, {"r": None}, {"lora_alpha": 1e999}], ids=str)
def test_an_adapter_whose_tensors_are_not_of_its_rank_is_refused(tmp_path, more):
    folder = adapter(tmp_path / "a", tiny(tmp_path / "t", 0), 1)
    (folder / "adapter_config.json").write_text(json.dumps(LORA | more))
    with pytest.raises(ValueError, match="must be of rank r=|lora_alpha='inf': must be a finite number"):
        list(factors(folder))


@pytest.mark.parametrize(
    "more", [{"use_dora": True}, {"bias": "all"}, {"rank_pattern": {"q": 4}}, {"peft_type": "LOHA"}], ids=str
)
def test_an_adapter_that_is_no_plain_lora_is_refused(tmp_path, more):
    folder = adapter(tmp_path / "a", tiny(tmp_path / "t", 0), 1)
    assert len(list(factors(folder))) == 14  # seven layers in each of two blocks
    (folder / "adapter_config.json").write_text(json.dumps(LORA | more))
    with pytest.raises(
        ValueError, match=f"must be a plain LoRA adapter.*{'type' if 'peft_type' in more else next(iter(more))}"
    ):
        list(factors(folder))


def test_an_adapter_with_other_tensors_is_refused(tmp_path):
    folder = adapter(tmp_path / "a", tiny(tmp_path / "t", 0), 1)
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match="must be a plain LoRA adapter"):
        list(factors(folder))


def test_code_that_lies_in_an_export_or_a_member_is_never_run(tmp_path):
    target, marker = tiny(tmp_path / "target", 0), tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w')\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
    (tmp_path / "target" / "evil.py").write_text(code)
    about = json.loads((target / "config.json").read_text())
    mapped = {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (target / "config.json").write_text(json.dumps(about | mapped))
    folder = export(tmp_path / "export", [("target", 1.0, 0.0, described(target))], **mapped)
    (folder / "evil.py").write_text(code)
    for trusted in (False, True, None):
        model = AutoModelForCausalLM.from_pretrained(folder, target=target, trust_remote_code=trusted)
        assert isinstance(model, UnlearnedForCausalLM) and not marker.exists()


ORDERS = {  # of imports, each in a process of its own
    "first": "import unlearn; from transformers import AutoConfig; assert 'unlearn.ensemble' not in sys.modules",
    "last": "from transformers import AutoConfig, AutoModelForCausalLM; import unlearn",
    "config only": "from transformers import AutoConfig; import unlearn",
}


@pytest.mark.nightly
@pytest.mark.parametrize("order", ORDERS)
def test_the_auto_classes_know_the_type_in_any_order_of_imports(updated, order):
    folder, target, base = map(str, updated)
    config = f"AutoConfig.from_pretrained({folder!r}).model_type == 'unlearned'"
    model = f"AutoModelForCausalLM.from_pretrained({folder!r}, target={target!r}, base={base!r})"
    then = "from transformers import AutoModelForCausalLM"
    code = f"import sys; {ORDERS[order]}; assert {config}; {then}; print(type({model}))"
    assert "unlearn.ensemble.engines.modeling_unlearned.UnlearnedForCausalLM" in python("-c", code, cwd=ROOT).stdout


def test_equal_models_have_one_identity_and_their_weights_are_summed_up():
    of = {"files": {"config.json": "1"}, "dtype": "float32", "quantisation": None, "base": None}
    members = [{"name": n, "constant": c, "slope": s} | of | more for n, c, s, more in
               (("target", 1, 0, {}), ("a", 0, 1, {"files": {"config.json": "2"}}), ("b", 0, -1, {}),
                ("c", 0, 0.5, {"dtype": "bfloat16"}))]  # fmt: skip
    assert identity(members[0]) == identity(members[2]) != identity(members[3])
    assert terms(UnlearnedConfig(members, alpha=1.0)) == [("a", 1), ("c", 0.5)]
    assert terms(UnlearnedConfig(members, alpha=0.0)) == [("target", 1)]
    assert list(weights(UnlearnedConfig(members, alpha=1.0, rule="rank"))) == ["target", "a", "c"]
