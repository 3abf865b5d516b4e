"""What vLLM is not given is refused with the way that works; the checks need no vLLM."""

import pytest
from transformers import PretrainedConfig

from unlearn.ensemble.engines.configuration_unlearned import UnlearnedConfig
from unlearn.ensemble.engines.vllm_plugin import asked, refuse, refuse_heads

PLAIN = {"name": "target", "constant": 1.0, "slope": 0.0, "base": None, "files": {"model.safetensors": "0"},
         "dtype": "float32", "quantisation": None, "config": {"model_type": "llama"}}  # fmt: skip
REFUSED = {
    "another rule": ({"rule": "plausible"}, {}, "weighted sums alone"),
    "a GGUF file": ({}, {"files": {"a.gguf": "0"}, "config": None}, "GGUF"),
    "quantised when it was unlearned": ({}, {"quantisation": {"load_in_8bit": True}}, "quantised"),
    "quantised weights": ({}, {"config": {"quantization_config": {}}}, "quantised"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_vllm_is_not_given_is_refused_with_the_way_that_works(case):
    settings, member, said = REFUSED[case]
    with pytest.raises(ValueError, match=f"{said}.*unlearn.serve"):
        refuse(UnlearnedConfig(members=[PLAIN | member], **settings))


def test_a_plain_sum_is_not_refused():
    refuse(UnlearnedConfig(members=[PLAIN]))


@pytest.mark.parametrize("own", [{"hidden_size": 64, "num_attention_heads": 4}, {"head_dim": 16}], ids=str)
def test_heads_that_vllm_cannot_read_are_refused_before_the_first_request(own):
    small = PLAIN | {"name": "anchor", "files": {"model.safetensors": "1"}, "constant": -1.0, "config": own}
    target = PLAIN | {"config": {"hidden_size": 128, "num_attention_heads": 4}}
    refuse_heads(UnlearnedConfig(members=[target, small | {"constant": 0.0, "slope": 0.0}]), [32, 64])
    with pytest.raises(
        ValueError, match="anchor: head_dim=16: must be one of 32, 64 for vLLM on a CPU; .*unlearn.serve"
    ):
        refuse_heads(UnlearnedConfig(members=[target, small]), [32, 64])


@pytest.mark.parametrize("given, expected", [(None, 0.5), (2, 2.0)])
def test_an_alpha_that_the_command_line_leaves_out_is_the_exports(given, expected):
    about = {"members": [PLAIN], "alpha": 0.5}
    found = asked(PretrainedConfig(unlearned=about, target="T", base=None, alpha=given))
    assert (found.alpha, found.target, found.base) == (expected, "T", None)
