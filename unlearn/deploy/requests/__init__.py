"""Deletion requests over one target: a ledger of what was asked, when it took effect, and how forgotten it is."""

from unlearn.deploy.requests.ledger import Active, active

__all__ = ["Active", "active"]
