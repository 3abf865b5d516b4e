"""What does an offset cost, where people serve models?

    python experiments/engines/overhead.py PYTHON models=FOLDER [work=FOLDER] [world=smaller|equal|qwen] [rounds=5]
        [engines=vllm,ours,transformers] [together=yes|no]

PYTHON is that of an environment with vLLM and this package's wheel. Target alone and target with its offset, in vLLM
(and there the small model alone, and the sum with drafts by it), in our server and in plain transformers, each in a
process of its own with one thread, asked in turn (those of one engine after those of another; with ``together=no``
each is started, asked and ended before the next, for want of memory), round after round: one request, then 16 at
once; one request before all warms up. Writes overhead_WORLD.csv and .md beside this file: medians over the rounds; of
engines that are not asked, what was measured before is kept. CPU seconds are those of an engine's processes; where
other programs run on the machine they say more than the clock.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import httpx
import torch
from servers import NAME, PATIENCE, counted, memory_mb, ours_command, server, vllm_command
from worlds import World, worlds

from unlearn.ensemble.engines.configuration_unlearned import UnlearnedConfig, terms

HERE = Path(__file__).resolve().parent
TOKENS, MANY, DRAFTED = 32, 16, 3
DRAFTS = "unlearned, drafts"
LANDS = "France Japan Italy Spain Egypt Canada Norway Greece Poland Kenya Peru Cuba Portugal Austria Hungary Ireland"
PROMPTS = [f"The history of {land} is long. It begins in the time when people first" for land in LANDS.split()]
Ask = Callable[
    [Sequence[str]], tuple[int, float, float]
]  # texts → tokens said, seconds to the first, seconds to the last
ENGINES = ("vLLM", "unlearn.serve", "transformers")
COLUMNS = ("engine", "model", "at once", "tokens/s", "first token s", "CPU ms/token", "memory MB")


def over_http(url: str) -> Ask:
    def one(text: str) -> tuple[int, float, float]:
        body = {"model": NAME, "prompt": text, "max_tokens": TOKENS, "temperature": 0, "stream": True,
                "stream_options": {"include_usage": True}}  # fmt: skip
        start, first, said = time.perf_counter(), 0.0, 0
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=PATIENCE) as answer:
            for line in answer.raise_for_status().iter_lines():
                if line.startswith("data: {"):
                    first = first or time.perf_counter() - start
                    said = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", said)
        return said, first, time.perf_counter() - start

    def all_at_once(texts: Sequence[str]) -> tuple[int, float, float]:
        with ThreadPoolExecutor(len(texts)) as pool:
            found = list(pool.map(one, texts))
        return sum(f[0] for f in found), median(f[1] for f in found), max(f[2] for f in found)

    return all_at_once


def in_transformers(asked: dict) -> None:
    """A process that answers lines of JSON, by plain transformers; the dtype is the one that all others have."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import unlearn  # noqa: F401  transformers then knows exports

    torch.set_num_threads(1)
    dtype = getattr(torch, asked.pop("dtype"))
    folder = asked.pop("folder")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **asked)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    print("ready", flush=True)
    for line in sys.stdin:
        batch = tokenizer(json.loads(line), return_tensors="pt", padding=True)
        start = time.perf_counter()
        model.generate(**batch, max_new_tokens=1, do_sample=False)
        first = time.perf_counter() - start
        start = time.perf_counter()
        ids = model.generate(**batch, max_new_tokens=TOKENS, do_sample=False)[:, batch["input_ids"].shape[1] :]
        said = int((ids != tokenizer.pad_token_id).sum())
        print(json.dumps([said, first, time.perf_counter() - start]), flush=True)


@contextmanager
def transformers(asked: dict) -> Iterator[tuple[Ask, int]]:
    command = [sys.executable, __file__, "_transformers", json.dumps(asked)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        assert process.stdout.readline() == "ready\n"

        def ask(texts: Sequence[str]) -> tuple[int, float, float]:
            process.stdin.write(json.dumps(list(texts)) + "\n")
            process.stdin.flush()
            return tuple(json.loads(process.stdout.readline()))

        yield ask, process.pid
    finally:
        process.terminate()
        process.wait()


class Candidate(NamedTuple):
    engine: str
    model: str
    ask: Ask
    pid: int
    url: str | None = None


def of_vllm(world: World, python: str, dtype: str, work: Path, stack: ExitStack) -> Iterator[Candidate]:
    drafts = {"method": "draft_model", "model": str(world.small), "num_speculative_tokens": DRAFTED}
    more = ("--dtype", dtype, "--enforce-eager", "--no-enable-prefix-caching")
    unlearned = vllm_command(python, world.folder, places(world), *more)
    for model, command in {
        "target": vllm_command(python, world.target, {}, *more),
        "small": vllm_command(python, world.small, {}, *more),
        "unlearned": unlearned,
        DRAFTS: [*unlearned, "--speculative-config", json.dumps(drafts)],
    }.items():
        url, process = stack.enter_context(server(command, work / "overhead" / f"vllm-{model}.log"))
        yield Candidate("vLLM", model, over_http(url), process.pid, url)


def drafted(ready: list[Candidate]) -> Iterator[tuple]:
    """How many tokens vLLM's draft model proposed since its start, and how many of them the sum took."""
    for url in (c.url for c in ready if c.model == DRAFTS):
        yield "drafts", *(int(counted(url, f"vllm:spec_decode_num_{k}_tokens_total")) for k in ("draft", "accepted"))


def of_ours(world: World, python: str, dtype: str, work: Path, stack: ExitStack) -> Iterator[Candidate]:
    for model, alpha in (("target", 0), ("unlearned", 1)):
        command = ours_command(f"run={world.runs[0]}", f"alpha={alpha}", f"paths.store={work}/store")
        url, process = stack.enter_context(server(command, work / "overhead" / f"ours-{model}.log"))
        yield Candidate("unlearn.serve", model, over_http(url), process.pid)


def of_transformers(world: World, python: str, dtype: str, work: Path, stack: ExitStack) -> Iterator[Candidate]:
    for model, asked in {
        "target": {"folder": str(world.target), "dtype": dtype},
        "unlearned": {"folder": str(world.folder), "dtype": dtype} | {k: str(p) for k, p in places(world).items()},
    }.items():
        ask, pid = stack.enter_context(transformers(asked))
        yield Candidate("transformers", model, ask, pid)


def places(world: World) -> dict[str, Path]:
    return {"target": world.target, "base": world.small}


def cpu_s(pid: int) -> float:
    """Of a process and all that it started, and that still runs."""
    found, total = [pid], 0.0
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def batches(candidates: Iterator[Candidate], one: bool) -> Iterator[list[Candidate]]:
    """All at once, or one by one; each is started as it is asked for."""
    yield from ([c] for c in candidates) if one else [list(candidates)]


def measured(ready: list[Candidate], rounds: int) -> list[tuple]:
    """One row for each candidate and number of requests: medians over the rounds."""
    found: dict[tuple, list[tuple]] = {}
    for round in range(-1, rounds):  # the first warms up
        for count in (1, MANY)[: 1 if round < 0 else 2]:
            for engine, model, ask, pid, _ in ready:
                before = cpu_s(pid)
                said, first, total = ask(PROMPTS[round % MANY :][:1] if count == 1 else PROMPTS)
                used = cpu_s(pid) - before
                if engine == "transformers":  # it read the prompts once more, to say when the first token comes
                    used *= total / (total + first)
                if round >= 0:
                    one = (said / total, first, 1000 * used / said)
                    found.setdefault((engine, model, count), []).append(one)
                    print(engine, model, count, *(f"{v:.3g}" for v in one), flush=True)
    memory = {(engine, model): memory_mb(pid) for engine, model, _, pid, _ in ready}
    return [
        (*key, *(median(column) for column in zip(*values, strict=True)), memory[key[:2]])
        for key, values in found.items()
    ]


def parameters(folder: Path) -> int:
    """Numbers that are read for one token: all weights, but of an embedding that is no head a single row."""
    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            skipped = "lm_head.weight" in names
            for name in names:
                shape = file.get_slice(name).get_shape()
                if not (skipped and "embed" in name):
                    total += shape[0] * (shape[1] if len(shape) > 1 else 1)
    return total


def members(world: World) -> list[str]:
    """Of each member that counts: is it as large as the target, or small?"""
    config = UnlearnedConfig.from_pretrained(world.folder)
    about = {m["name"]: m["base"] or m for m in config.members}
    return ["target" if about[name]["files"] == about["target"]["files"] else "small" for name, _ in terms(config)]


def publish(name: str, rows: list[tuple], drafts: list[tuple], world: World) -> None:
    path, run = HERE / f"overhead_{name}.csv", members(world)
    shown = [[*map(str, row[:3]), *(f"{v:.4g}" for v in row[3:-1]), f"{row[-1]:.0f}"] for row in rows]
    before = list(csv.reader(path.open(encoding="utf-8")))[1:] if path.is_file() else []
    asked = {row[0] for row in rows}
    costs = [row for row in before if row[0] in ENGINES and row[0] not in asked] + shown
    costs.sort(key=lambda row: (int(row[2]), ENGINES.index(row[0])))
    if "vLLM" not in asked:
        drafts = [row[:3] for row in before if row[0] == "drafts"]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([COLUMNS, *costs])
        for model, folder in (("target", world.target), ("small", world.small)):  # here: how often, and how large
            writer.writerow(("members", model, run.count(model), parameters(folder), "", "", ""))
        writer.writerows((*row, "", "", "", "") for row in drafts)
    path.with_suffix(".md").write_text(table(path), encoding="utf-8")


def table(path: Path) -> str:
    """The csv for people, with ratios to the target alone and to what the members take one by one."""
    found = list(csv.DictReader(path.open(encoding="utf-8")))
    sizes = {r["model"]: (int(r["at once"]), int(r["tokens/s"])) for r in found if r["engine"] == "members"}
    drafts = [(int(r["model"]), int(r["at once"])) for r in found if r["engine"] == "drafts"]
    rows = [r for r in found if r["engine"] not in ("members", "drafts")]
    cpu = {(r["engine"], r["model"], r["at once"]): float(r["CPU ms/token"]) for r in rows}
    lines = [f"| {' | '.join(COLUMNS)} | CPU ÷ target alone |", "|---" * (len(COLUMNS) + 1) + "|"]
    for r in rows:
        ratio = cpu[r["engine"], r["model"], r["at once"]] / cpu[r["engine"], "target", r["at once"]]
        lines.append("| " + " | ".join(r[c] for c in COLUMNS) + f" | {ratio:.2f} |")
    read = sum(times * size for times, size in sizes.values()) / sizes["target"][1]
    said = ", ".join(f"{times} × {size / 1e6:,.0f} M ({model})" for model, (times, size) in sizes.items())
    lines += ["", f"A token of the sum reads {said} weights: {read:.2f} × the target's."]
    for count in ("1", str(MANY)):
        own = sum(times * cpu["vLLM", model, count] for model, (times, _) in sizes.items())
        ratio = cpu["vLLM", "unlearned", count] / own
        lines.append(f"vLLM, {count} at once: {ratio:.2f} × what its members take one by one (CPU).")
    for proposed, taken in drafts:
        share, each = taken / proposed, 1 + DRAFTED * taken / proposed
        more = DRAFTED * sizes["small"][1] / sizes["target"][1]
        lines.append(
            f"Drafts: {taken:,} of {proposed:,} proposed tokens were taken ({share:.2f}), {each:.2f} tokens for each "
            f"reading of the sum; by sizes alone a token then reads {(read + more) / each:.2f} × the target's weights. "
            f"To read no more than the target, {(read + more - 1) / DRAFTED:.2f} would have to be taken."
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    if sys.argv[1] == "_transformers":
        in_transformers(json.loads(sys.argv[2]))
        return
    keys = dict(a.split("=", 1) for a in sys.argv[2:])
    name, work = keys.get("world", "smaller"), Path(keys.get("work", "runs/engines")).resolve()
    world = worlds(Path(keys["models"]).resolve(), work, [name])[name]
    dtype = "bfloat16" if name == "qwen" else "float32"
    rows, drafts, of = [], [], {"vllm": of_vllm, "ours": of_ours, "transformers": of_transformers}
    for engines in keys.get("engines", ",".join(of)).split(","):  # all at once would not fit into everybody's memory
        with ExitStack() as stack:
            for together in batches(
                of[engines](world, sys.argv[1], dtype, work, stack), one=keys.get("together") == "no"
            ):
                rows += measured(together, int(keys.get("rounds", 5)))
                drafts += drafted(together)
                stack.close()
    publish(name, rows, drafts, world)
    print((HERE / f"overhead_{name}.md").read_text())


if __name__ == "__main__":
    main()
