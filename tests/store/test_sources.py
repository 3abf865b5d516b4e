"""Pretrained models before they are loaded: what is refused, what identifies a run and a model, tokenizers."""

import re
import shutil

import pytest
import torch
from hydra.errors import HydraException
from support.helpers import compose, raw
from support.pretrained import AS_IT_IS, retrained
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from unlearn.config.derived import learning_rate
from unlearn.config.pair import SourceConfig
from unlearn.config.schema import ConfigError
from unlearn.grid.inspection import problems
from unlearn.models import hub, tokenizers
from unlearn.runs.workbench import workbench
from unlearn.store import sources
from unlearn.store.identity import eval_settings, run_identity

# --- refused before any work --------------------------------------------------------------------------------------

OWN, LLAMA, SMALL = "pair.tokenizer.kind=pretrained", "pair.target.source=a/target", "pair.small.source=a/small"
TAKEN = (LLAMA, SMALL, *AS_IT_IS)
REFUSED = [
    (("pair.target.source=./nowhere", OWN), "pair.target.source='./nowhere': no such folder in"),
    (("pair.small.source=a/b/c", OWN), "and no name on the hub either"),
    ((LLAMA,), "pair.tokenizer.kind='words': pair.target.source='a/target' reads the ids of its own tokenizer"),
    (("pair.retrained.source=a/b",), "pair.retrained.source='a/b' reads the ids of its own tokenizer"),
    (("pair.target.source=''", OWN), "and no name on the hub either"),
    ((OWN,), "needs pair.tokenizer.source (or pair.target.source)"),
    (("pair.tokenizer.source=gpt2",), "pair.tokenizer.source='gpt2': is for pair.tokenizer.kind=pretrained"),
    (("pair.target.revision=v1",), "pair.target.revision='v1': needs pair.target.source"),
    (("pair.target.dtype=float16",), "must be one of float32, bfloat16, auto"),
    (("pair.target.quantisation=2bit",), "must be one of none, 8bit, 4bit"),
    (("pair.target.device_map=tpu",), "must be null, cpu, cuda, cuda:NUMBER or auto"),
    ((*TAKEN, "pair.offset_init=full"), "pair.small_full.source=None: pair.small.source='a/small' as it is"),
    ((*TAKEN, "method=dd"), "pair.small_retain.source=None"),
    ((*TAKEN, "trainer.lr=null", "algo=satimp", "pair.tuning=lora"), "no rate was searched for method='offset' and"),
    ((*TAKEN, "trainer.lr=null", "algo=npo"), "pair.tuning='full': the rates that were searched for pretrained models"),
    (("method=direct", "pair.target.dtype=bfloat16"), "method='direct' trains a copy of the target, and only fp32"),
    (("method=direct", "pair.target.device_map=auto"), "pair.target.device_map='auto': method='direct' trains a copy"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_an_impossible_pair_is_refused_before_any_work(overrides, message):
    with pytest.raises(ConfigError) as error:
        compose(*overrides)
    assert message in str(error.value)


def test_without_a_rate_a_pretrained_member_takes_the_one_that_was_searched_with_pretrained_models():
    cfg = compose(*TAKEN, "trainer.lr=null", "algo=npo", "pair.tuning=lora")
    assert learning_rate(cfg) == cfg.algo.lr_pretrained["offset"]
    beside = compose(*TAKEN, "trainer.lr=null", "algo=npo", "pair.small.source=null", "pair.small.finetune.epochs=1")
    assert learning_rate(beside) == cfg.algo.lr["offset"]  # a small model from scratch, beside a pretrained target


def test_quantisation_without_bitsandbytes_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("unlearn.config.pair.find_spec", lambda name: None)
    for kind in ("8bit", "4bit"):
        with pytest.raises(ConfigError, match=f"='{kind}': needs bitsandbytes, which is not installed here"):
            compose(f"pair.target.quantisation={kind}")
    with pytest.raises(HydraException, match="Could not override 'pair.small.dtype'"):  # it has none to choose
        raw("pair.small.dtype=bfloat16")


def test_a_name_that_is_neither_folder_nor_on_the_hub_says_what_to_do(config):
    cfg = config(*AS_IT_IS, "pair.target.source=nobody/nothing", "pair.small.source=nobody/nothing")
    with pytest.raises(ConfigError, match=r"target\.source='nobody/nothing': no folder in .*give the folder of a"):
        workbench(cfg)


def test_a_name_on_the_hub_is_found_in_the_hubs_cache(config, made, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, folder in (("target", made("llama")), ("small", made("tied", 1))):
        repository = tmp_path / f"models--some--{name}"
        shutil.copytree(folder, repository / "snapshots" / "1234")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("1234")
    there = workbench(config(*AS_IT_IS, "pair.target.source=some/target", "pair.small.source=some/small"))
    own = AutoModelForCausalLM.from_pretrained(made("llama")).state_dict()
    assert all(torch.equal(v, own[k]) for k, v in there.model("target").state_dict().items())


def test_weights_of_a_name_on_the_hub_are_checked_before_the_first_job(config, made, tmp_path, monkeypatch):
    """Those in its cache are read; of others the hub is asked for their names alone."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, folder in (("target", made("llama")), ("small", made("tied", 1))):
        snapshot = shutil.copytree(folder, tmp_path / f"models--some--{name}" / "snapshots" / "1234")
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("1234")
    cfg = config(*AS_IT_IS, "pair.target.source=some/target", "pair.small.source=some/small", "eval.retrained=none")
    assert list(problems([cfg])) == []
    there = {"config.json", "model.safetensors"}
    (snapshot / "model.safetensors").unlink()
    said = "pair.small.source='some/small': no folder in .*, and as a name on the hub .* not available"
    assert re.match(said, "".join(problems([cfg]))), "without a network"
    for names, message in (
        (there, ""),
        ({"config.json", "pytorch_model.bin"}, "has no safetensors weights on the hub"),
    ):
        monkeypatch.setattr(hub, "list_repo_files", lambda *_, names=names, **__: sorted(names))
        assert message in "".join(problems([cfg])) and bool(message) == bool(list(problems([cfg])))
    (snapshot / "model.safetensors").write_bytes(b"not whole")
    assert "is not a whole safetensors file" in "".join(problems([cfg]))


def test_a_folder_without_safetensors_is_refused_by_its_name(pair, made, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(made("llama"), bare)
    (bare / "model.safetensors").rename(bare / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=f"pair.target.source='{bare}': model.safetensors is missing in"):
        pair(bare)
    for file in sources.tokenizer_files(bare):
        file.unlink()
    with pytest.raises(ConfigError, match="no tokenizer in the folder .*bare'; give pair.tokenizer.source"):
        pair(bare)


# --- what identifies a run and a model ----------------------------------------------------------------------------


def hashes(cfg):
    return repr(run_identity(cfg, "data")), eval_settings(cfg, "data")["references"]


def test_a_run_is_identified_by_what_its_models_are_and_not_by_where_they_lie(pair, made, tmp_path):
    here, there = hashes(pair()), tmp_path / "there"
    shutil.copytree(made("llama"), there)
    assert hashes(pair(there)) == here
    for ignored in ("pair.target.hidden_size=32", "pair.target.finetune.lr=1", "pair.target.device_map=cpu",
                    "pair.small.general.lr=1", "pair.tokenizer.vocab_size=999"):  # fmt: skip
        assert hashes(pair(None, None, ignored)) == here, ignored
    for counted in ("pair.target.dtype=bfloat16", "pair.target.finetune.epochs=1", "pair.small.general.epochs=1"):
        assert hashes(pair(None, None, counted))[0] != here[0], counted
    assert hashes(pair(made("llama", 2)))[0] != here[0] != hashes(pair(None, made("tied", 2)))[0]
    config_file = there / "tokenizer_config.json"
    config_file.write_text(config_file.read_text().replace("{", '{"chat_template": "other",', 1))
    before = hashes(pair(there))[0]
    assert before != here[0]
    for name in ("spiece.model", "additional_chat_templates/rag.jinja"):  # these a tokenizer may be read from, too
        (there / name).parent.mkdir(exist_ok=True)
        (there / name).write_text("other")
        before, last = hashes(pair(there))[0], before
        assert before != last, name

    named = hashes(pair(None, None, retrained(made)))  # it counts for evaluations alone
    assert named[0] == here[0] and named[1] != here[1]
    full = f"pair.small_full.source={made('tied', 4)}"  # a model that plays no part, or one
    assert hashes(pair(None, None, full))[0] == here[0]
    assert hashes(pair(None, None, full, "pair.offset_init=full"))[0] != here[0]


def test_a_name_on_the_hub_is_identified_without_asking_the_hub(monkeypatch, tmp_path):
    identity = [sources.identity(SourceConfig("a/b", revision), tmp_path) for revision in (None, "main", "v2")]
    assert identity == ["a/b@main", "a/b@main", "a/b@v2"]


def test_a_large_file_is_read_once_and_read_again_when_it_changes(made, tmp_path, monkeypatch):
    folder, memo, read_files = tmp_path / "model", tmp_path / "memo", []
    shutil.copytree(made("llama"), folder)

    def counted(path, real=sources.sha256):
        read_files.append(path.name)
        return real(path)

    monkeypatch.setattr(sources, "sha256", counted)
    first = sources.content(folder, memo)
    assert sources.content(folder, memo) == first and sorted(read_files) == ["config.json", "model.safetensors"]
    shutil.copy(made("llama", 5) / "model.safetensors", folder / "model.safetensors")
    assert sources.content(folder, memo) != first and read_files[2:] == ["model.safetensors"]
    assert sources.content(made("llama", 5), memo) == sources.content(folder, memo)


def test_a_file_in_the_cache_of_the_hub_is_named_by_its_hash(made, tmp_path, monkeypatch):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    shutil.copy(made("llama") / "config.json", snapshot)
    named = blobs / sources.sha256(made("llama") / "model.safetensors")
    shutil.copy(made("llama") / "model.safetensors", named)
    (snapshot / "model.safetensors").symlink_to(named)
    expected = sources.content(made("llama"), tmp_path / "memo")
    monkeypatch.setattr(sources, "sha256", lambda p, real=sources.sha256: real(p) if p.suffix == ".json" else None)
    assert sources.content(snapshot, tmp_path / "memo") == expected


def test_weights_in_several_files_are_all_read(made, tmp_path):
    AutoModelForCausalLM.from_pretrained(made("llama")).save_pretrained(tmp_path, max_shard_size="20KB")
    files = sources.weight_files(tmp_path)
    assert len(files) > 1 and files == sorted(tmp_path.glob("*.safetensors"))
    files[-1].unlink()
    with pytest.raises(ConfigError, match=f"{files[-1].name} is missing"):
        sources.weight_files(tmp_path)


# --- the tokenizer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("special", "roles", "pad"),
    [
        (["<s>", "</s>", "<pad>"], {"pad_token": "<pad>"}, "<pad>"),  # its own
        (["<s>", "</s>", "<|finetune_right_pad_id|>", "<|reserved_0|>"], {}, "<|finetune_right_pad_id|>"),
        (["<s>", "</s>", "<unk>", "<|reserved_0|>"], {"unk_token": "<unk>"}, "<unk>"),
        (["<s>", "</s>", "<|reserved_0|>"], {}, "<|reserved_0|>"),
        (["<s>", "</s>"], {"unk_token": "</s>"}, "</s>"),  # as GPT-2: there is no other
    ],
)
def test_a_missing_padding_token_is_one_that_the_tokenizer_has_and_no_text_ends_with(tmp_path, special, roles, pad):
    vocabulary = {t: i for i, t in enumerate([*special, "a", "b"])}
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="a")), bos_token="<s>",
        eos_token="</s>", additional_special_tokens=special[2:], **roles,
    )  # fmt: skip
    plain.save_pretrained(tmp_path)
    found = tokenizers.load(tmp_path)
    assert (found.pad_token, found.padding_side) == (pad, "left")
    assert tokenizers.size(found) == len(vocabulary)


def test_every_pair_of_the_hub_names_what_it_is_made_of():
    for name in ("llama3_8b_1b", "llama3_1b", "llama2_13b_7b", "qwen25_15b_05b"):
        cfg = compose(f"pair={name}", "trainer.lr=1e-5")
        assert not any(sources.lacking(cfg.pair, role) for role in sources.ROLES)
        assert cfg.pair.target.dtype == "bfloat16" and cfg.pair.tokenizer.kind == "pretrained"
