"""Verify a ledger of deletion requests with nothing but Python: this file stands alone, and may be read in one sitting.

python verify_ledger.py ledger.jsonl [public=HEX] [head=head.json] [hmac=VARIABLE]

    public=HEX     the signer's Ed25519 public key, known from somewhere else than the ledger
    head=FILE      a head of the ledger that was exported before (python -m unlearn.request head out=FILE)
    hmac=VARIABLE  the environment variable that holds the key of the HMACs, for whoever shares it

Exit status 0: no fault was found. 1: the first bad entry, and what is wrong with it. 2: the call itself is wrong.

A line of a ledger is an entry in canonical JSON (sorted keys, no spaces, ASCII): its number ``n``, its ``time``, its
``kind``, the ``request`` that it is about, its ``body``, the hash of the entry before it (``previous``) and its own
``hash``: SHA-256 of the entry without ``hash``, ``hmac`` and ``ed25519``. ``ed25519`` is a signature of the hash's 64
digits, by the key that the first entry names; ``hmac`` is HMAC-SHA256 of them. docs/deletion.md says what a chain
without a fault shows, and what it does not.
"""

from __future__ import annotations

import hashlib
import hmac as hmacs
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BEFORE_ALL = "0" * 64  # what the first entry has as the hash before it
FIELDS = {"n": int, "time": str, "kind": str, "request": (str, type(None)), "body": dict, "previous": str, "hash": str}
SEALS = ("hmac", "ed25519")  # beside the hash, where there is a key
Entry = dict  # of an entry's fields
Valid = Callable[[str, bytes, str], bool]  # public key and signature as hex digits, and what is signed


@dataclass(frozen=True)
class Head:
    """The state of a chain: how many entries, and the hash of the last. Whoever keeps it notices a shorter one."""

    count: int
    hash: str


@dataclass(frozen=True)
class Fault:
    """The first bad entry, from 0, and what is wrong: unreadable, changed, removed, reordered, inserted, torn,
    truncated, hmac, signature, audit."""

    number: int
    kind: str
    said: str

    def __str__(self) -> str:
        return f"entry {self.number}: {self.kind}: {self.said}"


# --- the chain --------------------------------------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    """The one spelling of a value in JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def hash_of(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical({k: v for k, v in entry.items() if k not in ("hash", *SEALS)})).hexdigest()


def hmac_of(digest: str, key: bytes) -> str:
    return hmacs.new(key, digest.encode(), hashlib.sha256).hexdigest()


def verify(
    lines: Sequence[bytes], key: bytes | None = None, head: Head | None = None, public: str | None = None
) -> Fault | None:
    """The first bad entry; None where each has the hash of the one before it and, with keys, a right HMAC and a right
    signature, where the audits are of what had to be audited, and the chain continues ``head``."""
    found, fault = walk(lines, key, public)
    if head is not None and 0 < head.count <= len(found) and found[head.count - 1]["hash"] != head.hash:
        said = "is not the one that the exported head was made of: the chain was rewritten"
        return Fault(head.count - 1, "changed", said)
    if fault is None and head is not None and len(lines) < head.count:
        return Fault(len(lines), "truncated", f"the exported head has {head.count} entries, and {len(lines)} are there")
    return fault or audits(found)


def walk(
    lines: Sequence[bytes], key: bytes | None, public: str | None = None, known: Sequence[Entry] = (),
    valid: Valid | None = None,
) -> tuple[list[Entry], Fault | None]:  # fmt: skip
    """The entries up to the first bad one, and what is wrong with that; ``known`` are those of the first lines.
    ``public``: the key that must have signed; None: the one that the first entry names, if it does."""
    found = list(known)
    for line in lines[len(known) :]:
        fault = _fault(line, found, lines, key)
        entry = fault or json.loads(line)
        fault = fault or _unsigned(entry, (found or [entry])[0]["body"].get("ed25519"), public, valid or signed)
        if fault is not None:
            return found, fault
        found.append(entry)
    return found, None


def _fault(line: bytes, before: Sequence[Entry], lines: Sequence[bytes], key: bytes | None) -> Fault | None:
    i, entry = len(before), parsed(line)
    previous = before[-1]["hash"] if before else BEFORE_ALL
    if not line.endswith(b"\n"):
        return Fault(i, "torn", "incomplete line: its write was interrupted; the next entry repairs it")
    if entry is None:
        return Fault(i, "unreadable", "not an entry in canonical JSON: modified after it was written")
    if hash_of(entry) != entry["hash"]:
        return Fault(i, "changed", "hash mismatch: entry modified after it was written")
    if entry["n"] != i:
        there, said = entry["n"], f"entry {entry['n']} stands in its place"
        if i not in {other["n"] for line in lines if (other := parsed(line)) is not None}:
            return Fault(i, "removed", f"is missing; {said}")
        kind, said = ("inserted", f"entry {there} stands here once more") if there < i else ("reordered", said)
        return Fault(i, kind, said)
    if entry["previous"] != previous:
        said = f"does not continue entry {i - 1}: that one was modified and hashed again, or entries were inserted"
        return Fault(i, "changed", said if i else "the first entry continues another one")
    if key is not None and not hmacs.compare_digest(str(entry.get("hmac")), hmac_of(entry["hash"], key)):
        said = "no HMAC" if "hmac" not in entry else "HMAC mismatch: not made with this key"
        return Fault(i, "hmac", f"{said}; the entry was written by somebody else")
    return None


def _unsigned(entry: Entry, named: Any, public: str | None, valid: Valid) -> Fault | None:
    """What is wrong with an entry's signature; ``named``: the key that the ledger's first entry names."""
    n, signature = entry["n"], entry.get("ed25519")
    if public is not None and named != public:
        said = f"the ledger names the key {named}" if named else "the ledger is not signed"
        return Fault(n, "signature", f"{said}, and must be signed by {public}")
    if named is None:
        return signature and Fault(n, "signature", "is signed, and the first entry names no key")
    if signature is None:
        return Fault(n, "signature", "no signature; the entry was written by somebody else")
    digits = [re.fullmatch(f"[0-9a-f]{{{n}}}", str(text)) for n, text in ((64, named), (128, signature))]
    if not all(digits) or not valid(named, entry["hash"].encode(), signature):
        return Fault(n, "signature", "not made with the key of this ledger; the entry was written by somebody else")
    return None


def parsed(line: bytes) -> Entry | None:
    """The entry of a line; None where it is none, or is spelt in another way."""
    try:
        entry = json.loads(line)
        fields = isinstance(entry, dict) and set(FIELDS) <= set(entry) <= {*FIELDS, *SEALS}
        types = fields and all(isinstance(entry[name], kind) for name, kind in FIELDS.items())
        return entry if types and canonical(entry) == line.removesuffix(b"\n") else None
    except (ValueError, RecursionError):
        return None


# --- audits -----------------------------------------------------------------------------------------------------------


def finished(entries: Iterable[Entry]) -> list[str]:
    """Requests and fusions that took effect and were not undone, in the order in which they did."""
    found: dict[str, None] = {}
    for entry in entries:
        if entry["kind"] == "effective":
            found[entry["request"]] = None
        elif entry["kind"] == "undone":
            found.pop(entry["request"], None)
    return list(found)


def chosen(entries: Sequence[Entry], share: float) -> list[str]:
    """Which finished requests are audited: a share of them, at least one, by SHA-256 of the chain's head and their id.
    Nobody chooses but the head; who writes the ledger can however keep writing until the choice suits."""
    ids = finished(entries)
    ranked = sorted(ids, key=lambda id: hashlib.sha256(f"{entries[-1]['hash']} {id}".encode()).hexdigest())
    return ranked[: math.ceil(share * len(ids))]


def audits(entries: Sequence[Entry]) -> Fault | None:
    """The first audit of something else than the head that it names had chosen (``share`` null: the auditor chose)."""
    at = {entry["hash"]: n for n, entry in enumerate(entries)}
    for entry in entries:
        head, share = str(entry["body"].get("head")), entry["body"].get("share")
        if entry["kind"] == "audited" and share is not None:
            before = entries[: at.get(head, len(entries)) + 1]
            right = isinstance(share, (int, float)) and 0 < share <= 1 and len(before) <= entry["n"]
            if not right or entry["request"] not in chosen(before, share):
                return Fault(entry["n"], "audit", f"{entry['request']} is not what the head {head:.16} chose")
    return None


# --- Ed25519 (RFC 8032, section 5.1), verification alone: points are (X, Y, Z, T) with x = X/Z, y = Y/Z, xy = T/Z -----

P, ORDER = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
NEUTRAL = (0, 1, 1, 0)
Point = tuple  # of four numbers below P


def _add(a: Point, b: Point) -> Point:
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    g, h = 2 * D * a[3] * b[3] % P, 2 * a[2] * b[2] % P
    e, f, g, h = f - e, h - g, h + g, f + e
    return e * f % P, g * h % P, f * g % P, e * h % P


def _point(encoded: bytes) -> Point | None:
    """A point from its 32 bytes; None where they encode none, or not in the one canonical way."""
    number = int.from_bytes(encoded, "little")
    y, odd = number % 2**255, number >> 255
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or (x * x - square) % P or (x == 0 and odd):
        return None
    x = P - x if x % 2 != odd else x
    return x, y, 1, x * y % P


def _encoded(point: Point) -> bytes:
    scale = pow(point[2], -1, P)
    return (point[1] * scale % P | (point[0] * scale % P % 2) << 255).to_bytes(32, "little")


BASE = _point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def signed(public: str, message: bytes, signature: str) -> bool:
    """Whether a signature of a message is right (in hex digits). Strict: what is right has one spelling,
    and a key whose point has a small order (there are signatures that fit it with any message) is none."""
    key, r, s = bytes.fromhex(public), bytes.fromhex(signature[:64]), bytes.fromhex(signature[64:])
    point, factor = _point(key), int.from_bytes(s, "little")
    if point is None or factor >= ORDER:
        return False
    eight = point
    for _ in range(3):
        eight = _add(eight, eight)
    if _encoded(eight) == _encoded(NEUTRAL):
        return False
    challenge = int.from_bytes(hashlib.sha512(r + key + message).digest(), "little") % ORDER
    minus, total = (P - point[0], point[1], 1, P - point[3]), NEUTRAL
    for bit in reversed(range(253)):  # factor · BASE − challenge · point
        total = _add(total, total)
        total = _add(total, BASE) if factor >> bit & 1 else total
        total = _add(total, minus) if challenge >> bit & 1 else total
    return _encoded(total) == r


# --- the command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Print the entries and what was verified, or the first fault; the exit status."""
    paths = [a for a in arguments if "=" not in a]
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    if len(paths) != 1 or set(given) - {"public", "head", "hmac"}:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    try:
        with open(paths[0], "rb") as stream:
            lines = stream.read().splitlines(keepends=True)
        key = os.environ[given["hmac"]].encode() if "hmac" in given else None
        head = json.load(open(given["head"], encoding="utf-8")) if "head" in given else None
        kept = head and Head(int(head["count"]), str(head["hash"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        print(f"cannot be read: {error!r}", file=sys.stderr)
        return 2
    fault = verify(lines, key, kept, given.get("public")) if lines else Fault(0, "removed", "the ledger is empty")
    if fault is not None:
        print(fault)
        return 1
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        body = entry["body"]
        verdict = {True: "passed", False: "NOT passed"}.get(body.get("passed"), body.get("outcome", ""))
        print(f"{entry['n']:4}  {entry['time']}  {entry['kind']:9}  {entry['request'] or '':8}  {verdict}".rstrip())
    named = entries[0]["body"].get("ed25519")
    by = "the given key" if "public" in given else "a key that only the ledger itself names: compare it"
    print(f"ledger {entries[0]['body'].get('ledger')}: {len(entries)} entries, each continues the one before it")
    print(f"signatures: {f'right, by {by} ({named})' if named else 'none'}")
    print(f"HMACs: {'right' if key else 'not verified'}; head: {'continued' if head else 'not compared'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
