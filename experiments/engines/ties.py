"""What deciding near ties alone costs in our server's engine, in full and in half precision.

    python experiments/engines/ties.py MODELS     # MODELS/smollm2

SmolLM2 as target (fp32, then bf16) and, slightly changed, as offset beside itself: 1 and 16 requests of 32 tokens, with
``exact`` and without, in turn in one process of one thread. Writes ties.csv beside this file.
"""

import copy
import csv
import queue
import sys
import time
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

COLUMNS = ("target", "exact", "at once", "tokens", "CPU ms/token", "gone apart")


class Counting(Engine):
    apart = 0

    def _apart(self, answer) -> None:
        self.apart += 1
        super()._apart(answer)


def measured(engine: Counting, prompts: list[tuple[int, ...]]) -> tuple[int, float, int]:
    """Tokens said, CPU milliseconds for each, and answers that went apart."""
    start, before, events, said = time.process_time(), engine.apart, [queue.Queue() for _ in prompts], 0
    engine.submit(
        [(Ask(p, (("run", 1.0),), TOKENS, Draw(0.0, 1.0, 0)), q.put) for p, q in zip(prompts, events, strict=True)]
    )
    for each in events:
        while each.get().finish is None:
            said += 1
    return said + len(prompts), 1000 * (time.process_time() - start) / (said + len(prompts)), engine.apart - before


def main() -> None:
    torch.set_num_threads(1)
    folder = str(Path(sys.argv[1], "smollm2"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    small = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    offset, noise = copy.deepcopy(small), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in offset.parameters():
            weight += 0.02 * weight.std() * torch.randn(weight.shape, generator=noise)
    prompts, rows = [tuple(tokenizer(text).input_ids) for text in PROMPTS], []
    for name in ("float32", "bfloat16"):
        target = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, name)).eval()
        members = (Member("target", target, "t"), Member("offset", offset, "o", 0.0, 1.0, True),
                   Member("anchor", small, "a", 0.0, -1.0))  # fmt: skip
        blend, encoder = Blend([Part("run", Ensemble(members), "w", 1.0)]), Encoder(tokenizer, TemplateConfig(), 512)
        for exact in (True, False):
            with Counting(blend, encoder, MANY, exact=exact) as engine:
                measured(engine, prompts[:1])  # warms up
                for count in (1, MANY):
                    said, cost, apart = measured(engine, prompts[:count])
                    rows.append((name, exact, count, said, round(cost, 1), apart))
                    print(*rows[-1], flush=True)
    with Path(__file__).with_name("ties.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
