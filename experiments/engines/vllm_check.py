"""Does vLLM serve an export as the run's own code computes it?  make vllm-check, or

    python experiments/engines/vllm_check.py PYTHON [models=FOLDER] [work=FOLDER] [prompts=50] [CASE …]

PYTHON is that of an environment with vLLM and this package's wheel. With ``models=``, a folder with ``smollm2`` and,
for the case ``qwen``, ``qwen15`` and ``qwen05``, pretrained pairs are unlearned; otherwise tiny ones, trained first.
Each case is a server of vLLM: greedy answers are compared with those of ``unlearn.generate``, log-probabilities with
those of the members' sum here. Writes check_pretrained or check_tiny (.csv, .md) beside this file; of cases that are
not named, what was measured before is kept. Minutes for a case. The exit status is 1 where a server does not start, a
client is answered otherwise, or, in float32, an answer differs or a log-probability by more than 1e-4.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from servers import NAME, complete, counted, server, vllm_command
from worlds import World, called, worlds

HERE = Path(__file__).resolve().parent
PROMPTS, TOKENS, TEXTS, LIKELIEST = 50, 24, 8, 20
LENGTHS = (96, 160, 224, 288)  # of beginnings of one long text
SAME, CLOSE = "greedy answers equal to unlearn.generate's", 1e-4
STARTS_NOT, STOPPED = "does not start", "**stopped**"
HITS = "vllm:prefix_cache_hits_total"  # tokens, since it started
Found = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Case:
    world: str
    dtype: str = "float32"
    options: tuple[str, ...] = ("--enforce-eager",)
    clients: bool = False  # also asked by the clients that people have


CASES = {
    "equal": Case("equal", clients=True),
    "smaller": Case("smaller"),
    "two": Case("two"),
    "bf16": Case("smaller", "bfloat16"),
    "qwen": Case("qwen", "bfloat16"),
    "qwen32": Case("qwen"),
    "compiled": Case("smaller", options=()),
    "tp": Case("smaller", options=("--enforce-eager", "--tensor-parallel-size", "2")),
    "draft": Case("smaller"),
}
TRIED = ("compiled", "tp", "draft")  # of vLLM itself: with tiny pairs (SmolLM2's nine heads are not to be halved)
SAID = {
    "equal": "pair as large as the target, fp32", "smaller": "smaller pair, fp32", "two": "two requests summed, fp32",
    "bf16": "smaller pair, bf16", "qwen": "1.5B target, 0.5B pair, bf16", "qwen32": "1.5B target, 0.5B pair, fp32",
    "compiled": "smaller pair, torch.compile",
    "tp": "smaller pair, two tensor-parallel processes", "draft": "smaller pair, drafts by its small model",
}  # fmt: skip


def reference(world: World, work: Path, count: int, dtype: str) -> dict[str, Any]:
    """What is compared with, made once."""
    path = work / f"{world.name}-{dtype}-{count}.pt"
    if not path.is_file():
        world.hold(dtype)
        prompts, alone = world.prompts(count), world.opened[0].bench.alone("target")
        found = {name: world.answers(prompts, TOKENS, of) for name, of in (("unlearned", None), ("target", alone))}
        texts = [[*p, *a] for p, a in zip(prompts[:TEXTS], found["unlearned"], strict=False)]
        found["prompts"], long = prompts, [token for p in prompts for token in p][: max(LENGTHS)]
        torch.save(found | {"texts": [(ids, world.rows(ids)) for ids in [*texts, long]]}, path)
    return torch.load(path)


def answers(known: dict[str, Any], url: str, end: int) -> Found:
    """Greedy answers against those of ``unlearn.generate``; ``known`` then holds what vLLM said (``theirs``)."""
    prompts = known["prompts"]
    theirs = complete(url, prompt=prompts, max_tokens=TOKENS, return_token_ids=True)["choices"]
    known["theirs"] = [choice["token_ids"] for choice in sorted(theirs, key=lambda choice: choice["index"])]

    def same(others: list[list[int]]) -> int:
        return sum(_before(a, end) == _before(b, end) for a, b in zip(known["unlearned"], others, strict=True))

    yield SAME, f"{same(known['theirs'])} of {len(prompts)}"
    yield "answers that the offset changed", f"{len(prompts) - same(known['target'])} of {len(prompts)}"


def margins(world: World, known: dict[str, Any], dtype: str) -> Found:
    """Where an answer parts from ``unlearn.generate``'s: by how much the token of the one is likelier here than that of
    the other. Less than what log-probabilities differ by is a near tie."""
    found, end = [], world.encoder.tokenizer.eos_token_id
    for prompt, ours, theirs in zip(known["prompts"], known["unlearned"], known["theirs"], strict=True):
        ours, theirs = ([*_before(ids, end), end] for ids in (ours, theirs))  # cut at the most tokens: not reached
        at = next((t for t, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        if at is not None:
            world.hold(dtype)
            row = world.rows([*prompt, *ours[:at]])[-1]
            found.append(float(row[ours[at]] - row[theirs[at]]))
    if found:
        shown = ", ".join(f"{margin:.2g}" for margin in sorted(found))
        yield "where answers part: log-probability of the token here less that of vLLM's", shown


def _before(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def rows(known: dict[str, Any], url: str) -> Found:
    """Log-probabilities of whole texts, and of what is said after a beginning that vLLM has read before."""
    worst = places = 0
    for ids, here in known["texts"][:-1]:
        found = complete(url, prompt=ids, max_tokens=1, prompt_logprobs=LIKELIEST)["choices"][0]["prompt_logprobs"]
        for row, entries in zip(here, found[1:], strict=False):
            worst = max(worst, _apart(row, {int(token): entry["logprob"] for token, entry in entries.items()}))
            places += 1
    yield f"prompt_logprobs: largest difference at {places:,} places", f"{worst:.1e}"
    long, here = known["texts"][-1]
    before, worst = counted(url, HITS), 0.0
    for length in (*LENGTHS, *LENGTHS):
        found = complete(url, prompt=long[:length], max_tokens=1, logprobs=LIKELIEST, ignore_eos=True,
                         return_tokens_as_token_ids=True)["choices"][0]["logprobs"]["top_logprobs"][0]  # fmt: skip
        there = {int(token.removeprefix("token_id:")): value for token, value in found.items()}
        worst = max(worst, _apart(here[length - 1], there))
    yield f"after {counted(url, HITS) - before:,.0f} tokens out of the prefix cache: largest difference", f"{worst:.1e}"


def _apart(row: torch.Tensor, there: dict[int, float]) -> float:
    return float((row[list(there)] - torch.tensor(list(there.values()))).abs().max())


def by_clients(world: World, known: dict[str, Any], url: str, work: Path) -> Found:
    """OpenAI's client, lm-eval's, and this package's own for targets behind a server."""
    from openai import OpenAI

    question = world.questions(1)[0]
    client = OpenAI(base_url=url, api_key="none")
    system = world.opened[0].cfg.data.template.system
    asked = [{"role": "system", "content": system}] if system else []
    answer = client.chat.completions.create(
        model=NAME, temperature=0, max_tokens=TOKENS, messages=[*asked, {"role": "user", "content": question}]
    )
    ours = world.encoder.decode(known["unlearned"][0])
    yield "openai client, chat: the same answer", _yes(answer.choices[0].message.content.strip() == ours.strip())
    yield from lm_eval(world, url, work)
    yield from as_target(world, url, work)


def lm_eval(world: World, url: str, work: Path) -> Found:
    """Both on the same questions, each with the loader that its users have."""
    folder = work / "tasks"
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [(r.question, r.answer) for rs in world.opened[0].bench.data.splits.values() for r in rs][:20]
    lines = [
        json.dumps({"query": f"Question: {q}", "choices": [a, pairs[i - 1][1]], "gold": 0})
        for i, (q, a) in enumerate(pairs)
    ]
    (folder / "arc_easy.jsonl").write_text("".join(f"{line}\n" for line in lines))
    store = f"paths.store={work}/store"
    called("harness", f"run={world.runs[0]}", "alpha=1", f"path={folder}", store)
    ours = json.loads((world.runs[0] / "harness.json").read_text())["arc_easy"]["alphas"]["1.0"]
    from lm_eval import simple_evaluate
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from unlearn.evaluation import choices

    lm = LocalCompletionsAPI(
        base_url=f"{url}/completions", model=NAME, tokenizer=str(world.folder), max_length=512, batch_size=1
    )
    task = choices.task("arc_easy", folder / "arc_easy.jsonl")
    theirs = simple_evaluate(model=lm, tasks=[task], bootstrap_iters=0)["results"]
    theirs = {k.split(",")[0]: v for k, v in next(iter(theirs.values())).items() if isinstance(v, float)}
    shown = ", ".join(f"{k} {ours[k]:.2f} and {theirs[k]:.2f}" for k in ("acc", "acc_norm"))
    same = all(ours[k] == theirs[k] for k in ("acc", "acc_norm"))
    yield "lm-eval local-completions against unlearn.harness", f"{_yes(same)}: {shown}"


def as_target(world: World, url: str, work: Path) -> Found:
    """The unlearned model as the black box of another run: its reference is what the run itself says of it."""
    asked = [o for o in world.settings if not o.startswith("trainer.steps=")]
    box = ["kind=http", f"http.url={url}", f"http.model={NAME}", "http.revision=" + world.folder.name]
    where = ["study=as_target", f"paths.runs={work}/runs", f"paths.store={work}/store"]
    called("run", *asked, *(f"pair.target.{key}" for key in box), "trainer.steps=1", *where)
    last = max((work / "runs" / "as_target").glob("*/eval.json"), key=lambda path: path.stat().st_mtime)
    there = json.loads(last.read_text())["references"]["target"]
    here = json.loads((world.runs[0] / "eval.json").read_text())["alphas"]["1.0"]
    worst = max(abs(there[k] - here[k]) for k in ("forget/prob", "retain/prob"))
    yield "pair.target.kind=http: probabilities of answers, largest difference", f"{worst:.1e}"


def _yes(right: bool) -> str:
    return "yes" if right else "**no**"


def refused(python: str, world: World, log: Path) -> Found:
    """What vLLM's start says to another target."""
    places = {"target": world.small if world.small != world.target else world.folder, "base": world.small}
    done = subprocess.run(vllm_command(python, world.folder, places), capture_output=True, text=True)
    log.write_text(done.stdout + done.stderr)
    line = next((x for x in log.read_text().splitlines() if "its files are not" in x or "must be" in x), "")
    yield "another target is refused at the start", _yes(done.returncode != 0 and bool(line))


def measured(name: str, case: Case, world: World, python: str, work: Path, count: int) -> Found:
    known, end = reference(world, work, count, case.dtype), world.encoder.tokenizer.eos_token_id
    world.release()  # the server needs the memory
    places = {"target": world.target, "base": world.small}
    more = ["--dtype", case.dtype, *case.options]
    if name == "draft":
        drafts = {"method": "draft_model", "model": str(world.small), "num_speculative_tokens": 3}
        more += ["--speculative-config", json.dumps(drafts)]
    with server(vllm_command(python, world.folder, places, *more), work / f"{name}.log") as (url, _):
        yield from answers(known, url, end)
        yield from rows(known, url)
        if case.clients:
            yield from by_clients(world, known, url, work)
    yield from margins(world, known, case.dtype)
    world.release()
    if case.clients:
        yield from refused(python, world, work / "refused.log")


def tried(measure: Callable[[], Found]) -> dict[str, str]:
    """What was found; a server that does not start is a result as well."""
    found: dict[str, str] = {}
    try:
        for what, value in measure():
            print(f"{what}: {value}", flush=True)
            found[what] = value
    except SystemExit as error:
        last = [line for line in str(error).splitlines() if "Error" in line]
        found[STARTS_NOT] = last[-1][-200:] if last else "see its log"
    except subprocess.CalledProcessError as error:
        found[STOPPED] = " ".join(error.cmd[1:4])
    return found


def broken(case: str, found: dict[str, str]) -> Iterator[str]:
    """What is not as it must be."""
    exact = CASES[case].dtype == "float32"  # near ties of bfloat16 may part
    for what, value in found.items():
        if what == SAME:
            wrong = exact and len(set(value.split(" of "))) > 1
        elif what.endswith("difference") or what.startswith("prompt_logprobs"):
            wrong = exact and float(value) > CLOSE
        else:
            wrong = value.startswith("**no**") or what in (STARTS_NOT, STOPPED)
        if wrong:
            yield f"{SAID[case]}: {what}: {value}"


def publish(path: Path, case: str, found: dict[str, str]) -> None:
    before = list(csv.reader(path.open(encoding="utf-8")))[1:] if path.is_file() else []
    rows = [row for row in before if row[0] != case] + [[case, what, value] for what, value in found.items()]
    rows.sort(key=lambda row: list(CASES).index(row[0]))
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([["case", "what", "value"], *rows])
    lines = ["| case | what | |", "|---|---|---|", *(f"| {SAID[c]} | {what} | {value} |" for c, what, value in rows)]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    python, asked = sys.argv[1], sys.argv[2:]
    keys = dict(a.split("=", 1) for a in asked if "=" in a)
    models = Path(keys["models"]).resolve() if "models" in keys else None
    work = Path(keys.get("work", "runs/engines")).resolve()
    cases = [a for a in asked if "=" not in a] or [
        c for c in CASES if c not in (TRIED if models else ("qwen", "qwen32"))
    ]
    count = int(keys.get("prompts", PROMPTS))
    path = HERE / f"check_{'pretrained' if models else 'tiny'}.csv"
    made, wrong = worlds(models, work, sorted({CASES[c].world for c in cases})), []
    for case in cases:
        world = made[CASES[case].world]
        print(f"--- {SAID[case]}", flush=True)
        found = tried(lambda case=case, world=world: measured(case, CASES[case], world, python, work, count))
        publish(path, case, found)
        wrong += broken(case, found)
    print(path.with_suffix(".md").read_text())
    sys.exit("\n".join(["not as it must be:", *wrong]) if wrong else 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
