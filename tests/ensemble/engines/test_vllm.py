"""vLLM's side of an export, in one process:  PYTHON -m pytest --noconftest -W default -m vllm FILE

PYTHON is that of an environment with vLLM, pytest and this package's wheel, and nothing else of ours; elsewhere the
tests are skipped. The rest of what vLLM can be asked is experiments/engines/vllm_check.py.
"""

import hashlib
import json
import os

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

pytestmark = pytest.mark.vllm
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
               "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # fmt: skip
vllm = pytest.importorskip("vllm")
SHAPE = {"vocab_size": 96, "hidden_size": 128, "intermediate_size": 64, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 0.2, "bos_token_id": None,
         "eos_token_id": 1}  # fmt: skip
PROMPTS = [[5, 9, 11, 40, 7], [60, 61, 62], list(range(2, 40))]


def files(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def model(folder, layers, seed, **more):
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=layers, **SHAPE | more)).float().eval()
    made.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return made


def adapter(folder, base, seed):
    """Low-rank updates in peft's form; the model with them in its weights."""
    torch.manual_seed(seed)
    found, moved = {}, {}
    for name, weight in base.state_dict().items():
        if name.split(".")[-2] in ("q_proj", "down_proj"):
            a, b = torch.randn(4, weight.shape[1]), torch.randn(weight.shape[0], 4) * 0.05
            found |= {
                f"base_model.model.{name.removesuffix('.weight')}.lora_{k}.weight": v for k, v in (("A", a), ("B", b))
            }
            moved[name] = weight + 2 * b @ a
    folder.mkdir(parents=True)
    save_file(found, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    made = AutoModelForCausalLM.from_config(base.config).float().eval()
    made.load_state_dict(base.state_dict() | moved)
    return made


def member(name, constant, slope, place, folder=None, base=None):
    about = {
        "folder": folder,
        "source": None,
        "revision": None,
        "dtype": "float32",
        "quantisation": None,
        "files": files(place),
    }
    about["config"] = None if base else json.loads((place / "config.json").read_text())
    return {"name": name, "constant": constant, "slope": slope, "base": base, **about}


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Folder of an export of two requests, and the models that its sum is of, with their weights."""
    root = tmp_path_factory.mktemp("export")
    target, small = model(root / "target", 3, 0), model(root / "small", 2, 1, hidden_size=64)
    of_small = {
        k: v for k, v in member("small", 0, 0, root / "small").items() if k not in ("name", "constant", "slope")
    }
    members, sums = [member("target", 1.0, 0.0, root / "target")], [(target, 1.0), (small, -1.5)]
    for i, (name, alpha) in enumerate({"offset": 1.0, "offset_2": 0.5}.items()):
        sums.append((adapter(root / "unlearned" / name, small, 2 + i), alpha))
        members.append(member(name, 0.0, alpha, root / "unlearned" / name, name, of_small))
        members.append(member(f"anchor_{i}", 0.0, -alpha, root / "small"))
    about = {"model_type": "unlearned", "architectures": ["UnlearnedForCausalLM"], "alpha": 1.0, "rule": "sum",
             "numbers": {}, "vocab_size": 96, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": 1,
             "pad_token_id": None, "members": members}  # fmt: skip
    (root / "unlearned" / "config.json").write_text(json.dumps(about))
    return root, sums


def loaded(root, processes=1, **places):
    from unlearn.ensemble.engines.vllm_plugin import register

    register()
    register()
    return vllm.LLM(
        str(root / "unlearned"), dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=4,
        max_logprobs=-1, skip_tokenizer_init=True, tensor_parallel_size=processes,
        hf_overrides={k: v if k == "alpha" else str(v) for k, v in places.items()},
    )  # fmt: skip


def test_another_target_and_a_missing_base_are_refused_before_anything_is_loaded(export):
    root, _ = export
    with pytest.raises(ValueError, match="not those of the target that the offset was trained for"):
        loaded(root, target=root / "small", base=root / "small")
    with pytest.raises(ValueError, match="base=FOLDER"):
        loaded(root, target=root / "target")


@pytest.mark.parametrize("processes, alpha", [(1, None), (2, 0.5)])
def test_vllm_answers_as_the_plain_sum_of_models_of_two_sizes_with_two_requests_on_one_anchor(export, processes, alpha):
    root, sums = export
    sums = [(m, weight if i == 0 or alpha is None else alpha * weight) for i, (m, weight) in enumerate(sums)]
    given = {} if alpha is None else {"alpha": alpha}
    llm = loaded(root, processes, target=root / "target", base=root / "small", **given)
    if processes == 1:
        served = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model
        assert list(served.members) == ["target", "offset", "anchor_0", "offset_2"]  # one anchor for both
    asked = vllm.SamplingParams(temperature=0, max_tokens=10, prompt_logprobs=-1, ignore_eos=True, detokenize=False)
    for said in llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], asked):
        ids = [*said.prompt_token_ids, *said.outputs[0].token_ids]
        with torch.no_grad():
            rows = sum(weight * m(torch.tensor([ids])).logits[0] for m, weight in sums).log_softmax(-1)
        start = len(said.prompt_token_ids)
        assert rows.argmax(-1)[start - 1 : -1].tolist() == ids[start:]
        for row, entries in zip(rows, said.prompt_logprobs[1:], strict=False):
            there = torch.tensor([entries[token].logprob for token in range(96)])
            assert torch.allclose(there, row, atol=1e-4)
