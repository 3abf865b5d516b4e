"""A real vLLM as the black box:  python -m experiments.black_box.vllm_check [PYTHON | URL]

PYTHON is that of an environment with vLLM (default: make vllm-check's); URL that of a vLLM that runs already, with
/v1, and calls the model "target". It serves the embedded world's target. Its rows of whole texts are compared with
those of the same weights here; then one small run is trained against the local target and against vLLM, with its 20
likeliest tokens and with the whole vocabulary. Writes vllm_check.csv and .md beside this file; models, runs and answers
go to the working directory's runs/ and store/. A quarter of an hour.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx
import torch

from experiments.engines.servers import server, vllm_command
from unlearn.data.encoding import examples_of
from unlearn.grid.rules import composed
from unlearn.runs.workbench import Workbench, workbench

HERE, NAME = Path(__file__).resolve().parent, "target"
ASKED = (
    "algo=kl", "study=vllm", "wandb=disabled", "eval.groups=[]", "eval.max_examples=20", "trainer.steps=20",
    "trainer.retain_batch=20", "trainer.progress=false",
)  # fmt: skip
TEXTS, GOAL, PATIENCE = 40, 1e-4, 600.0
SHOWN = ("forget/prob", "forget/rougeL_recall", "retain/prob", "retain/rougeL_recall", "model_utility")
SETTINGS = {"local target": None, "vLLM, 20 likeliest": 20, "vLLM, whole vocabulary": 0}


@contextmanager
def vllm(python: str, model: Path, world: Workbench) -> Iterator[str]:
    """Its address, while it runs."""
    asked = ("--served-model-name", NAME, "--dtype", "float32", "--max-model-len", str(world.encoder.max_length),
             "--enforce-eager")  # fmt: skip
    with server(vllm_command(python, model, {}, *asked), Path("vllm.log")) as (url, _):
        yield url


@torch.no_grad()
def rows(world: Workbench, url: str) -> list[tuple[str, str]]:
    """How far vLLM's log-probabilities of whole texts are from those of the same weights here."""
    model = world.model("target")
    chosen = [*world.data.splits["forget"], *world.data.splits["retain"]][:TEXTS]
    worst, places, same = 0.0, 0, 0
    for example in examples_of(world.encoder, chosen):
        ids = [*example.prompt, *example.answer]
        asked = {"model": NAME, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": -1}
        answer = httpx.post(f"{url}/completions", json=asked, timeout=PATIENCE).raise_for_status().json()
        here = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for at, entries in enumerate(answer["choices"][0]["prompt_logprobs"][1:]):
            there = torch.full_like(here[at], -torch.inf)
            there[[int(i) for i in entries]] = torch.tensor([e["logprob"] for e in entries.values()])
            worst = max(worst, float((there - here[at]).abs().max()))
            places, same = places + 1, same + int(there.argmax() == here[at].argmax())
    holds = "yes" if worst <= GOAL else "**no**"
    return [
        ("texts, places, tokens of a place", f"{TEXTS}, {places:,}, {len(here[0])}"),
        (f"largest difference of a log-probability (≤ {GOAL:g}: {holds})", f"{worst:.1e}"),
        ("places with the same likeliest token", f"{same:,}"),
    ]


def run(url: str, k: int | None) -> dict[str, str]:
    """Metrics of one run, and what it asked; None: beside the local target."""
    asked = [*ASKED]
    if k is not None:
        asked += ["pair.target.kind=http", f"pair.target.http.url={url}", f"pair.target.http.model={NAME}"]
        asked += [f"pair.target.http.k={k}"]
    subprocess.run([sys.executable, "-m", "unlearn.run", *asked], check=True)
    manifests = Path("runs/vllm").glob("*/manifest.json")
    folder = max(manifests, key=lambda path: path.stat().st_mtime).parent
    found = json.loads((folder / "eval.json").read_text())["alphas"]["1.0"]
    box = json.loads((folder / "manifest.json").read_text()).get("black_box", {})
    beside = {"requests": str(box.get("requests", "")), "tokens": str(box.get("tokens", ""))}
    return {name: f"{found[name]:.4f}" for name in SHOWN} | beside


def publish(compared: list[tuple[str, str]], runs: dict[str, dict[str, str]]) -> None:
    with (HERE / "vllm_check.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([("what", "value"), *compared])
        writer.writerows((f"{name}: {what}", value) for name, found in runs.items() for what, value in found.items())
    lines = ["| rows | |", "|---|---|", *(f"| {what} | {value} |" for what, value in compared), ""]
    lines += [f"| a run (kl) | {' | '.join(runs)} |", "|---" * (1 + len(runs)) + "|"]
    for what in next(iter(runs.values())):
        lines.append(f"| {what} | {' | '.join(found[what] for found in runs.values())} |")
    text = "\n".join(lines) + "\n"
    (HERE / "vllm_check.md").write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    asked = sys.argv[1] if len(sys.argv) > 1 else ".venv-vllm/bin/python"
    world = workbench(composed(ASKED))
    there = nullcontext(asked) if asked.startswith("http") else vllm(asked, world.folder("target"), world)
    with there as url:
        compared, runs = rows(world, url), {}
        for name, k in SETTINGS.items():
            runs[name] = run(url, k)
            publish(compared, runs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
