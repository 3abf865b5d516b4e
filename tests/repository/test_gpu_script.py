"""The GPU benchmark runs as a whole, in tiny shapes; without a GPU it says so and measures nothing."""

import csv
import importlib
import sys

import pytest
import torch
from support.helpers import ROOT


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "speed"))
    found = importlib.import_module("gpu")
    yield found
    for name in ("gpu", "bench"):
        sys.modules.pop(name, None)


def test_the_whole_script_runs_in_tiny_shapes_and_writes_its_table_where_it_is_told(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--out", str(tmp_path)])
    before = {p.name: p.stat().st_mtime_ns for p in gpu.HERE.iterdir()}
    gpu.main()
    with (tmp_path / "gpu.csv").open() as stream:
        rows = {row["what"]: float(row["ratio"]) for row in csv.DictReader(stream)}
    for begin in ("fill, target", "training, stored, checkpointing", "training, stored, tokens/s",
                  "training step, stored ÷ plain", "memory, stored rows", "memory, stored rows, target put aside, c",
                  "decoding, plain, tokens/s", "decoding, stored drafts, tokens/s"):  # fmt: skip
        assert [v for what, v in rows.items() if what.startswith(begin) and v > 0], begin
    text = (tmp_path / "gpu.md").read_text()
    assert "Tiny shapes on the CPU: no measurement." in text and "100% of the answers are the same" in text
    assert text.strip() in capsys.readouterr().out
    assert {p.name: p.stat().st_mtime_ns for p in gpu.HERE.iterdir()} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line_and_ends_with_status_2(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == "" and len(said.err.splitlines()) == 1
    assert "no CUDA device is visible here" in said.err
