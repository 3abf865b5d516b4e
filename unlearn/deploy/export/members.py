"""config.json of an export: the target's and all other members' places, checksums and weights in the sum; and how it
is asked: tokenizer, chat template and what ends an answer, so that a chat client of any engine asks as the run did.

Transformers and vLLM read it as the config of one model, of the class in
``unlearn.ensemble.engines.modeling_unlearned``.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unlearn.config.pair import ADAPTER_CONFIG, ADAPTER_FILE, TargetConfig
from unlearn.config.schema import MemberConfig
from unlearn.data.encoding import NO_CLOCK, Encoder
from unlearn.deploy.parts import Part
from unlearn.ensemble.ensemble import Member, add
from unlearn.models import hub, llama
from unlearn.models.tuning import has_updates, merged
from unlearn.runs.opened import Opened
from unlearn.store import sources
from unlearn.store.files import read_json, sha256, write_json

BASE = "{}.base"  # folder of the model that the updates of a member belong to, where no other member is that model
AUTO_MAP = {  # with trust_remote_code=True, for those who have not this package
    "AutoConfig": "custom_generate/configuration_unlearned.UnlearnedConfig",
    "AutoModelForCausalLM": "custom_generate/modeling_unlearned.UnlearnedForCausalLM",
}
COMMIT = re.compile("[0-9a-f]{40}")
LEFT_OUT = ("_name_or_path", "auto_map")  # of a model's own config: where it lay, and code that came with it


@dataclass(frozen=True)
class Piece:
    """A member of what is exported: the run that it is of, its name there, and its weight constant + slope · α."""

    name: str  # its own; where several runs each have an ``offset``, the others are ``offset_2`` …
    run: Opened
    own: MemberConfig
    constant: float
    slope: float

    @property
    def role(self) -> str:
        return sources.role(self.run.cfg.pair, self.own.model)


def pieces(runs: Sequence[Opened], parts: Sequence[Part]) -> tuple[list[Piece], float]:
    """The members of one run as they are, with its α; of several their sum, at α = 1."""
    if len(parts) == 1:
        return [Piece(m.name, runs[0], m, m.constant, m.slope) for m in runs[0].cfg.method.members], parts[0].alpha
    of: dict[str, tuple[Opened, MemberConfig]] = {}
    for run, part in zip(runs, parts, strict=True):
        for member, own in zip(part.named.members, run.cfg.method.members, strict=True):
            of.setdefault(member.name, (run, own))
    names: Counter[str] = Counter()

    def piece(m: Member) -> Piece:
        run, own = of[m.name]
        names[own.name] += 1
        count = names[own.name]
        return Piece(own.name if count == 1 else f"{own.name}_{count}", run, own, m.constant, m.slope)

    return [piece(m) for m in add([p.named for p in parts], [p.alpha for p in parts]).members], 1.0


@dataclass(frozen=True)
class Written:
    """The models of which something is written: by the name of their folder, and of frozen ones the folder by role."""

    models: Mapping[str, nn.Module]
    places: Mapping[str, str]


def written(found: Sequence[Piece], copies: bool, whole: bool) -> Written:
    """What each run learnt, and the frozen models that nobody has from elsewhere, never the target. ``copies``: also
    what the hub has; ``whole``: of low-rank updates a model that holds them."""
    bench, trained = found[0].run.bench, [p for p in found if p.own.trained]
    models = {p.name: merged(p.run.ensemble.trained.model) if whole else p.run.ensemble.trained.model for p in trained}
    bases = {p.role: BASE.format(p.name) for p in reversed(trained) if has_updates(models[p.name])}
    places = bases | {p.role: p.name for p in reversed(found) if not p.own.trained}
    for role, name in list(places.items()):
        # from the hub, or as the base of low-rank updates
        elsewhere = (sources.ready_made if role in bases else sources.on_hub)(bench.cfg.pair, role) is not None
        if role == "target" or (elsewhere and not copies):
            del places[role]
        else:
            models[name] = bench.model(role)
    return Written(models, places)


def config(folder: Path, found: Sequence[Piece], alpha: float, made: Written, ends: Sequence[int]) -> dict[str, Any]:
    """The content of config.json; the models that are ``made`` lie in ``folder`` already."""
    bench, method = found[0].run.bench, found[0].run.cfg.method
    tokenizer = bench.encoder.tokenizer
    return {
        "model_type": "unlearned",
        "architectures": ["UnlearnedForCausalLM"],
        "auto_map": AUTO_MAP,
        "alpha": alpha,
        "rule": method.rule,
        "numbers": dict(method.numbers),
        "vocab_size": bench.width,
        "max_position_embeddings": min(p.run.bench.encoder.max_length for p in found),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends),
        "pad_token_id": tokenizer.pad_token_id,
        "members": [_member(folder, p, made) for p in found],
    }


def _member(folder: Path, p: Piece, made: Written) -> dict[str, Any]:
    weight = {"name": p.name, "constant": p.constant, "slope": p.slope, "watch": p.own.watch}
    if not p.own.trained:
        return weight | _model(folder, p, made.places.get(p.role))
    if not has_updates(made.models[p.name]):
        return weight | _model(folder, p, p.name)
    names = (ADAPTER_CONFIG, ADAPTER_FILE)
    return weight | {
        "folder": p.name, "source": None, "revision": None, "dtype": "float32", "quantisation": None,
        "files": {name: sha256(folder / p.name / name) for name in names}, "config": None,
        "base": _model(folder, p, made.places.get(p.role)),
    }  # fmt: skip


def _model(folder: Path, p: Piece, place: str | None) -> dict[str, Any]:
    """Where a whole model lies, what its files are, and how it is held in memory."""
    bench, pair = p.run.bench, p.run.cfg.pair
    where = bench.folder(p.role) if place is None else folder / place
    held = pair.target if place is None and p.role == "target" else None
    source = sources.on_hub(pair, p.role) if place is None else None
    commit = source is not None and COMMIT.fullmatch(where.name)  # the hub's cache calls a folder by its commit
    if sources.is_gguf(where):
        config = json.loads(llama.config(where).to_json_string(use_diff=False))
    else:
        config = read_json(where / "config.json")
    return {
        "folder": place,
        "source": None if source is None else source.source,
        "revision": where.name if commit else None if source is None else source.revision,
        "dtype": "float32" if held is None else str(hub.precision(where, held)).removeprefix("torch."),
        "quantisation": _quantisation(held),
        "files": sources.checksums(where, None if place is not None else bench.store.root / "hashes"),
        "config": {k: v for k, v in config.items() if k not in LEFT_OUT},
        "base": None,
    }


def _quantisation(held: TargetConfig | None) -> dict[str, Any] | None:
    """What bitsandbytes is told as the model is loaded; None: nothing."""
    if held is None or held.quantisation == "none":
        return None
    return {k: str(v).removeprefix("torch.") if isinstance(v, torch.dtype) else v
            for k, v in hub.QUANTISATION[held.quantisation].items()}  # fmt: skip


# --- how it is asked --------------------------------------------------------------------------------------------------


ONE = "answers single questions: give one message, the user's"
PROBE = "What is asked here?"


def write_asking(encoder: Encoder, stops: list[int], folder: Path, tokenizer: bool) -> bool:
    """Write generation_config.json (greedy, as measured), the tokenizer if asked; whether chats ask as the run did."""
    own = encoder.tokenizer
    ids = {"bos_token_id": own.bos_token_id, "eos_token_id": stops if len(stops) > 1 else stops[0]}
    # without do_sample a pipeline of transformers draws
    write_json(folder / "generation_config.json", ids | {"pad_token_id": own.pad_token_id, "do_sample": False})
    if not tokenizer:
        return False
    before, text = own.chat_template, chat_template(encoder)
    own.chat_template = text
    try:
        turns = [{"role": "user", "content": PROBE}]
        asked = own.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        own.save_pretrained(folder)
    finally:
        own.chat_template = before
    return tuple(asked) == encoder.prompt(PROBE)


def chat_template(encoder: Encoder) -> str:
    """A Jinja template that makes the run's prompt; of a chat template its own, with the run's system message, date."""
    own, how = encoder.tokenizer, encoder.template
    if how.kind == "plain":
        before, after = how.prompt.format(question="\0").split("\0")
        bos = own.bos_token if own(PROBE)["input_ids"][0] == own.bos_token_id else ""
        alone = "messages | length != 1 or messages[0]['role'] != 'user'"
        return (
            f"{{% if {alone} %}}{{{{ raise_exception({_text(ONE)}) }}}}{{% endif %}}"
            f"{{{{ {_text(bos + before)} + messages[0]['content'] + {_text(after)} }}}}"
        )
    text = own.get_chat_template()
    if how.system is not None:
        message = f"[{{'role': 'system', 'content': {_text(how.system)}}}]"
        given = "messages[0]['role'] not in ('system', 'developer')"
        text = f"{{% if {given} %}}{{% set messages = {message} + messages %}}{{% endif %}}{text}"
    if "strftime_now" in text or "date_string" in text:
        text = f"{NO_CLOCK.strip()}{{% set date_string = {_text(how.date)} %}}{text}"
    opened, written = encoder.opening
    if opened or not written:  # what a template leaves to the model cannot be taken from its end
        return text
    return f"{text}{{% if add_generation_prompt %}}{{{{ {_text(written)} }}}}{{% endif %}}"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
