"""Checks that need tokenizers, model files or encoded rows (slow imports); no model is loaded or trained.

They run only if some job has work to do.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import transformers

from unlearn.config.derived import is_trained, training_alpha
from unlearn.config.schema import Config
from unlearn.data.encoding import examples_of
from unlearn.ensemble.rows import Shape, budget
from unlearn.evaluation.suite import suite
from unlearn.learning.binding import read_by
from unlearn.models import hub, llama
from unlearn.runs.inputs import Inputs
from unlearn.runs.workbench import Workbench, check_own, workbench
from unlearn.store import sources
from unlearn.store.identity import NO_RETRAINED, eval_settings


def problems(configs: Iterable[Config]) -> Iterator[str]:
    """Why jobs would fail that fit by themselves (``fitting.py``): models and rows that do not fit each other, too many
    rows. What several configs share is looked at once.
    """
    transformers.utils.logging.disable_progress_bar()  # our own lines cover loading
    seen: set[str] = set()
    for cfg in configs:
        try:
            # What people are called is drawn from pair.seed, and how long their rows are hardly depends on it.
            pair = replace(cfg.pair, seed=0) if cfg.data.reader == "bios" else cfg.pair
            pair = {k: v for k, v in asdict(pair).items() if k not in ("tuning", "lora", "layers")}
            shared = repr((pair, cfg.data, cfg.eval, [m.model for m in cfg.method.members]))
            if shared not in seen:
                seen.add(shared)
                _check_rows(cfg, _checked(cfg))
            yield from too_large(cfg)
        except ValueError as error:
            yield str(error)


def _checked(cfg: Config) -> Workbench:
    """Data and models of a config, whose pretrained models are whole and share one vocabulary."""
    members = [*cfg.method.members, *(cfg.algo.teacher.members if cfg.algo.teacher else ())]
    asked = ["target", *(sources.role(cfg.pair, m.model) for m in members)]
    asked += ["retrained"] if cfg.eval.retrained is None else []
    roles = [role for role in dict.fromkeys(asked) if sources.is_pretrained(cfg.pair, role)]
    for role in roles:
        source, key = sources.own_source(cfg.pair, role), f"pair.{role}"
        if source is None:
            source, key = sources.size_of(cfg.pair, role), "pair.small" if role.startswith("small") else "pair.target"
        memo = Path(cfg.paths.store) / "hashes"
        if sources.is_folder(source.source):
            hub.check_files(f"{key}.source", sources.local(source.source), memo)
        else:
            hub.check_named(f"{key}.source", source, memo)
    bench = workbench(cfg)  # here is refused what does not share one vocabulary, or is too short for max_length
    for role in roles:
        check_own(bench, role)
    return bench


def _check_rows(cfg: Config, bench: Workbench) -> None:
    """Rows that are longer than the models' context, or that cannot be evaluated as asked; a reference of others."""
    data = bench.data
    found = suite(data, bench.encoder, cfg.eval, eval_settings(cfg, data.fingerprint()), cfg.trainer.stored_rows_gib)
    examples_of(bench.encoder, (*data.splits["forget"], *data.splits["retain"], *data.neighbours()))
    sizes = (cfg.pair.target, cfg.pair.small)
    if any(size.finetune.epochs or size.general.epochs for size in sizes):
        examples_of(bench.encoder, data.general())
    if any(size.pretrain.epochs for size in sizes):
        examples_of(bench.encoder, data.wordings)
    if cfg.eval.retrained not in (None, NO_RETRAINED):
        from unlearn.evaluation.retrained import from_file  # and with it pandas and scipy

        from_file(cfg.eval.retrained, found)


def too_large(cfg: Config) -> list[str]:
    """A line for each set of stored rows that is refused for its size: told by shapes alone, before there is a model.
    (Of alternates that are sampled from the target the run itself tells.)"""
    sampled = cfg.algo.alternates is not None and cfg.algo.alternates.file is None
    if not budget(cfg.trainer, rough=True).refuse or not is_trained(cfg) or sampled:
        return []
    bench, found = workbench(cfg), []
    inputs = Inputs(cfg, bench)
    for name in read_by(inputs.terms):
        rows = inputs.read(name)[0].starts[-1]
        for member, role, rough in _read(cfg):
            if sources.is_remote(cfg.pair, role):
                continue  # its rows are kept as it gives them, or refused
            source: Any = sources.own_source(cfg.pair, role) or sources.size_of(cfg.pair, role)
            if source.source is None:
                shape = Shape(bench.width, source.hidden_size, 4)
            else:
                folder = hub.locate(f"pair.{role}.source", source, weights=False)
                bytes = 4 if role.startswith("small") else hub.precision(folder, cfg.pair.target).itemsize
                shape = Shape(bench.width, llama.config(folder).get_text_config().hidden_size, bytes)
            allowed = budget(cfg.trainer, rough)
            if allowed.refuse and not allowed.fits(rows, shape):
                found.append(allowed.refusal(rows, f"{member} ({name})", shape))
    return found


def _read(cfg: Config) -> Iterator[tuple[str, str, bool]]:
    """Frozen members that training reads: name, model, and whether their rows may be rounded."""
    alpha = training_alpha(cfg)
    if cfg.method.alone:
        start = next(m.model for m in cfg.method.members if m.trained)
        yield "start", sources.role(cfg.pair, start), False
        return
    for m in cfg.method.members:
        if not m.trained and (m.model == "target" or m.constant + m.slope * alpha != 0):
            yield m.name, sources.role(cfg.pair, m.model), m.slope == 0 and m.model == "target"
