"""EUL's tables (arXiv 2310.20150) in made-up worlds, with a tiny T5: what is forgotten and kept, and how far both are
from a model that was trained again.

    python experiments/eul/study.py [--worlds 0 1 2] [--sections shares ablation sequence dialogues]

For each world (pair.seed) and section it makes the models and runs that are lacking, and adds a row for each to
results.csv beside itself; rows that are there are not made again. Several calls with different worlds may run side by
side. Then ``python experiments/eul/table.py`` makes the tables and the figure from that file alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations
from pathlib import Path

import pandas as pd
from filelock import FileLock
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
RESULTS = HERE / "results.csv"
KEY = ("section", "world", "forgotten", "what")
SHARES = {"0.5 %": 1, "1 %": 2, "10 %": 20}  # people of 200, or speakers of 400
STEPS = "trainer.steps=150"  # of fine-tuning and reverse gradient
# At the start student and teacher agree, and a KL has no gradient there: it must first grow, exponentially.
LONG = "trainer.steps=2400"  # of EUL
# 4 % of the tiny model's parameters: the paper's half a per cent would be two units a layer, which hardly forget
LAYERS = ("method=eul", "pair.layers.bottleneck=16", "trainer.lr=3e-3", LONG)  # rate and length: search.py
OBJECTIVES = ("eul", "eul_bounded")  # of the ablation and of the sequence
WAYS = {  # the paper's rows that unlearn by training
    "fine-tune": ("method=direct", "algo=finetune", "trainer.lr=1e-3", STEPS),
    "reverse gradient": ("method=direct", "algo=gd", "trainer.lr=3e-3", STEPS),
    "EUL": (*LAYERS, "algo=eul"),
    "bounded EUL": (*LAYERS, "algo=eul_bounded"),
}
WITHOUT = {  # Table 5
    "EUL": (),
    "− KL": ("algo.numbers.forget_kl=0", "algo.numbers.retain_kl=0"),
    "− TASK": ("algo.numbers.task=0",),
    "− LM": ("algo.gamma=0",),
}
REQUESTS, EACH = 3, 10  # of the sequence, and people in each: 5 % of all
SECTIONS = ("shares", "ablation", "sequence", "dialogues")

Make = Callable[[], dict[str, float]]
Piece = tuple[tuple[str, int, str, str], Make]  # key and what makes its row


def shares(seed: int, data: str = "reviews", wanted: Sequence[str] = tuple(SHARES)) -> Iterator[Piece]:
    """Table 2, and Table 3 with ``data="dialogues"``."""
    from worlds import StudyWorld, alone, measured, of_run, run, vote

    world = StudyWorld(data, seed)
    section, step = ("dialogues", -2) if data == "dialogues" else ("shares", -1)
    for share in wanted:
        asked = list(range(world.people - 1, world.people - 1 + step * SHARES[share], step))

        def plain(folder: Callable, forget=tuple(asked)) -> Make:
            def make() -> dict[str, float]:
                place = folder(forget)
                return measured(world.unlearning(forget), alone(place)) | {"seconds": world.seconds(place)}

            return make

        def sisa(before: bool, forget=tuple(asked)) -> Make:
            def make() -> dict[str, float]:
                folders, seconds = world.shards(() if before else forget)
                return measured(world.unlearning(forget), vote(folders)) | {"seconds": seconds}

            return make

        yield (section, seed, share, "original"), plain(lambda _: world.original)
        yield (section, seed, share, "re-train"), plain(world.retrained)
        if data == "reviews":  # a dialogue is of two people, who would have to be of one shard
            yield (section, seed, share, "SISA before"), sisa(True)
            yield (section, seed, share, "SISA"), sisa(False)
        for what, overrides in WAYS.items():
            cfg = world.unlearning, asked, overrides
            yield (
                (section, seed, share, what),
                lambda cfg=cfg: of_run(run(cfg[0](cfg[1], (), *cfg[2]))),
            )


def ablation(seed: int) -> Iterator[Piece]:
    """Table 5, at 10 % (the paper: 0.5 %, which here are three reviews)."""
    from worlds import StudyWorld, of_run, run

    world = StudyWorld("reviews", seed)
    asked = list(range(world.people - 1, world.people - 1 - SHARES["10 %"], -1))
    for algo in OBJECTIVES:
        for what, overrides in WITHOUT.items():
            given = (*LAYERS, f"algo={algo}", *overrides)
            name = what.replace("EUL", algo) if what == "EUL" else f"{algo} {what}"
            yield (
                ("ablation", seed, "10 %", name),
                lambda given=given: of_run(run(world.unlearning(asked, (), *given))),
            )


def sequence(seed: int) -> Iterator[Piece]:
    """Table 6 and Fig. 2: requests 1, 2 and 3 in every order. ``forgotten`` names the order so far: 21 is 2, then 1.

    A request's own layers are trained once, without the data of the other requests: whatever comes first, they use
    nothing that another request deletes.
    """
    from worlds import StudyWorld, alone, joined, measured, of_run, run

    world = StudyWorld("reviews", seed)
    first = world.people - REQUESTS * EACH
    people = {k: list(range(first + (k - 1) * EACH, first + k * EACH)) for k in range(1, REQUESTS + 1)}

    def of(ks: Sequence[int]) -> list[int]:
        return [i for k in sorted(ks) for i in people[k]]

    def others(ks: Sequence[int]) -> list[int]:
        return of([k for k in people if k not in ks])

    def asks(ks: Sequence[int], algo: str, *more: str):
        return world.unlearning(of(ks), others(ks), *LAYERS, f"algo={algo}", *more)

    def trained_on(order: tuple[int, ...], algo: str):
        """The run of the last request of an order, on the layers of the one before."""
        if len(order) == 1:
            return run(asks(order, algo))
        before = trained_on(order[:-1], algo).folder
        gone = [i for k in people if k != order[-1] for i in people[k]]
        given = (*LAYERS, f"algo={algo}", f"begin.runs=[{before}]")
        return run(world.unlearning(people[order[-1]], gone, *given))

    def sofar(ks: Sequence[int]):
        return asks(ks, "eul")

    for ks in (c for n in range(1, REQUESTS + 1) for c in combinations(people, n)):
        name = "".join(map(str, ks))
        yield (
            ("sequence", seed, name, "re-train"),
            lambda ks=ks: measured(sofar(ks), alone(world.retrained(of(ks)))),
        )
        yield (("sequence", seed, name, "original"), lambda ks=ks: measured(sofar(ks), alone(world.original)))
        for algo in OBJECTIVES:
            yield (("sequence", seed, name, f"{algo} joint"), lambda ks=ks, algo=algo: of_run(run(asks(ks, algo))))
            for how in ("fuse", "average", "sum"):

                def make(ks=ks, algo=algo, how=how) -> dict[str, float]:
                    ensemble, about = joined(sofar(ks), [run(asks((k,), algo)) for k in ks], how)
                    return measured(sofar(ks), ensemble) | about

                yield (("sequence", seed, name, f"{algo} {how}"), make)
    for order in (o for n in range(1, REQUESTS + 1) for o in permutations(people, n)):
        name = "".join(map(str, order))
        for algo in OBJECTIVES:

            def make(order=order, algo=algo) -> dict[str, float]:
                done = trained_on(order, algo)
                return measured(sofar(order), joined(sofar(order), [done], "average")[0])

            yield (("sequence", seed, name, f"{algo} continued"), make)


def pieces(section: str, seed: int, wanted: Sequence[str]) -> Iterator[Piece]:
    if section == "shares":
        return shares(seed, "reviews", wanted)
    if section == "dialogues":
        return shares(seed, "dialogues", ("10 %",))
    return {"ablation": ablation, "sequence": sequence}[section](seed)


def known() -> list[dict]:
    return pd.read_csv(RESULTS, dtype={"forgotten": str}).to_dict("records") if RESULTS.is_file() else []


def add(row: dict) -> None:
    with FileLock(Path("runs", "eul", "results.lock")):
        pd.DataFrame([*known(), row]).sort_values(list(KEY)).round(5).to_csv(RESULTS, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", type=int, default=(0, 1, 2), help="pair.seed of each")
    parser.add_argument("--shares", nargs="+", choices=tuple(SHARES), default=tuple(SHARES), help="of section shares")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--only", default="", help="rows whose key (section world forgotten what) this regex finds")
    arguments = parser.parse_args()
    Path("runs", "eul").mkdir(parents=True, exist_ok=True)
    done = {tuple(row[k] for k in KEY) for row in known()}
    todo = [
        (key, make)
        for seed in arguments.worlds
        for section in arguments.sections
        for key, make in pieces(section, seed, arguments.shares)
        if key not in done and re.search(arguments.only, " ".join(map(str, key)))
    ]
    for key, make in (bar := tqdm(todo)):
        bar.set_description(" ".join(map(str, key)))
        add(dict(zip(KEY, key, strict=True)) | make())
    print(f"{len(known())} rows: {RESULTS}")


if __name__ == "__main__":
    main()
