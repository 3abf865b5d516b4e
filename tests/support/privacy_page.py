"""What docs/privacy.md says of each file, as tables that tests read."""

import re
from fnmatch import fnmatch

from support.helpers import ROOT

PLANTED = {  # secrets in the environment of a test
    "WANDB_API_KEY": "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00",
    "HF_TOKEN": "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",
    "MY_SERVICE_PASSWORD": "correct-horse-battery-staple",
}
PAGE = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")


def table(heading: str) -> dict[str, str]:
    """Pattern of a file → what the page says that it holds, of the first table after a heading."""
    part = PAGE.split(heading, 1)[1].split("\n\n|", 1)[1].split("\n\n", 1)[0]
    rows = [line.split("|") for line in part.splitlines()[2:]]
    return {name: row[2].strip() for row in rows for name in re.findall(r"`([^`]+)`", row[1])}


def kind(path: str, said: dict[str, str]) -> str | None:
    return next((holds for pattern, holds in said.items() if fnmatch(path, pattern)), None)
