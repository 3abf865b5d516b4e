"""Tables of a study: the numbers of eval.json, marks only where intervals separate, and no run dropped in silence."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.mathtext import MathTextParser
from support.made_up import METRICS, rewrite, two_worlds, write_made_up_run

from analysis import table as command
from analysis import table_formats
from analysis.runs import StudyError, load
from analysis.table import FORMATS, differences, table
from unlearn.grid import table as grid

RETRAINED = 0.15  # the made-up retrained model's forget/prob


def seeds(study: Path, algo: str, points: list[tuple[float, float]], **more) -> None:
    """A made-up run per pair seed, with (forget/prob, retain/prob)."""
    for pair_seed, point in enumerate(points):
        write_made_up_run(study, {1.0: point}, algo=algo, pair_seed=pair_seed, **more)


def row_of(found, **settings):
    (row,) = [r for r in found.rows if r.kind == "run" and settings.items() <= r.settings.items()]
    return row


def test_csv_holds_the_numbers_of_eval_json(made_up):
    shown = csv.DictReader(io.StringIO(FORMATS["csv"](table(load(made_up)))))
    rows = {(r["kind"], r["algo"], r["alpha"]): r for r in shown}
    evaluated = [f for f in made_up.iterdir() if (f / "eval.json").exists()]
    for folder in evaluated:
        for alpha, entry in json.loads((folder / "eval.json").read_text())["alphas"].items():
            row = rows["run", folder.name.split("-")[0], alpha]
            assert {m: float(row[m]) for m in METRICS} == {m: entry[m] for m in METRICS}
    references = json.loads((evaluated[0] / "eval.json").read_text())["references"]
    for name in ("target", "retrained"):
        assert {m: float(rows[name, "", ""][m]) for m in METRICS} == {m: references[name][m] for m in METRICS}


def test_failed_and_unfinished_runs_have_rows_and_collapsed_ones_are_marked(made_up, tmp_path):
    write_made_up_run(made_up, {}, algo="npo", alpha=0.5, status="failed", seed=1)
    found = table(load(made_up))
    said = {(r.settings["algo"], r.settings["alpha"]): table_formats.runs(r) for r in found.rows if r.kind == "run"}
    assert said == {
        ("ga", 0.5): "done", ("ga", 1.0): "collapsed", ("gd", 1.0): "running", ("kl", 1.0): "failed",
        ("npo", 0.5): "1 done; 1 failed", ("npo", 1.0): "done",
    }  # fmt: skip
    assert "7 runs: 4 done, 2 failed, 1 running" in found.notes
    assert any(note.startswith("1 collapsed") for note in found.notes)
    for text in (f(found) for f in FORMATS.values()):
        assert "gd" in text and "kl" in text and "failed" in text
    folder = write_made_up_run(tmp_path / "s", {1.0: (0.1, 0.8), 2.0: (0.1, 0.8), 4.0: (0.1, 0.2)})
    rewrite(folder / "manifest.json", lambda m: m.update(collapsed="the loss went to 1e9"))
    rows = [r for r in table(load("s", tmp_path)).rows if r.kind == "run"]
    assert [r.counts["collapsed"] for r in rows] == [1, 0, 1]
    # where it was evaluated, the run's own look at what it keeps says nothing
    rewrite(folder / "manifest.json", lambda m: m.update(collapsed="keeps 0.41 of the target's probability outside"))
    found = table(load("s", tmp_path))
    assert [(r.counts["collapsed"], round(r.cells["kept"].mean, 2)) for r in found.rows if r.kind == "run"] == [
        (0, 0.81), (0, 0.81), (1, 0.2),
    ]  # fmt: skip
    assert [r.cells["kept"].mean for r in found.rows if r.kind != "run"] == [1.0, 1.0] and "kept" in found.metrics
    manifests = json.loads((folder / "manifest.json").read_text()), {"collapsed": "the loss went to 1e9"}, {}
    entries = json.loads((folder / "eval.json").read_text())
    for alpha, gone in (("1.0", False), ("2.0", False), ("4.0", True)):  # the program's own table has the same rule
        left = grid.kept(entries["alphas"][alpha], entries["references"]["target"])
        assert [grid.collapsed(m, left, alpha == "1.0") for m in manifests] == [gone, gone or alpha == "1.0", gone]
    write_made_up_run(tmp_path / "none", {}, status="failed")
    found = table(load("none", tmp_path))
    assert found.notes == ("no run is evaluated", "1 runs: 1 failed") and found.metrics == ()


def test_intervals_are_over_pair_seeds_and_best_is_marked_only_where_they_separate(tmp_path):
    seeds(tmp_path / "s", "npo", [(0.16, 0.95), (0.15, 0.96), (0.17, 0.94)])
    seeds(tmp_path / "s", "ga", [(0.40, 0.60), (0.50, 0.65), (0.45, 0.55)])
    seeds(tmp_path / "s", "kl", [(0.01, 0.94), (0.02, 0.97), (0.01, 0.95)])
    found = table(load("s", tmp_path), ["forget/prob", "retain/prob"])
    npo = row_of(found, algo="npo")
    assert npo.cells["retain/prob"].mean == pytest.approx(0.95)
    assert npo.cells["retain/prob"].half == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-5)
    # nearest to the retrained model's 0.15, though kl forgets further; npo and kl do not separate on retain
    assert {r.settings["algo"]: set(r.best) for r in found.rows if r.kind == "run"} == {
        "npo": {"forget/prob"}, "ga": set(), "kl": set(),
    }  # fmt: skip
    assert "0.160 ± 0.025*" in FORMATS["terminal"](found)
    assert "**0.160 ± 0.025**" in FORMATS["markdown"](found)
    assert r"$\mathbf{0.160 \pm 0.025}$" in FORMATS["latex"](found)


def test_one_seed_marks_nothing_a_collapsed_row_is_never_best_and_a_value_that_some_seeds_lack_says_so(
    made_up, tmp_path
):
    assert not any(row.best for row in table(load(made_up)).rows)
    seeds(tmp_path / "s", "npo", [(0.4, 0.9), (0.4, 0.9)])
    seeds(tmp_path / "s", "ga", [(RETRAINED, 0.1), (RETRAINED, 0.1)])
    assert row_of(table(load("s", tmp_path)), algo="ga").best == frozenset()
    seeds(tmp_path / "lacking", "npo", [(0.1, 0.9), (math.nan, 0.9), (0.3, 0.9)])
    found = table(load("lacking", tmp_path))
    cell = row_of(found, algo="npo").cells["forget/prob"]
    assert (cell.n, cell.mean) == (2, pytest.approx(0.2))
    assert "(n=2)" in FORMATS["terminal"](found) and "(n=2)" in FORMATS["latex"](found)


def test_differences_are_paired_by_pair_seed(tmp_path):
    worlds = [(0.2, 0.5), (0.4, 0.7), (0.3, 0.9), (0.1, 0.6), (0.2, 0.8)]
    seeds(tmp_path / "s", "npo", worlds, method="direct")
    seeds(tmp_path / "s", "npo", [(a, b + d) for (a, b), d in zip(worlds, (0.1, 0.08, 0.09, 0.11, 0.12), strict=True)])
    seeds(tmp_path / "s", "ga", worlds)
    study = load("s", tmp_path)
    for base in ("direct", "method=direct"):
        found = differences(study, base, ["retain/prob", "forget/prob"])
        cell = row_of(found, algo="npo", method="offset").cells["retain/prob"]
        assert (cell.mean, cell.n, cell.separated) == (pytest.approx(0.1), 5, True)
        assert 0.08 <= cell.low < 0.1 < cell.high <= 0.12
        assert not row_of(found, algo="npo", method="offset").cells["forget/prob"].separated
        assert row_of(found, algo="ga").cells["retain/prob"].n == 0
        assert "1 rows have no counterpart" in found.notes
    assert "+0.100 [" in FORMATS["terminal"](found)


def test_differences_use_the_examples_where_a_metric_is_their_mean(tmp_path):
    values = {"npo": [0.5, 0.7, 0.9], "ga": [0.1, 0.5, 0.9]}
    for resampled, about in (("questions", {}), ("people", {"person": ["Ada", "Bo", "Bo"]})):
        for algo, probs in values.items():
            folder = write_made_up_run(tmp_path / resampled, {1.0: (0.1, sum(probs) / 3)}, algo=algo)
            examples = {"split": "retain", "id": ["a", "b", "c"], "prob": probs, "alpha": 1.0} | about
            pd.DataFrame(examples).to_parquet(folder / "examples.parquet")
        found = differences(load(resampled, tmp_path), "ga", ["retain/prob", "forget/prob"])
        (row,) = found.rows
        cell = row.cells["retain/prob"]
        assert (cell.mean, cell.n, cell.items, cell.separated) == (pytest.approx(0.2), 1, 3, False)
        assert math.isnan(row.cells["forget/prob"].low)  # no examples of that split: two single runs have no interval
        assert f"the {resampled} of this one world, not over worlds" in found.notes[0]


def test_runs_are_grouped_by_their_settings_without_the_seeds_and_by_takes_any_setting(tmp_path):
    for pair_seed, seed, lr, forget in ((0, 0, 1e-3, 0.001), (1, 0, 1e-3, 0.002), (2, 1, 2e-3, 0.436)):
        write_made_up_run(tmp_path / "s", {1.0: (forget, 0.9)}, pair_seed=pair_seed, seed=seed, lr=lr)
    study = load("s", tmp_path)
    cells = {r.settings["trainer.lr"]: r.cells["forget/prob"] for r in table(study).rows if r.kind == "run"}
    assert {lr: (c.mean, c.n) for lr, c in cells.items()} == {1e-3: (0.0015, 2), 2e-3: (0.436, 1)}
    for by, rows in ((["trainer.lr"], 2), (["pair_seed"], 3), (["seed"], 2), (["trainer.log_every"], 1), (["algo"], 1)):
        assert sum(r.kind == "run" for r in table(study, by=by).rows) == rows, by
    assert [r.settings["pair_seed"] for r in table(study, by=["pair_seed"]).rows if r.kind == "run"] == [0, 1, 2]


def test_wrong_words_are_refused_with_the_choices(made_up):
    study = load(made_up)
    for ask, said in (
        (lambda: table(study, ["retain/probe"]), r"no metric 'retain/probe'; choices: .*retain/prob"),
        (lambda: table(study, by=["algorithm"]), r"no column 'algorithm'; choices: algo, method"),
        (lambda: differences(study, "direct"), r"'direct'.*choices: algo=ga, algo=npo"),
        (lambda: differences(study, "1"), r"'1'.* one value of one setting"),  # alpha and eval_alpha have it
    ):
        with pytest.raises(StudyError, match=said):
            ask()


def test_patterns_choose_metrics_by_joins_rows_and_references_of_other_worlds_have_rows_of_their_own(made_up, tmp_path):
    found = table(load(made_up), ["retain/*", "seconds"], by=["algo"])
    assert found.metrics == ("retain/prob", "retain/rougeL_recall", "seconds")
    assert row_of(found, algo="ga").cells["retain/prob"].mean == pytest.approx((0.50 + 0.14) / 2)
    assert row_of(found, algo="ga").cells["seconds"].mean == 5.5
    found = [r for r in table(load(two_worlds(tmp_path / "s"))).rows if r.kind == "target"]
    targets = [(r.settings["data.forget_people"], r.cells["forget/prob"].mean) for r in found]
    assert sorted(targets) == [(1, 0.9), (2, 0.5)]


def test_latex_has_the_same_columns_in_every_row_and_escapes_names(tmp_path):
    seeds(tmp_path / "100%_a&b", "my_algo#1", [(8e-18, 0.9), (9e-18, 0.8)])
    seeds(tmp_path / "100%_a&b", "x{y}$z", [(0.1, 0.9), (0.2, 0.8)])
    text = FORMATS["latex"](table(load("100%_a&b", tmp_path)))
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if not line.endswith("rule")]
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text).group(1)
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in rows} == {len(columns)}
    assert all(line.endswith(r" \\") for line in rows)
    assert r"my\_algo\#1" in text and r"x\{y\}\$z" in text and r"100\%\_a\&b" in text
    assert text.isascii()
    for name in ("table*", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    # over both columns, scaled down where that is still too wide, and with a name to refer to
    assert r"\label{tab:100--a-b}" in text and r"\resizebox{\ifdim\width>\linewidth" in text
    narrow = FORMATS["latex"](table(load("100%_a&b", tmp_path), ["retain/prob"], ["algo"]))
    assert r"\begin{table}" in narrow and r"\label" in narrow
    if shutil.which("pdflatex") is not None:
        page = "\\documentclass[twocolumn]{article}\\usepackage{booktabs,graphicx}\\begin{document}"
        (tmp_path / "t.tex").write_text(f"{page}\n{text}\n{narrow}\n\\end{{document}}\n")
        call = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and "Overfull" not in done.stdout
    plain = re.sub(r"\\[{}$%&#_]", "", text)
    assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
    parser = MathTextParser("path")
    for formula in set(re.findall(r"\$[^$]+\$", plain)):
        parser.parse(formula)
    assert r"\times 10^{-18}" in text


def test_markdown_has_the_same_columns_in_every_row_and_escapes_names(tmp_path):
    seeds(tmp_path / "s", "a|b<c", [(0.1, 0.9)])
    lines = [line for line in FORMATS["markdown"](table(load("s", tmp_path))).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert r"a\|b&lt;c" in lines[-1]


def test_the_command_prints_every_format_and_ends_with_2_on_wrong_words(made_up, capsys):
    for name in FORMATS:
        assert command.main(["made-up", "--runs", str(made_up.parent), "--format", name]) == 0
        assert "retrained" in capsys.readouterr().out
    assert command.main([str(made_up), "--differences", "ga"]) == 0
    assert "differences from algo=ga" in capsys.readouterr().out
    assert command.main(["made-down", "--runs", str(made_up.parent)]) == 2
    assert "no study 'made-down'" in capsys.readouterr().err
