"""What tests of answer rows share."""

import pytest

from unlearn.ensemble import chunks


@pytest.fixture
def in_pieces(monkeypatch):
    """Choose pieces or full rows; blocks and pieces are so small that there are several of each."""
    monkeypatch.setattr(chunks, "LEAST", 7)
    return lambda yes: monkeypatch.setattr(chunks, "CPU", chunks.Sizes(0 if yes else 2**60, 1, 400))
