"""Whether rule, terms, method and data of a job fit each other.

Apart from ``inspection.py``, since a refusal should not take the seconds that its imports take: what data alone tell
comes first and imports nothing heavy, the rest imports torch.
"""

from collections.abc import Iterable, Iterator
from inspect import signature
from pathlib import Path

from unlearn.config.derived import terms_of
from unlearn.config.own import JUDGE, named
from unlearn.config.schema import Config
from unlearn.data.readers import read
from unlearn.grid.rules_learning import black_box
from unlearn.store import sources


def problems(configs: Iterable[Config]) -> Iterator[str]:
    """Why jobs would fail: terms that do not exist or do not fit, a device that is not there."""
    for cfg in configs:
        try:
            _fitting(cfg)
        except ValueError as error:
            yield str(error)


def _fitting(cfg: Config) -> None:
    """Raise ``ValueError`` where rule, terms, method and data do not fit each other."""
    roles = {sources.role(cfg.pair, m.model) for m in cfg.method.members}
    if "small_general" in roles and sources.last_stage(cfg.pair, "small_general").epochs and not read(cfg).general():
        rule = "has no general facts to train the small pair on: take pair.offset_init=retain or full"
        raise ValueError(f"data set {cfg.data.name!r} {rule}")
    from unlearn.ensemble.combination import bind_rule
    from unlearn.learning.binding import REFUSALS, bind

    if cfg.trainer.device == "cuda":
        from unlearn.learning.loop import device

        device(cfg.trainer.device)
    joins = bind_rule(cfg.method.rule, cfg.method.numbers, cfg.method.file)
    watching = [m.name for m in cfg.method.members if m.watch]
    if bool(watching) != ("watched" in signature(joins.func).parameters):
        words = (
            f"does not take watched, and {watching} have watch" if watching else "takes watched: a member needs watch"
        )
        raise ValueError(f"method.rule={cfg.method.rule!r}: {words}")
    if cfg.eval.judge is not None:
        named(cfg.eval.judge, *JUDGE)
    trained = next((m for m in cfg.method.members if m.trained), None)
    if trained is None:
        return
    terms = bind(**terms_of(cfg))
    reads = {name for term in terms for name in term.reads}
    if reads & set(REFUSALS) and cfg.pair.tokenizer.kind == "words" and not read(cfg).refusals:
        rule = f"knows no word of the general refusals that algo={cfg.algo.name!r} would take"
        raise ValueError(f"pair.tokenizer.kind='words': {rule}; give data.refusals=FILE, or take bpe")
    if "alternates" in reads:
        if cfg.algo.alternates is None:
            raise ValueError(f"algo={cfg.algo.name!r} reads other answers: algo.alternates must say where from")
        if cfg.algo.alternates.file is not None:
            from unlearn.runs.alternates import read_alternates

            read_alternates(Path(cfg.algo.alternates.file), read(cfg).splits["forget"])
    if any(t.layer is not None for t in terms) and trained.model != "target":
        raise ValueError(black_box(cfg))
