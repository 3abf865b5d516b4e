"""The text of an answer while its tokens come: whole characters alone, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

BEFORE = 5  # tokens of the prompt that are decoded with the first ones: some tokenizers drop a text's first space
BROKEN = "\ufffd"  # what the bytes of half a character are decoded as


class Text:
    """Of one answer. ``strip``: white space at its beginning is no part of it."""

    def __init__(self, tokenizer, prompt: Sequence[int], stop: Sequence[str] = (), strip: bool = False):
        self._decode, self._stop, self._strip = tokenizer.decode, [s for s in stop if s], strip
        self._ids = list(prompt[-BEFORE:])
        self._from, self._read = 0, len(self._ids)  # tokens that are decoded for their neighbours; that are in `whole`
        self.whole = ""
        self.stopped = False
        self._given = 0  # characters that `add` has returned

    def add(self, token: int | None, last: bool = False) -> str:
        """Take a token, None for an end; returns what can be said now that could not before.

        Text that a stop string may begin with is held back until more is known, or this was the ``last`` token.
        """
        if token is not None:
            self._ids.append(token)
        seen = len(self.whole)
        self.whole += self._new(last)
        if self._strip and not seen:
            self.whole = self.whole.lstrip()
        self._find(seen)
        end = len(self.whole) if last or self.stopped else len(self.whole) - self._held()
        new = self.whole[self._given : end]
        self._given = max(self._given, end)
        return new

    def _new(self, last: bool) -> str:
        before = self._text(self._ids[self._from : self._read])
        now = self._text(self._ids[self._from :])
        if len(now) <= len(before) or (now.endswith(BROKEN) and not last):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return now[len(before) :]

    def _text(self, ids: list[int]) -> str:
        return self._decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _find(self, seen: int) -> None:
        """Cut at the first stop string, which can begin before what is new."""
        longest = max(map(len, self._stop), default=0)
        found = [self.whole.find(s, max(0, seen - longest + 1)) for s in self._stop]
        ends = [at for at in found if at >= 0]
        if ends:
            self.whole, self.stopped = self.whole[: min(ends)], True

    def _held(self) -> int:
        """Characters at the end that a stop string may begin with."""
        sizes = (n for s in self._stop for n in range(len(s) - 1, 0, -1) if self.whole.endswith(s[:n]))
        return max(sizes, default=0)
