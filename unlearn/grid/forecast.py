"""Whether the stored rows of a run fit into the room they are given: told before there is a model, by shapes alone."""

from __future__ import annotations

from collections.abc import Iterator

from unlearn.config.derived import is_trained, training_alpha
from unlearn.config.schema import Config
from unlearn.ensemble.rows_size import Shape, budget, may_refuse
from unlearn.learning.binding import read_by
from unlearn.models import hub
from unlearn.runs.inputs import Inputs
from unlearn.runs.workbench import Workbench, workbench
from unlearn.store import sources


def too_large(cfg: Config) -> list[str]:
    """A line for each set of rows that is refused for its size.

    Alternates that are sampled from the target are not known yet; the run itself refuses those.
    """
    sampled = cfg.algo.alternates is not None and cfg.algo.alternates.file is None
    if not may_refuse(cfg.trainer) or not is_trained(cfg) or sampled:
        return []
    bench, found = workbench(cfg), []
    inputs = Inputs(cfg, bench)
    for name in read_by(inputs.terms):
        examples, _ = inputs.read(name)
        for member, role, rough in _read(cfg):
            if sources.is_remote(cfg.pair, role):
                continue  # its rows are kept as it gives them, or refused
            allowed, shape, rows = budget(cfg.trainer, rough), _shape(bench, role), examples.starts[-1]
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


def _shape(bench: Workbench, role: str) -> Shape:
    pair = bench.cfg.pair
    own = sources.own_source(pair, role) or sources.size_of(pair, role)
    if own.source is None:
        return Shape(bench.width, own.hidden_size, 4)
    folder = hub.locate(f"pair.{role}.source", own, weights=False)
    hidden = hub.config(folder).get_text_config().hidden_size
    return Shape(bench.width, hidden, 4 if role.startswith("small") else hub.precision(folder, pair.target).itemsize)
