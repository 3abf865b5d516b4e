"""Other answers to the forget questions, which AltPO prefers to the right ones: from a file, or from the target."""

import logging
from pathlib import Path

from unlearn.config.schema import AlternatesConfig
from unlearn.data.records import records, text
from unlearn.data.rows import DataError, Row
from unlearn.decoding.generation import Decoding, sample
from unlearn.runs.workbench import Workbench
from unlearn.store.files import read_json, write_json

log = logging.getLogger(__name__)
FORMAT = 2  # of what is stored; raised when the same recipe would give other answers
ROUNDS = 16  # of sampling; each is hotter than the one before by WARMER
WARMER = 1.2
Ids = list[tuple[int, ...]]


def alternates(cfg: AlternatesConfig, bench: Workbench, batch_size: int) -> list[list[str]]:
    """At least one other answer to each forget question, in the order of the forget set: read, or sampled once and
    stored: those answers of the target that are not the right one."""
    rows = bench.data.splits["forget"]
    if cfg.file is not None:
        return read_alternates(Path(cfg.file), rows)
    prompts = [bench.encoder.prompt(row.question) for row in rows]
    right = [bench.encoder.example(row.id, row.question, row.answer).answer for row in rows]
    recipe = {"format": FORMAT, "model": bench.fingerprint("target"), "prompts": [list(p) for p in prompts],
              "right": [list(a) for a in right], "count": cfg.count, "temperature": cfg.temperature,
              "rounds": [ROUNDS, WARMER]}  # fmt: skip

    def build(folder: Path) -> None:
        log.info("sampling %d other answers to each of %d forget questions", cfg.count, len(rows))
        write_json(folder / "alternates.json", _ask(cfg, bench, prompts, right, batch_size))

    found = read_json(bench.store.get("alternates", recipe, build) / "alternates.json")
    for row, answers in zip(rows, found, strict=True):
        if not answers:
            rounds = f"in {ROUNDS} rounds from temperature {cfg.temperature:g}"
            rule = "raise that of algo.alternates or give a file"
            raise DataError(
                f"algo.alternates: no other answer than {row.answer!r} to {row.question!r} {rounds}; {rule}"
            )
    return found


def read_alternates(path: Path, rows: tuple[Row, ...]) -> list[list[str]]:
    """The alternates of a file of JSON lines; refuse what is no other answer to a forget question, file and line."""
    found: dict[str, list[str]] = {row.question: [] for row in rows}
    right = {(row.question, row.answer.strip()) for row in rows}
    for record in records(path):
        question, answer = (text(record, column) for column in ("question", "answer"))
        if question not in found:
            raise DataError(f"{record[0]}: {question!r} is not a question of the forget set")
        if (question, answer.strip()) in right:
            raise DataError(f"{record[0]}: {answer!r} is the right answer")
        found[question].append(answer)
    for question, answers in found.items():
        if not answers:
            raise DataError(f"{path}: no alternate answer to {question!r}; every forget question needs one")
    return [found[row.question] for row in rows]


def _ask(cfg: AlternatesConfig, bench: Workbench, prompts: Ids, right: Ids, batch_size: int) -> list[list[str]]:
    """A target that knows answers by heart rarely gives others: questions that lack some are asked again, hotter."""
    target, texts = bench.alone("target"), [bench.encoder.decode(answer) for answer in right]
    how = Decoding.by(bench.encoder.tokenizer, max(map(len, right)), batch_size)
    target.members[0].kind.announce((), (), list(prompts) * cfg.count * ROUNDS, how.max_new_tokens)
    found: list[list[str]] = [[] for _ in prompts]
    for attempt in range(ROUNDS):
        lacking = [i for i, answers in enumerate(found) if len(answers) < cfg.count]
        if not lacking:
            break
        asked = [i for i in lacking for _ in range(cfg.count)]
        hot = cfg.temperature * WARMER**attempt
        answers = sample(target, [prompts[i] for i in asked], 1.0, how, hot, seed=attempt)
        for i, answer in zip(asked, answers, strict=True):
            said = bench.encoder.decode(answer)
            if said and said != texts[i] and said not in found[i] and len(found[i]) < cfg.count:
                found[i].append(said)
    return found
