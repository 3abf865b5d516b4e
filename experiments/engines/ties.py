"""What deciding near ties alone costs in our server's engine, in full and in half precision.

    python experiments/engines/ties.py MODELS     # MODELS/smollm2

SmolLM2 as target and, slightly changed, as offset beside itself, in three mixtures of number formats: 16 requests of 32
tokens one by one, and at once with ``exact`` and without, in one process of one thread. Writes ties.csv beside this
file, with how many answers are those of the requests one by one.
"""

import copy
import csv
import queue
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from overhead import MANY, PROMPTS, TOKENS
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn.config.data import TemplateConfig
from unlearn.data.encoding import Encoder
from unlearn.decoding.choosing import Draw
from unlearn.deploy.parts import Blend, Part
from unlearn.deploy.serving.answers import Ask
from unlearn.deploy.serving.engine import Engine
from unlearn.ensemble.ensemble import Ensemble, Member

COLUMNS = ("target", "pair", "exact", "at once", "CPU ms/token", "gone apart", "as alone")
FORMATS = (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"))
Said = list[list[int]]


class Counting(Engine):
    apart = 0

    def _apart(self, answer) -> None:
        self.apart += 1
        super()._apart(answer)


def said(engine: Engine, prompts: list[tuple[int, ...]]) -> Said:
    """Answers to prompts that are asked at once."""
    events: list[queue.Queue] = [queue.Queue() for _ in prompts]
    asks = [Ask(p, (("run", 1.0),), TOKENS, Draw(0.0, 1.0, 0)) for p in prompts]
    engine.submit([(ask, each.put) for ask, each in zip(asks, events, strict=True)])
    found: Said = []
    for each in events:
        tokens, event = [], each.get()  # the first says that the prompt was read
        while event.finish is None:
            event = each.get()
            tokens.append(event.token)
        found.append(tokens)
    return found


def timed(ask: Callable[[], Said]) -> tuple[Said, float]:
    """Answers, and CPU milliseconds for each token."""
    start = time.process_time()
    found = ask()
    return found, round(1000 * (time.process_time() - start) / sum(map(len, found)), 1)


def main() -> None:
    torch.set_num_threads(1)
    folder = str(Path(sys.argv[1], "smollm2"))
    tokenizer, rows = AutoTokenizer.from_pretrained(folder), []
    prompts = [tuple(tokenizer(text).input_ids) for text in PROMPTS]
    for target, pair in FORMATS:
        whole, small = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, f)).eval() for f in (target, pair)
        )
        offset, noise = copy.deepcopy(small), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in offset.parameters():
                weight += 0.02 * weight.std() * torch.randn(weight.shape, generator=noise).to(weight)
        members = (Member("target", whole, "t"), Member("offset", offset, "o", 0.0, 1.0, True),
                   Member("anchor", small, "a", 0.0, -1.0))  # fmt: skip
        blend, encoder = Blend([Part("run", Ensemble(members), "w", 1.0)]), Encoder(tokenizer, TemplateConfig(), 512)
        with Engine(blend, encoder) as engine:
            said(engine, prompts[:1])  # warms up
            alone, cost = timed(lambda: [said(engine, [p])[0] for p in prompts])
            rows.append((target, pair, "", 1, cost, "", MANY))
        for exact in (True, False):
            with Counting(blend, encoder, MANY, exact=exact) as engine:
                found, cost = timed(lambda: said(engine, prompts))
                same = sum(a == b for a, b in zip(alone, found, strict=True))
                rows.append((target, pair, exact, MANY, cost, engine.apart, same))
        print(*rows[-3:], sep="\n", flush=True)
    with Path(__file__).with_name("ties.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
