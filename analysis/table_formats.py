"""A table as text: for the terminal, as CSV with raw numbers, Markdown, or LaTeX with booktabs.

Easy to get wrong: names of settings come from users. A ``_`` or ``%`` ends a LaTeX table, a ``|`` a Markdown row, a
``[`` is markup to the terminal; every word goes through its format's escape, numbers through ``number``.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from . import goals
from .statistics import Interval
from .table_rows import Row, Table

NAMES = {"algo": "algorithm", "eval_alpha": "α evaluated", "alpha": "α trained"}
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "α": r"$\alpha$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "−": "$-$",
    "–": "--", "±": r"$\pm$",
}  # fmt: skip

IN_A_COLUMN = 5  # columns of a table that a column of a two-column page has room for
FITTING = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def terminal(table: Table) -> str:
    """With colours where the terminal has them; never narrower than its columns."""
    shown = RichTable(box=box.SIMPLE, pad_edge=False, header_style="bold")
    for _, title in labels(table):
        shown.add_column(escape(title), no_wrap=True, vertical="bottom")
    for title in titles(table):
        shown.add_column(escape(title.replace(" ", "\n", 1)), justify="right", no_wrap=True)
    shown.add_column("runs", no_wrap=True)
    for row, last in zip(table.rows, [*table.rows[1:], None], strict=True):
        cells = [text(table, row, m) for m in table.metrics]
        style = "cyan" if row.kind != "run" else None if row.units else "red"
        ends = row.kind != "run" and last is not None and last.kind == "run"
        shown.add_row(*map(escape, [*words(table, row), *cells, runs(row)]), style=style, end_section=ends)
    page = io.StringIO()
    console = Console(file=page, width=1000, force_terminal=False)
    console.width = max(80, console.measure(shown).maximum)
    console.print(shown)
    for note in table.notes:
        console.print(escape(note), highlight=False, soft_wrap=True)
    return page.getvalue()


def as_csv(table: Table) -> str:
    """Numbers as they were computed: for each metric its mean, ``/low``, ``/high``, ``/n``."""
    states = list(dict.fromkeys(state for row in table.rows for state in row.counts))
    parts = ("", "/low", "/high", "/n") + (("/separated",) if table.base else ("/best",))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["kind", *table.by, *states, *(m + part for m in table.metrics for part in parts)])
    for row in table.rows:
        values = [row.kind, *(row.settings[c] for c in table.by), *(row.counts.get(s, "") for s in states)]
        for metric in table.metrics:
            cell = row.cells[metric]
            values += [*map(_raw, (cell.mean, cell.low, cell.high)), cell.n, int(marked(table, row, metric))]
        writer.writerow(values)
    return out.getvalue()


def markdown(table: Table) -> str:
    """A GitHub table; the best value is bold."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def plain(word: str) -> str:
        return word.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")

    names = [title for _, title in labels(table)]
    lines = [line([plain(h) for h in (*names, *titles(table), "runs")])]
    lines.append("|" + "---|" * len(names) + "---:|" * len(table.metrics) + "---|")
    for row in table.rows:
        cells = [text(table, row, m, lambda shown: f"**{shown}**") for m in table.metrics]
        lines.append(line([*map(plain, words(table, row)), *cells, plain(runs(row))]))
    return "\n".join([*lines, "", *(f"{plain(note)}.  " for note in table.notes)]).rstrip() + "\n"


def latex(table: Table) -> str:
    """A ``table`` with booktabs rules and the notes as its caption, by pandas' Styler; the best value is bold.

    Over both columns of a page (``table*``) where it has many; what is still too wide is scaled down to fit.
    """
    settings = [("", title) for _, title in labels(table)]
    metrics = [tuple(title.split(" ", 1)) if " " in title else ("", title) for title in titles(table)]
    heads = [(tex(first), tex(rest)) for first, rest in (*settings, *metrics, ("", "runs"))]
    lines = []
    for row, before in zip(table.rows, [None, *table.rows], strict=False):
        cells = [*map(tex, words(table, row)), *(_tex_cell(table, row, m) for m in table.metrics), tex(runs(row))]
        if row.kind == "run" and before is not None and before.kind != "run":
            cells[0] = "\\midrule\n" + cells[0]
        lines.append(cells)
    shown = pd.DataFrame(lines, columns=pd.MultiIndex.from_tuples(heads)).style.hide(axis="index")
    notes = ". ".join([f"Study {table.study}", *table.notes]).replace("* is best", "bold is best")
    name = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in table.study)
    styles = [
        {"selector": selector, "props": [("", "")]} for selector in ("footnotesize", "setlength{\\tabcolsep}{3pt}")
    ]
    text = shown.set_table_styles(styles).to_latex(
        column_format="l" * len(settings) + "r" * len(metrics) + "l", hrules=True, sparse_columns=False,
        position_float="centering", caption=tex(f"{notes}."), label=f"tab:{name}" + "-differences" * bool(table.base),
        environment="table*" if len(heads) > IN_A_COLUMN else "table",
    )  # fmt: skip
    text = text.replace("\\begin{tabular}", f"{FITTING}\n\\begin{{tabular}}").replace(
        "\\end{tabular}", "\\end{tabular}}"
    )
    return "% \\usepackage{booktabs,graphicx}\n" + text


FORMATS: dict[str, Callable[[Table], str]] = {
    "terminal": terminal, "csv": as_csv, "markdown": markdown, "latex": latex,
}  # fmt: skip


def labels(table: Table) -> list[tuple[str, str]]:
    """(column, title) of the settings that distinguish rows; one α where training and evaluation have the same."""
    rows = [row for row in table.rows if row.kind == "run"]
    told = [c for c in table.by if c in ("algo", "method", "alpha") or len({row.settings[c] for row in rows}) > 1]
    if {"alpha", "eval_alpha"} <= set(table.by):
        pairs = [(row.settings["alpha"], row.settings["eval_alpha"]) for row in rows]
        if all(evaluated in (trained, None) for trained, evaluated in pairs):
            told = [c for c in told if c != "eval_alpha"]
            return [(c, "α" if c == "alpha" else _title(c)) for c in told]
    return [(c, _title(c)) for c in told]


def _title(column: str) -> str:
    return NAMES.get(column, column.rsplit(".", 1)[-1].replace("_", " "))


def titles(table: Table) -> list[str]:
    """The metrics' titles, with the way that is better."""
    return [goals.title(m, table.retrained) for m in table.metrics]


def words(table: Table, row: Row) -> list[str]:
    """A row's settings; a reference's name stands in the first column."""
    said = [_word(row.settings[c]) for c, _ in labels(table)]
    return said if row.kind == "run" else [" ".join([row.kind, *filter(None, said[:1])]), *said[1:]]


def name(table: Table, row: Row) -> str:
    """A row's settings in one phrase: "npo, offset, α=1", or with both α where they differ in some row."""
    told = [(c, title, _word(row.settings[c])) for c, title in labels(table)]
    plain = ("algo", "method", "pair", "data")
    single = len({r.settings.get("method") for r in table.rows if r.kind == "run"}) == 1
    phrases = {"α trained": "trained at α", "α evaluated": "evaluated at α"}
    said = [w if c in plain else f"{phrases.get(t, t)}={w}" for c, t, w in told if w and not (c == "method" and single)]
    return ", ".join(said)


def _word(value: object) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def runs(row: Row) -> str:
    """How many runs a row has and what became of them: "5 done, 1 collapsed; 2 failed"."""
    if row.kind != "run":
        return "reference"
    counts = {state: n for state, n in row.counts.items() if n}
    gone, done = counts.pop("collapsed", 0), counts.pop("done", 0)
    single = done + sum(counts.values()) == 1
    said = ["collapsed" if gone and single else f"{done} done".removeprefix("1 " if single else "")] if done else []
    said[-1:] = [f"{said[-1]}, {gone} collapsed"] if gone and not single else said[-1:]
    return "; ".join([*said, *(state if single else f"{n} {state}" for state, n in counts.items())])


def text(table: Table, row: Row, metric: str, mark: Callable[[str], str] = "{}*".format) -> str:
    """A cell: the mean, its interval, the number of pair seeds where it is not that of the row, and a mark."""
    cell = row.cells[metric]
    if not cell.n:
        return "–"
    if table.base:
        shown = signed(cell.mean) + ("" if math.isnan(cell.low) else f" [{signed(cell.low)}, {signed(cell.high)}]")
    else:
        shown = number(cell.mean) + ("" if math.isnan(cell.half) else f" ± {number(cell.half)}")
    shown = mark(shown) if marked(table, row, metric) else shown
    return shown + (f" (n={cell.n})" if cell.n < row.units else "")


def marked(table: Table, row: Row, metric: str) -> bool:
    return row.cells[metric].separated if table.base else metric in row.best


def number(value: float) -> str:
    """Three decimals; what would be lost in them in powers of ten."""
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.0e}"


def signed(value: float) -> str:
    """A difference: as ``number``, with its sign."""
    return ("" if value < 0 else "+") + number(value)


def _raw(value: float) -> float | str:
    return "" if math.isnan(value) else value


def tex(words: str) -> str:
    """Words as LaTeX prints them."""
    return "".join(LATEX.get(letter, letter) for letter in words)


def _tex_cell(table: Table, row: Row, metric: str) -> str:
    cell: Interval = row.cells[metric]
    if not cell.n:
        return "--"
    if table.base:
        shown, *ends = (_tex_number(signed(value)) for value in (cell.mean, cell.low, cell.high))
        shown += "" if math.isnan(cell.low) else rf"\ [{', '.join(ends)}]"
    else:
        half = "" if math.isnan(cell.half) else rf" \pm {_tex_number(number(cell.half))}"
        shown = _tex_number(number(cell.mean)) + half
    shown = rf"$\mathbf{{{shown}}}$" if marked(table, row, metric) else f"${shown}$"
    return shown + (f" (n={cell.n})" if cell.n < row.units else "")


def _tex_number(shown: str) -> str:
    digits, _, power = shown.partition("e")
    return rf"{digits} \times 10^{{{int(power)}}}" if power else digits
