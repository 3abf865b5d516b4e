"""What Hydra and OmegaConf work out anew at each call and is the same each time: here once in a process.

Each is a function of its arguments alone: the types of a class, and what a text says in YAML.
"""

import io
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import omegaconf._utils
import yaml
from omegaconf import OmegaConf
from omegaconf.base import Metadata


def remember() -> None:
    """Put them in the place of the library's own."""
    omegaconf._utils.get_type_hints = cache(get_type_hints)
    omegaconf._utils.get_yaml_loader = cache(omegaconf._utils.get_yaml_loader)
    omegaconf._utils.attr = None  # no class here is of that package, of which every value is asked
    OmegaConf.load = staticmethod(_load)
    Metadata.__deepcopy__ = _copied


def _copied(self: Metadata, memo: dict) -> Metadata:
    """What a node says of itself holds types and flags alone: no part of it is looked into, as ``deepcopy`` would."""
    found = object.__new__(type(self))
    found.__dict__ |= self.__dict__ | {"flags": dict(self.flags), "resolver_cache": defaultdict(dict)}
    return found


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
