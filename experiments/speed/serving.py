"""The server's engine: sixteen requests at once against the same ones, one after another.

Answers of a run of the demo (npo, α = 1), straight from the engine without HTTP, near ties decided alone as by default.
All forms say the same tokens (checked). The run is made first where the working directory has none (minutes).
"""

from __future__ import annotations

import queue
import subprocess
import sys

import torch
from bench import Result, alternate, compared, publish
from hydra import compose, initialize_config_dir

from unlearn.config.schema import conf_dir
from unlearn.data.readers import read, register
from unlearn.decoding.choosing import Draw, key
from unlearn.deploy.serving.answers import Ask
from unlearn.deploy.serving.engine import Engine
from unlearn.deploy.serving.loading import Loaded, load
from unlearn.deploy.serving.settings import Settings
from unlearn.grid import call as grid
from unlearn.grid.rules import parse
from unlearn.runs.baselines import suite_of
from unlearn.runs.workbench import workbench

COUNT, STEPS = 16, 64
Prompts = list[tuple[int, ...]]


def answers(engine: Engine, asks: list[Ask], at_once: bool) -> list[list[int]]:
    """Tokens of each, its end included."""
    found: list[queue.Queue] = [queue.Queue() for _ in asks]
    said = []
    if at_once:
        engine.submit([(ask, q.put) for ask, q in zip(asks, found, strict=True)])
    for ask, q in zip(asks, found, strict=True):
        if not at_once:
            engine.submit([(ask, q.put)])
        tokens, event = [], q.get()
        while event.finish is None:
            event = q.get()
            tokens.append(event.token)
        said.append(tokens)
    return said


def measure(loaded: Loaded, prompts: Prompts, what: str, temperature: float, goal: str) -> Result:
    blend = loaded.blend
    mix = tuple((name, 1.0) for name in blend.parts)
    asks = [Ask(p, mix, STEPS, Draw(temperature, 1.0, key(i, p, 0))) for i, p in enumerate(prompts)]
    with Engine(blend, loaded.encoder, max_batch=COUNT) as engine:
        forms = {
            "one after another": lambda: answers(engine, asks, False),
            f"{COUNT} at once": lambda: answers(engine, asks, True),
        }
        one, crowd = (form() for form in forms.values())
        assert one == crowd, "the tokens differ"
        return compared(f"{COUNT} {what}: time", alternate(forms, 5), *forms, goal)


def main() -> None:
    asked = ["algo=npo", "wandb=disabled"]
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse(compose("config", overrides=asked))
    folder = grid.job(cfg, read(cfg).fingerprint()).folder
    if not (folder / "offset").is_dir():
        subprocess.run([sys.executable, "-m", "unlearn.run", *asked], check=True)
    loaded = load(Settings(str(folder)))
    prompts = {s.name: s.prompts[:COUNT] for s in suite_of(cfg, workbench(cfg)).splits}
    results = [measure(loaded, prompts[s], f"{s} prompts, greedy", 0.0, "≥ 4") for s in ("retain", "forget")]
    results.append(measure(loaded, prompts["retain"], "retain prompts, drawn at temperature 1", 1.0, "≥ 4"))
    notes = (
        f"At most {STEPS} tokens each. Tokens are equal in every row (checked). CPU seconds of one process, with the",
        "engine in it; without HTTP.",
    )
    publish("serving", results, notes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
