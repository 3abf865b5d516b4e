"""Near questions: forget questions about other names, and with other words exchanged, answered by the target. They join
the retain set in training and show what the forgotten is not.

What a question is about are its words that the likest other question to retain has not; they are always exchanged,
others by chance. Words come from the questions of forget and retain set: nothing is needed that a run does not have.
What the target says to such questions, true or made up, it shall still say afterwards.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import regex

from unlearn.config.schema import NearConfig
from unlearn.data.rows import Row
from unlearn.decoding.generation import Decoding, greedy
from unlearn.runs.workbench import Workbench
from unlearn.store.files import read_json, write_json

log = logging.getLogger(__name__)
FORMAT = 1  # of what is stored; raised when the same recipe would give other rows
WORD = regex.compile(r"\w+")


def near(cfg: NearConfig, bench: Workbench, batch_size: int) -> tuple[Row, ...]:
    """Near questions with the target's greedy answers: the same for every run on the data, stored."""
    asked = questions(cfg, *([row.question for row in bench.data.splits[name]] for name in ("forget", "retain")))
    prompts, own = [bench.encoder.prompt(question) for question in asked], bench.data.splits["forget"]
    longest = max(len(bench.encoder.example(row.id, row.question, row.answer).answer) for row in own)
    recipe = {"format": FORMAT, "model": bench.fingerprint("target"), "prompts": [list(p) for p in prompts],
              "tokens": longest}  # fmt: skip

    def build(folder: Path) -> None:
        log.info("asking the target %d near questions", len(asked))
        how, target = Decoding.by(bench.encoder.tokenizer, longest, batch_size), bench.alone("target")
        target.members[0].kind.announce((), (), prompts, longest)
        write_json(folder / "answers.json", [bench.encoder.decode(a) for a in greedy(target, prompts, 1.0, how)])

    said = read_json(bench.store.get("near", recipe, build) / "answers.json")
    pairs = zip(asked, said, strict=True)
    return tuple(Row(f"near/{i}", question, answer) for i, (question, answer) in enumerate(pairs) if answer.strip())


def questions(cfg: NearConfig, forget: Sequence[str], retain: Sequence[str]) -> list[str]:
    """``cfg.per`` different ones to each forget question, in neither set, and none that holds all words that a forget
    question is about. ``ValueError`` where the questions have too few words for that."""
    own, others = [[WORD.findall(question) for question in some] for some in (forget, retain)]
    about = [_about(words, list(map(set, others))) for words in (*own, *others)]
    names: dict[int, list[str]] = {}  # words that questions are about, by their place among them
    for some in about:
        for place, word in enumerate(some):
            names.setdefault(place, []).append(word)
    every = [word for words in (*own, *others) for word in words]
    forgotten, known = set(map(frozenset, about[: len(own)])), {*forget, *retain}
    draw, found = np.random.default_rng(len(every)), {}

    def exchanged(question: str, some: list[str]) -> str:
        new = {word: _one(names[place], draw) for place, word in enumerate(some)}
        return WORD.sub(lambda m: new.get(m[0]) or (_one(every, draw) if draw.random() < cfg.share else m[0]), question)

    for question, some in zip(forget, about, strict=False):
        wanted, tries = len(found) + cfg.per, 100 * cfg.per
        while len(found) < wanted and (tries := tries - 1):
            said = exchanged(question, some)
            if said not in known and not any(one <= set(WORD.findall(said)) for one in forgotten):
                found[said] = None
        if len(found) < wanted:
            raise ValueError(f"algo.near.per={cfg.per}: {question!r} has too few words to exchange for so many")
    return list(found)


def _one(words: Sequence[str], draw: np.random.Generator) -> str:
    return words[int(draw.integers(len(words)))]


def _about(words: Sequence[str], others: Sequence[set[str]]) -> list[str]:
    """The words that the likest other question has not, in their order."""
    own = set(words)
    likest = max((other for other in others if other != own), key=lambda o: len(own & o) / len(own | o), default=set())
    return [word for word in dict.fromkeys(words) if word not in likest]
