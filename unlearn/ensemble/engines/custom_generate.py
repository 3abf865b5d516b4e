"""Generate with an unlearned model where its target is loaded already:

    model.generate(**inputs, custom_generate=EXPORT, trust_remote_code=True)

EXPORT is the folder of an export, or its name on the hub, which carry this file; the package that made them is not
needed. ``base=FOLDER``: where the model lies that the offset's updates belong to, if the export's card asks for it.
What is loaded stays with ``model``, so that the second call only generates.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from .modeling_unlearned import SAFE, UnlearnedForCausalLM

MADE = "_unlearned"  # of the target: its unlearned models, by what the export says
# transformers cannot load in two threads at once, and runs this file again where its copy is another: one lock for all
LOADING = vars(threading).setdefault(MADE, threading.Lock())


def generate(model: nn.Module, base: str | None = None, **how: Any) -> Tensor:
    """What ``model.generate`` gives, of the sum. ``ValueError`` where the model is not the export's target."""
    where = {key: how.pop(key) for key in ("revision", "token") if key in how}
    export = _asked()
    made = model.__dict__.setdefault(MADE, {})  # no submodule: the sum holds the model
    held = Path(export) / "config.json"  # its checksums say what the folder holds now
    key = held.read_text(encoding="utf-8") if held.is_file() else (export, where.get("revision")), base
    with LOADING:
        if key not in made:
            folder = Path(export) if held.is_file() else Path(snapshot_download(export, **where))
            check(model, folder)
            made[key] = UnlearnedForCausalLM.from_pretrained(folder, target=model, base=base, **SAFE)
    return made[key].generate(**how)


def check(model: nn.Module, folder: Path) -> None:
    """Raise ``ValueError`` where a model's weights are not those of the target of an export."""
    expected = json.loads((folder / "offset.json").read_text(encoding="utf-8"))["target"]["weights"]
    if fingerprint(model) != expected:
        raise ValueError(
            f"custom_generate={str(folder)!r}: weights are not those of the target that the offset was trained for; "
            "added to another model it unlearns nothing"
        )


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the weights in the order of their names, each rounded to bfloat16: the same for a model that was
    loaded in bfloat16 or float32."""
    found = []
    for _, tensor in sorted(model.state_dict().items()):
        rounded = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        data = rounded.cpu().contiguous().flatten().view(torch.uint8).numpy()
        found.append(f"{tuple(tensor.shape)} {hashlib.sha256(data).hexdigest()}")
    return hashlib.sha256(" ".join(found).encode()).hexdigest()


def _asked() -> str:
    """The export that ``generate`` was called with: transformers runs a copy of this file and does not tell it."""
    frame = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("custom_generate")
        if isinstance(found, str):
            return found
        frame = frame.f_back
    raise ValueError("custom_generate: must be the folder of an export, or its name on the hub")
