"""Requests: forget sets that are asked for one after another, over one target that knows them all.

A reader gives the rows that may be asked for, in an order that no request changes, so that target, tokenizer and anchor
stay what they are. One request is unlearnt (or several at once); every other one is a split, ``request_1``, ….
"""

from collections.abc import Sequence

from unlearn.config.data import DataConfig
from unlearn.data.rows import REQUEST, DataError, Requested, Row, pair


def divide(
    rows: Sequence[Row], named: Sequence[Sequence[Row]], cfg: DataConfig
) -> tuple[dict[str, tuple[Row, ...]], Requested]:
    """The splits ``forget``, ``retain`` (what no request names and, as ``data.retained`` says, rows of later or earlier
    requests) and ``request_<n>``, and their sequence. ``named``: the rows of each request, all among ``rows``.
    ``DataError`` for requests that are empty or share a row."""
    place = {row.id: i for i, row in enumerate(rows)}
    requests = tuple(tuple(sorted(request, key=lambda row: place[row.id])) for request in named)
    first: dict[tuple[str, str], int] = {}
    for n, request in enumerate(requests, 1):
        if not request:
            raise DataError(f"data.requests: request {n} names no row that those before it do not; leave it out")
        for row in request:
            other = first.setdefault(pair(row), n)
            if other != n:
                rule = f"is in requests {other} and {n}; requests must be disjoint"
                raise DataError(f"data.requests: {row.place or row.id}: {row.question!r} {rule}")
    if cfg.request is None:
        numbers = tuple(range(1, len(requests) + 1))
    else:
        numbers = (cfg.request,) if isinstance(cfg.request, int) else tuple(sorted(cfg.request))
    last = max(numbers)
    other = [n for n in range(1, len(requests) + 1) if n not in numbers]
    kept = [n for n in other if cfg.retained in ("others", "later" if n > last else "earlier")]
    left_out = {row.id for n, request in enumerate(requests, 1) if n not in kept for row in request}
    wanted = {row.id for n in numbers for row in requests[n - 1]}
    splits = {
        "forget": tuple(row for row in rows if row.id in wanted),
        "retain": tuple(row for row in rows if row.id not in left_out),
    }
    return splits | {f"{REQUEST}{n}": requests[n - 1] for n in other}, Requested(tuple(rows), requests, numbers)
