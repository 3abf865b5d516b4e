"""The chain of a ledger: every way to change it is found, at the first bad entry, and named."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from unlearn.deploy.requests import chain, verify_ledger
from unlearn.deploy.requests.chain import Chain, LedgerError
from unlearn.deploy.requests.verify_ledger import BEFORE_ALL, Head, canonical, hash_of, verify

KEY = b"a key of some length"


PRIVATE, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n in (1, 2))
PUBLIC = PRIVATE.public_key().public_bytes_raw().hex()


def by(private: Ed25519PrivateKey, text: str) -> str:
    return private.sign(text.encode()).hex()


@pytest.fixture(params=["plain", "hmac", "signed"])
def made(request, tmp_path):
    found = Chain(tmp_path / "ledger.jsonl", KEY if request.param == "hmac" else None)
    if request.param == "signed":
        found.sign = partial(by, PRIVATE)
    for n in range(5):
        named = {} if found.sign is None else {"ed25519": PUBLIC}
        found.append("asked", f"R{n}", {"value": n, "text": "ä\n", "share": 0.1} | named)
    return found


def rewritten(line: bytes, rehash: bool = True, **changes) -> bytes:
    entry = {k: v for k, v in json.loads(line).items() if k not in ("hmac", "ed25519") or not rehash} | changes
    if rehash:
        entry["hash"] = hash_of(entry)
    return canonical(entry) + b"\n"


def test_an_entry_has_its_number_the_hash_before_it_and_its_own(tmp_path):
    found = Chain(tmp_path / "ledger.jsonl")
    first, second = (found.append("asked", "R1", {"b": 1, "a": [0.5]}) for _ in range(2))
    text = json.dumps({k: v for k, v in first.items() if k != "hash"}, sort_keys=True, separators=(",", ":"))
    assert first["hash"] == hashlib.sha256(text.encode()).hexdigest()
    assert (first["n"], first["previous"], second["n"], second["previous"]) == (0, BEFORE_ALL, 1, first["hash"])
    assert found.entries() == [first, second] and found.head() == Head(2, second["hash"])
    assert (tmp_path / "ledger.jsonl").read_bytes() == canonical(first) + b"\n" + canonical(second) + b"\n"


def changed(lines, rehash: bool = False):
    return [*lines[:2], rewritten(lines[2], rehash, body={"value": 9}), *lines[3:]]


def anew(lines):
    """The whole chain written again, with another entry: nothing in it contradicts itself."""
    found, previous = [], BEFORE_ALL
    for n, line in enumerate(lines):
        found.append(rewritten(line, previous=previous, **({"body": {"value": 9}} if n == 2 else {})))
        previous = json.loads(found[-1])["hash"]
    return found


FAULTS = {
    "changed": (changed, 2, "changed"),
    "respelt": (lambda lines: [*lines[:2], lines[2].replace(b":", b": ", 1), *lines[3:]], 2, "unreadable"),
    "no JSON": (lambda lines: [*lines[:3], b"nonsense\n", *lines[4:]], 3, "unreadable"),
    "not an entry": (lambda lines: [*lines[:3], b"[1]\n", *lines[4:]], 3, "unreadable"),
    "removed": (lambda lines: [*lines[:2], *lines[3:]], 2, "removed"),
    "first removed": (lambda lines: lines[1:], 0, "removed"),
    "reordered": (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], 1, "reordered"),
    "twice": (lambda lines: [*lines[:3], lines[1], *lines[3:]], 3, "inserted"),
    "torn": (lambda lines: [*lines[:4], lines[4][:20]], 4, "torn"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_was_done_to_a_chain_is_named_at_the_first_bad_entry(made, name):
    act, number, kind = FAULTS[name]
    fault = verify(act(made.lines()), made.key)
    assert (fault.number, fault.kind) == (number, kind) and str(number) in str(fault)


def test_what_a_chain_alone_does_not_show_is_found_by_its_hmacs_or_by_a_head(made):
    def found(lines, *given):
        fault = verify(lines, *given)
        return fault and (fault.number, fault.kind)

    whole, head = made.lines(), made.head()
    for kept in (None, head, Head(3, json.loads(whole[2])["hash"])):
        assert found(whole, made.key, kept) is None
    assert found(whole, b"another key of length") == (0, "hmac")
    found_at = (2, "hmac") if made.key else (2, "signature") if made.sign else (3, "changed")
    assert found(changed(whole, rehash=True), made.key) == found_at
    assert found(anew(whole)) == ((0, "signature") if made.sign else None) and found(anew(whole), KEY) == (0, "hmac")
    if not made.sign:
        assert found(anew(whole), None, head) == (4, "changed")
    assert found(whole[:3], made.key) is None and found(whole[:3], made.key, head) == (3, "truncated")


def test_a_torn_entry_is_no_entry_and_the_next_one_says_so(made):
    whole = made.lines()
    made.path.write_bytes(b"".join(whole[:4]) + whole[4][:31])
    assert len(made.entries()) == 4 and verify(made.lines()).kind == "torn"
    made.append("asked", "R9", {})
    assert [e["kind"] for e in made.entries()] == ["asked"] * 4 + ["repaired", "asked"]
    assert made.entries()[4]["body"] == {"bytes_of_a_torn_entry": 31}
    assert verify(made.lines(), made.key) is None


def test_nothing_is_added_to_a_broken_chain(made):
    made.path.write_bytes(b"".join(changed(made.lines())))
    before = made.path.read_bytes()
    for act in (lambda: made.append("asked", "R9", {}), made.entries):
        with pytest.raises(LedgerError, match="entry 2: changed"):
            act()
    assert made.path.read_bytes() == before


def test_an_entry_is_on_the_disk_before_it_counts_and_a_full_disk_leaves_no_half_of_it(made, monkeypatch):
    synced = []
    monkeypatch.setattr(chain.os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    made.append("asked", "R9", {})
    assert synced == [made.path.stat().st_size]
    before = made.path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chain.os, "fsync", full)
    with pytest.raises(OSError, match="its disk is full"):
        made.append("asked", "R10", {})
    assert made.path.read_bytes() == before


def test_two_writers_never_take_one_number(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: Chain(tmp_path / "ledger.jsonl").append("asked", f"R{n}", {}), range(20)))
    found = Chain(tmp_path / "ledger.jsonl").entries()
    assert [e["n"] for e in found] == list(range(20)) and len({e["request"] for e in found}) == 20


def test_a_line_is_verified_once_and_again_where_it_changed(made, monkeypatch):
    hashed = []
    for module in (chain, verify_ledger):
        monkeypatch.setattr(module, "hash_of", lambda entry, real=hash_of: hashed.append(entry["n"]) or real(entry))
    made.append("asked", "R9", {})
    assert made.entries() == made.entries() and made.head().count == 6
    assert sorted(hashed) == [4, 5, 5]  # the last as it is added; this one as it is made, then verified
    made.path.write_bytes(b"".join(changed(made.lines())))
    with pytest.raises(LedgerError, match="entry 2: changed: hash mismatch"):
        made.entries()
