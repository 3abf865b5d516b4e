"""What search and study share: models, topics, and calls of the framework with what they cost."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TOPICS = HERE / "topics"
SYSTEM = "Answer in one short sentence."  # instead of the system message that the chat templates would put in


def pair(models: Path, target: str, small: str) -> list[str]:
    """Settings of a pair of folders in ``models``."""
    return ["pair=pretrained", f"pair.name={target}", f"pair.target.source={models / target}",
            f"pair.small.source={models / small}", "template=chat", f"data.template.system='{SYSTEM}'",
            "eval.retrained=none"]  # fmt: skip


def called(verb: str, *overrides: str) -> float:
    """Call a command of the framework, its output into the terminal; CPU seconds, user and system, that it took."""
    before = _children()
    subprocess.run([sys.executable, "-m", f"unlearn.{verb}", *overrides], check=False)  # what failed is named below
    return round(_children() - before, 1)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def runs(study: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of finished runs with their manifests; others are named."""
    for path in sorted(Path("runs", study).glob("*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["status"] == "done":
            yield path.parent, manifest
        else:
            print(f"{path.parent.name}: {manifest['status']}: {manifest.get('error')}")


def setting(folder: Path, section: str, key: str) -> str:
    """A value of a run's config.yaml as it stands there."""
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    within = re.search(rf"^{section}:\n((?: .*\n)+)", text, re.M)[1]
    return re.search(rf"^  {key}: (.*)$", within, re.M)[1]
