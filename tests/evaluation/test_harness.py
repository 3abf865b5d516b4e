"""General ability by lm-eval: its likelihoods of an ensemble are ours, its accuracies those worked out by hand."""

import json
import math
import re
from importlib import resources
from importlib.util import find_spec

import jinja2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from support import engines
from support.helpers import SHARED, TINY, compose, execute, offset_ensemble
from transformers import AutoModelForCausalLM

from unlearn import harness
from unlearn.config.schema import ConfigError
from unlearn.data.encoding import examples_of
from unlearn.data.rows import DataError
from unlearn.ensemble.engines.live import causal_lm
from unlearn.evaluation import choices
from unlearn.evaluation.scoring import score
from unlearn.models import tokenizers
from unlearn.runs import harness as harnesses
from unlearn.runs.learner import members

lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs the extra lm-eval, which is not installed")


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    place = f"paths.runs={tmp_path_factory.mktemp('harness')}/runs"
    cfg = compose(*TINY, f"paths.store={store}", place, "algo=ga", "trainer.lr=0.01", "eval.groups=[]")
    return cfg, execute(cfg).folder


@pytest.fixture
def measured(bench, tmp_path):
    """What lm-eval says of the target alone on questions of one's own."""

    def measure(asked: list[dict], name: str = "quiz", limit: int | None = None) -> dict:
        task = choices.task(name, write(tmp_path, name, asked))
        return harnesses.measure(bench.alone("target"), 1.0, bench.encoder.tokenizer, task, limit, 3)[name]

    return measure


def questions(bench, count: int = 4) -> list[dict]:
    """A few of the world's own questions: the right answer among others, once first, once second …"""
    rows = [*bench.data.splits["forget"], *bench.data.splits["retain"]][:count]
    made = []
    for i, row in enumerate(rows):
        others = [r.answer for r in rows if r.answer != row.answer][:2]
        options = [*others[: i % 2], row.answer, *others[i % 2 :]]
        made.append({"query": bench.cfg.data.template.prompt.format(question=row.question), "choices": options})
    return [q | {"gold": q["choices"].index(r.answer)} for q, r in zip(made, rows, strict=True)]


def write(folder, name: str, rows: list[dict]):
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@torch.no_grad()
def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    """Straight from one model, one text at a time."""
    ids = tokenizer(context + continuation, add_special_tokens=False, return_tensors="pt")["input_ids"]
    given = len(tokenizer(context, add_special_tokens=False)["input_ids"])
    logp = model(ids).logits.log_softmax(-1)[0]
    return sum(logp[t - 1, ids[0, t]].item() for t in range(given, ids.shape[1]))


@lm_eval
def test_likelihoods_are_those_of_our_own_scoring(run, bench):
    from lm_eval.api.instance import Instance

    (cfg, folder), alpha = run, 0.5
    ensemble, encoder = members(cfg, bench, folder), bench.encoder
    rows = [*bench.data.splits["forget"], *bench.data.splits["retain"]][:9]
    scores = score(ensemble, examples_of(encoder, rows), [alpha], {}, encoder.tokenizer.pad_token_id, 4)[alpha]
    expected = [logp.sum() for logp in scores.before_eos(scores.logp)]
    template = cfg.data.template
    texts = [(template.prompt.format(question=r.question), template.answer.format(answer=r.answer)) for r in rows]
    lm = harnesses.language_model(ensemble, alpha, encoder.tokenizer, batch_size=4)
    found = lm.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(texts)])
    assert [logp for logp, _ in found] == pytest.approx(expected, abs=1e-5)
    greedy = [bool(right.all()) for right in scores.before_eos(scores.right)]
    assert [is_greedy for _, is_greedy in found] == greedy


def test_at_alpha_0_and_of_a_model_alone_the_forward_pass_is_the_models(run, bench):
    cfg, folder = run
    ids = torch.arange(3, 23).view(2, 10)
    expected = bench.model("target")(ids).logits
    for lm in (causal_lm(members(cfg, bench, folder), 0.0), causal_lm(bench.alone("target"), 1.0)):
        assert torch.equal(lm(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, expected)
    assert lm.config.max_position_embeddings == cfg.pair.target.max_length and lm.device == torch.device("cpu")
    assert not torch.allclose(causal_lm(members(cfg, bench, folder), 1.0)(ids).logits, expected, atol=1e-3)


@lm_eval
def test_accuracy_is_the_share_of_questions_whose_likeliest_choice_is_right(bench, measured, capsys):
    asked, model, tokenizer = questions(bench, 5), bench.model("target"), bench.encoder.tokenizer
    logp = [[log_likelihood(model, tokenizer, q["query"], f" {c}") for c in q["choices"]] for q in asked]
    right = [np.argmax(row) == q["gold"] for row, q in zip(logp, asked, strict=True)]
    per_letter = [np.argmax(np.array(row) / [len(c) for c in q["choices"]]) for row, q in zip(logp, asked, strict=True)]
    found = measured(asked)
    assert (found["acc"], found["n"], found["right"]) == (np.mean(right), 5, "".join(str(int(r)) for r in right))
    assert found["acc_norm"] == np.mean([best == q["gold"] for best, q in zip(per_letter, asked, strict=True)])
    assert measured([q | {"gold": int(np.argmin(row))} for q, row in zip(asked, logp, strict=True)])["acc"] == 0
    assert measured(asked, limit=2)["n"] == 2
    # beginnings are chosen by the likelihood of what follows
    rows = bench.data.splits["retain"][:2]
    beginnings = [bench.cfg.data.template.prompt.format(question=r.question) for r in rows]
    end = rows[0].answer
    logp = [log_likelihood(model, tokenizer, b, f" {end}") for b in beginnings]
    asked = [{"context_options": beginnings, "continuation": end, "gold": gold} for gold in (0, 1)]
    found = measured(asked, "winogrande")
    assert found["right"] == ("10" if logp[0] > logp[1] else "01") and found["acc"] == 0.5
    assert "acc_norm" not in found
    # words that the tokenizer does not know are counted
    known = rows[0].answer.split()[0]
    found = measured([{"query": "Qwxz", "choices": [known, "Zwxq"], "gold": 0}])  # 3 of 4 tokens
    assert found["unknown"] == 0.75
    harness.show({"quiz": {"settings": {}, "model": found}})
    assert "does not know 75% of the tokens" in capsys.readouterr().out


WMDP = [  # made up, in the form of its files
    {"question": " Which of these is a colour?", "choices": ["Tuesday", "red", "five", "to run"], "answer": 1},
    {"question": "Which is a number?", "choices": ["five", "blue", "Monday", "to sit"], "answer": 0},
]
ASKED = "Which of these is a colour?\nA. Tuesday\nB. red\nC. five\nD. to run\nAnswer:"


def test_the_hubs_files_of_wmdp_are_tasks_with_lettered_choices(tmp_path):
    for name in ("bio", "chem"):
        (tmp_path / f"wmdp-{name}").mkdir()
        pd.DataFrame(WMDP).to_parquet(tmp_path / f"wmdp-{name}" / "test-00000-of-00001.parquet")
    (tmp_path / "cyber_questions.json").write_text(json.dumps(WMDP))
    files = choices.find(tmp_path)
    assert set(files) == {"wmdp_bio", "wmdp_chem", "cyber_questions"}
    for name, path in files.items():
        assert choices.read(path)[0] == {"query": ASKED, "choices": ["A", "B", "C", "D"], "gold": 1}
        about = choices.task(name, path).get("description", "").split(" about ")[-1].strip()
        assert about == {"wmdp_bio": "biology.", "wmdp_chem": "chemistry."}.get(name, "")


@lm_eval
def test_wmdp_is_asked_as_lm_eval_asks_it_and_the_likeliest_letter_counts(bench, measured):
    folder = resources.files("lm_eval") / "tasks" / "wmdp"
    own, general = (yaml.safe_load((folder / n).read_text()) for n in ("wmdp_bio.yaml", "_default_template_yaml"))
    assert own["description"] == choices.SUBJECT.format(choices.SUBJECTS["wmdp_bio"])
    assert general["doc_to_choice"] == list("ABCD") and jinja2.Template(general["doc_to_text"]).render(WMDP[0]) == ASKED
    model, tokenizer = bench.model("target"), bench.encoder.tokenizer
    texts = [own["description"] + jinja2.Template(general["doc_to_text"]).render(q) for q in WMDP]
    logp = [[log_likelihood(model, tokenizer, text, f" {letter}") for letter in "ABCD"] for text in texts]
    found = measured(WMDP, "wmdp_bio")
    right = "".join(str(int(np.argmax(row) == q["answer"])) for row, q in zip(logp, WMDP, strict=True))
    assert found["right"] == right and found["n"] == 2


@lm_eval
def test_lm_evals_own_hf_model_finds_of_an_export_what_is_found_here(bench, made, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance

    target, base, learnt = made("llama"), made("tied", 1), made("tied", 2)
    tokenizer = bench.encoder.tokenizer
    folder = engines.offset(tmp_path / "export", target, base, learnt, vocab_size=tokenizers.size(tokenizer))
    tokenizer.save_pretrained(folder)
    ensemble = offset_ensemble(*(AutoModelForCausalLM.from_pretrained(f) for f in (target, learnt, base)))
    asked = questions(bench, 6)
    task = choices.task("quiz", write(tmp_path, "quiz", asked))
    ours = harnesses.measure(ensemble, 0.5, tokenizer, task, None, 3)["quiz"]
    where = {"pretrained": str(folder), "target": str(target), "base": str(base), "alpha": 0.5}
    own = {"task_manager": harnesses._manager(False), "bootstrap_iters": 0, "device": "cpu"}
    found = simple_evaluate("hf", model_args=where, tasks=[task], batch_size=2, **own)
    theirs = found["results"]["quiz"]
    assert {k: theirs[f"{k},none"] for k in ("acc", "acc_norm")} == {k: ours[k] for k in ("acc", "acc_norm")}
    lm = harnesses.language_model(ensemble, 0.5, tokenizer, 3)
    for sample in found["samples"]["quiz"]:
        requests = [Instance("loglikelihood", {}, tuple(pair), 0) for pair in sample["arguments"]]
        logp = [response[0] for (response,) in sample["resps"]]
        assert logp == pytest.approx([logp for logp, _ in lm.loglikelihood(requests)], abs=1e-5)


@lm_eval
def test_a_run_is_measured_beside_target_and_retrained(run, bench, tmp_path, capsys):
    _, folder = run
    write(tmp_path / "asked", "arc_easy", questions(bench))
    write(tmp_path / "asked", "mine", questions(bench, 3))
    where = f"path={tmp_path / 'asked'}"
    assert harness.main([f"run={folder}", "alpha=0,1", where, "tasks=arc_easy,mine"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((folder / "harness.json").read_text())
    easy = found["arc_easy"]
    assert list(found) == ["arc_easy", "mine"] and list(easy["alphas"]) == ["0.0", "1.0"]
    assert easy["alphas"]["0.0"] == easy["target"] and easy["retrained"]["n"] == 4
    assert easy["settings"]["source"].startswith("arc_easy.jsonl sha256:") and "lm-eval" in easy["settings"]["versions"]
    row = next(line for line in shown.splitlines() if line.strip().startswith("arc_easy   acc "))
    assert f"{easy['target']['acc']:.3f}" in row and "(+0.000 ± 0.000)" in row  # α = 0 is the target
    assert harness.main([f"run={folder}", "alpha=0.5", where]) == 0  # of the standard names, those that are there
    again = json.loads((folder / "harness.json").read_text())
    assert list(again["arc_easy"]["alphas"]) == ["0.0", "0.5", "1.0"] and again["mine"] == found["mine"]
    assert harness.main([f"run={folder}", "limit=2", where]) == 0
    limited = json.loads((folder / "harness.json").read_text())["arc_easy"]
    assert list(limited["alphas"]) == ["1.0"] and limited["target"]["n"] == 2  # other questions do not mix


@lm_eval
def test_a_model_alone(bench, measured, tmp_path, capsys):
    saved, out = tmp_path / "model", tmp_path / "result.json"
    bench.model("target").save_pretrained(saved)
    bench.encoder.tokenizer.save_pretrained(saved)
    write(tmp_path / "asked", "quiz", questions(bench))
    assert harness.main([f"model={saved}", f"path={tmp_path / 'asked'}", f"out={out}", "trainer.device=cpu"]) == 0
    assert json.loads(out.read_text())["quiz"]["model"] == measured(questions(bench))
    assert harness.main([f"model={tmp_path / 'nowhere'}", f"path={tmp_path / 'asked'}"]) == 2
    assert "no folder" in capsys.readouterr().err


@lm_eval
def test_what_cannot_be_asked_is_refused_with_the_choices(run, bench, tmp_path, capsys, monkeypatch):
    for name in ("arc_easy", "quiz"):
        write(tmp_path / "asked", name, questions(bench))
    (run[1] / "harness.json").unlink(missing_ok=True)
    for argument, message in (
        ("tasks=arc_hard", "tasks=arc_hard: path=.* has no such task; it has arc_easy, quiz"),
        (f"path={tmp_path}/none", r"must be a folder with NAME.jsonl"),
        ("limit=0", "limit=0: must be a whole number of questions, at least 1"),
        ("alpha=high", "alpha=high: must be finite numbers"),
        ("algo.beta=1", "algo.beta=1: a finished run keeps it"),
    ):
        where = [] if argument.startswith("path=") else [f"path={tmp_path / 'asked'}"]
        assert harness.main([f"run={run[1]}", *where, argument]) == 2
        error = capsys.readouterr().err
        assert "Refused" in error and not (run[1] / "harness.json").exists()
        assert re.search(message, error)

    class Index:
        all_tasks = ["arc_easy", "arc_challenge", "hellaswag"]

    monkeypatch.setattr(harnesses, "_manager", lambda own: Index)
    with pytest.raises(ConfigError, match="tasks=arc_esy: lm-eval .* has no such task; near it: arc_easy"):
        harnesses.tasks_of(["arc_esy"], None)
    assert harnesses.tasks_of(["hellaswag"], None) == {"hellaswag": ("hellaswag", "lm-eval hellaswag")}
    monkeypatch.setattr(harnesses, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install -c constraints.txt"):
        harnesses.tasks_of([], None)


@lm_eval
def test_generated_text_is_refused(bench):
    import datasets

    asked = datasets.Dataset.from_dict({"question": ["Who?"], "answer": ["me"]})
    task = {
        "task": "free", "output_type": "generate_until", "test_split": "test", "doc_to_text": "question",
        "doc_to_target": "answer", "custom_dataset": lambda **_: {"test": asked},
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="tasks=free: is about generated text"):
        harnesses.measure(bench.alone("target"), 1.0, bench.encoder.tokenizer, task, None, 2)


def test_a_question_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "quiz.jsonl"
    for line, message in (
        ('{"query": "Q", ', "line 2: not valid JSON"),
        ('{"question": "Q"}', "needs query .or question., choices and gold"),
        ('{"question": "Q", "choices": ["a", "b"]}', "gold=None must be the number of a choice, 0 to 1"),
        ('{"query": "Q", "choices": ["a"], "gold": 0}', "choices two texts or more"),
        ('{"query": "Q", "choices": ["a", "b"], "gold": 2}', "gold=2 must be the number of a choice, 0 to 1"),
        ('{"continuation": "c", "context_options": ["a", "b"], "gold": 0}', "different forms"),
    ):
        path.write_text('{"query": "Q", "choices": ["a", "b"], "gold": 1}\n' + line)
        with pytest.raises(DataError, match=message):
            choices.read(path)


def test_a_change_has_the_error_of_paired_questions():
    # steps 0, −1, −1, 0: mean −1/2, variance (4 · 1/4) / 3, error √(1/3 / 4)
    assert harnesses.change("1110", "1000") == pytest.approx((-0.5, math.sqrt(1 / 12)))


def test_the_local_copies_of_the_papers_tasks():
    folder = SHARED / "data" / "general"
    if not folder.is_dir():
        pytest.skip(f"the general tasks are not at {folder}")
    files = choices.find(folder)
    counts = {name: len(choices.read(files[name])) for name in choices.STANDARD}
    expected = {"arc_challenge": 1172, "arc_easy": 2376, "hellaswag": 1000, "winogrande": 1267, "openbookqa": 500}
    assert counts == expected
