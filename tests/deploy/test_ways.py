"""In which ways an export can be used is said where it is made."""

import pytest

from unlearn.deploy.export.writing import ALONE, PACKAGE, SERVE, VLLM, told, ways

TARGET = {"folder": None, "quantisation": None, "files": {"config.json": "0"}, "config": {}, "base": None}
OFFSET = {"folder": "offset", "quantisation": None, "files": {}, "config": None}


@pytest.mark.parametrize(
    "config, closed",
    [
        ({}, {}),
        ({"rule": "plausible"}, {ALONE: "its rule is not a sum", VLLM: "its rule is not a sum"}),
        ({"target": {"quantisation": {"load_in_8bit": True}}},
         {ALONE: "its target is quantised", VLLM: "its target is quantised"}),
        ({"target": {"config": {"quantization_config": {}}}},
         {ALONE: "its target is quantised", VLLM: "its target is quantised"}),
        ({"target": {"files": {"model.gguf": "0"}}}, {VLLM: "its target is a GGUF file"}),
        ({"rule": "rank", "target": {"files": {"model.gguf": "0"}}},
         {ALONE: "its rule is not a sum", VLLM: "its rule is not a sum and its target is a GGUF file"}),
    ],
)  # fmt: skip
def test_what_closes_which_way(config, closed):
    target = TARGET | config.get("target", {})
    found = ways({"rule": config.get("rule", "sum"), "members": [target, OFFSET | {"base": target}]})
    assert found == {PACKAGE: None, ALONE: None, VLLM: None, SERVE: None} | closed
    assert all(f"{way}: no, {why}" in told(found) for way, why in closed.items()) and f"{SERVE}: yes" in told(found)
