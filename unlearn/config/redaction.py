"""Keys and tokens stay where they belong, in the environment: what looks like one is never written or shown.

Secret are the values of environment variables that are named so (WANDB_API_KEY, HF_TOKEN, …), what stands behind such a
name (``token=…``, ``"api_key": "…"``), what has the form of a well-known token, and a password in an address.
"""

import logging
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

SHORTEST = 8  # characters: shorter values would be found in words that are not secret
HIDDEN = "***"
WHOLE, ENDING = "key|credentials?", "token|secrets?|passwords?|passwd|apikey|accesskey"  # of the last part of a name
NAME = re.compile(rf"(?:{WHOLE}|\w*(?:{ENDING}))\d*", re.ASCII | re.IGNORECASE)
NUMBER = r"(?:_?\d{1,4})?"  # OPENAI_API_KEY_2
FORMS = re.compile(
    r"(?<![A-Za-z0-9_-])(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{32,}|gh[opsur]_[A-Za-z0-9]{36,}|github_pat_\w{36,}"
    r"|wandb_v\d_\w{36,}|AKIA[0-9A-Z]{16})|(?<=Bearer )[\w.~+/-]{8,}|(?<=://)[^\s/:@]*:[^\s/@]+(?=@)"
)
ASSIGNED = re.compile(
    rf"""(?<!\w)(?P<name>(?:(?:[\w.+~-]{{0,60}}[.+~_-])?(?:{WHOLE})|[\w.+~-]{{0,60}}(?:{ENDING})){NUMBER})"""
    r"""(?P<sign>["']?[:=]["']?|["']:\s*["'])(?P<value>[^\s,;&'"\]})]+)""",
    re.ASCII | re.IGNORECASE,
)


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # but tabs and line ends


@lru_cache(4096)  # every log line asks for the name of every variable
def is_secret(name: str) -> bool:
    """Whether a setting, option or variable of this name holds a secret: its last part says so."""
    return NAME.fullmatch(re.split(r"[.\-+~]|(?<=[a-zA-Z0-9])_", re.sub(r"_\d+$", "", name))[-1]) is not None


def variables() -> dict[str, str]:
    """The secrets of the environment, by the name of their variable."""
    return {k: v for k, v in os.environ.items() if len(v) >= SHORTEST and is_secret(k)}


def secret_in(text: str) -> str | None:
    """What secret a text holds: the name of its variable, or that it has a token's form; None: none."""
    for name, value in variables().items():
        if value in text:
            return f"the value of the environment variable {name}"
    return "what has the form of a token" if FORMS.search(text) else None


def redact(text: str) -> str:
    """The text, with ``***`` instead of every secret."""
    for value in sorted(variables().values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return ASSIGNED.sub(_hidden, FORMS.sub(HIDDEN, text))


def _hidden(found: re.Match[str]) -> str:
    """An assignment without its value; of ``key`` only one as long as a secret: Hydra's advice is full of ``key=…``."""
    short = found["name"].lower() == "key" and (len(found["value"]) < SHORTEST or found["value"][0] in "[{(")
    return found[0] if short else f"{found['name']}{found['sign']}{HIDDEN}"


def redacted(arguments: Sequence[str]) -> list[str]:
    """A command's arguments likewise: ``name=value`` whole, and the argument after ``--token``."""
    found, after = [], False
    for argument in arguments:
        name, sign, _ = argument.partition("=")
        hidden = f"{name}={HIDDEN}" if sign and is_secret(name) else redact(argument)
        found.append(HIDDEN if after else hidden)
        after = argument.startswith("--") and not sign and is_secret(argument)
    return found


def visible(text: str) -> str:
    """The text with its control characters shown: whoever wrote it, it commands no terminal."""
    return CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def in_logs() -> None:
    """From now on every message that is logged in this process, by whatever module, is redacted and ``visible``."""
    plain = logging.getLogRecordFactory()
    if getattr(plain, "redacts", False):
        return

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = plain(*args, **kwargs)
        try:
            said = made.getMessage()
        except (TypeError, ValueError):  # a message that does not fit its arguments: logging itself says so
            return made
        hidden = visible(redact(said))
        if hidden != said:
            made.msg, made.args = hidden, ()
        return made

    record.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
