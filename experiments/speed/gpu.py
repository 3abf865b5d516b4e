"""A real pair on a GPU, with random weights in the shapes of Llama-3.1-8B (target) and Llama-3.2-1B (offset, anchor).

    python experiments/speed/gpu.py                      # writes gpu.csv and gpu.md beside this file; needs 80 GB
    python experiments/speed/gpu.py --tiny [--out DIR]   # tiny shapes on the CPU: does the script run at all?

Nothing is downloaded. The target is in bf16, what learns is fp32 with bf16 arithmetic (trainer.precision=bf16). Plain
is a cross-entropy step of the same small model, in the same precision on the same examples. For decoding the offset is
where it starts, so the ensemble says what the target says, as a good offset does on retain prompts: the drafts' best
case.
"""

from __future__ import annotations

import argparse
import copy
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench import HERE, Result, alternate, compared, publish
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn.data.encoding import Example, Examples, collate
from unlearn.data.sampling import Draw, Sampler
from unlearn.decoding.drafts import drafts_of, greedy_from_drafts
from unlearn.decoding.generation import Decoding, greedy
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.ensemble.frozen import stored
from unlearn.ensemble.rows import FrozenRows, LiveRows
from unlearn.learning.answers import Answers
from unlearn.learning.binding import bind
from unlearn.learning.loop import Loop, MicroBatch, Optimisation
from unlearn.learning.objective import Group, Objective
from unlearn.models import llama
from unlearn.models.placement import checkpointed, compiled, parked
from unlearn.store.entries import Store

PAD, END, HEAD = 0, 1, 8.0  # random logits lie too near each other for half precision: the target's head is enlarged
SETTINGS = Optimisation(1e-5, 10**6, 0.1, 0.1, "linear", 0.01, (0.9, 0.99), 1.0)


@dataclass(frozen=True)
class Scale:
    device: str
    vocabulary: int
    target: dict[str, int]
    small: dict[str, int]
    forget: int  # examples in the sets
    retain: int
    prompt: int  # tokens
    answer: int
    accumulate: int
    rounds: int


FULL = Scale(
    "cuda", 128_256,
    {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14_336},
    {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "intermediate_size": 8192},
    forget=100, retain=300, prompt=40, answer=60, accumulate=4, rounds=5,
)  # fmt: skip
TINY = Scale(
    "cpu", 600,
    {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 64},
    {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 8, "intermediate_size": 32},
    forget=6, retain=12, prompt=5, answer=4, accumulate=2, rounds=1,
)  # fmt: skip


def model(shape: Mapping[str, int], scale: Scale, dtype: torch.dtype, tied: bool, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=scale.vocabulary, num_key_value_heads=8, tie_word_embeddings=tied, max_position_embeddings=512,
        pad_token_id=PAD, eos_token_id=END, bos_token_id=None, **shape,
    )  # fmt: skip
    with torch.device(scale.device):
        return LlamaForCausalLM._from_config(config, dtype=dtype).eval()


def examples(count: int, scale: Scale, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, scale.vocabulary, (n,), generator=generator).tolist())

    return Examples(Example(str(i), tokens(scale.prompt), (*tokens(scale.answer - 1), END)) for i in range(count))


def clock() -> float:
    """Seconds, when the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def value(what: str, values: np.ndarray, unit: str) -> Result:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return Result(what, float(middle), float(low), float(high), "", unit)


class Pair:
    """The members, their sets, and what is stored of them."""

    def __init__(self, scale: Scale, store: Store):
        self.scale, self.store, self.device = scale, store, torch.device(scale.device)
        target = llama.freeze(model(scale.target, scale, torch.bfloat16, False, 0))
        with torch.no_grad():
            target.get_output_embeddings().weight.mul_(HEAD)
        small = llama.freeze(model(scale.small, scale, torch.float32, True, 1))
        self.target = Member("target", target, "target", 1.0, 0.0, False)
        self.anchor = Member("anchor", small, "small", 0.0, -1.0, False)
        self.sets = {"forget": examples(scale.forget, scale, 2), "retain": examples(scale.retain, scale, 3)}
        self.sampler = Sampler(scale.forget, scale.retain, 0, scale.forget // 5, scale.retain // 5, seed=0)

    def ensemble(self) -> Ensemble:
        offset = copy.deepcopy(self.anchor.model).requires_grad_(True)
        return Ensemble((self.target, Member("offset", offset, "small", 0.0, 1.0, True), self.anchor))

    def objective(self, ensemble: Ensemble, half: bool, live: bool = False) -> Objective:
        """Of KL retention with gradient ascent; ``live``: the target's rows are computed in every step."""
        groups = {}
        for name, x in self.sets.items():
            rows = {"target": LiveRows(self.target, x, PAD) if live else self.kept(self.target, x)}
            groups[name] = Group(x, rows if half else rows | {"anchor": self.kept(self.anchor, x)})
        precision, twin = (torch.bfloat16, self.anchor) if half else (None, None)
        return Objective(
            ensemble, bind("ga", "kl", 1, 1, {}), groups, 1.0, self.target, PAD, self.scale.accumulate,
            precision=precision, twin=twin,
        )  # fmt: skip

    def kept(self, member: Member, x: Examples) -> FrozenRows:
        return stored(self.store, member, x, PAD, kind="hidden")

    def plain(self, learner: nn.Module, draw: Draw) -> Iterable[MicroBatch]:
        """Cross-entropy of the small model alone on the same examples, in as many micro-batches."""
        chosen = [self.sets["forget"][i] for i in draw.forget] + [self.sets["retain"][i] for i in draw.retain]
        for part in np.array_split(np.arange(len(chosen)), self.scale.accumulate):
            yield partial(self._cross_entropy, learner, [chosen[i] for i in part], len(part) / len(chosen))

    def _cross_entropy(self, learner: nn.Module, chosen: list[Example], share: float) -> tuple[Tensor, dict]:
        batch = collate(chosen, PAD).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            rows = llama.answer_rows(learner, batch)
        return -share * Answers(rows, batch.labels, batch.owner).logp.mean(), {}


def step_of(loop: Loop, micro_batches: Callable[[int], Iterable[MicroBatch]]) -> Callable[[], None]:
    """One optimiser step of the training loop; called again, the next."""

    def one() -> None:
        loop.settings = replace(SETTINGS, steps=loop.step + 1)
        loop.run(micro_batches)

    return one


def fills(pair: Pair) -> list[Result]:
    x, found = pair.sets["retain"], []
    for member in (pair.target, pair.anchor):

        def fill(member=member) -> None:
            with tempfile.TemporaryDirectory() as folder:
                stored(Store(folder), member, x, PAD, kind="hidden")

        seconds = alternate({"fill": fill}, pair.scale.rounds, clock)["fill"]
        size = 2**-20 * x.starts[-1] * member.model.config.hidden_size * member.model.dtype.itemsize
        what = f"fill, {member.name}'s hidden states ({member.model.dtype}), rows/s"
        found.append(value(what, x.starts[-1] / seconds, f"{x.starts[-1]:,} rows, {size:,.0f} MiB"))
    return found


def training(pair: Pair) -> list[Result]:
    scale, draw = pair.scale, pair.sampler.draw
    tokens = (scale.forget // 5 + scale.retain // 5) * (scale.prompt + scale.answer)
    ensemble = pair.ensemble()  # one learner for all forms: its optimiser's state is what takes room
    learner = ensemble.trained.model
    loop = Loop(learner, SETTINGS, scale.device)
    objectives = {
        "stored": pair.objective(ensemble, half=True),
        "recomputed": pair.objective(ensemble, half=True, live=True),
        "stored, fp32": pair.objective(ensemble, half=False),
    }
    forms = {"plain": step_of(loop, lambda s: pair.plain(learner, draw(s)))}
    for name, objective in objectives.items():
        forms[name] = step_of(loop, lambda s, o=objective: o.micro_batches(draw(s)))
    seconds = alternate(forms, scale.rounds, clock)
    if scale.device == "cuda":  # on a CPU it takes longer than all else here together
        with compiled(learner):
            seconds |= alternate({"stored, compiled": forms["stored"]}, scale.rounds, clock)
    with checkpointed(learner):
        seconds |= alternate({"stored, checkpointing": forms["stored"]}, scale.rounds, clock)
    return [
        *(value(f"training, {name}, tokens/s", tokens / s, f"{tokens:,} tokens a step") for name, s in seconds.items()),
        compared(
            "training step, stored ÷ plain cross-entropy of the small model", seconds, "stored", "plain", "≤ 1.25"
        ),
        compared("training step, recomputed ÷ stored", seconds, "recomputed", "stored", "≥ 2"),
        compared("training step, fp32 ÷ bf16", seconds, "stored, fp32", "stored"),
    ]


def memory(pair: Pair) -> list[Result]:
    """Peaks of one step, each with what it needs and nothing else that learns."""
    draw, device, found = pair.sampler.draw(0), pair.scale.device, []

    def peak(what: str, ours: bool, away: list[nn.Module], again: bool = False) -> None:
        ensemble = pair.ensemble()
        learner = ensemble.trained.model
        with parked(away), checkpointed(learner) if again else nullcontext():
            made = pair.objective(ensemble, half=True) if ours else None
            step = step_of(
                Loop(learner, SETTINGS, device),
                lambda s: made.micro_batches(draw) if ours else pair.plain(learner, draw),
            )
            step()  # the optimiser's state is there afterwards
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            step()
            used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident()
        found.append(value(f"memory, {what}, GiB", np.array([used / 2**30]), "peak of a step"))

    peak("plain, the small model alone", False, [pair.target.model, pair.anchor.model])
    peak("stored rows, target put aside", True, [pair.target.model])
    peak("stored rows, target put aside, checkpointing", True, [pair.target.model], again=True)
    peak("stored rows, target on the GPU", True, [])
    return found


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def decoding(pair: Pair) -> tuple[list[Result], str]:
    prompts = [e.prompt for e in pair.sets["retain"]][:60]
    ensemble = pair.ensemble()
    offset = llama.freeze(ensemble.trained.model)
    ensemble = replace(ensemble, members=tuple(replace(m, model=offset) if m.trained else m for m in ensemble.members))
    how = Decoding(PAD, END, 32, 30)
    asked = (ensemble, prompts, 1.0, how)
    said: dict[str, list[list[int]]] = {}
    forms = {
        "plain": lambda: said.update(plain=greedy(*asked)),
        "stored drafts": lambda: said.update(drafts=greedy_from_drafts(*asked, pair.store, 4.0)),
    }
    drafts_of(pair.store, pair.target, prompts, how)
    seconds = alternate(forms, pair.scale.rounds, clock)
    tokens = sum(map(len, said["plain"]))
    same = np.mean([a == b for a, b in zip(*said.values(), strict=True)])
    return [
        *(value(f"decoding, {name}, tokens/s", tokens / s, f"{len(prompts)} prompts") for name, s in seconds.items()),
        compared("decoding, plain ÷ stored drafts", seconds, "plain", "stored drafts"),
    ], f"{same:.0%} of the answers are the same with and without drafts: in bf16 plain decoding depends on the batch."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument(
        "--out", type=Path, help="folder of gpu.csv and gpu.md; default: beside this file, tiny: nowhere"
    )
    given = parser.parse_args()
    if not (given.tiny or torch.cuda.is_available()):
        print(
            "no CUDA device is visible here: nothing was measured (--tiny runs the script on the CPU)", file=sys.stderr
        )
        raise SystemExit(2)
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(TINY if given.tiny else FULL, Store(folder))
        results = [*fills(pair), *training(pair), *memory(pair)]
        decoded, note = decoding(pair)
        card = "Tiny shapes on the CPU: no measurement."
        if not given.tiny:
            card = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}. Seconds are wall clock."
        out = given.out or (Path(folder) if given.tiny else HERE)
        publish("gpu", [*results, *decoded], [card, note], out)


if __name__ == "__main__":
    main()
