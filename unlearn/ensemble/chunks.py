"""Answer rows over a long vocabulary, [N, V], that are never in memory all at once. What an objective reads of a row is
one number: it is computed from hidden states a block of rows at a time, and kept alone; the backward pass makes each
block's logits again. So any loss of such numbers has the values and gradients of full rows (row chunks: Liger kernel,
arXiv 2410.10989). A block is as many rows as a matrix product needs to be quick; its logits are read in pieces that
stay in the cache, and are overwritten by their gradients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from unlearn.models.llama import full_precision, vocabulary

Pieces = Iterator[tuple[slice, Tensor]]  # which rows, and their logits
LEAST = 64  # rows of a block: with fewer, a product on a CPU waits for the head's weights rather than for arithmetic


@dataclass(frozen=True)
class Sizes:
    """In logits."""

    long: int  # with fewer, full rows are quicker (CPU, measured) or there is room for them (GPU)
    block: int
    piece: int


CPU, GPU = Sizes(2**24, 2**21, 2**18), Sizes(2**26, 2**25, 2**23)


def long(rows: int, model: nn.Module) -> bool:
    """Whether ``rows`` answer rows are worth splitting: there are many logits, and the head is one matrix."""
    head = model.get_output_embeddings()
    return type(head) is nn.Linear and rows * vocabulary(model) > _sizes(head.weight.device).long


def block(width: int, device: torch.device) -> int:
    return max(LEAST, _sizes(device).block // width)


def _sizes(device: torch.device) -> Sizes:
    return CPU if device.type == "cpu" else GPU


@dataclass(frozen=True)
class LongRows:
    """Rows of an ensemble, to be read piece by piece: the trained member's from its hidden states and head."""

    model: nn.Module  # the trained member; its head is an ``nn.Linear``
    hidden: Tensor  # [N, D] its last hidden states, with gradient, in the precision that its head is to work in
    # from its logits of some rows and which rows these are, both [n, V]: the ensemble's logits of them
    join: Callable[[Tensor, slice], Tensor]

    def map(self, function: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """One value per row, [N], with gradient; ``function`` takes the ensemble's logits of some rows, and which."""
        head = self.model.get_output_embeddings()

        def values(logits: Tensor, here: slice) -> Tensor:
            return function(self.join(logits, here), here)

        return _Blocks.apply(self.hidden, head.weight, head.bias, vocabulary(self.model), values)

    def pieces(self) -> Iterator[slice]:
        """All rows in order, by slices of the size in which they are read."""
        width, device = vocabulary(self.model), self.hidden.device
        for here in _split(slice(0, len(self.hidden)), block(width, device)):
            yield from pieces(here, width, device)

    def whole(self) -> Tensor:
        """All rows at once, [N, V] with gradient: for what reads more of them than one number each."""
        head = self.model.get_output_embeddings()
        logits = product(self.hidden, head.weight, head.bias, vocabulary(self.model))
        return self.join(full_precision(logits), slice(0, len(self.hidden)))


def product(hidden: Tensor, weight: Tensor, bias: Tensor | None, width: int, out: Tensor | None = None) -> Tensor:
    """The first ``width`` logits of hidden states, [n, width], in the states' own precision. One function for every
    member: where two of them agree, so do the products, to the last bit."""
    logits = torch.mm(hidden, weight[:width].to(hidden.dtype).T, out=out)
    return logits if bias is None else logits.add_(bias[:width])


class _Blocks(torch.autograd.Function):
    """Values per row of logits = hidden · weightᵀ + bias, their first ``width`` columns, in the precision of hidden."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, width, values):
        ctx.save_for_backward(hidden, weight, bias)
        ctx.width, ctx.values = width, values
        found = _blocks(hidden, weight, bias, width)
        return torch.cat([values(full_precision(piece), rows) for _, _, parts in found for rows, piece in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        hidden, weight, bias = ctx.saved_tensors
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(t) if needed else None
            for t, needed in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        )
        for here, logits, parts in _blocks(hidden, weight, bias, ctx.width):
            for rows, piece in parts:
                leaf = full_precision(piece).detach().requires_grad_()
                with torch.enable_grad():
                    found = ctx.values(leaf, rows)
                if found.requires_grad:
                    piece.copy_(torch.autograd.grad(found, leaf, gradient[rows])[0])
                else:  # a rule may leave no way from the trained member to the ensemble
                    piece.zero_()
            if of_hidden is not None:
                torch.mm(logits, weight[: ctx.width].to(hidden.dtype), out=of_hidden[here])
            if of_weight is not None and weight.dtype == hidden.dtype:
                of_weight[: ctx.width].addmm_(logits.T, hidden[here])
            elif of_weight is not None:  # summed in the weight's own precision
                of_weight[: ctx.width] += logits.T @ hidden[here]
            if of_bias is not None:
                of_bias[: ctx.width] += logits.sum(0)
        return of_hidden, of_weight, of_bias, None, None


def _blocks(hidden: Tensor, weight: Tensor, bias: Tensor | None, width: int) -> Iterator[tuple[slice, Tensor, Pieces]]:
    """Blocks of rows, their logits and the pieces of these, all in one buffer: each block overwrites the one before."""
    weight = weight.to(hidden.dtype)  # once for all blocks
    size = min(len(hidden), block(width, hidden.device))
    buffer = hidden.new_empty(size, width)
    for here in _split(slice(0, len(hidden)), size):
        logits = product(hidden[here], weight, bias, width, buffer[: here.stop - here.start])
        inside = pieces(here, width, hidden.device)
        yield here, logits, ((rows, logits[rows.start - here.start : rows.stop - here.start]) for rows in inside)


def pieces(here: slice, width: int, device: torch.device) -> Iterator[slice]:
    """Slices of these rows, counted as they are, whose logits stay in the cache."""
    return _split(here, max(1, _sizes(device).piece // width))


def _split(here: slice, size: int) -> Iterator[slice]:
    for start in range(here.start, here.stop, size):
        yield slice(start, min(start + size, here.stop))
