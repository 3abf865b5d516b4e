"""Signed ledgers: the verifier that stands alone, against RFC 8032, against a library, and against every change."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
from functools import partial

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from unlearn import request
from unlearn.deploy.requests import signing, verify_ledger
from unlearn.deploy.requests.chain import BEFORE_ALL, Chain
from unlearn.deploy.requests.ledger import begin, opened
from unlearn.deploy.requests.verify_ledger import NEUTRAL, ORDER, P, canonical, chosen, hash_of, signed, verify

VECTORS = (  # RFC 8032, section 7.1: public key, message, signature
    ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2465"
     "5141438e7a100b"),
    ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb0"
     "0d291612bb0c00"),
    ("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc0"
     "27beceea1ec40a"),
    ("ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf", hashlib.sha512(b"abc").hexdigest(),
     "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9"
     "bef1177331a704"),
)  # fmt: skip
ONE, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n in (1, 2))
NAME = "UNLEARN_TEST_SIGN"


def public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def flipped(digits: str, bit: int) -> str:
    data = bytearray.fromhex(digits)
    data[bit // 8] ^= 1 << bit % 8
    return data.hex()


@pytest.mark.parametrize(("key", "message", "signature"), VECTORS, ids=range(len(VECTORS)))
def test_the_vectors_of_rfc_8032_are_right_and_nothing_beside_them(key, message, signature):
    message = bytes.fromhex(message)
    for valid in (signed, signing.signed):
        assert valid(key, message, signature)
        assert not valid(key, message + b"\0", signature) and not valid(VECTORS[0][0][:-2] + "1b", message, signature)
        assert not any(valid(key, message, flipped(signature, bit)) for bit in (0, 200, 255, 256, 400, 511))


def test_the_verifier_agrees_with_a_library_on_keys_messages_and_damaged_signatures():
    draw, found = random.Random(0), []
    for n in range(30):
        key, message = Ed25519PrivateKey.from_private_bytes(draw.randbytes(32)), draw.randbytes(n)
        right = key.sign(message).hex()
        for signature in (right, flipped(right, draw.randrange(512))):
            found.append(signed(public(key), message, signature))
            assert found[-1] == signing.signed(public(key), message, signature)
    assert found == [True, False] * 30


def test_a_signature_has_one_spelling_and_a_key_of_small_order_signs_nothing():
    message = b"m"
    right = ONE.sign(message)
    factor = int.from_bytes(right[32:], "little")
    malleable = right[:32] + (factor + ORDER).to_bytes(32, "little")
    assert signed(public(ONE), message, right.hex()) and not signed(public(ONE), message, malleable.hex())
    base, anything = verify_ledger._encoded(verify_ledger.BASE), (1).to_bytes(32, "little")
    neutral = verify_ledger._encoded(NEUTRAL)
    respelt = (1 + P).to_bytes(32, "little")  # the same point, y not below P
    minus_zero = bytes([*neutral[:31], 128])
    order_two = (P - 1).to_bytes(32, "little")
    for key in (neutral, respelt, minus_zero, order_two):  # [1] B = B + [k] 0: fits any message
        assert not signed(key.hex(), message, (base + anything).hex())


# --- the chain ----------------------------------------------------------------------------------------------------


def chain(folder, name: str, key: Ed25519PrivateKey | None = ONE, n: int = 4) -> list[bytes]:
    found = Chain(folder / name)
    found.sign = None if key is None else lambda text: key.sign(text.encode()).hex()
    named = {} if key is None else {"ed25519": public(key)}
    for i in range(n):
        found.append("opened" if i == 0 else "asked", f"R{i}", {"ledger": name} | (named if i == 0 else {}))
    return found.lines()


def resigned(line: bytes, key: Ed25519PrivateKey | None, **changes) -> bytes:
    entry = {k: v for k, v in json.loads(line).items() if k not in ("hash", "ed25519")} | changes
    entry["hash"] = hash_of(entry)
    return canonical(entry | ({"ed25519": key.sign(entry["hash"].encode()).hex()} if key else {})) + b"\n"


def anew(lines, key: Ed25519PrivateKey | None, **first):
    """The whole chain written and signed again by somebody."""
    found, previous = [], BEFORE_ALL
    for n, line in enumerate(lines):
        body = json.loads(line)["body"] | (first if n == 0 else {"changed": True})
        found.append(resigned(line, key, previous=previous, body=body))
        previous = json.loads(found[-1])["hash"]
    return found


def with_signature(line: bytes, change) -> bytes:
    entry = json.loads(line)
    return canonical(entry | {"ed25519": change(entry["ed25519"])}) + b"\n"


def upper(line: bytes) -> bytes:
    return with_signature(line, str.upper)


def malleable(line: bytes) -> bytes:
    def more(digits: str) -> str:
        factor = int.from_bytes(bytes.fromhex(digits[64:]), "little") + ORDER
        return digits[:64] + factor.to_bytes(32, "little").hex()

    return with_signature(line, more)


CHANGES = {  # what is done to the lines of a chain, knowing another one; number and kind of the fault
    "an entry changed and hashed again": (lambda a, b: [*a[:2], resigned(a[2], None, body={}), a[3]], 2, "signature"),
    "and signed by another key": (lambda a, b: [*a[:2], resigned(a[2], OTHER, body={}), a[3]], 2, "signature"),
    "a signature of another entry": (
        lambda a, b: [*a[:2], with_signature(a[2], lambda _: json.loads(a[1])["ed25519"]), a[3]], 2, "signature"),
    "a signature in capitals": (lambda a, b: [*a[:3], upper(a[3])], 3, "signature"),
    "a signature plus the order": (lambda a, b: [*a[:3], malleable(a[3])], 3, "signature"),
    "a signature too short": (lambda a, b: [*a[:3], with_signature(a[3], lambda s: s[:-2])], 3, "signature"),
    "a signature removed": (lambda a, b: [*a[:2], resigned(a[2], None), a[3]], 2, "signature"),
    "all signatures removed": (lambda a, b: [resigned(line, None) for line in a], 0, "signature"),
    "an entry of another ledger": (lambda a, b: [*a[:2], b[2], a[3]], 2, "changed"),
    "removed": (lambda a, b: [*a[:2], a[3]], 2, "removed"),
    "reordered": (lambda a, b: [a[0], a[2], a[1], a[3]], 1, "reordered"),
    "torn": (lambda a, b: [*a[:3], a[3][:50]], 3, "torn"),
    "truncated": (lambda a, b: a[:3], 3, "truncated"),
    "all written anew by another key": (lambda a, b: anew(a, OTHER, ed25519=public(OTHER)), 0, "signature"),
    "all written anew without": (lambda a, b: anew(a, None, ed25519=None), 0, "signature"),
    "all written anew by its own key": (lambda a, b: anew(a, ONE), 3, "changed"),
    "another ledger of the same key": (lambda a, b: b, 3, "changed"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_done_to_a_signed_ledger_is_found_by_key_and_head(name, tmp_path):
    mine, other = chain(tmp_path, "mine"), chain(tmp_path, "other")
    head = verify_ledger.Head(4, json.loads(mine[3])["hash"])
    assert verify(mine, None, head, public(ONE)) is None
    change, number, kind = CHANGES[name]
    for valid in (signed, signing.signed):
        found, fault = verify_ledger.walk(change(mine, other), None, public(ONE), (), valid)
        assert fault is None or (fault.number, fault.kind) == (number, kind)
    fault = verify(change(mine, other), None, head, public(ONE))
    assert (fault.number, fault.kind) == (number, kind) and str(number) in str(fault)


def test_a_signature_in_a_ledger_that_names_no_key_is_none(tmp_path):
    plain = chain(tmp_path, "plain", None)
    extra = [plain[0], resigned(plain[1], ONE), *plain[2:]]
    assert (
        verify(plain) is None
        and str(verify(extra)) == "entry 1: signature: is signed, and the first entry names no key"
    )


# --- the file that stands alone -------------------------------------------------------------------------------------


def test_the_verifier_needs_nothing_but_python(tmp_path):
    script = shutil.copy(verify_ledger.__file__, tmp_path)
    lines = chain(tmp_path, "ledger.jsonl")
    (tmp_path / "head.json").write_text(json.dumps({"count": 4, "hash": json.loads(lines[3])["hash"]}))
    given = [f"public={public(ONE)}", f"head={tmp_path}/head.json"]

    def run(*arguments):
        command = [sys.executable, "-I", "-S", script, f"{tmp_path}/ledger.jsonl", *arguments]
        found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        return found.returncode, found.stdout

    status, said = run(*given)
    assert status == 0 and "right, by the given key" in said and "head: continued" in said
    assert "compare it" in run()[1] and run("key=x")[0] == 2 == run("head=nowhere")[0]
    (tmp_path / "ledger.jsonl").write_bytes(b"".join(lines[:3]))
    assert run()[0] == 0 and run(*given) == (
        1, "entry 3: truncated: the exported head has 4 entries, and 3 are there\n")  # fmt: skip


def test_the_command_refuses_in_words_what_it_cannot_read(tmp_path, capsys, monkeypatch):
    chain(tmp_path, "ledger.jsonl")
    (tmp_path / "empty").write_bytes(b"")
    monkeypatch.delenv("NO_SUCH", raising=False)
    main = partial(verify_ledger.main)
    for arguments, status in ((["nowhere"], 2), ([], 2), ([f"{tmp_path}/ledger.jsonl", "hmac=NO_SUCH"], 2),
                              ([f"{tmp_path}/empty"], 1), ([f"{tmp_path}/ledger.jsonl"], 0)):  # fmt: skip
        assert main(arguments) == status, arguments


# --- the ledger -----------------------------------------------------------------------------------------------------


def pem(key: Ed25519PrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def test_a_signed_ledger_is_written_by_its_private_key_and_read_by_everybody(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(NAME, pem(ONE))
    where = f"ledger={tmp_path}/ledger"
    assert request.main(["init", where, f"sign={NAME}"]) == 0 and f"public={public(ONE)}" in capsys.readouterr().out
    ledger = opened(tmp_path / "ledger")
    ledger.chain.append("repaired", None, {})
    monkeypatch.delenv(NAME)
    assert request.main(["verify", where, f"public={public(ONE)}"]) == 0
    assert f"signatures are right, by {public(ONE)}" in capsys.readouterr().out
    assert request.main(["verify", where, f"public={public(OTHER)}"]) == 1
    assert f"entry 0: signature: the ledger names the key {public(ONE)}" in capsys.readouterr().err
    assert request.main(["list", where, f"public={public(OTHER)}"]) == 2
    assert request.main(["verify", where, "public=abc"]) == 2
    assert "public='abc': must be an Ed25519 public key in 64 hex digits" in capsys.readouterr().err
    for value, message in (("", "must hold an Ed25519 private key in PEM"), (pem(OTHER), "holds another key than")):
        monkeypatch.setenv(NAME, value)
        with pytest.raises(Exception, match=message):
            opened(tmp_path / "ledger").chain.append("repaired", None, {})
    assert len(opened(tmp_path / "ledger").chain.entries()) == 2


# --- audits ---------------------------------------------------------------------------------------------------------


def test_the_head_chooses_what_is_audited_and_the_verifier_knows_what_it_chose(tmp_path):
    found = Chain(tmp_path / "ledger.jsonl")
    for n in range(8):
        found.append("effective", f"R{n}", {})
    found.append("undone", "R3", {})
    entries = found.entries()
    every, some = chosen(entries, 1), chosen(entries, 0.3)
    assert (
        sorted(every) == [f"R{n}" for n in (0, 1, 2, 4, 5, 6, 7)]
        and some == every[:3]
        and len(chosen(entries, 1e-9)) == 1
    )
    head = entries[-1]["hash"]
    found.append("audited", some[1], {"head": head, "share": 0.3, "outcome": "same"})
    found.append("audited", every[-1], {"head": head, "share": None, "outcome": "same"})  # the auditor named it
    assert verify(found.lines()) is None
    whole = found.path.read_bytes()
    for body in ({"head": head, "share": 0.3}, {"head": "0" * 64, "share": 0.3}, {"head": head, "share": "all"}):
        found.append("audited", every[-1], body)
        assert (fault := verify(found.lines())).kind == "audit" and fault.number == 11
        found.path.write_bytes(whole)


def test_a_ledger_that_is_not_signed_stays_as_it_was(tmp_path):
    ledger = begin(tmp_path / "plain", None)
    assert set(ledger.chain.entries()[0]["body"]) == {"format", "ledger", "hmac"} and ledger.chain.sign is None
