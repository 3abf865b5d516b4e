"""`python -m unlearn.store`: what it lists, what it calls damaged, and that it removes nothing but that."""

import os
import subprocess
import sys
import time

import pytest
from filelock import FileLock
from support.helpers import ROOT

from unlearn.store import __main__ as command
from unlearn.store import entries as inventory
from unlearn.store.entries import Store
from unlearn.store.files import noted


@pytest.fixture()
def root(tmp_path):
    """A store with three entries, none of them damaged."""
    store = Store(tmp_path / "store")
    for kind, number in (("rows", 1), ("rows", 2), ("model", 3)):
        store.get(kind, {"number": number}, lambda folder: (folder / "value.txt").write_text("x" * 1000))
    return store.root


def folder(root, kind, number):
    return Store(root).folder(kind, {"number": number})


def call(root, *arguments):
    return command.main([*arguments, f"store={root}"])


def test_every_entry_is_listed_with_size_and_recipe(root, capsys):
    assert call(root, "list") == 0
    out = capsys.readouterr().out
    for kind, number in (("rows", 1), ("rows", 2), ("model", 3)):
        assert folder(root, kind, number).name in out and f"number {number}" in out
    found = inventory.entries(root)
    assert [(e.kind, e.bytes > 1000, e.foreign) for e in found] == [(k, True, False) for k in ("model", "rows", "rows")]
    assert f"3 entries, {sum(e.bytes for e in found) / 1000:.1f} kB" in out


def test_a_line_is_as_wide_as_the_terminal_and_nothing_in_it_is_markup(root, capsys, monkeypatch):
    recipe = {"template": "[/INST]\n\x1b[31m{question}", "more": "x" * 24, "examples": "abc", "model": "def", "k": 7}
    made = Store(root).get("references", recipe, lambda folder: (folder / "x").write_text("x"))
    monkeypatch.setenv("COLUMNS", "80")
    assert call(root, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and max(map(len, lines[:-1])) == 80 and lines[0].split()[:3] == ["kind", "entry", "size"]
    line = next(line for line in lines if line.startswith("references"))
    assert (
        made.name in line and time.strftime("%Y-%m-%d") in line and r"template '[/INST]\n" in line and line[-1] == "…"
    )


def test_who_has_read_enough_of_a_list_is_told_nothing(root):
    def status(arguments: str) -> int:
        listed = f"{sys.executable} -m {arguments} | head -n 0; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", listed], cwd=ROOT, capture_output=True, text=True)
        assert done.stderr == ""
        return int(done.stdout)

    assert status(f"unlearn.store list store={root}") in (0, 141)  # as any program whose reader has gone
    assert status("unlearn") == 2 and status("unlearn.serve --help") == 0


DAMAGE = {
    "flipped": ("value.txt does not match its checksum", lambda f: (f / "value.txt").write_text("y" * 1000)),
    "truncated": ("value.txt has 3 bytes instead of 1000", lambda f: (f / "value.txt").write_text("xxx")),
    "missing": ("value.txt is missing", lambda f: (f / "value.txt").unlink()),
    "foreign file": ("other.txt is not one of its files", lambda f: (f / "other.txt").write_text("x")),
    "no card": ("entry.json is missing", lambda f: (f / "entry.json").unlink()),
    "half a card": ("not valid JSON", lambda f: (f / "entry.json").write_text('{"files": {')),
    "another card": ("does not list files", lambda f: (f / "entry.json").write_text("[1, 2]")),
    "a card of numbers": ("does not list", lambda f: (f / "entry.json").write_text('{"files": {"value.txt": 7}}')),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_counted_and_built_again_or_pruned_alone(root, capsys, caplog, kind):
    message, damage = DAMAGE[kind]
    hurt = folder(root, "rows", 1)
    damage(hurt)
    Store(root).get("rows", {"number": 1}, lambda folder: (folder / "value.txt").write_text("x" * 1000))
    assert f"store entry {hurt} is damaged" in caplog.text and message in caplog.text
    assert (hurt / "value.txt").read_text() == "x" * 1000 and call(root, "verify") == 0
    damage(hurt)
    capsys.readouterr()
    assert call(root, "verify") == 1
    out = capsys.readouterr().out
    assert f"{hurt}: " in out and message in out and "1 damaged" in out
    assert call(root, "prune") == 0 and hurt.is_dir()  # says, and removes nothing
    assert f"{hurt}: damaged" in capsys.readouterr().out
    assert call(root, "prune", "yes=true") == 0 and not hurt.exists()
    assert folder(root, "rows", 2).is_dir() and folder(root, "model", 3).is_dir()
    assert call(root, "verify") == 0


def test_what_was_not_used_for_long_goes_if_asked(root):
    old = time.time() - 40 * 24 * 3600
    for kind, number in (("rows", 1), ("model", 3)):
        os.utime(folder(root, kind, number) / "entry.json", (old, old))
    assert set(inventory.to_prune(root, 30, ["rows"])) == {folder(root, "rows", 1)}
    assert set(inventory.to_prune(root, 50, [])) == set()
    Store(root).get("model", {"number": 3}, lambda folder: pytest.fail("it is there"))  # a use
    assert set(inventory.to_prune(root, 30, [])) == {folder(root, "rows", 1)}


def test_entries_of_another_format_and_left_over_builds_may_go(root, monkeypatch):
    build = root / ".building" / "rows-0123"
    build.mkdir(parents=True)
    assert inventory.to_prune(root, None, []) == {build: "left over by a job that was killed"}
    with FileLock(root / ".locks" / "rows-0123.lock"):  # what a job is building stays
        assert inventory.to_prune(root, None, []) == {}
    older = folder(root, "model", 3)
    monkeypatch.setattr(inventory, "STORE_FORMAT", 2)
    assert "format 1, and this program writes 2" in inventory.to_prune(root, None, [])[older]


def test_what_the_store_did_not_make_is_named_and_never_removed(root, capsys):
    (root / "notes.txt").write_text("mine")
    (root / "rows" / "mine").mkdir()
    noted(root / "hashes", root / "notes.txt", lambda path: "finite")
    assert call(root, "verify") == 0 and capsys.readouterr().out.count("not made by the store") == 2
    assert call(root, "list") == 0 and "hashes: 6 B of notes on model files" in capsys.readouterr().out
    assert inventory.to_prune(root, 0.0, []).keys() == {e.folder for e in inventory.entries(root) if not e.foreign}


def test_a_store_that_is_not_there_is_refused(capsys):
    assert call("nowhere", "list") == 2 and "'nowhere': no such folder" in capsys.readouterr().err
