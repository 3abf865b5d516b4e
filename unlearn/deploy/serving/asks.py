"""What the engine is asked for, one answer at a time, and the events that it answers with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from unlearn.deploy.serving.lane import Scored
from unlearn.deploy.serving.offsets import Mix
from unlearn.deploy.serving.sampling import Draw
from unlearn.deploy.serving.text import Text


@dataclass(frozen=True)
class Ask:
    """One answer that is asked for."""

    prompt: tuple[int, ...]
    mix: Mix
    limit: int  # tokens; 0: nothing is said
    draw: Draw
    stop: tuple[str, ...] = ()
    strip: bool = False  # white space at the beginning of the answer
    logprobs: int | None = None  # likeliest tokens beside each that is said; −1: all; None: no log-probabilities
    prompt_logprobs: int | None = None  # the same for the tokens of the prompt


@dataclass(frozen=True)
class Said:
    """A token of an answer, with the text that it adds."""

    token: int
    text: str
    scored: Scored | None
    finish: str | None  # "stop", "length"; None: it goes on


@dataclass(frozen=True)
class Read:
    """The prompt's tokens but its first, where they were asked for. ``finish``: nothing is to be said after it."""

    scored: list[Scored] | None
    finish: str | None


@dataclass(frozen=True)
class Failed:
    message: str


Event = Said | Read | Failed


@dataclass(eq=False)
class Answer:
    """An answer on its way. ``emit`` is called by the engine's thread."""

    ask: Ask
    emit: Callable[[Event], None]
    text: Text
    said: list[int] = field(default_factory=list)
    alone: bool = True  # whether nothing was ever computed beside it
    cancelled: bool = False
