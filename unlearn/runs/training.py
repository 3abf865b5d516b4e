"""One training, as each of its processes sees it; ``job.train`` is what the first one does about it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from unlearn.config.derived import learning_rate
from unlearn.config.schema import Config
from unlearn.ensemble.ensemble import Ensemble
from unlearn.ensemble.rows import LiveRows
from unlearn.learning.loop import Loop, Optimisation
from unlearn.learning.objective import Objective
from unlearn.models.placement import checkpointed, compiled, parked, returned
from unlearn.runs import stopping
from unlearn.runs.inputs import Inputs
from unlearn.runs.trajectory import Probe, probe
from unlearn.runs.workbench import Workbench
from unlearn.store import processes


class Interrupted(BaseException):
    """Leaves the loop; ``stopping.patiently`` puts the signal that was the cause in its place."""


class Training:
    """Loss, points of the trajectory and loop of a run, with the rows that they read."""

    def __init__(self, cfg: Config, bench: Workbench, ensemble: Ensemble):
        self.cfg, self.inputs, t = cfg, Inputs(cfg, bench), cfg.trainer
        self.draw, self.steps = self.inputs.sampler.draw, self.inputs.steps
        self.objective, self.points = self.inputs.objective(ensemble), probe(cfg, bench, ensemble)
        if processes.together():
            for group in self.objective.groups.values():
                group.teacher()  # now: in a step not every process may have examples that ask for them
        schedule = learning_rate(cfg), self.steps, t.warmup, t.final_lr, "linear"
        settings = Optimisation(*schedule, t.weight_decay, (t.beta1, t.beta2), t.clip)
        self.loop = Loop(ensemble.trained.model, settings, t.device, together=True)

    @property
    def place(self) -> str:
        """Kind of the device: cpu or cuda."""
        return self.loop.accelerator.device.type

    def resume(self, checkpoint: Path, step: int) -> None:
        self.loop.restore(checkpoint, step)
        if self.objective.dual is not None:
            self.objective.dual.value = self.loop.extra["dual"]

    @contextmanager
    def learning(self) -> Iterator[None]:
        """The model that learns, compiled and checkpointed as the settings say, and the memory of its steps."""
        model, t = self.loop.model, self.cfg.trainer
        with parked(idle(self.objective, self.points)), returned(model), ExitStack() as stack:
            if t.compile:
                stack.enter_context(compiled(model))
            if t.checkpointing:
                stack.enter_context(checkpointed(model))
            yield

    def point(self, step: int) -> dict[str, float]:
        """What the trajectory shows after step 1, 2, …; nothing where no point is due."""
        due = step == self.steps or step % (self.cfg.trainer.eval_every or 1) == 0
        return self.points() if self.points is not None and due else {}

    def told_to_end(self) -> bool:
        """Whether a signal has reached any of the processes: then it counts for all of them."""
        found = self.loop.agreed(stopping.asked())
        if found:
            stopping.hear(found)
        return bool(found)


def shared(name: str, cfg: Config, *content: Any) -> AbstractContextManager[None]:
    """The block's task is done by all processes of this call; but one alone asks a black box, within its budget."""
    if name == "evaluate" and cfg.pair.target.kind == "http":
        return nullcontext()
    return processes.task(name, cfg, *content)


def idle(objective: Objective, points: Probe | None) -> list[nn.Module]:
    """Models that no step runs, since all their rows are stored."""
    used = [objective.ensemble.trained, *([objective.twin] if objective.twin else [])]
    used += objective.teacher[0].members if objective.teacher else ()  # its rows are filled when a step first asks
    if any(term.layer is not None for term in objective.terms):
        used.append(objective.reference)
    sets = [group.rows for group in objective.groups.values()]
    sets += [] if points is None else [rows for _, rows in points.points.values()]
    used += [rows.member for each in sets for rows in each.values() if isinstance(rows, LiveRows)]
    run = {id(p) for member in used for p in member.model.parameters()}  # LoRA and layers read those of a frozen twin
    frozen = {id(m.model): m.model for m in (*objective.ensemble.members, objective.reference) if not m.trained}
    return [model for model in frozen.values() if not any(id(p) in run for p in model.parameters())]
