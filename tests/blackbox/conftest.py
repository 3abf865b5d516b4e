"""Servers that are asked again at once, and tested anew by every test."""

import pytest

from unlearn.blackbox import client, remote


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(client, "FIRST", 0.01)
    monkeypatch.setattr(client, "LONGEST", 0.05)
    monkeypatch.setattr(remote, "_tested", {})
