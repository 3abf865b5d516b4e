"""The unlearned model as a model of transformers: its logits are those of the sum, its texts those of a plain loop."""

import pytest
import torch
from support.engines import WIDTH, adapter, offset, tiny
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

import unlearn  # noqa: F401  (the auto classes know the type from here on)
from unlearn.engines.configuration_unlearned import factors, located, terms
from unlearn.engines.modeling_unlearned import UnlearnedForCausalLM

IDS = torch.tensor([[5, 9, 14, 22, 7], [3, 3, 8, 30, 11]])
KINDS = {  # layers and heads of target and pair; None: the pair is the target
    "same size": ((2, 2), (2, 2)), "other size": ((3, 4), (1, 2)), "same model": ((2, 2), None)}  # fmt: skip


@pytest.fixture(scope="module", params=[(k, w) for k in KINDS for w in ("whole", "adapter")], ids=" ".join)
def exported(request, tmp_path_factory):
    """Export, its target, its base, and the weights of the offset as one model."""
    kind, written = request.param
    root, (of_target, of_small) = tmp_path_factory.mktemp("export"), KINDS[kind]
    target = tiny(root / "target", 0, *of_target)
    small = target if of_small is None else tiny(root / "small", 1, *of_small)
    own = (
        adapter(root / "learnt", small, 2)
        if written == "adapter"
        else tiny(root / "learnt", 2, *(of_small or of_target))
    )
    whole = LlamaForCausalLM.from_pretrained(small if written == "adapter" else own)
    if written == "adapter":
        with torch.no_grad():
            for name, a, b, scale in factors(own):
                whole.get_submodule(name).weight.add_(scale * b @ a)
    return offset(root / "export", target, small, own), target, small, whole


def load(exported, **more) -> UnlearnedForCausalLM:
    folder, target, small, _ = exported
    base = {} if small == target else {"base": small}
    return AutoModelForCausalLM.from_pretrained(folder, target=target, **base, **more)


@torch.no_grad()
def expected(exported, ids: torch.Tensor, alpha: float) -> torch.Tensor:
    _, target, small, learnt = exported
    models = LlamaForCausalLM.from_pretrained(target), learnt.eval(), LlamaForCausalLM.from_pretrained(small)
    return sum(w * m(ids).logits for w, m in zip((1, alpha, -alpha), models, strict=True))


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
    assert dict(terms(config)).keys() == {"target", "offset", "anchor"} - (
        {"anchor"} if exported[1] == exported[2] else set()
    )
    config.target, config.base = map(str, exported[1:3])
    assert located(exported[0], config)["target"].folder == exported[1]
