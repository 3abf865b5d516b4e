"""The report: the numbers of eval.json, words that follow from them, strangers' text escaped, and a page that works."""

import importlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from support import browser
from support.helpers import ROOT
from support.made_up import METRICS, rewrite, write_made_up_run

from analysis.report import __main__ as command
from analysis.report import chart, summary
from analysis.report import page as pages
from analysis.runs import StudyError, load
from analysis.table import differences

EVIL = "<script>document.title='taken'</script>"


def with_examples(folder: Path, prob: float) -> None:
    """Made-up examples of a run and of its references."""
    ids = [f"q{i}" for i in range(5)]
    rows = [
        {"split": s, "id": i, "prob": prob + 0.01 * k, "prompt": f"{EVIL} {s} {i}?", "gold": "right & <b>true</b>"}
        for s in ("forget", "retain") for k, i in enumerate(ids)
    ]  # fmt: skip
    own = pd.DataFrame(rows).assign(generation='"><img src=x onerror=alert(1)>', alpha=1.0)
    own["leak@2"] = [0.9 if id == "q0" else 0.05 for id in own["id"]]
    own.to_parquet(folder / "examples.parquet")
    parts = [own.drop(columns="alpha").assign(model=m, prob=p) for m, p in (("target", 0.99), ("retrained", 0.2))]
    pd.concat(parts).to_parquet(folder / "references.parquet")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two algorithms over three worlds, one run that failed, one that collapsed, and text that is not ours."""
    folder = tmp_path_factory.mktemp("runs") / "made-up"
    for pair_seed in range(3):
        for alpha in (0.5, 1.0):
            for algo, keeps in (("npo", 0.90), ("ga", 0.60)):
                point = (0.25 - 0.15 * alpha, keeps + 0.01 * pair_seed, 0.3, 0.8)
                where = write_made_up_run(folder, {alpha: point}, algo=algo, alpha=alpha, pair_seed=pair_seed)
                if alpha == 1:
                    with_examples(where, 0.3)
    write_made_up_run(folder, {1.0: (0.0, 0.1, 0.0, 0.1)}, algo="gone")
    failed = write_made_up_run(folder, {}, status="failed", algo="kl")
    more = {"error": f"no memory </script>{EVIL}", "command": ["run.py", "-m", "algo=kl,npo", "data.path=my data"]}
    more |= {"versions": {"torch": "2.13.0"}, "git": {"commit": "0123456789abcdef", "dirty": True}}
    rewrite(failed / "manifest.json", lambda m: m.update(more))
    return load(folder)


@pytest.fixture(scope="module")
def html(study):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "FIGURES", {"tradeoff": "a figure", "leakage": "without numbers"})
        return pages.page(study)


class Tags(HTMLParser):
    """Names of all tags, and the attributes that could load something."""

    def __init__(self):
        super().__init__()
        self.names, self.links = [], []

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "action", "data")]


def test_the_drawing_holds_the_numbers_of_eval_json(html):
    data = json.loads(re.search(r'id="chart-data">(.*?)</script>', html, re.DOTALL).group(1))
    npo = next(p for p in data["points"] if p["name"] == "npo, α = 1")
    assert npo["values"]["forget/prob"] == pytest.approx(0.10) and npo["n"] == 3
    assert npo["values"]["retain/prob"] == pytest.approx((0.90 + 0.91 + 0.92) / 3)
    assert npo["ends"]["retain/prob"][0] < 0.91 < npo["ends"]["retain/prob"][1]
    references = {r["kind"]: r["values"]["forget/prob"] for r in data["references"]}
    assert references == {"target": pytest.approx(0.99), "retrained": pytest.approx(0.15)}
    assert next(p for p in data["points"] if p["name"].startswith("gone"))["collapsed"] == 1
    assert {m["key"] for m in data["metrics"]} == set(METRICS)


def test_a_single_run_is_shown_with_all_its_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "FIGURES", {})
    write_made_up_run(tmp_path / "s", {1.0: (0.123456789, 0.987654321)})
    text = pages.page(load("s", tmp_path))
    assert '"forget/prob": 0.123456789' in text and '"retain/prob": 0.987654321' in text
    assert "0.123</td>" in text and "0.988</td>" in text


def test_strangers_text_is_escaped_nothing_is_loaded_from_anywhere_and_failures_and_commands_are_told(html):
    assert EVIL not in html and "<img src=x" not in html
    assert "&lt;script&gt;document.title=&#39;taken&#39;&lt;/script&gt; forget q4?" in html
    assert "no memory &lt;/script&gt;" in html
    tags = Tags()
    tags.feed(html)
    assert tags.names.count("script") == 2 and "b" in tags.names
    assert tags.names.count("img") == html.count("data:image/png")
    assert tags.links and all(link.startswith(("#", "data:image/png;base64,")) for link in tags.links)
    assert "default-src 'none'" in html and "@import" not in html and "url(" not in html
    assert not set(re.findall(r"https?://[^\s\"')]+", html)) - {"http://www.w3.org/2000/svg"}
    assert html.count("<figure>") == 1 and "1 not drawn" in html and "<li>leakage: study &#39;made-up&#39;" in html
    assert "kl-offset-a1.0-s0-p0-lr0.001-f1</span> <b>failed</b>" in html
    assert "python -m unlearn.run -m algo=kl,npo &#39;data.path=my data&#39;" in html
    assert re.search(r"<pre>python -m analysis.report \S+/made-up</pre>", html)
    assert "0123456789ab with local changes" in html and "<dt>torch</dt><dd>2.13.0</dd>" in html
    assert all(callable(importlib.import_module(f"analysis.{name}").figure) for name in pages.FIGURES)


def test_the_summary_names_the_winner_at_each_level_and_what_is_separated(study):
    said = " ".join(summary.sentences(study))
    assert "14 runs were asked for: algorithms ga, gone, kl, npo; method offset; α 0.5, 1;" in said
    assert "the retrained model, which never saw it, 0.150. That, not zero" in said
    # at 0.175 (α = 0.5) half of the target's level is reached, the retrained model's 0.15 and the tenth are not
    assert "half the target's level or further (forget/prob ≤ 0.495), npo, α=0.5 keeps most: retain/prob 0.910" in said
    assert "Next is npo" not in said  # the same algorithm at another α is no rival
    assert "the retrained model's level or further (forget/prob ≤ 0.150), npo, α=1 keeps most" in said
    assert "Next is ga, α=1 with 0.610" in said and "over 3 pair seeds, is separated" in said
    assert "a tenth of the target's level or further (forget/prob ≤ 0.099): no setting" in said
    assert "14 runs: 13 done, 1 failed. Collapsed: gone, α=1." in said
    assert "one pair seed" not in said
    # both keep as much, and 0.175 is nearer to 0.15 than 0.10 is
    assert (summary.best(study).settings["algo"], summary.best(study).settings["alpha"]) == ("npo", 0.5)
    assert "Recommended is npo, α=0.5: its worst count, retain/rougeL_recall 0.800" in said


def test_the_recommended_setting_is_judged_by_what_it_gives_away_and_by_what_it_says(tmp_path):
    known = {"forget/leak_gap": 0.0, "retain/rougeL_recall": 0.95, "forget/rougeL_recall": 0.3}
    for algo, probs, more in (
        ("gibberish", (0.15, 0.97), {"retain/rougeL_recall": 0.05}), ("leaky", (0.15, 0.97), {"forget/leak_gap": 0.6}),
        ("sound", (0.17, 0.90), {}),
    ):  # fmt: skip
        write_made_up_run(tmp_path / "s", {1.0: dict(zip(METRICS, probs, strict=False)) | known | more}, algo=algo)
    assert summary.best(load("s", tmp_path)).settings["algo"] == "sound"


def test_the_recommendation_says_its_counts_beside_their_aims_and_what_lies_between_two_alphas(tmp_path):
    for algo, keeps in (("npo", (0.95, 0.9)), ("ga", (0.9, 0.6))):
        points = {0.5: (0.25, keeps[0], 0.3, 0.9), 1.0: (0.05, keeps[1], 0.1, 0.9)}
        write_made_up_run(tmp_path / "s", points, algo=algo)
    write_made_up_run(tmp_path / "s", {a: (a / 90, 0.1, 0.0, 0.1) for a in (1.0, 1.5, 2.0)}, algo="gone", alpha=2.0)
    said = summary.sentences(load("s", tmp_path))
    assert said[2].startswith("Recommended is npo, trained at α=1, evaluated at α=0.5: its worst count, ")
    assert "forget/prob 0.250 (retrained 0.150), " in said[2] and "retain/prob 0.950 (target 0.990), " in said[2]
    # half way from .25 to .05
    assert "is exactly the retrained model's, interpolated between α, npo, trained at α=1 keeps most" in said[3]
    assert said[3].endswith("retain/prob 0.925 at α = 0.750.")
    assert said[-1].endswith("Collapsed: gone, trained at α=2, evaluated at α=1, 1.5, 2.")


def test_in_a_single_world_a_mark_has_the_interval_over_its_questions(tmp_path):
    values = dict(zip(METRICS, (0.2, 0.9), strict=False)) | {"intervals": {"forget/prob": [0.1, 0.4]}}
    write_made_up_run(tmp_path / "s", {1.0: values})
    (point,) = chart.data(load("s", tmp_path))["points"]
    assert point["ends"] == {"forget/prob": [0.1, 0.4]}


def test_a_difference_is_the_same_in_words_and_in_the_table(study):
    said = next(s for s in summary.sentences(study) if "the difference, " in s)
    numbers = re.search(r"the difference, \+(\S+) \[\+(\S+), \+(\S+)\] over 3 pair seeds, is separated", said).groups()
    row = next(r for r in differences(study, "algo=npo", ["retain/prob"]).rows if r.settings["alpha"] == 1)
    cell = row.cells["retain/prob"]
    assert numbers == tuple(f"{-v:.3f}" for v in (cell.mean, cell.high, cell.low)) and cell.separated


def test_one_pair_seed_is_said_to_separate_nothing_and_without_references_the_furthest_is_named(made_up, tmp_path):
    said = " ".join(summary.sentences(load(made_up)))
    assert "There is one pair seed" in said and "separated" not in said
    for algo, point in (("npo", (0.1, 0.8)), ("ga", (0.3, 0.9))):
        write_made_up_run(tmp_path / "s", {1.0: point}, algo=algo, references={})
    said = " ".join(summary.sentences(load("s", tmp_path)))
    assert "the furthest level or further (forget/prob ≤ 0.100), npo, α=1 keeps most: retain/prob 0.800" in said
    assert "retrained" not in said and "None collapsed." in said


def test_examples_are_those_asked_for(study, html):
    assert "npo, offset, α = 1, pair seed 0, seed 0" in html
    assert 'class="run">&#34;&gt;&lt;img' in html and "p = 0.200" in html and "p = 0.990" in html
    found = pages.examples.choose(study, {"algo": "ga"})
    assert found.run.startswith("ga-")
    known = found.kinds["Still known"][1]
    # by what the run itself gives away, in drawn answers, too
    assert [e.id for e in known] == ["q0", "q4", "q3"] and list(known[0].probs) == ["target", "run", "retrained"]
    assert known[0].probs["run"] == "0.300, leak@2 = 0.900"
    assert [e.id for e in found.kinds["Lost with it"][1]] == ["q0", "q1", "q2"]
    with pytest.raises(StudyError, match="no evaluated run has algo=simnpo"):
        pages.examples.choose(study, {"algo": "simnpo"})


def test_a_study_without_results_has_a_page_that_says_why(tmp_path):
    for status, alphas, said in (("failed", {}, ("1 failed", "no memory")), ("done", {1.0: ()}, ("1 done",))):
        write_made_up_run(tmp_path / status, alphas, status=status, references={})
        text = pages.page(load(status, tmp_path))
        assert all(part in text for part in said) and 'id="chart"' not in text and "<figure>" not in text


def test_the_command_writes_the_same_page_again(made_up, capsys, monkeypatch):
    monkeypatch.setattr(pages, "FIGURES", {})
    written = []
    for _ in range(2):
        assert command.main(["made-up", "--runs", str(made_up.parent)]) == 0
        path = made_up / "report.html"
        assert capsys.readouterr().out.strip() == str(path)
        written.append(path.read_bytes())
        assert f"<pre>python -m analysis.report made-up --runs {made_up.parent}</pre>" in path.read_text()
    assert written[0] == written[1]
    assert command.main(["made-down", "--runs", str(made_up.parent)]) == 2
    assert "no study 'made-down'" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_intervals_end_within_the_drawing_and_every_mark_can_be_pointed_at(tmp_path):
    """Two worlds far apart, whose intervals are wider than all values; three settings at one place."""
    for pair_seed, alpha in product((0, 1), (0.5, 1.0, 2.0)):
        for algo, point in (("npo", (0.05, 0.9 - 0.1 * pair_seed)), ("ga", (0.4 / alpha, 0.9 - 0.3 * pair_seed))):
            write_made_up_run(tmp_path / "s", {alpha: point}, algo=algo, alpha=alpha, pair_seed=pair_seed)
    (tmp_path / "data.json").write_text(json.dumps(chart.data(load("s", tmp_path))))
    script, stub = pages.HERE / "page.js", ROOT / "tests" / "support" / "page_stub.js"
    done = subprocess.run(["node", stub, script, tmp_path / "data.json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["ends"] > 0 and found["outside"] == 0
    assert len(found["pointed"]) == 8 and all(label in shown for label, shown in found["pointed"])
    assert all(shown[0] == label for label, shown in found["pointed"] if not label.startswith("npo"))


def pointed_at(page, marks: list[str]) -> None:
    """Each mark can be pointed at, whatever lies over it; and intervals end within the drawing."""
    for place, label in enumerate(marks):
        page.point(".mark .shape", place)
        assert page.do("document.getElementById('tip').innerText").startswith(label.split(":")[0]), label
    page.point("h1")
    box = "document.querySelector('#chart svg').viewBox.baseVal"
    corners = "[...document.querySelectorAll('.error')].map(l => ['x1', 'x2', 'y1', 'y2'].map(k => +l.getAttribute(k)))"
    inside = f"Math.min(a, b, c, d) >= 0 && Math.max(a, b) <= {box}.width && Math.max(c, d) <= {box}.height"
    assert page.do(f"{corners}.every(([a, b, c, d]) => {inside})")


@pytest.mark.nightly
@pytest.mark.skipif(browser.find() is None, reason="no Chromium here (looked for " + ", ".join(browser.NAMES) + ")")
def test_the_page_works_in_a_browser(html, tmp_path):
    """Points, clicks, types and resizes as a reader would; any script error or request for a file fails."""
    path = tmp_path / "report.html"
    path.write_text(html, encoding="utf-8")
    with browser.Page(browser.find(), path) as page:
        tip = "document.getElementById('tip')"
        page.until("document.querySelectorAll('.mark').length == 7")  # two references, five settings
        assert page.do("document.title") == "made-up · unlearning report"  # and not "taken"
        assert page.do(f"{tip}.hidden")

        marks = page.do("[...document.querySelectorAll('.mark')].map(m => m.getAttribute('aria-label'))")
        place = next(i for i, label in enumerate(marks) if label.startswith("npo, α = 1:"))
        page.point(".mark", place)
        shown = page.do(f"{tip}.innerText")
        assert not page.do(f"{tip}.hidden") and shown.startswith("npo, α = 1")
        assert "0.100 ± 0.000" in shown and "0.910 ± 0.025" in shown and "npo-offset-a1.0-s0-p2" in shown
        page.point("h1")
        page.until(f"{tip}.hidden")
        pointed_at(page, marks)

        legend = page.do("[...document.querySelectorAll('#legend button')].map(b => b.innerText)")
        assert legend == ["ga", "gone", "npo"]
        page.click("#legend button", legend.index("npo"))
        page.until("document.querySelectorAll('.mark').length == 5")
        assert page.do("document.activeElement.getAttribute('aria-pressed')") == "false"
        page.press("Enter")  # the same button, by keyboard
        page.until("document.querySelectorAll('.mark').length == 7")

        page.do("document.getElementById('axis-y').focus()")
        page.press("Tab")
        assert page.do("document.activeElement.getAttribute('class')").startswith("mark")
        page.until(f"!{tip}.hidden")
        page.press("Escape")
        assert page.do(f"{tip}.hidden")

        change = "e => { e.value = 'retain/rougeL_recall'; e.dispatchEvent(new Event('change')); }"
        page.do(f"({change})(document.getElementById('axis-y'))")
        assert "retain set, ROUGE-L recall" in page.do("document.querySelector('.mark').getAttribute('aria-label')")

        page.resize(375, 700)
        page.until("document.querySelector('#chart svg').viewBox.baseVal.width < 375")
        assert page.do("document.documentElement.scrollWidth") == 375  # wide things scroll on their own
        assert page.errors == []
        assert {url.split(":")[0] for url in page.requests} <= {"file", "data"}
        assert [url for url in page.requests if url.startswith("file")] == [path.as_uri()]
