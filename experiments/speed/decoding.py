"""Greedy decoding of the embedded world's ensembles: one by one, in batches, from stored drafts, drafted by the offset.

Naive: prompts one by one, every member reads the whole text again for every token, its head at every position, and
stops at the end of the answer. All forms say the same tokens (checked). A token that the target reads counts as one
position, a prompt's too; making the drafts, which every ensemble and α of a target share, is not counted, and stands
beside. SimNPO offsets of the default preset; the run is made first where the working directory has none (minutes).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from bench import Result, alternate, compared, publish
from hydra import compose, initialize_config_dir

from unlearn.config.schema import conf_dir
from unlearn.data.encoding import collate
from unlearn.data.readers import read, register
from unlearn.decoding.drafts import drafts_of, greedy_drafted, greedy_from_drafts
from unlearn.decoding.generation import Decoding, decode, greedy
from unlearn.ensemble.ensemble import Ensemble
from unlearn.grid import call as grid
from unlearn.grid.rules import parse
from unlearn.models.llama import answer_rows
from unlearn.runs.baselines import suite_of
from unlearn.runs.learner import initialise, members
from unlearn.runs.workbench import workbench
from unlearn.store.entries import Store

STEPS, BATCH, ALPHA, GAMMA = 32, 64, 1.0, 4
Prompts = list[tuple[int, ...]]


def ensemble_of(knows: str) -> tuple[Ensemble, dict[str, Prompts], tuple[int, int]]:
    """A trained run's ensemble, prompts by split, padding and end of sequence."""
    asked = ["algo=simnpo", f"pair.offset_init={knows}", "study=bench", "wandb=disabled"]
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse(compose("config", overrides=asked))
    folder = grid.job(cfg, read(cfg).fingerprint()).folder
    if not (folder / "offset").is_dir():
        subprocess.run([sys.executable, "-m", "unlearn.run", *asked], check=True)
    initialise(cfg)
    world = workbench(cfg)
    found = members(cfg, world, folder)
    prompts = {s.name: s.prompts[:100] for s in suite_of(cfg, world).splits}
    return found, prompts, (world.encoder.tokenizer.pad_token_id, world.encoder.tokenizer.eos_token_id)


@torch.no_grad()
def naive(ensemble: Ensemble, prompts: Prompts, eos: int) -> list[list[int]]:
    found = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + STEPS:
            read = torch.tensor([ids])
            rows = {m.name: m.model(input_ids=read, use_cache=False).logits[0] for m in ensemble.members}
            token = ensemble.logits(rows, ALPHA)[-1].argmax().item()
            if token == eos:
                break
            ids.append(token)
        found.append(ids[len(prompt) :])
    return found


@contextmanager
def reading(ensemble: Ensemble) -> Iterator[list[int]]:
    """Tokens that the target reads, pass by pass, without padding."""
    read: list[int] = []

    def note(module, args, kwargs):
        read.append(int(kwargs["attention_mask"][:, -kwargs["input_ids"].shape[1] :].sum()))

    hook = ensemble.members[0].model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    yield read
    hook.remove()


def target_reads(what: str, ensemble: Ensemble, forms: Mapping[str, Callable], form: str, goal: str) -> Result:
    """How many positions the target is spared; in how many passes stands beside."""
    with reading(ensemble) as before:
        expected = forms["plain"]()
    with reading(ensemble) as after:
        assert forms[form]() == expected, f"{what}: the tokens differ"
    a, b = sum(before), sum(after)
    passes = f"plain {a} in {len(before)} passes, {form} {b} in {len(after)}"
    return Result(what, *[a / max(b, 1)] * 3, goal, passes)


def digits(ensemble: Ensemble, prompts: Prompts, ends: tuple[int, int], store: Store) -> float:
    """Largest difference between logits computed at once and token by token."""
    how = Decoding(*ends, STEPS, BATCH)
    drafts = drafts_of(store, ensemble.members[0], prompts, how)
    stepped: list[list[torch.Tensor]] = [[] for _ in prompts]

    def choose(rows, which, step):
        logits = rows["target"]
        for i, row in zip(which, logits, strict=True):
            stepped[i].append(row)
        return logits.argmax(-1)

    alone = Ensemble(ensemble.members[:1])
    decode(alone, prompts, 0.0, how, choose)
    with torch.no_grad():
        at_once = answer_rows(ensemble.members[0].model, collate(drafts, ends[0]))
    return float((at_once - torch.cat([torch.stack(rows) for rows in stepped])).abs().max())


def measure(knows: str, store: Store) -> list[Result]:
    ensemble, prompts, ends = ensemble_of(knows)
    offset, results = ensemble.members[1], []

    def asked(some: Prompts, size: int = BATCH) -> tuple:
        return ensemble, some, ALPHA, Decoding(*ends, STEPS, size)

    for split in ("retain", "forget") if knows == "general" else ("retain",):
        some, name = prompts[split], f"{split}, pair knows {knows}"
        forms = {
            "plain": lambda some=some: greedy(*asked(some)),
            "stored drafts": lambda some=some: greedy_from_drafts(*asked(some), store, 1.0),
            f"offset drafts {GAMMA}": lambda some=some: greedy_drafted(*asked(some), offset, GAMMA),
            "target alone": lambda some=some: greedy(Ensemble(ensemble.members[:1]), *asked(some)[1:]),
        }
        plain, *others = forms
        forms["stored drafts"]()  # the drafts are made
        for form in others[:2]:
            goal = "≥ 5" if (form, split) == ("stored drafts", "retain") else ""
            results.append(target_reads(f"{name}: target positions, plain ÷ {form}", ensemble, forms, form, goal))
        seconds = alternate(forms, 3)
        for form in others:
            results.append(compared(f"{name}: time, plain ÷ {form}", seconds, plain, form))
    few = prompts["retain"][:20]
    single = {
        "plain": lambda: greedy(*asked(few, 1)),
        f"offset drafts {GAMMA}": lambda: greedy_drafted(*asked(few, 1), offset, GAMMA),
    }
    seconds = alternate(single, 3)
    results.append(
        compared(f"20 retain, pair knows {knows}, one by one: time, plain ÷ offset drafts", seconds, *single)
    )
    return results


def against_naive(store: Store) -> Result:
    ensemble, prompts, ends = ensemble_of("general")
    few = prompts["retain"][:30]
    forms = {
        "naive": lambda: naive(ensemble, few, ends[1]),
        "ours": lambda: greedy(ensemble, few, ALPHA, Decoding(*ends, STEPS, BATCH)),
    }
    assert forms["naive"]() == forms["ours"](), "the tokens differ"
    print(f"largest difference of a logit, at once and token by token: {digits(ensemble, few, ends, store):.1e}")
    return compared("30 retain: time, naive ÷ ours", alternate(forms, 2), "naive", "ours", "≥ 8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    stored = Store(tempfile.mkdtemp())
    found = [against_naive(stored), *(r for knows in ("general", "full") for r in measure(knows, stored))]
    publish(
        "decoding",
        found,
        [
            "Tokens are equal in every row (checked). CPU seconds of one process on a busy machine. A target that",
            "reads nothing counts as reading one token. The stored drafts are made once, which costs what the target",
            "alone does and a pass for its rows. Drafting by the offset saves passes of the target, not positions, and",
            "pays only where the pair knows the text; no profile was taken of why it does not elsewhere.",
        ],
    )
