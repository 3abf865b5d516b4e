"""A server of a tiny offset, without a network; a ledger of two requests that were answered."""

import pytest
from support.requested import EASY, TINY3, copied
from support.served import Client, engine

from unlearn.deploy.requests.actions import Request, add
from unlearn.deploy.requests.fusing import fuse
from unlearn.deploy.requests.ledger import begin, opened


@pytest.fixture(scope="module")
def running():
    with engine(max_batch=8, max_waiting=16) as started:
        yield started


@pytest.fixture
def client(running):
    return Client(running, max_choices=24, max_tokens=30)


@pytest.fixture(scope="session")
def settings(store, tmp_path_factory):
    runs = tmp_path_factory.mktemp("ledger_runs")
    return lambda n, *more: [*TINY3, f"data.request={n}", f"paths.store={store}", f"paths.runs={runs}", *more]


@pytest.fixture(scope="session")
def answered(settings, tmp_path_factory):
    """A ledger with two requests that were answered."""
    folder = tmp_path_factory.mktemp("ledger") / "ledger"
    begin(folder, None)
    for n, more in ((1, {"received": "2026-11-01", "due": "2026-12-01", "subject": "customer 4711"}), (2, {})):
        add(opened(folder), settings(n), Request(rule=EASY, **more))
    return folder


@pytest.fixture
def ledger(answered, tmp_path):
    return copied(answered, tmp_path / "ledger")


@pytest.fixture(scope="session")
def fused(answered, tmp_path_factory):
    """The two requests, fused into one."""
    ledger = copied(answered, tmp_path_factory.mktemp("fused") / "ledger")
    fuse(ledger, rule=EASY)
    return ledger.folder
