"""The schema that all data sets share; the reader of each (``unlearn/data/sets``) adds its own settings."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from unlearn.config.setting import A_NAME, Bound, need, one_of, setting


def fills(name: str) -> Bound:
    """A template of one name."""

    def holds(template: str) -> bool:
        try:
            return template.format(**{name: "\0"}).count("\0") == 1
        except (KeyError, IndexError, ValueError):
            return False

    return Bound(holds, f"must hold {{{name}}} and no other braces")


@dataclass
class TemplateConfig:
    """How a question and its answer become one text: plain tags (or none), or the tokenizer's own chat template."""

    kind: str = setting("plain", one_of("plain", "chat"))
    prompt: str = setting("Question: {question}\nAnswer:", fills("question"))  # with kind=chat: the user's message
    answer: str = setting(" {answer}", fills("answer"))  # with kind=chat: the assistant's message
    system: str | None = None  # chat only; null: what the template writes, mostly nothing; "": an empty one
    date: str = "10 Apr 2025"  # chat only: what a template that prints the current date (Llama 3) gets instead


@dataclass
class DataConfig:
    """What every data set has. A reader's ``Settings`` are a subclass."""

    name: str = setting(MISSING, A_NAME)
    reader: str = MISSING
    template: TemplateConfig = field(default_factory=TemplateConfig)
    requests: Any = None  # forget sets in the order they are asked for; null: one, as the other keys say
    request: Any = None  # which of them the run unlearns: a number from 1, several [1,2]; null: all of them
    retained: str | None = setting(None, one_of("later", "earlier", "others"))  # requests to retain; null: none

    def problems(self) -> Iterator[str]:
        """Yield a line for each rule between settings that is broken; a reader's own come after these."""
        numbers = self.request if isinstance(self.request, list) else [self.request]
        if self.requests is None:
            for key in ("request", "retained"):
                rule = "is one of data.requests, and there are none"
                yield from need(getattr(self, key) is None, f"data.{key}", getattr(self, key), rule)
        elif not isinstance(self.requests, list) or not self.requests:
            yield from need(False, "data.requests", self.requests, "must be a list of forget sets")
        else:
            most = len(self.requests)
            known = all(is_whole(n) and 1 <= n <= most for n in numbers) and 0 < len(numbers) == len(set(numbers))
            rule = f"must be a number from 1 to {most}, a list of different ones, or null: all of data.requests"
            yield from need(self.request is None or known, "data.request", self.request, rule)
            fit, rule = self.are_requests(self.requests)
            yield from need(fit, "data.requests", self.requests, rule)

    def are_requests(self, requests: list[Any]) -> tuple[bool, str]:
        """Whether each of the requests has the form that the reader takes; and which form that is."""
        return False, "this reader takes no requests"

    def protocol(self, begun: int) -> str | None:
        """Name which of a benchmark's settings a run is in; ``begun``: after how many runs it begins."""
        return None

    def nothing_else(self, **keys: str) -> Iterator[str]:
        """Yield for each key that says what is to be forgotten, where requests do, too, a line with what it must be."""
        for key, instead in keys.items() if self.requests is not None else ():
            rule = f"data.requests names what is to be forgotten: must be {instead}"
            yield from need(not getattr(self, key), f"data.{key}", getattr(self, key), rule)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
