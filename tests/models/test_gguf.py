"""Models in GGUF files, as ``source=`` takes them."""

import shutil
from pathlib import Path

import pytest
import torch
from support.gguf_files import V, write

from unlearn.config.pair import SourceConfig, TargetConfig
from unlearn.config.schema import ConfigError
from unlearn.models import hub, llama, tokenizers
from unlearn.store import sources

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write(path)
    return path


def test_a_gguf_file_is_a_pretrained_model_and_so_is_the_folder_that_holds_nothing_else(file, tmp_path):
    tensors = write(tmp_path / "again.gguf")
    for source in (str(file), str(file.parent)):
        assert hub.locate("pair.target.source", SourceConfig(source)) == file
    model = hub.load(file, TargetConfig(), torch.device("cpu"))
    assert torch.equal(model.model.embed_tokens.weight, tensors["token_embd"])
    assert torch.equal(model.model.layers[1].mlp.gate_proj.weight, tensors["blk.1.ffn_gate"])
    hub.check_head(model, "tiny")
    tokenizer = hub.tokenizer("pair.target.source", SourceConfig(str(file)))
    assert tokenizer.decode(tokenizer("so it", add_special_tokens=False)["input_ids"]) == "so it"
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizers.size(tokenizer) == V
    assert hub.check("pair.target", SourceConfig(str(file)), tokenizer, 400) == V
    model.save_pretrained(tmp_path / "saved")  # as what was trained from it is
    assert torch.equal(llama.load(tmp_path / "saved").lm_head.weight, model.lm_head.weight)


def test_the_content_of_the_file_is_what_identifies_it_wherever_it_lies(file, tmp_path):
    there = Path(shutil.copy(file, tmp_path / "other.gguf"))
    memo = tmp_path / "hashes"
    same = {sources.identity(SourceConfig(str(p)), memo) for p in (file, file.parent, there, tmp_path)}
    same |= {sources.tokenizer_identity(SourceConfig(str(p)), memo) for p in (file, there)}
    assert len(same) == 1
    there.write_bytes(there.read_bytes()[:-1] + b"x")
    assert sources.identity(SourceConfig(str(there)), memo) not in same


def test_what_cannot_be_read_is_refused_with_the_file_and_what_to_do(file, tmp_path, config, monkeypatch):
    def refused(source) -> str:
        with pytest.raises(ConfigError) as error:
            config("pair.tokenizer.kind=pretrained", f"pair.target.source={source}", "eval.retrained=none")
        return str(error.value)

    assert "no such folder" in refused(tmp_path / "none.gguf")
    for name in ("a", "b"):
        shutil.copy(file, tmp_path / f"{name}.gguf")
    assert "one of its GGUF files: a.gguf, b.gguf" in refused(tmp_path)
    write(tmp_path / "rare.gguf", "rare")
    with pytest.raises(ConfigError, match="rare.gguf: transformers does not read this GGUF file"):
        llama.config(tmp_path / "rare.gguf")
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    assert "tiny.gguf is read by the package gguf, which is not installed here: pip install gguf" in refused(file)
