"""What ``python -m unlearn.export`` wrote, checked and loaded beside its target: the ensemble that is served."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from unlearn.config.data import TemplateConfig
from unlearn.config.schema import ConfigError
from unlearn.data.encoding import Encoder
from unlearn.deploy.parts import Part
from unlearn.ensemble.combination import bind_rule
from unlearn.ensemble.engines.configuration_unlearned import UnlearnedConfig, located, weights
from unlearn.ensemble.engines.modeling_unlearned import loaded
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.models import llama, tokenizers
from unlearn.store.files import read_json, sha256

FORMAT = 3
ABOUT, CARD = "offset.json", "README.md"


def load(
    folder: Path,
    target: str | None,
    base: str | None,
    alpha: float | None,
    device: torch.device,
    there: dict[str, nn.Module],
) -> tuple[Part, Encoder]:
    """An export beside its target, with all members that may be asked for, and how it is asked. ``target``, ``base``,
    ``alpha``: None is what the export says; models that ``there`` has are taken from it, others added. ``ConfigError``
    where a file, target or base is not the one that the offset was trained for or exported with."""
    about = checked(folder)
    try:
        config = UnlearnedConfig.from_pretrained(folder, trust_remote_code=False)
        own, config.alpha, config.target, config.base = config.alpha, None, target, base  # None: any α may be asked for
        places = located(folder, config)
        models = loaded(config, places, how={} if device.type == "cpu" else {"device_map": {"": device}}, wholes=there)
        of = about["members"]
        ensemble = Ensemble(
            tuple(
                Member(name, llama.narrow(models[name], config.vocab_size), of[name]["fingerprint"], own.constant,
                       own.slope, "began_as" in of[name], own.watch)
                for name, own in weights(config).items()
            ),
            bind_rule(config.rule, config.numbers),
        )  # fmt: skip
        tokenizer = tokenizers.load(folder if about["tokenizer"]["written"] else places[next(iter(places))].folder)
        if "kind" not in about["template"]:  # single questions: the run's own template is what the chat template says
            tokenizer.chat_template = None
        longest = about["max_length"]
        if not (isinstance(longest, int) and longest > 0):
            raise ValueError(f"{folder / ABOUT}: max_length={longest!r}: must be a positive integer")
        trained = [m["fingerprint"] for m in of.values() if "began_as" in m]
        part = Part(folder.resolve().name, ensemble, "+".join(trained) or None, own if alpha is None else alpha)
        return part, Encoder(tokenizer, TemplateConfig(**about["template"]), longest)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except (KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ConfigError(f"{folder / ABOUT}: not as this program writes it ({error!r}); export again") from None


def checked(folder: Path) -> dict[str, Any]:
    """The content of offset.json; every file that it lists is as it was written, and there is no other."""
    about = read_json(folder / ABOUT)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = f"its format is {about.get('format')!r}" if isinstance(about, dict) else "there is none"
        raise ConfigError(f"{folder}: needs an {ABOUT} of format {FORMAT}, and {found}; export the run again")
    files = about.get("files")
    keys = {"bytes", "sha256"}
    if not (isinstance(files, dict) and all(isinstance(f, dict) and keys <= set(f) for f in files.values())):
        raise ConfigError(f"{folder}/{ABOUT}: says nothing of the files; export the run again")
    for name, expected in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{folder}/{ABOUT}: lists {name!r}, which lies outside the folder")
        if not path.is_file() or path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
            raise ConfigError(f"{path}: is missing, or not the file that was exported; get the export again")
    for path in sorted(p for p in folder.rglob("[!.]*") if not p.is_dir()):
        name = path.relative_to(folder).as_posix()
        if name not in (*files, ABOUT, CARD) and not name.startswith("."):  # as the hub's .cache/
            raise ConfigError(f"{path}: is not a file of the export; libraries may read it with the weights: remove it")
    return about
