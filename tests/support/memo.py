"""What Hydra and OmegaConf work out anew at each call and is the same each time: here once in a process.

Each is a function of its arguments alone: the types of a class, and what a text says in YAML.
"""

import io
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import omegaconf._utils
import yaml
from omegaconf import OmegaConf


def remember() -> None:
    """Put them in the place of the library's own."""
    omegaconf._utils.get_type_hints = cache(get_type_hints)
    omegaconf._utils.get_yaml_loader = cache(omegaconf._utils.get_yaml_loader)
    OmegaConf.load = staticmethod(_load)


def _load(file: str | Path | io.TextIOBase, load=OmegaConf.load) -> Any:
    text = Path(file).read_text("utf-8") if isinstance(file, str | Path) else file.read()
    try:
        found = _read(text)
    except yaml.YAMLError:  # whose message names the file
        return load(file if isinstance(file, str | Path) else file.name)
    return OmegaConf.create() if found is None else OmegaConf.create(found)


@cache
def _read(text: str) -> Any:
    return yaml.load(text, Loader=omegaconf._utils.get_yaml_loader())
