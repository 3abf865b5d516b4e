"""Rules between the settings of objective, method, training and evaluation. Each yields one line per problem."""

from collections.abc import Iterator

from unlearn.config.derived import learns_pretrained, may_round, rate_of, tuning
from unlearn.config.groups import GROUPS, literal
from unlearn.config.pair import LAYERS
from unlearn.config.schema import NO_RETRAINED, NUMBERS, ROUGH_ROWS, Config, MemberConfig
from unlearn.config.setting import SHARE, above, at_least, need
from unlearn.store import sources


def algo(cfg: Config) -> Iterator[str]:
    a = cfg.algo
    trains = a.forget_weight > 0 or (a.retain_weight > 0 and a.retain != "none")
    yield from need(trains, "algo.forget_weight", a.forget_weight, "retain_weight is 0, too: nothing would be trained")
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
    if a.near is not None:
        yield from need(a.retain != "none", "algo.retain", a.retain, "algo.near is read by a retain term")
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
    elif cfg.trainer.lr is None and learns_pretrained(cfg):
        yield from _searched(cfg)
    elif cfg.trainer.lr is None and rate_of(cfg) is None:
        has = f"it has {', '.join(algo.lr) or 'none'}. Give trainer.lr=NUMBER or +algo.lr.{method.name}=NUMBER"
        yield f"algo.lr: {algo.name!r} has no learning rate for method {method.name!r}; {has}"


def _searched(cfg: Config) -> Iterator[str]:
    """A pretrained model learns at a rate that was searched with such models, or at one that is given."""
    algo, method, how = cfg.algo, cfg.method, tuning(cfg)
    if method.name not in algo.lr_pretrained:
        rule = f"no rate was searched for method={method.name!r} and a pretrained model; it has "
        found = ", ".join(algo.lr_pretrained) or "none"
        yield f"algo.lr_pretrained: {algo.name!r}: {rule}{found}. Give trainer.lr=NUMBER"
    elif how != "lora":
        rule = "the rates that were searched for pretrained models are those of low-rank updates"
        yield f"pair.tuning={how!r}: {rule}: take pair.tuning=lora, or give trainer.lr=NUMBER"


def black_box(cfg: Config) -> str:
    """Why an objective that needs a white box is refused."""
    rule = "it reads hidden states, and what is to forget is a black box; take method=direct, or another algo"
    return f"algo={cfg.algo.name!r} with method={cfg.method.name!r}: {rule}"


def method(cfg: Config) -> Iterator[str]:
    members = cfg.method.members
    trained = [m.name for m in members if m.trained]
    yield from need(len(trained) <= 1, "method.members", trained, "at most one member can have trained: true")
    yield from _members("method.members", members)
    names = [m.name for m in members]
    targets = [m.name for m in members if m.model == "target" and not m.trained]
    rule = "one member must be the frozen target (model: target, trained: false): it is the reference"
    yield from need(len(targets) >= 1, "method.members", names, rule)
    free = cfg.method.train_alpha is None and (cfg.method.alone or not trained)
    rule = "training sees no α where the trained member learns alone, or nothing is trained: must be a number"
    yield from need(not free, "method.train_alpha", None, rule)
    constant = [m.name for m in members if m.constant]
    rule = "at α = 0 the method must be the target: a member of model target, not trained, needs constant: 1"
    yield from need(any(m.constant == 1 and m.name in targets for m in members), "method.members", constant, rule)
    dead = trained and not cfg.method.alone and cfg.trainer.steps != 0
    learns = not dead or cfg.method.rule not in ("rank", "threshold", "defer")
    rule = (
        "has no gradient to learn from: let the member learn alone (method.alone=true), or take trained ones "
        "(begin.runs=[FOLDER] trainer.steps=0)"
    )
    yield from need(learns, "method.rule", cfg.method.rule, rule)
    bounds = {"plausible": SHARE, "threshold": at_least(0), "defer": at_least(0)}.get(cfg.method.rule)
    for name, value in cfg.method.numbers.items() if bounds and cfg.method.file is None else ():
        yield from need(bounds.holds(value), f"method.numbers.{name}", value, bounds.words)


def _members(key: str, members: list[MemberConfig]) -> Iterator[str]:
    names = [m.name for m in members]
    yield from need(len(set(names)) == len(names), key, names, "names must differ")
    for m in members:
        if not (m.constant or m.slope or m.watch):
            yield f"{key}: {m.name!r} has no weight at any α; give it constant, slope or watch"


def begin(cfg: Config) -> Iterator[str]:
    """Runs whose changes are taken over."""
    runs, alphas, how = cfg.begin.runs, cfg.begin.alphas, cfg.begin.how
    if runs is None:
        yield from need(alphas is None, "begin.alphas", alphas, "are weights of begin.runs, and there are none")
        yield from need(how is None, "begin.how", how, "is how begin.runs are fused, and there are none")
        return
    layered = tuning(cfg) == LAYERS
    yield from need(layered or how != "regmean", "begin.how", how, "is for unlearning layers; must be average or sum")
    if alphas is not None:
        rule = f"must be {len(runs)} finite numbers, one for each of begin.runs"
        yield from need(len(alphas) == len(runs), "begin.alphas", alphas, rule)
        plain = not layered and cfg.begin.fusion(layered) == "sum"
        unweighted = "an average and unlearning layers are fused with no weights: must be null"
        yield from need(plain, "begin.alphas", alphas, unweighted)
    trained = any(m.trained for m in cfg.method.members)
    yield from need(trained, "begin.runs", runs, f"method={cfg.method.name!r} trains no member that could begin there")
    rule = "low-rank updates begin at zero; what runs changed is taken over by pair.tuning=full"
    yield from need(cfg.pair.tuning != "lora", "pair.tuning", cfg.pair.tuning, rule)


def evaluation(cfg: Config) -> Iterator[str]:
    """Forget quality is never silently missing: without something to compare with, a run says so before it starts."""
    problem = sources.lacking(cfg.pair, "retrained") if cfg.eval.retrained is None else None
    if problem is not None:
        file = "eval.retrained=FILE, the evaluation of such a model (python -m unlearn.evaluate model=… out=FILE)"
        yield f"{problem}. Or give {file}, or eval.retrained={NO_RETRAINED} to do without forget quality and PrivLeak"
    for i, name in enumerate(cfg.eval.groups):
        for other in (found for found in literal(name, "NEEDS") if found in GROUPS):
            rule = f"{name} reads what {other} finds: list {other} before it"
            yield from need(other in cfg.eval.groups[:i], "eval.groups", cfg.eval.groups, rule)


def trainer(cfg: Config) -> Iterator[str]:
    t = cfg.trainer
    worked = t.steps != 0 or cfg.begin.runs
    yield from need(worked, "trainer.steps", t.steps, "must be a finite number of at least 1 without begin.runs")
    rule = "the best point is one of the trajectory: trainer.keep=best needs trainer.eval_every above 0"
    yield from need(t.keep == "last" or t.eval_every > 0, "trainer.eval_every", t.eval_every, rule)
    rule = "trainer.compile=true needs trainer.precision=fp32: else offset and anchor round to bf16 differently"
    yield from need(not t.compile or t.precision == "fp32", "trainer.precision", t.precision, rule)
    rule = f"only the plain target's rows may be rounded, which method={cfg.method.name!r} does not train with: "
    rule += "must be one of auto, fp32, hidden"
    yield from need(t.stored_rows not in ROUGH_ROWS or may_round(cfg), "trainer.stored_rows", t.stored_rows, rule)
