"""Write into every wheel and sdist which commit it is built from: the manifests of runs name it."""

import json
import subprocess
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict) -> None:
        if version == "editable" or not (Path(self.root) / ".git").exists():  # a wheel of an sdist has the sdist's
            return
        commit, changes = (self._git(*asked) for asked in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno")))
        path = Path(tempfile.mkdtemp()) / "commit.json"
        path.write_text(json.dumps({"commit": commit, "dirty": bool(changes)}))
        build_data["force_include"][str(path)] = "unlearn/commit.json"

    def _git(self, *arguments: str) -> str:
        return subprocess.check_output(["git", "-C", self.root, *arguments], text=True).strip()
