"""Targets that are stored, or held, in fewer bits: GGUF files and bitsandbytes, as one model of transformers."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.engines import WIDTH, adapter, offset, tiny
from support.gguf_files import V, write
from support.helpers import execute
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from unlearn import export
from unlearn.ensemble.engines import modeling_unlearned
from unlearn.ensemble.engines.configuration_unlearned import UnlearnedConfig, located
from unlearn.ensemble.engines.live import causal_lm
from unlearn.ensemble.engines.modeling_unlearned import loaded
from unlearn.ensemble.engines.vllm_plugin import refuse
from unlearn.models import tokenizers
from unlearn.runs.learner import members
from unlearn.runs.workbench import workbench

IDS = torch.tensor([[5, 9, 14, 22, 7], [3, 3, 8, 30, 11]])
BITS = {"8bit": {"load_in_8bit": True},
        "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}}  # fmt: skip


@pytest.mark.nightly
@pytest.mark.skipif(find_spec("gguf") is None, reason="needs the extra gguf, which is not installed")
def test_what_was_trained_beside_a_gguf_file_is_exported_for_that_file_under_any_name(pair, tmp_path):
    file, small = tmp_path / "t.gguf", tmp_path / "small"
    write(file)
    shape = LlamaConfig(vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(shape).save_pretrained(small)
    tokenizers.load(file).save_pretrained(small)
    job = execute(
        pair(
            file,
            small,
            "eval.retrained=none",
            "trainer.steps=2",
            "eval.max_new_tokens=64",
            f"paths.runs={tmp_path}/runs",
        )
    )
    folder = tmp_path / "out"
    assert export.main([f"run={job.folder}", f"to={folder}", "collapsed=yes"]) == 0
    assert "Not by vLLM: its target is a GGUF file" in (folder / "README.md").read_text()
    there = tmp_path / "theirs"
    there.mkdir()
    expected = causal_lm(members(job.cfg, workbench(job.cfg), job.folder), 1.0)(IDS).logits
    for place in (shutil.copy(file, there / "other.gguf"), shutil.copy(file, there / "t.gguf"), there):
        model = AutoModelForCausalLM.from_pretrained(folder, target=place, base=small)
        assert torch.equal(model(IDS).logits, expected)
    write(there / "t.gguf", seed=1)
    for place in (there, there / "t.gguf"):
        with pytest.raises(ValueError, match="target='.*': its files are not those of the target"):
            AutoModelForCausalLM.from_pretrained(folder, target=place, base=small)
    with pytest.raises(ValueError, match=r"GGUF.*from_pretrained"):
        refuse(UnlearnedConfig.from_pretrained(folder))


def held(folder: Path, how: dict, target: Path, small: Path) -> Path:
    """An export whose target was held in so few bits as it was unlearned."""
    offset(folder, target, small, adapter(folder.parent / "learnt", small, 2))
    about = json.loads((folder / "config.json").read_text())
    about["members"][0]["quantisation"] = how
    (folder / "config.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("bits", BITS)
def test_bitsandbytes_is_told_of_the_target_alone(tmp_path, monkeypatch, bits):
    target, small = tiny(tmp_path / "target", 0), tiny(tmp_path / "small", 1, 1)
    config = UnlearnedConfig.from_pretrained(held(tmp_path / "export", BITS[bits], target, small))
    config.target, config.base = target, small
    told = {}

    def model(place, trust_remote_code, use_safetensors, **how):
        assert use_safetensors and not trust_remote_code
        told[Path(place)] = how
        return LlamaForCausalLM.from_pretrained(place)

    monkeypatch.setattr(modeling_unlearned.AutoModelForCausalLM, "from_pretrained", model)
    loaded(config, located(tmp_path / "export", config))
    how = told[target].pop("quantization_config")
    assert told == {target: {"dtype": "float32"}, small: {"dtype": "float32"}}
    assert how.to_dict().items() >= BITS[bits].items()


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes, which is not installed")
@pytest.mark.parametrize("bits", BITS)
@torch.no_grad()  # bitsandbytes computes 4 bits in another way for gradients
def test_a_target_in_fewer_bits_is_the_one_that_bitsandbytes_makes_and_the_pair_is_not(tmp_path, bits):
    target, small = tmp_path / "target", tiny(tmp_path / "small", 1, 1)
    shape = LlamaConfig(vocab_size=WIDTH, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                        num_attention_heads=2, initializer_range=0.5)  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(target)  # 4 bits are packed by 32 and more
    folder = held(tmp_path / "export", BITS[bits], target, small)
    model = AutoModelForCausalLM.from_pretrained(folder, target=target, base=small)
    plain = AutoModelForCausalLM.from_pretrained(target, quantization_config=BitsAndBytesConfig(**BITS[bits]))
    said, learnt, anchor = (m(IDS).logits.float() for m in model.members)
    assert torch.equal(said, plain(IDS).logits.float())
    assert not torch.allclose(said, AutoModelForCausalLM.from_pretrained(target)(IDS).logits, atol=1e-3)
    assert torch.equal(model(IDS).logits, said + (learnt - anchor)) and model.members[2].dtype == torch.float32
    assert model.generate(IDS, max_new_tokens=3, eos_token_id=None).shape == (2, 8)
