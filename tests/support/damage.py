"""Damage to files and values, and what damaged files say, told by other means than the readers'."""

import json
import random
from pathlib import Path
from typing import Any

TEXTS = ("odd\u2028line\x85end", 'a "quoted" word', "\ttab \x0b", "é\u0301", "{brace}", "a\\nb", "😀")
JUNK = (*TEXTS, None, True, 0, -1, 1.5, 1e308, 10**400, "", " ", "x", [], {}, [1], ["a"], {"a": 1}, "\ud800", "NaN",
        [[]])  # fmt: skip
SPLICES = (b"\xff", b"\xef\xbb\xbf", b"\0", b"\n", b"\r\n", b"{", b"[", b'"', b"NaN", b"1e999", b"\\ud800", b"*",
           b"&a ", b": ", b"- ", "\u2028".encode(), b"[" * 3000, b"9" * 5000)  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A few flips, cuts, repetitions or splices; sometimes nothing but noise."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(200))
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, length = rng.randrange(len(content) + 1), rng.choice((1, 2, 8, 64))
        kind = rng.randrange(5)
        if kind == 0 and content:
            at = min(at, len(content) - 1)
            content = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        elif kind == 1:
            content = content[:at]
        elif kind == 2:
            content = content[:at] + content[at : at + length] * 2 + content[at + length :]
        elif kind == 3:
            content = content[:at] + content[at + length :]
        else:
            content = content[:at] + rng.choice(SPLICES) + content[at:]
    return content


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part of another type, missing, or twice."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key, kept = rng.choice(list(value)), dict(value)
        act = rng.randrange(5)
        if act == 0:
            del kept[key]
        elif act == 1:
            kept[f"{key}{rng.choice(('', ' ', '2'))}x"] = kept.pop(key)
        else:
            kept[key] = changed(value[key], rng)
        return kept
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], changed(value[at], rng), *value[at + rng.randrange(2) :]]
    return rng.choice(JUNK)


def table(rows: list[dict], rng: random.Random) -> bytes:
    """Rows as JSON lines or as an array, with bytes damaged, or with a value changed."""
    if rng.random() < 0.5:
        at = rng.randrange(len(rows))
        rows = [*rows[:at], changed(rows[at], rng), *rows[at + rng.randrange(2) :]]
        return written(rows, rng)
    return damaged(written(rows, rng), rng)


def written(rows: list, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return json.dumps(rows).encode()
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def json_file(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(changed(json.loads(content), rng)).encode() if rng.random() < 0.6 else damaged(content, rng)


def json_text(value: Any, rng: random.Random | None) -> str:
    text = json.dumps(value)
    return damaged(text.encode(), rng).decode("utf-8", "replace") if rng is not None and rng.random() < 0.1 else text


def objects(file: Path, bare: str = "") -> list[dict]:
    """The objects of a file that a reader accepted."""
    text = file.read_bytes().decode("utf-8-sig")
    decoder, found, at = json.JSONDecoder(), [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = decoder.raw_decode(text, at)
        found += value if isinstance(value, list) else [value]
    return [{bare: v} if bare and isinstance(v, str) else v for v in found]


def expected_row(row: dict) -> tuple:
    wrong = row.get("perturbed_answer")
    wrong = () if wrong in (None, []) else (wrong,) if isinstance(wrong, str) else tuple(wrong)
    return row["question"], row["answer"], row.get("paraphrased_answer") or None, wrong


def plain_row(row: Any) -> tuple:
    return row.question, row.answer, row.paraphrased_answer, row.perturbed_answers


def steps(file: Path) -> set[float]:
    found = set()
    for line in file.read_bytes().decode().split("\n"):
        try:
            found.add(float(json.loads(line)["step"]))
        except (ValueError, TypeError, KeyError):  # the half line that a killed run leaves at the end
            continue
    return found
