"""What models have read, kept for the length of a block: a text that begins as another one did is not read again.

An evaluation meets each prompt many times (the right answer, the draft, what follows where the draft is left, drawn
answers), and prompts begin alike (a system message). Only for models whose passes cost more than copies of a cache.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from os.path import commonprefix
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from unlearn.models.llama import device_of, has_encoder
from unlearn.models.states import Cached

WORTH = 2**24  # parameters: a smaller model reads a prompt in less time than its keys are copied
SHORT = 8  # tokens that texts must have in common to be read once for all
AT_ONCE = 64  # texts that are read in one pass
Ids = tuple[int, ...]


class Texts:
    """What one model has read: keys and values of each token, [n, layers, 2, heads, D], by text."""

    def __init__(self, model: nn.Module):
        self.bytes = _bytes(model)
        self._read: dict[Ids, Tensor] = {}
        self._order: list[Ids] = []  # of these texts: those that begin alike are neighbours

    def known(self, text: Ids) -> tuple[int, Ids]:
        """How many of its tokens were read, and in which text."""
        place = bisect_left(self._order, text)
        near = self._order[max(0, place - 1) : place + 1]
        return max(((len(commonprefix([text, other])), other) for other in near), default=(0, ()))

    def add(self, text: Ids, read: Tensor) -> None:
        if text in self._read:
            return
        n, longer = self.known(text)
        if n == len(text) and n:  # a longer one holds it
            return
        if longer and n == len(longer):  # it holds a shorter one
            del self._read[longer], self._order[bisect_left(self._order, longer)]
        self._read[text] = read
        insort(self._order, text)

    def of(self, text: Ids, n: int) -> Tensor:
        """Its first ``n`` tokens' keys and values, which are known."""
        return self._read[self.known(text)[1]][:n]


class Seen:
    """Of all models, up to so many GiB; beyond that nothing more is kept."""

    def __init__(self, gib: float):
        self._left = gib * 2**30
        self._models: WeakKeyDictionary[nn.Module, Texts] = WeakKeyDictionary()
        self.answers = False  # keep answers as well, since they will be continued

    def texts(self, model: nn.Module) -> Texts:
        if model not in self._models:
            self._models[model] = Texts(model)
        return self._models[model]

    @torch.no_grad()
    def begin(self, model: nn.Module, texts: Sequence[Ids]) -> Cached | None:
        """A state that has read all of these texts but their last tokens; None where there is no room for that."""
        known, whole = self.texts(model), dict.fromkeys(t[:-1] for t in texts)
        if not self.fits(model, list(whole)):
            return None
        shared = commonprefix(list(whole))
        alone = [shared] if len(whole) > 1 and len(shared) >= SHORT else []
        for some in (alone, sorted(whole, key=len)):
            lacking = [t for t in some if known.known(t)[0] < len(t)]
            for start in range(0, len(lacking), AT_ONCE):
                self._read(model, lacking[start : start + AT_ONCE])
        return _joined(model, [known.of(t[:-1], len(t) - 1) if len(t) > 1 else None for t in texts])

    def _read(self, model: nn.Module, texts: Sequence[Ids]) -> None:
        """Read what is not known of them."""
        known = self.texts(model)
        rest = max(len(t) - known.known(t)[0] for t in texts)  # columns that are read
        state = _joined(model, [known.of(t, len(t) - rest) if len(t) > rest else None for t in texts])
        before = max(len(t) for t in texts) - rest
        width = before + rest
        ids = torch.tensor([[0] * (width - len(t)) + list(t) for t in texts])
        mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in texts])
        state.hidden(ids[:, before:], mask, (mask.cumsum(-1) - 1).clamp(min=0)[:, before:])
        self._keep(model, texts, state, mask)

    def keep(self, model: nn.Module, texts: Sequence[Ids], state: Cached, mask: Tensor) -> None:
        """Keep what a state has read of texts, whose tokens are where ``mask`` [B, S] is 1, if there is room."""
        if self.fits(model, texts):
            self._keep(model, texts, state, mask)

    def _keep(self, model: nn.Module, texts: Sequence[Ids], state: Cached, mask: Tensor) -> None:
        self._left -= self.size(model, texts)
        layers = state.cache.layers
        for b, text in enumerate(texts):
            where = mask[b].nonzero()[:, 0].to(layers[0].keys.device)
            found = [torch.stack([x[b].index_select(1, where) for x in (one.keys, one.values)]) for one in layers]
            self.texts(model).add(text, torch.stack(found).permute(3, 0, 1, 2, 4))

    def fits(self, model: nn.Module, texts: Sequence[Ids]) -> bool:
        """Whether there is room for those of the texts that are not known."""
        known = self.texts(model)
        return self.size(model, [t for t in texts if known.known(t)[0] < len(t)]) <= self._left

    def size(self, model: nn.Module, texts: Sequence[Ids]) -> int:
        """Bytes that what was read of texts takes."""
        return self.texts(model).bytes * sum(map(len, texts))

    def array(self, model: nn.Module, texts: Sequence[Ids]) -> np.ndarray:
        """What was read of texts, or now is, end to end, [T, layers, 2, heads, D]; bf16 as the int16 of its bits."""
        for start in range(0, len(texts), AT_ONCE):
            self.begin(model, [(*t, 0) for t in texts[start : start + AT_ONCE]])
        found = torch.cat([self.texts(model).of(t, len(t)) for t in texts]).cpu()
        return (found.view(torch.int16) if found.dtype == torch.bfloat16 else found).numpy()

    def put(self, model: nn.Module, texts: Sequence[Ids], array: np.ndarray) -> None:
        """Know what ``array`` gave, whatever room there is: it may be mapped from a file."""
        found = torch.from_numpy(array)
        found = found.view(torch.bfloat16) if found.dtype == torch.int16 else found
        for text, read in zip(texts, found.split([len(t) for t in texts]), strict=True):
            self.texts(model).add(text, read)


_seen: ContextVar[Seen | None] = ContextVar("seen", default=None)


@contextmanager
def remembered(gib: float) -> Iterator[None]:
    """What models read in this block is kept up to its end; their weights must not change meanwhile."""
    token = _seen.set(Seen(gib))
    try:
        yield
    finally:
        _seen.reset(token)


@contextmanager
def keeping_answers() -> Iterator[None]:
    """In this block answers are kept as well as prompts, since they will be continued."""
    found = _seen.get()
    if found is not None:
        found.answers = True
    try:
        yield
    finally:
        if found is not None:
            found.answers = False


def seen(model: nn.Module) -> Seen | None:
    """What is kept of this model's reading; None where nothing is, or it is not worth it."""
    found = _seen.get()
    if found is None or sum(p.numel() for p in model.parameters()) < WORTH or not found.texts(model).bytes:
        return None
    return found


def begun(model: nn.Module, texts: Sequence[Sequence[int]]) -> Cached | None:
    """A state that has read all but the last tokens of texts, from what is kept; None where nothing is."""
    found = seen(model)
    return None if found is None else found.begin(model, [tuple(t) for t in texts])


def _joined(model: nn.Module, read: Sequence[Tensor | None]) -> Cached:
    """A state of what was read of each text, [n, layers, 2, heads, D], padded on the left; None is nothing."""
    state, width = Cached(model, whole=True), max(0 if r is None else len(r) for r in read)
    if not width:
        return state
    like = next(r for r in read if r is not None)
    _, layers, _, heads, size = like.shape
    found = torch.zeros(layers, 2, len(read), heads, width, size, dtype=like.dtype, device=device_of(model))
    for b, r in enumerate(read):
        if r is not None:
            found[:, :, b, :, width - len(r) :] = r.to(found.device).permute(1, 2, 3, 0, 4)
    for i, (keys, values) in enumerate(found):
        state.cache.update(keys, values, i)
    return state


@torch.no_grad()
def _bytes(model: nn.Module) -> int:
    """Of the keys and values of one token; 0 where a model keeps something else of a text, or on several devices."""
    if has_encoder(model):
        return 0
    state, one = Cached(model, whole=False), torch.ones(1, 1, dtype=torch.long)
    state.hidden(one, one, one - 1)
    layers = state.cache.layers
    if not all(type(layer) is DynamicLayer and layer.keys is not None for layer in layers):
        return 0
    kept = [t for layer in layers for t in (layer.keys, layer.values)]
    alike = len({(tuple(t.shape), t.device, t.dtype) for t in kept}) == 1
    return sum(t.nbytes for t in kept) if alike else 0
