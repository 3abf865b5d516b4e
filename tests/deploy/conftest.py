"""A server of a tiny offset, without a network."""

import pytest
from support.served import Client, engine


@pytest.fixture(scope="module")
def running():
    with engine(max_batch=8, max_waiting=16) as started:
        yield started


@pytest.fixture
def client(running):
    return Client(running, max_choices=24, max_tokens=30)
