"""The one training loop: AdamW with warm-up and decay, gradient clipping and accumulation, on accelerate.

Models from scratch and unlearning runs both go through it; they differ in the micro-batches they hand it. It knows
neither algorithms nor evaluation: a micro-batch returns its share of the step's loss, and ``after`` sees each step.

Where several processes train together each runs its own micro-batches, and gradients are summed: shares of one loss,
whoever has them.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch import distributed as dist

from unlearn.store import processes
from unlearn.store.files import write_whole

MicroBatch = Callable[[], tuple[Tensor, dict[str, float]]]  # → share of the loss, parts for the log (summed)
LAUNCHED = ("WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
SUMMED = 2**24  # elements of the gradients that are summed in one go
After = Callable[[int, dict[str, float]], None]  # of the number of steps done, and what the last one logged


class Diverged(RuntimeError):
    """A loss or gradient that is no longer a finite number; ``found``: what the step had logged."""

    def __init__(self, message: str, **found: Any):
        super().__init__(message)
        self.found = found

    def reading(self, groups: Mapping[str, Sequence[str]], where: str = "") -> "Diverged":
        """The same with the examples that the step read, by group: the first ones in the message, all in ``found``."""
        more = {name: f" … ({len(ids)} in all)" if len(ids) > 3 else "" for name, ids in groups.items()}
        some = "; ".join(f"{name} {', '.join(ids[:3])}{more[name]}" for name, ids in groups.items())
        return Diverged(f"{self}; the step read {some}{where}", **self.found, examples=dict(groups))


@dataclass(frozen=True)
class Optimisation:
    lr: float
    steps: int
    warmup: float  # share of the steps
    final_lr: float  # share of lr at the last step
    decay: str  # "linear" or "cosine"
    weight_decay: float
    betas: tuple[float, float]
    clip: float  # gradient norm

    def factor(self, step: int) -> float:
        """Share of lr in step 0, 1, 2 …: warm-up from lr / warm-up steps, then decay to ``final_lr``."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(1, self.steps - warm)
        if self.decay == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return 1 - (1 - self.final_lr) * progress


def device(name: str) -> torch.device:
    return accelerator(name).device


def accelerator(name: str) -> Accelerator:
    """accelerate's view of trainer.device; it would fall back to the CPU in silence where cuda was asked for, take
    precision and accumulation from variables that another project set, and wait for the processes of a launcher (srun
    with PMI, mpirun) that know nothing of each other."""
    for name in LAUNCHED:
        os.environ.pop(name, None)
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("trainer.device='cuda': no CUDA device is visible here; use auto or cpu")
    once = GradientAccumulationPlugin(num_steps=1)
    return Accelerator(cpu=name == "cpu", mixed_precision="no", gradient_accumulation_plugin=once)


def limit_threads(count: int) -> None:
    """Of torch, and of the libraries that numpy and scipy multiply with, whatever the environment says: the last digits
    of a sum depend on it, and a worker of a parallel launcher has other settings than the process that started it."""
    torch.set_num_threads(count)
    threadpool_limits(count)


@torch.no_grad()
def put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the parameters of these names."""
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)


class Loop:
    """A model, its optimiser and the number of steps done.

    ``together``: all processes of a task train it, within ``processes.group``; else each its own.
    """

    def __init__(self, model: nn.Module, settings: Optimisation, device_name: str, together: bool = False):
        self.together = together
        self.accelerator = accelerator(device_name)
        model.to(self.accelerator.device)
        learning = [p for p in model.parameters() if p.requires_grad]
        rates = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay}
        self.model, self.settings, self.step = model, settings, 0
        self.optimizer = torch.optim.AdamW(learning, **rates, fused=True)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, settings.factor)
        self.extra: dict[str, float] = {}  # other numbers that a checkpoint must hold

    @property
    def share(self) -> tuple[int, int]:
        """Which of how many processes this is."""
        return (processes.index(), processes.count()) if self.together else (0, 1)

    def run(self, micro_batches: Callable[[int], Iterable[MicroBatch]], after: After = lambda step, log: None) -> None:
        """Train to the last step, with the micro-batches of step 0, 1, 2 …

        ``after`` is called with 1, 2, … steps done. ``Diverged`` leaves the step undone.
        """
        while self.step < self.settings.steps:
            self.model.train()
            log: dict[str, float] = {"train/loss": 0.0}
            for micro_batch in micro_batches(self.step):
                loss, parts = micro_batch()
                self.accelerator.backward(loss)
                log["train/loss"] += loss.item()
                for name, value in parts.items():
                    log[name] = log.get(name, 0.0) + value
            log = self._summed(log)
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip).item()
            if not (math.isfinite(log["train/loss"]) and math.isfinite(norm)):
                step, said = self.step + 1, f"loss {log['train/loss']}, gradient norm {norm}; both must be finite"
                # JSON has no NaN and no infinity
                parts = {k: v if math.isfinite(v) else str(v) for k, v in (log | {"norm": norm}).items()}
                found = {"loss": parts.pop("train/loss"), "gradient_norm": parts.pop("norm"), "parts": parts}
                raise Diverged(f"step {step}: {said}", step=step, **found)
            log |= {"train/grad_norm": norm, "train/lr": self.scheduler.get_last_lr()[0]}
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            self.step += 1
            after(self.step, log)

    def agreed(self, number: int) -> int:
        """The largest of what all processes say, to each of them. ``processes.Broken`` where one is gone."""
        if self.share[1] == 1:
            return number
        said = torch.tensor(number)
        with _unbroken():
            dist.all_reduce(said, dist.ReduceOp.MAX)
        return int(said)

    def _summed(self, log: dict[str, float]) -> dict[str, float]:
        """Gradients and logged parts of all processes together. ``processes.Broken`` where one is gone: then the
        weights are those of the last step."""
        if self.share[1] == 1:
            return log
        learning = [p for p in self.model.parameters() if p.requires_grad]
        for p in learning:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # a process may have had nothing to do
        logs: list[dict[str, float]] = [{}] * self.share[1]
        with _unbroken():
            for some in _pieces([p.grad for p in learning]):
                whole = torch.cat([g.flatten() for g in some])
                dist.all_reduce(whole)
                for g, found in zip(some, whole.split([g.numel() for g in some]), strict=True):
                    g.copy_(found.view_as(g))
            dist.all_gather_object(logs, log)
        return {k: sum(each.get(k, 0.0) for each in logs) for k in dict.fromkeys(k for each in logs for k in each)}

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state, under names of their own for every step."""
        folder.mkdir(parents=True, exist_ok=True)
        cuda = torch.cuda.get_rng_state() if self.accelerator.device.type == "cuda" else None
        state = {
            "step": self.step, "extra": self.extra, "rng": torch.get_rng_state(), "cuda_rng": cuda,
            "optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(),
        }  # fmt: skip
        trainable = {k: v.detach().contiguous() for k, v in self.model.named_parameters() if v.requires_grad}
        write_whole(folder / f"weights-{self.step}.safetensors", lambda p: save_file(trainable, p))
        write_whole(folder / f"state-{self.step}.pt", lambda p: torch.save(state, p))

    def restore(self, folder: Path, step: int) -> None:
        """Resume from the state that was saved after a step."""
        path = folder / f"state-{step}.pt"
        state = torch.load(path, weights_only=True, map_location=self.accelerator.device)
        put(self.model, load_file(folder / f"weights-{step}.safetensors"))
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None and self.accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu())
        self.step, self.extra = state["step"], state["extra"]


@contextmanager
def _unbroken() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # by torch.distributed, where a connection ended
        raise processes.Broken(str(error)) from error


def _pieces(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, of ``SUMMED`` elements at most or one alone."""
    piece: list[Tensor] = []
    for g in gradients:
        if piece and (g.dtype != piece[0].dtype or sum(map(Tensor.numel, piece)) + g.numel() > SUMMED):
            yield piece
            piece = []
        piece.append(g)
    yield piece
