"""Whether a folder can be used, told before there is work for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

LONGEST = 255  # bytes of a name, on every common file system


def problems(key: str, folder: str, write: bool = True) -> Iterator[str]:
    """Nothing, or why ``folder`` (that of the setting ``key``) can neither be used nor made."""
    if not folder.strip() or "\0" in folder:
        yield f"{key}={folder!r}: must name a folder"
        return
    path = Path(folder)
    if any(len(os.fsencode(part)) > LONGEST for part in path.parts):
        yield f"{key}={folder[:60]!r}…: a folder's name has at most {LONGEST} bytes"
        return
    there = next((p for p in (path, *path.absolute().parents) if os.path.lexists(p)), Path("/"))
    if not there.is_dir():
        what = "leads nowhere" if there.is_symlink() else "is a file"
        yield f"{key}={folder!r}: must be a folder, and {str(there)!r} {what}"
    elif write and not os.access(there, os.W_OK | os.X_OK):
        yield f"{key}={folder!r}: must be a folder that can be written, and {str(there)!r} cannot: give another one"
