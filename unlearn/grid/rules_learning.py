"""What objective and method may be, each alone and together. Each rule yields one line per problem."""

from __future__ import annotations

from collections.abc import Iterator

from unlearn.config.derived import rate_of
from unlearn.config.schema import NUMBERS, Config, MemberConfig
from unlearn.config.setting import SHARE, above, need


def algo(cfg: Config) -> Iterator[str]:
    """An objective by itself."""
    a = cfg.algo
    yield from need(
        a.forget_weight > 0 or (a.retain_weight > 0 and a.retain != "none"),
        "algo.forget_weight", a.forget_weight, "forget and retain weight are both 0: nothing would be trained",
    )  # fmt: skip
    rule = "an epoch of the retain set needs a retain term: algo.retain is none"
    yield from need(a.interleave != "epochs" or a.retain != "none", "algo.interleave", a.interleave, rule)
    for name, value in a.numbers.items():
        yield from need(name not in NUMBERS, f"algo.numbers.{name}", value, f"has a key of its own: algo.{name}")
    temperature = a.numbers.get("temperature", 1.0)
    yield from need(above(0).holds(temperature), "algo.numbers.temperature", temperature, above(0).words)
    if "layer" in a.numbers and cfg.pair.target.source is None:  # a pretrained model says so itself
        last = cfg.pair.target.layers - 1
        rule = f"must be a layer of the target but its last: 0 to {last - 1}"
        yield from need(a.numbers["layer"] in range(last), "algo.numbers.layer", a.numbers["layer"], rule)
    if a.dual is not None:
        yield from need(a.retain != "none", "algo.retain", a.retain, "algo.dual is the weight of a retain term")
    if a.teacher is not None:
        yield from _members("algo.teacher.members", a.teacher.members)
        frozen = not any(m.trained for m in a.teacher.members) and len(a.teacher.members) > 0
        yield from need(frozen, "algo.teacher.members", len(a.teacher.members), "at least one, and none trained")


def together(cfg: Config) -> Iterator[str]:
    """Whether objective and method fit each other; where nothing is trained, the objective plays no part."""
    algo, method = cfg.algo, cfg.method
    if not any(m.trained for m in method.members):
        return
    if method.reversed != algo.reversed:
        kind = "subtracts what was learnt and takes reversed objectives only, e.g. algo=uld"
        other = "takes no reversed objective, which would teach the forget set; e.g. method=uld does"
        yield f"algo={algo.name!r} with method={method.name!r}: the method {kind if method.reversed else other}"
    elif algo.white_box and next(m.model for m in method.members if m.trained) != "target":
        yield black_box(cfg)
    elif cfg.trainer.lr is None and rate_of(cfg) is None:
        yield (
            f"algo.lr: {algo.name!r} has no learning rate for method {method.name!r}; it has "
            f"{', '.join(algo.lr) or 'none'}. Give trainer.lr=NUMBER or +algo.lr.{method.name}=NUMBER"
        )


def black_box(cfg: Config) -> str:
    """Why an objective that needs a white box is refused."""
    return (
        f"algo={cfg.algo.name!r} with method={cfg.method.name!r}: it reads hidden states of the model that is to "
        "forget, and here that is a black box that shows only logits; take method=direct, or another algo"
    )


def method(cfg: Config) -> Iterator[str]:
    """A method by itself."""
    members = cfg.method.members
    trained = [m.name for m in members if m.trained]
    yield from need(len(trained) <= 1, "method.members", trained, "at most one member can have trained: true")
    yield from _members("method.members", members)
    names = [m.name for m in members]
    targets = [m.name for m in members if m.model == "target" and not m.trained]
    rule = "one member must be the frozen target (model: target, trained: false): it is the reference"
    yield from need(len(targets) >= 1, "method.members", names, rule)
    if cfg.method.alone or not trained:
        yield from need(
            cfg.method.train_alpha is not None, "method.train_alpha", None,
            "training sees no α where the trained member learns alone, or nothing is trained: must be a number",
        )  # fmt: skip
    constant = [m.name for m in members if m.constant]
    rule = "at α = 0 the method must be the target: a member of model target, not trained, needs constant: 1"
    yield from need(any(m.constant == 1 and m.name in targets for m in members), "method.members", constant, rule)
    if cfg.method.rule != "sum":
        learns = not trained or cfg.method.alone or cfg.method.rule != "rank"
        rule = "which tokens it pushes out has no gradient; a trained member must learn alone (method.alone=true)"
        yield from need(learns, "method.rule", cfg.method.rule, rule)
    if cfg.method.rule == "plausible" and cfg.method.file is None:
        for name, value in cfg.method.numbers.items():
            yield from need(SHARE.holds(value), f"method.numbers.{name}", value, SHARE.words)


def _members(key: str, members: list[MemberConfig]) -> Iterator[str]:
    names = [m.name for m in members]
    yield from need(len(set(names)) == len(names), key, names, "names must differ")
    for m in members:
        if not (m.constant or m.slope):
            yield f"{key}: {m.name!r} has no weight at any α; give it constant or slope"
