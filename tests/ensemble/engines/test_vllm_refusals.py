"""What vLLM is not given is refused with the way that works; the checks need no vLLM."""

import pytest

from unlearn.ensemble.engines.configuration_unlearned import UnlearnedConfig
from unlearn.ensemble.engines.vllm_plugin import refuse

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
