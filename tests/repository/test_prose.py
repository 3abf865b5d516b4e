"""Numbers in the studies' prose are those of the csv beside it: who measures again changes both, or neither."""

import re

import pandas as pd
import pytest
from support.helpers import ROOT

STUDIES, SPLITS = ROOT / "experiments", ("test", "retain", "forget")
FORMS = ("in parts", "at once", "checkpointing")  # of a training step, in speed/real.csv
BENCHMARKS = sorted(path.stem for path in (STUDIES / "speed").glob("*.md") if path.stem != "README")  # of ratios


def csv(study: str, name: str = "results") -> pd.DataFrame:
    return pd.read_csv(STUDIES / study / f"{name}.csv")


def lacking(study: str, phrases: list[str]) -> list[str]:
    """The phrases that the study's README does not have; spaces and line breaks count alike."""
    text = re.sub(r"\s+", " ", (STUDIES / study / "README.md").read_text(encoding="utf-8"))
    return [phrase for phrase in phrases if phrase not in text]


def short(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".removeprefix("0")


def crossing(curve: pd.DataFrame, level: float) -> pd.Series | None:
    """A mean curve where it first comes to a forget probability, linear between neighbouring α."""
    curve = curve.sort_values("along").select_dtypes("number")
    away = curve["forget/prob"].to_numpy() - level
    at = next(i for i in range(len(away) - 1) if away[i] * away[i + 1] <= 0)
    return curve.iloc[at] + away[at] / (away[at] - away[at + 1]) * (curve.iloc[at + 1] - curve.iloc[at])


def test_the_matched_table_of_the_papers_figures_is_that_of_its_mean_curves():
    rows = csv("paper_figures").query("alpha == 1").groupby(["algo", "method"])
    found = {key: crossing(curve, 0.20) for key, curve in rows}
    kept = ("retain/prob", "real_authors/prob", "world_facts/prob")
    cells = {key: " · ".join(short(point[m], 3) for m in kept) for key, point in found.items()}
    algos = ("gd", "kl", "ga", "idk")
    assert lacking("paper_figures", [f"| `{a}` | {cells[a, 'direct']} | {cells[a, 'offset']} |" for a in algos]) == []
    assert lacking("paper_figures", [f"it needs α = {found['idk', 'offset']['along']:.1f} to forget as far"]) == []


def test_euls_table_and_verdicts_are_those_of_its_results():
    results = csv("eul")
    ten = (results["section"] == "shares") & (results["forgotten"] == "10 %")
    shares = results[ten].groupby("what").mean(numeric_only=True)
    table = {}
    for line in (STUDIES / "eul" / "README.md").read_text(encoding="utf-8").splitlines():
        name, *cells = [re.sub(r" \(.*\)", "", cell.strip(" *")) for cell in line.strip("|").split("|")]
        table.setdefault(name, cells)
    for what in ("original", "re-train", "fine-tune", "SISA", "reverse gradient", "EUL", "bounded EUL"):
        row = shares.loc[what]
        accuracies = [f"{100 * row[f'{split}/accuracy']:.1f}".replace("100.0", "100") for split in SPLITS]
        losses = f"{row['forget/mlm_loss']:.1f}, {row['retain/mlm_loss']:.1f}"
        test, retained, forgotten, _, *rest = table[what]
        assert [test, retained, forgotten, *rest] == [*accuracies, losses, f"{row['seconds']:.0f}"], what
    left = 100 * results[results["section"] == "ablation"].groupby("what")["forget/accuracy"].mean()
    assert left["eul − LM"] > left["eul"] and left["eul_bounded − LM"] > left["eul_bounded"]  # the same sign
    said = f"has the same signs (without the LM term {left['eul_bounded − LM']:.1f}, with it {left['eul_bounded']:.1f})"
    more = f"Without the KL nothing is forgotten ({left['eul − KL']:.1f};"
    assert lacking("eul", [said, more, f"less is forgotten ({left['eul − LM']:.1f})"]) == []


def ratios(name: str, holding: str) -> list[float]:
    """The ratios of a benchmark's rows that fit a pattern."""
    rows = csv("speed", name)
    return rows.loc[rows["what"].str.contains(holding), "ratio"].tolist()


def of(name: str, holding: str, digits: int = 1) -> str:
    """The same in words, from … to …"""
    found = ratios(name, holding)
    low, high = (f"{end:.{digits}f}" for end in (min(found), max(found)))
    return low if low == high else f"{low} to {high}"


def speed() -> list[str]:
    """What the verdict on speed says of the tables."""
    rows, scores, drafts, pieces = "stored_rows", "scoring", "decoding", ratios("vocabulary", "time, pieces")
    memory = ratios("vocabulary", "extra memory")
    slower = [f"{x:.2f} ×" for x in sorted(pieces) if x > 1.005]
    return [
        f"Against recomputing: {of(rows, '18.5 M.*recomputed')} × at 39 : 1 (goal 8)",
        f"At 3.4 : 1 it is {of(rows, '0.14 M, (?:gd|kl|npo).*recomputed')} × with a retain term",
        f"with `ga` alone (20 examples a step) {of(rows, '0.14 M, ga: recomputed')} ×",
        f"{of(scores, '^(?!.*chat).*ours, stored')} × as fast as whole texts at all positions with short prompts, "
        f"{of(scores, 'chat.*ours, stored')} × with a chat template's (goal 2.5)",
        f"adds {of(scores, 'TOFU, chat.*sharing')} × with long answers and "
        f"{of(scores, 'short.*sharing')} × with short ones",
        f"cost {of(scores, '3.2 M.*nine')} × one where the small model has 3.2 M parameters, "
        f"{of(scores, 'embedded.*nine')} × in the embedded world (goal 1.5), and "
        f"{of(scores, '^(?!.*(?:3.2 M|embedded)).*nine')} × with tiny models over longer vocabularies",
        f"**Decoding** is {of(drafts, 'naive', 0)} × as fast as one by one without a cache (goal 8)",
        f"the time is {of(drafts, '^retain.*time, plain ÷ stored')} × shorter",
        f"Drafting by the offset saves passes but not positions: {of(drafts, 'full: time, plain ÷ offset')} × as fast "
        f"where the pair knows the people, {of(drafts, 'general: time, plain ÷ offset')} × where it does not",
        f"÷ {of('vocabulary', 'V 32,000.*memory', 0)} at V = 32,000 and "
        f"÷ {of('vocabulary', 'V 128,256.*memory', 0)} at 128,256 (goal 7: held in {sum(x >= 7 for x in memory)} of "
        f"{len(memory)})",
        f"The same time or less in {len(pieces) - len(slower)} of {len(pieces)} cases"
        + (f", else {', '.join(slower)}" if slower else ""),
        f"with joblib {of('launchers', 'joblib', 2)} × in the table",
        f"answers sixteen requests at once {of('serving', 'retain')} × as fast as one after another on retain prompts, "
        f"greedy and drawn, and {of('serving', 'forget')} × on forget prompts (goal 4)",
    ]


def pretrained() -> list[str]:
    """What the verdict says of pretrained models."""
    rows = csv("speed", "real").set_index(["pair", "what"])["value"]
    peak = {form: f"{rows['smollm2', f'peak of a run, 20 texts a step, {form}: MB'] / 1e3:.1f}" for form in FORMS}

    def of(what: str) -> list[str]:
        return [f"{rows[pair, what]:.3g}" for pair in ("qwen", "smollm2")]

    (cold, less), (warm, little) = (of(f"evaluation, {what}: CPU s") for what in ("cold", "warm"))
    (qwen, smollm), steps = of("a run's folder: MB"), of("step ÷ bare loop")
    same = f"{rows['smollm2', 'a token served ÷ plain']:.3g}"
    return [
        f"{cold} CPU seconds cold and {warm} with stored rows (goals 150 and 70), SmolLM2's {less} and {little}",
        f"{same} × plain generation where target and pair are one model",
        f"{' and '.join(sorted(steps))} × a bare loop. A run's folder takes {qwen} and {smollm} MB",
        f"peaks at {peak['in parts']} GB (goal 2.5), {peak['at once']} with `trainer.accumulate=1` and "
        f"{peak['checkpointing']} with `trainer.checkpointing=true`",
    ]


def test_the_verdict_on_speed_is_that_of_its_tables():
    assert lacking("speed", speed() + pretrained()) == []


def test_a_ratio_lies_within_its_own_quartiles_and_is_what_its_goal_is_held_against():
    for name in BENCHMARKS:
        table = csv("speed", name)
        assert table[(table["ratio"] < table["low"]) | (table["ratio"] > table["high"])].empty, name
        for row in table.dropna(subset=["goal"]).to_dict("records"):
            sign, number = row["goal"].split()[:2]
            holds = row["ratio"] <= float(number) if sign in "≤<" else row["ratio"] >= float(number)
            assert row["holds"] == ("yes" if holds else "no"), row["what"]


@pytest.mark.parametrize(
    "study",
    ["methods/summary", "tofu_scratch/table", "real/rates/rates", "real/table", *(f"speed/{n}" for n in BENCHMARKS)],
)
def test_a_table_that_a_readme_repeats_is_the_file_beside_it(study):
    file = STUDIES / f"{study}.md"
    rows = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    text = file.with_name("README.md").read_text(encoding="utf-8")
    assert rows and [row for row in rows if row not in text] == []


def matched(study: str, **chosen: str) -> pd.Series:
    """Means over worlds, of the runs that reached the forget probability that was asked for."""
    found = csv(study)
    for column, value in chosen.items():
        found = found[found[column] == value]
    if "chosen_reached" in found:
        found = found[(found["chosen_reached"] - found["chosen_asked"]).abs() <= 0.02]
    return found.select_dtypes("number").mean()


def test_the_verdicts_on_methods_and_on_low_rank_are_those_of_their_results():
    def kept(method: str, algo: str, digits: int = 3) -> str:
        return short(matched("methods", method=method, algo=algo)["matched/retain/prob"], digits)

    uld = matched("methods", method="uld")
    one, direct = csv("methods").query("algo == 'npo' and method == 'direct'").mean(numeric_only=True), "direct"
    npo, simnpo = ([kept(m, algo) for m in ("offset, full", "offset, retain", direct)] for algo in ("npo", "simnpo"))
    assert lacking("methods", [
        f"retain {short(uld['matched/retain/prob'], 3)}, real authors {short(uld['matched/real_authors/prob'], 3)}, "
        f"world facts {short(uld['matched/world_facts/prob'], 3)}, at α = {uld['matched_alpha']:.2f}",
        f"`npo` {npo[0]} and {npo[1]} against {npo[2]}, `simnpo` {simnpo[0]} and {simnpo[1]} against {simnpo[2]}",
        f"`npo` with `direct` forgets to {short(one['one/forget/prob'], 3)}, far past",
        f"α = {short(one['matched_alpha'], 2)} and retain from {short(one['one/retain/prob'], 2)} to "
        + kept(direct, "npo", 2),
    ]) == []  # fmt: skip
    low = {(a, t): short(matched("lora", algo=a, tuning=t)["matched/retain/prob"], 3)
           for a in ("simnpo", "npo", "ga") for t in ("lora", "full")}  # fmt: skip
    scores = csv("lora", "search").groupby("lr_factor")["score"].mean()
    assert lacking("lora", [
        f"updates what it keeps with all weights ({low['simnpo', 'lora']} and {low['simnpo', 'full']} of",
        f"`npo` less ({low['npo', 'lora']}, {low['npo', 'full']};", f"({low['ga', 'lora']}, {low['ga', 'full']};",
        f"(mean scores {', '.join(short(scores[f], 2) for f in (3.0, 1.0, 10.0))};",
    ]) == []  # fmt: skip


KNOWN = ("forget/prob", "retain/prob", "real_authors/prob", "world_facts/prob", "model_utility")


def test_the_tables_and_verdict_on_requests_are_those_of_their_results():
    def row(study: str, answer: str, columns: tuple[str, ...], at: str = "1", between: str = " | ") -> str:
        means = csv(study).query("at == @at and answer == @answer").mean(numeric_only=True)
        return between.join(short(means[c], 3) for c in columns).replace("-0.", "−.")

    gaps = (*KNOWN, "forget/leak_gap")
    answers = ("sum", "fused", "continued", "reversed", "joint")
    assert lacking("requests", [
        f"| {row('requests', a, gaps)} | {row('requests', a, KNOWN[1:4], 'matched', ', ')} |" for a in answers
    ]) == []  # fmt: skip
    layers = {answer: row("requests/layers", answer, KNOWN) for answer in answers}
    text = (STUDIES / "requests" / "README.md").read_text(encoding="utf-8").replace("*", "")
    assert [a for a in answers if a != "reversed" and layers[a] not in text] == []
    back = csv("requests", "returns").query("place == 1")
    gate = csv("requests", "gate").query("answer == 'sum'").mean(numeric_only=True)
    ends = {name: [short(p, 2) for p in back.query("answer == @name and after == 5")["prob"]]
            for name in ("continued", "continued reversed")}  # fmt: skip
    costs = csv("requests", "cost").groupby("answer")["ms_per_token"].mean()

    def told(what: str) -> str:
        return short(gate[f"gate/{what}"], 3).rstrip("0")

    assert lacking("requests", [
        "to {}, {} and {} in the three worlds".format(*ends["continued"]),
        "in the other order to {}, {} and {}".format(*ends["continued reversed"]),
        f"{costs['fused']:.1f} ms a token instead of {costs['sum']:.1f} (the target alone {costs['target']:.1f})",
        f"and {100 * gate['gate/overlap/flagged_retain']:.0f} % of unseen retain questions",
        f"back from {short(gate['gate/offset_retain'], 2)} to {told('gated_retain')}, of world facts from "
        f"{short(gate['gate/offset_world_facts'], 2)} to {gate['gate/gated_world_facts']:g}",
        f"misspelt ({100 * gate['gate/overlap/flagged_misspelt']:.0f} % flagged): there the offset alone holds "
        f"({short(gate['gate/offset_misspelt'], 2)} beside {short(gate['gate/target_misspelt'], 2)} without either)",
        f"misses {100 * (1 - gate['gate/likelihood/flagged_composite']):.0f} % of what stands behind",
    ]) == []  # fmt: skip


def test_the_verdict_on_black_boxes_is_that_of_their_results():
    rows = csv("black_box")
    lost = -rows.query("tail == 'even'").groupby(["algo", "k"])["distance/retain/prob"].mean()
    ga, kl = ([short(lost[algo, k], 2) for k in ("100", "20", "5")] for algo in ("ga", "kl"))
    forget = rows[rows["tail"].eq("even") | rows["k"].eq("local")].groupby(["algo", "k"])["forget/prob"].mean()
    one = rows.query("world == 0 and k == '20'").groupby(["tail", "algo"]).mean(numeric_only=True).abs()
    even, anchor = ([short(one.loc[tail, algo]["distance/retain/prob"], 3) for algo in ("ga", "kl", "npo", "simnpo")]
                    for tail in ("even", "anchor"))  # fmt: skip
    assert lacking("black_box", [
        f"({short(forget['simnpo', '5'], 3)} against {short(forget['simnpo', 'local'], 3)} at k = 5)",
        f"loses about {kl[0]} of the retain probability at k = 100, {kl[1]} at 20 and {kl[2]} at 5",
        "{}, {} and {} of the retain probability".format(*ga),
        "moves by {} (`ga`), {} (`kl`), {} (`npo`), {} (`simnpo`) evenly".format(*even),
        "and by {}, {}, {}, {} like the anchor".format(*anchor),
        "the forgetting of `kl` by {} and {}".format(
            *(short(one.loc[tail, "kl"]["distance/forget/prob"], 3) for tail in ("even", "anchor"))
        ),
    ]) == []  # fmt: skip


def test_the_table_of_the_small_tofu_is_its_summary():
    small = []
    for row in csv("tofu_small", "summary").to_dict("records"):
        kept = [f"{row[f'{split}/{metric}']:.3f}" for split, metric in (
            ("forget", "rougeL_recall"), ("retain", "prob"), ("retain", "rougeL_recall"),
            ("real_authors", "rougeL_recall"), ("world_facts", "rougeL_recall"),
        )]  # fmt: skip
        small.append(f"| {row['algo']} | {row['alpha']:g} | {row['forget/prob']:.3g} | {' | '.join(kept)} | "
                     f"{row['model_utility']:.3f} | ")  # fmt: skip
    assert lacking("tofu_small", small) == []


def test_the_verdict_on_tofu_from_scratch_is_that_of_its_results():
    rows = csv("tofu_scratch").groupby(["forget_set", "algo", "method"], as_index=False)
    means = rows[["retain/rougeL_recall", "forget/rougeL_recall", "forget/leak_gap", "privleak"]].mean()

    def within(metric: str, algos: str, digits: int = 2, **chosen: str) -> tuple[str, str]:
        rows = means[means["algo"].isin(algos.split())]
        for column, value in chosen.items():
            rows = rows[rows[column] == value]
        texts = [f"{v:.{digits}f}".replace("0.", ".").replace("-", "−") for v in sorted(rows[metric], key=abs)]
        return texts[0], texts[-1]

    rouge, gap, privleak = "retain/rougeL_recall", "forget/leak_gap", "privleak"
    bounded, cut = "npo simnpo", "gd kl"
    offset, direct = ({"method": m} for m in ("offset", "direct"))
    assert lacking("tofu_scratch", [
        "bring forget ROUGE to {}–{} (".format(*within("forget/rougeL_recall", bounded)),
        "keep {}–{} of retain ROUGE".format(*within(rouge, bounded)),
        "PrivLeak is {} to {},".format(*within(privleak, bounded, 0)),
        "(leak gap {} to {})".format(*within(gap, cut)),
        "(PrivLeak +{} to +{})".format(*within(privleak, cut, 0)),
        "({}–{} against {}–{})".format(*within(rouge, cut, **offset), *within(rouge, cut, **direct)),
        "retain ROUGE {} to {} against {} to {}, leak gap {} to {} against {} to {}".format(
            *within(rouge, bounded, **offset), *within(rouge, bounded, **direct),
            *within(gap, bounded, **offset), *within(gap, bounded, **direct),
        ),
        "forget ROUGE {}–{}, log₁₀".format(*within("forget/rougeL_recall", "ga")),
    ]) == []  # fmt: skip


def test_the_verdict_on_a_real_topic_is_that_of_its_results():
    every = csv("real").fillna({"algo": ""})
    read = csv("real", "read").query("alpha == 1")
    fluent = read[read["fluent"] == "yes"].groupby(["topic", "method", "algo", "neighbours_trained"]).size()

    def at(topic: str, algo: str, near: bool, column: str, method: str = "offset", point: str = "one") -> str:
        rows = every.query("topic == @topic and algo == @algo and method == @method and point == @point and seed == 0")
        (value,) = rows.loc[rows["neighbours_trained"] == near, column]
        return f"{value:.2f}"

    def level(topic: str, column: str, model: str = "qwen15", name: str = "target") -> str:
        return f"{every.query('topic == @topic and model == @model and method == @name')[column].iloc[0]:.2f}"

    def both(algo: str, near: bool, column: str, **how: str) -> list[str]:
        return [at(topic, algo, near, column, **how) for topic in ("novels", "japan")]

    def said(text: str, *numbers: object) -> str:
        return text.format(*numbers)

    gone, beside, sure, more, far = (
        f"{split}/{m}" for split, m in (("forget", "known"), ("neighbours", "known"), ("neighbours", "prob"),
                                        ("others", "known"), ("others", "prob")))  # fmt: skip
    seeds = every.query("topic == 'novels' and algo == 'simnpo' and neighbours_trained and point == 'one'")
    seeds = seeds.sort_values("seed")
    alphas = [at(topic, "simnpo", True, "alpha", point="tolerance") for topic in ("novels", "japan")]
    words = [fluent["japan", "offset", "simnpo", near] for near in (False, True)]
    quarter = csv("real", "prefix").set_index(["topic", "model"])["prefix_prob@25"]
    for point in ("one", "tolerance"):
        for column in (beside, more):
            own = [level(topic, column) for topic in ("novels", "japan")]
            assert both("idk", True, column, method="refuse", point=point) == own
    assert lacking("real", [
        said("three seeds tell {}, {} and {} of the topic and {}, {} and {} of the neighbours",
             *(f"{v:.2f}" for column in (gone, beside) for v in seeds[column])),
        said("With trained neighbours {} of `novels` and {} of `japan` are still told",
             *both("idk", True, gone, method="refuse")),
        said("{} and {} of the neighbours and {} and {} of the other facts",
             *both("idk", True, beside, method="refuse"), *both("idk", True, more, method="refuse")),
        said("{} and {} of the neighbours. Without", *both("idk", True, beside, method="proxy")),
        said("exactly as many as the target itself tells, up to the largest α that is looked at ({})",
             f"{float(at('novels', 'idk', True, 'alpha', 'refuse', 'tolerance')):g}"),
        said("a probability of {} and {} (the target's: {} and {};",
             *(f"{quarter[topic, model]:.2f}" for model in ("refuse", "target") for topic in ("novels", "japan"))),
        said("refuses some of them: {} and {}", *both("idk", False, beside, method="refuse")),
        said("`simnpo` tells {} of `novels` and {} of `japan`", *both("simnpo", False, gone)),
        said("with trained neighbours {} and {}", *both("simnpo", True, gone)),
        said("the target {} and {}", *(level(topic, gone) for topic in ("novels", "japan"))),
        said("{} and {} of the neighbours are still told, at a probability of {} and {}",
             *both("simnpo", False, beside), *both("simnpo", False, sure)),
        said("{} are told (without: {}), at {} (without: {})", *(at("japan", "simnpo", n, c) for c in (beside, sure)
             for n in (True, False))),
        said("{} of 12 answers are fluent (without: {})", words[1], words[0]),
        said("the probability goes up to {}, but {} are told",
             *(at("novels", "simnpo", True, column) for column in (sure, beside))),
        said("α = {} and {}", *alphas),
        said("{} and {} of the neighbours are told, and {} and {} of the topic",
             *both("simnpo", True, beside, point="tolerance"), *both("simnpo", True, gone, point="tolerance")),
        said("`npo` tells {} and {} of the topics, with trained neighbours {} and {}",
             *both("npo", False, gone), *both("npo", True, gone)),
        said("`kl` tells {} and {}", *both("kl", False, gone)),
        said("{} and {} of 12 answers of it are fluent",
             *(fluent[topic, "offset", "kl", False] for topic in ("novels", "japan"))),
        said("`idk` refuses both topics ({} and {})", *both("idk", False, gone)),
        said("{} of the other facts where {} were", at("novels", "idk", True, more), at("novels", "idk", False, more)),
        said("{} of 12 answers are fluent, at a log-probability of {} a token", fluent["novels", "uld", "uld", False],
             at("novels", "uld", False, "forget/target_logp", "uld").replace("-", "−")),
        said("tells {} of `japan` still", at("japan", "uld", False, gone, "uld")),
        said("from {} and {} to {} and {}", *(level(t, gone, "qwen05") for t in ("novels", "japan")),
             *both("npo", False, gone, method="direct")),
        said("of the neighbours from {} and {} to {} and {}",
             *(level(topic, beside, "qwen05") for topic in ("novels", "japan")),
             *both("npo", False, beside, method="direct")),
        f"{csv('real', 'cost')['cpu_seconds'].sum():,.0f} CPU seconds",
    ]) == []  # fmt: skip
    found = csv("real", "ability").set_index("model")
    right, changed = found["right"], found.loc["unlearned", "changed"]
    assert (
        lacking("real", [f"{right['target']} and {right['unlearned']} of 24 right, {changed} answered otherwise"]) == []
    )


def test_what_deciding_near_ties_alone_costs_is_said_as_measured():
    rows = []
    for (target, pair), own in csv("engines", "ties").groupby(["target", "pair"]):
        one, (with_it, without) = (
            own[own["at once"] == 1],
            (own[own["exact"].astype(str) == e] for e in ("True", "False")),
        )
        cells = [one["CPU ms/token"], with_it["CPU ms/token"], with_it["gone apart"].astype(int), with_it["as alone"],
                 without["CPU ms/token"], without["as alone"]]  # fmt: skip
        name = {"float32float32": "all in fp32", "bfloat16float32": "the target in bf16"}.get(
            target + pair, "all in bf16"
        )
        rows.append(f"| {name} | " + " | ".join(str(c.item()) for c in cells) + " |")
    assert len(rows) == 3 and lacking("engines", rows) == []


def test_tests_that_the_pages_name_are_there():
    files = list((ROOT / "tests").rglob("test_*.py"))
    there = {path.stem for path in files}.union(*(re.findall(r"def (test_\w+)", path.read_text()) for path in files))
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *STUDIES.rglob("*.md")):
        text = re.sub(r"^\| `data\.test_\w+`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)  # settings
        named = set(re.findall(r"\btest_\w+", text))
        assert named <= there, (page.name, named - there)
