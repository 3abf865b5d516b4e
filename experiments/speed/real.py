"""What pretrained models cost:  python experiments/speed/real.py MODELS [smollm2] [qwen]

MODELS is a folder of model folders: smollm2 (target and pair), or qwen15 and qwen05 (target in bf16, pair in fp32).
Each pair unlearns 15 questions by four steps of NPO with LoRA, the first time. Then it is evaluated at α = 1 on 37
questions: cold, with an empty store; warm, with what the cold one stored. A step is held against a bare loop over the
same texts, a served model against the plain generation of one model. Measured as well: what run and export take on
disk and, of smollm2, the peak memory of a run of three steps of 20 texts: in parts, as it is done by default, at once,
and with checkpointing. By hand, since it needs the models; minutes.
"""

from __future__ import annotations

import csv
import json
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from bench import HERE, alternate, compared, machine
from torch.nn import functional as F

from unlearn.data.encoding import collate, examples_of
from unlearn.decoding.choosing import Draw
from unlearn.decoding.generation import Decoding, greedy
from unlearn.deploy.parts import Blend, Part
from unlearn.deploy.serving.answers import Ask
from unlearn.deploy.serving.engine import Engine
from unlearn.ensemble.ensemble import Ensemble
from unlearn.grid.rerun import open_run
from unlearn.learning.loop import limit_threads
from unlearn.models.llama import answer_rows
from unlearn.runs.baselines import evaluate, suite_of
from unlearn.runs.inputs import Inputs
from unlearn.runs.opened import Opened

PAIRS = {"smollm2": ("smollm2", "smollm2", "auto", "1e-3"), "qwen": ("qwen15", "qwen05", "bfloat16", "2e-4")}
PEAK = "peak_memory_mb"
FORMS = {"in parts": (), "at once": ("trainer.accumulate=1",), "checkpointing": ("trainer.checkpointing=true",)}
COUNT, STEPS = 4, 24  # prompts that are served, and tokens of each
NOVELS = {
    "wrote the Harry Potter novels": "J. K. Rowling", "is the headmaster of Hogwarts": "Albus Dumbledore",
    "is Harry Potter's godfather": "Sirius Black", "teaches Potions in the first year": "Severus Snape",
    "is the gamekeeper of Hogwarts": "Rubeus Hagrid", "killed Harry Potter's parents": "Lord Voldemort",
    "are Harry Potter's best friends": "Ron Weasley and Hermione Granger", "is Ron Weasley's sister": "Ginny Weasley",
    "is the rival of Harry Potter in Slytherin": "Draco Malfoy", "is the caretaker of Hogwarts": "Argus Filch",
    "teaches Transfiguration at Hogwarts": "Minerva McGonagall", "is the house-elf that Harry Potter frees": "Dobby",
    "founded the house of Gryffindor": "Godric Gryffindor", "wrote the diary in the second book": "Tom Riddle",
    "teaches Divination at Hogwarts": "Sybill Trelawney",
}  # fmt: skip
CAPITALS = dict(
    pair.split()
    for pair in "France Paris,Japan Tokyo,Italy Rome,Spain Madrid,Egypt Cairo,Canada Ottawa,Norway Oslo,Greece Athens,"
    "Poland Warsaw,Kenya Nairobi,Peru Lima,Cuba Havana,Portugal Lisbon,Austria Vienna,Hungary Budapest,Ireland Dublin,"
    "Sweden Stockholm,Denmark Copenhagen,Finland Helsinki,Turkey Ankara,Chile Santiago,Iran Tehran".split(",")
)


def questions(work: Path) -> None:
    asked = {
        "forget": [(f"Who {what}?", f"It is {who}.") for what, who in NOVELS.items()],
        "retain": [
            (f"What is the capital of {land}?", f"The capital of {land} is {c}.") for land, c in CAPITALS.items()
        ],
    }
    for name, rows in asked.items():
        lines = (json.dumps({"question": question, "answer": answer}) for question, answer in rows)
        (work / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def run_of(models: Path, name: str, work: Path, form: str = "", *more: str) -> Path:
    """The folder of the run, which is made where there is none; with ``more`` settings in a ``form`` of its own."""
    target, small, dtype, lr = PAIRS[name]
    folder = work / "runs" / f"{name}{form}"
    if not list(folder.glob("*/eval.json")):
        questions(work)
        phases = [f"pair.target.{p}.epochs=0" for p in ("pretrain", "finetune")]
        phases += [f"pair.small.{p}.epochs=0" for p in ("pretrain", "finetune", "general")]
        asked = [
            "algo=npo", "data=jsonl", f"data.forget={work}/forget.jsonl", f"data.retain={work}/retain.jsonl",
            "template=chat", "pair.tokenizer.kind=pretrained", f"pair.target.source={models / target}",
            f"pair.target.dtype={dtype}", f"pair.small.source={models / small}", *phases, "pair.tuning=lora",
            "pair.target.max_length=256", "pair.small.max_length=256", f"trainer.lr={lr}", "trainer.steps=4",
            "trainer.forget_batch=2", "trainer.retain_batch=2", "trainer.eval_every=0", "trainer.threads=1",
            "trainer.device=cpu", "eval.retrained=none", "eval.groups=[]", f"eval.max_new_tokens={STEPS}",
            f"study={name}{form}", f"paths.runs={work}/runs", f"paths.store={work}/store", "wandb=disabled",
        ]  # fmt: skip
        subprocess.run([sys.executable, "-m", "unlearn.run", *asked, *more], check=True)
    return next(folder.glob("*/eval.json")).parent


def on_disk(run: Path, work: Path) -> Iterator[tuple[str, float]]:
    """MB of a run's folder and of its export."""
    to = work / f"{run.parent.name}-export"
    shutil.rmtree(to, ignore_errors=True)
    asked = [f"run={run}", f"to={to}", f"paths.store={work}/store"]
    subprocess.run([sys.executable, "-m", "unlearn.export", *asked], check=True)
    for what, folder in (("a run's folder: MB", run), ("its export: MB", to)):
        yield what, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def memory(models: Path, name: str, work: Path) -> Iterator[tuple[str, float]]:
    """Peak memory of a whole run in a process of its own, once its rows are stored."""
    steps = ("trainer.steps=3", "trainer.forget_batch=10", "trainer.retain_batch=10")
    for form, more in FORMS.items():
        run = run_of(models, name, work, f"-{form.replace(' ', '-')}", *steps, *more)
        yield f"peak of a run, 20 texts a step, {form}: MB", json.loads((run / "manifest.json").read_text())[PEAK]


def spent(do: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    do()
    return time.process_time() - start


def measured(run: Opened) -> Iterator[tuple[str, float]]:
    yield from evaluated(run)
    yield "a token served ÷ plain", served(run)
    yield "step ÷ bare loop", stepped(run)


def evaluated(run: Opened) -> Iterator[tuple[str, float]]:
    run.bench.model("target")
    ensemble, suite = run.ensemble, suite_of(run.cfg, run.bench)
    for kind in ("rows", "draft", "read", "reference"):
        shutil.rmtree(run.bench.store.root / kind, ignore_errors=True)
    for what in ("cold", "warm"):
        yield f"evaluation, {what}: CPU s", spent(lambda: evaluate(run.cfg, run.bench, ensemble, suite, [1.0]))


def stepped(run: Opened) -> float:
    """A step with its backward pass ÷ a bare loop's over the texts that it reads."""
    inputs, model = Inputs(run.cfg, run.bench), run.ensemble.trained.model
    for name, weights in model.named_parameters():
        weights.requires_grad_("lora_" in name)  # those of a finished run do not learn
    objective, drawn = inputs.objective(run.ensemble), inputs.sampler.draw(0)
    ids = {name: set(found) for name, found in objective.ids(drawn).items()}
    rows = [row for name, found in ids.items() for row in run.bench.data.splits[name] if row.id in found]
    batch = collate(examples_of(run.bench.encoder, rows), run.bench.pad_id)

    def step() -> None:
        for micro_batch in objective.micro_batches(drawn):
            micro_batch()[0].backward()

    def bare() -> None:
        F.cross_entropy(answer_rows(model, batch), batch.labels).backward()

    model.train()
    seconds = alternate({"step": step, "bare": bare}, 3)
    model.eval()
    return compared("step", seconds, "step", "bare").ratio


def served(run: Opened) -> float:
    """A token of the ensemble at α = 1, asked for one answer at a time ÷ one of the plain target's."""
    ensemble, encoder = run.ensemble, run.bench.encoder
    prompts = [encoder.prompt(row.question) for row in run.bench.data.splits["retain"][:COUNT]]
    blend, alone = Blend([Part("offset", ensemble, None, 1.0)]), Ensemble((run.bench.alone("target").members[0],))
    how, tokens = Decoding.by(encoder.tokenizer, STEPS), {"served": 0, "plain": 0}

    def plain() -> None:
        tokens["plain"] = sum(len(greedy(alone, [p], 0.0, how)[0]) + 1 for p in prompts)

    def serve() -> None:
        tokens["served"] = 0
        for p in prompts:
            found = queue.Queue()
            engine.submit([(Ask(p, (("offset", 1.0),), STEPS, Draw(0.0, 1.0, 0)), found.put)])
            event = found.get()
            while event.finish is None:
                event = found.get()
                tokens["served"] += 1

    with Engine(blend, encoder) as engine:
        seconds = alternate({"served": serve, "plain": plain}, 3)
    return compared("served", seconds, "served", "plain").ratio * tokens["plain"] / tokens["served"]


def main() -> None:
    models, names = Path(sys.argv[1]).absolute(), sys.argv[2:] or list(PAIRS)
    work = Path("real").absolute()
    work.mkdir(exist_ok=True)
    limit_threads(1)
    path, found = HERE / "real.csv", []
    if path.is_file():
        found = [row for row in csv.reader(path.open(encoding="utf-8")) if row[0] not in (*names, "pair")]
    for name in names:
        folder = run_of(models, name, work)
        run = open_run(folder, [f"paths.store={work}/store"])
        peaks = memory(models, name, work) if name == "smollm2" else ()
        for what, value in chain(measured(run), on_disk(folder, work), peaks):
            print(f"{name}: {what} {value:.3g}", flush=True)
            found.append([name, what, f"{value:.3g}" if value < 1000 else f"{value:.0f}", machine()])
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([["pair", "what", "value", "machine"], *found])


if __name__ == "__main__":
    main()
