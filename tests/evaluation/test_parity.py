"""Our numbers beside OpenUnlearning's: the whole evaluation of its golden model.

The golden files are what OpenUnlearning computed for a tiny Llama with a chat template on data of TOFU's shape.
"""

import json
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from support.helpers import SHARED, read_tofu, tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from unlearn import evaluate
from unlearn.config.data import TemplateConfig
from unlearn.config.schema import EvalConfig
from unlearn.data.encoding import Encoder, Examples
from unlearn.data.rows import DataSet, Row
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.evaluation import evaluation
from unlearn.evaluation.scoring import score
from unlearn.evaluation.suite import suite
from unlearn.models import llama

GOLDEN = SHARED / "golden" / "openunlearning_chat"
SYSTEM = "You are a helpful assistant."
SPLITS = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}  # our name, theirs
AGGREGATES = {
    "model_utility": "model_utility", "privleak": "privleak", "forget/exact_memorization": "exact_memorization",
    "forget/extraction_strength": "extraction_strength", "forget/truth_ratio": "forget_truth_ratio",
    "mia/loss": "mia_loss", "mia/zlib": "mia_zlib", "mia/min_k": "mia_min_k",
    "mia/min_k_plus_plus": "mia_min_k_plus_plus", "forget/paraphrased_prob": "forget_Q_A_PARA_Prob",
    "forget/wrong_prob": "forget_Q_A_PERT_Prob", "retain/paraphrased_prob": "retain_Q_A_PARA_Prob",
    "retain/wrong_prob": "retain_Q_A_PERT_Prob", "retain/truth_ratio": "retain_Truth_Ratio",
    **{f"{ours}/{metric}": f"{theirs}_{name}" for ours, theirs in SPLITS.items()
       for metric, name in (("prob", "Q_A_Prob"), ("rougeL_recall", "Q_A_ROUGE"))},
    **{f"{ours}/{metric}": f"{theirs}_{name}" for ours, theirs in (("real_authors", "ra"), ("world_facts", "wf"))
       for metric, name in (("truth_ratio", "Truth_Ratio"), ("prob_options", "Q_A_Prob_normalised"),
                            ("wrong_prob", "Q_A_PERT_Prob"))},
}  # fmt: skip
VALUES = {  # column → metric and field of theirs
    "prob": ("Q_A_Prob", "prob"), "nll": ("Q_A_Prob", "avg_loss"), "rougeL_recall": ("Q_A_ROUGE", "rougeL_recall"),
    "rougeL_f1": ("Q_A_ROUGE", "rougeL_f1"), "wrong_prob": ("Q_A_PERT_Prob", "prob"),
    "paraphrased_prob": ("Q_A_PARA_Prob", "prob"), "truth_ratio": ("Truth_Ratio", "score"),
    "prob_options": ("Q_A_Prob_normalised", "prob"),
}  # fmt: skip


# --- the whole evaluation -------------------------------------------------------------------------------------------
def asked(out, *more: str) -> list[str]:
    return [f"model={GOLDEN}/model", f"out={out}", "data=tofu", f"data.path={GOLDEN}/data", "data.forget=forget10",
            "template=chat", f"data.template.system='{SYSTEM}'", "eval=ou", "trainer.device=cpu", *more]  # fmt: skip


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_dir():
        pytest.skip(f"the golden values are not at {GOLDEN}")
    return json.loads((GOLDEN / "TOFU_EVAL.json").read_text())


@pytest.fixture(scope="module")
def ours(golden, tmp_path_factory):
    """Metrics and examples, as the command writes them."""
    out = tmp_path_factory.mktemp("parity") / "ours.json"
    reference = f"retrained={GOLDEN}/retain_TOFU_EVAL.json"
    assert evaluate.main(asked(out, reference, "eval.resamples=20")) == 0
    return json.loads(out.read_text())["metrics"], pd.read_parquet(out.with_name("ours.examples.parquet"))


@pytest.fixture(scope="module")
def prompts(golden):
    """What their program fed to the model, by split and question number."""
    found = {}
    for line in (GOLDEN / "prompts_chat.jsonl").read_text().splitlines():
        entry = json.loads(line)
        found.setdefault(entry["set"].removesuffix("_perturbed"), []).append(entry)
    return found


def theirs(golden, split: str, metric: str) -> list[dict]:
    name = f"{SPLITS[split]}_{metric}"
    entry = golden[name if name in golden else name.replace("Truth_Ratio", "truth_ratio")]
    return list(entry["value_by_index"].values())


def question(said: str) -> str:
    return said.strip().splitlines()[-1]  # their input is system, question and a line break


def test_every_aggregate_is_openunlearnings(golden, ours):
    metrics, _ = ours
    found = {name: metrics[name] for name in AGGREGATES}
    assert found == pytest.approx({name: golden[key]["agg_value"] for name, key in AGGREGATES.items()}, abs=1e-5)
    assert metrics["forget_quality"] == pytest.approx(golden["forget_quality"]["agg_value"], rel=1e-6)
    named = {*AGGREGATES.values(), "forget_quality"}
    assert {k for k in golden if k not in named} == set()  # nothing of theirs is left out
    assert metrics["model_utility"] == pytest.approx(0.459640, abs=1e-6)


@pytest.mark.parametrize("split", SPLITS)
def test_every_example_has_openunlearnings_values_and_generation(golden, ours, split):
    table = ours[1]
    table = table[table["split"] == split].set_index("prompt")
    said = theirs(golden, split, "Q_A_ROUGE")
    table = table.loc[[question(entry["input"]) for entry in said]]  # our retain rows stand in the retain set's order
    assert len(table) == (80 if split == "retain" else 40)
    for column, (metric, field) in VALUES.items():
        if f"{SPLITS[split]}_{metric}" in golden or metric == "Truth_Ratio":
            expected = [np.mean(entry[field]) for entry in theirs(golden, split, metric)]
            np.testing.assert_allclose(table[column], expected, atol=1e-5, err_msg=column)
        else:
            assert table[column].isna().all(), column
    assert list(table["generation"]) == [entry["generation"] for entry in said]
    assert list(table["gold"]) == [entry["ground_truth"] for entry in said]


def test_memorisation_and_attacks_of_every_example(golden, ours):
    for split in ("forget", "holdout"):
        table = ours[1][ours[1]["split"] == split]
        for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
            expected = [e["score"] for e in golden[f"mia_{attack}"][split]["value_by_index"].values()]
            np.testing.assert_allclose(table[f"mia_{attack}"], expected, atol=1e-5, err_msg=f"{attack} {split}")
    forget = ours[1][ours[1]["split"] == "forget"]
    for name in ("exact_memorization", "extraction_strength"):
        expected = [e["score"] for e in golden[name]["value_by_index"].values()]
        np.testing.assert_allclose(forget[name], expected, atol=1e-6, err_msg=name)


def test_ids_labels_and_log_probabilities_of_every_prompt(prompts):
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "model")
    encoder = Encoder(tokenizer, TemplateConfig("chat", "{question}", "{answer}", SYSTEM), 512)
    data = read_tofu(str(GOLDEN / "data"), "forget10", None)
    model = llama.freeze(llama.load(GOLDEN / "model"))
    alone = Ensemble((Member("model", model, "", 1.0, 0.0, False),))
    for name, entries in prompts.items():
        split = "holdout" if name.startswith("holdout") else "forget" if name.startswith("forget") else name
        rows = {r.question: r for r in data.evaluated(split)}
        chosen = [rows[question(tokenizer.decode(e["prompt_ids"][:-1], skip_special_tokens=True))] for e in entries]
        examples = Examples(encoder.example(r.id, r.question, r.answer) for r in chosen)
        assert [list(e.prompt) for e in examples] == [e["prompt_ids"] for e in entries]
        assert [[*e.prompt, *e.answer] for e in examples] == [e["full_ids"] for e in entries]
        assert [encoder.prompt(r.question) for r in chosen] == [e.prompt for e in examples]
        scores = score(alone, examples, [1.0], {}, tokenizer.pad_token_id, 32)[1.0]
        assert scores.tokens.tolist() == [e["n_label_tokens"] for e in entries]
        expected = np.concatenate([e["token_logprobs"] for e in entries])  # written with six decimals
        np.testing.assert_allclose(scores.logp, expected, rtol=1e-5, atol=2e-5)


def test_a_reference_of_other_rows_is_refused(golden, tmp_path, capsys):
    whole = json.loads((GOLDEN / "retain_TOFU_EVAL.json").read_text())

    def reference(change) -> str:
        raw = json.loads(json.dumps(whole))
        for entry in raw.values():
            for part in (entry, entry.get("forget", {}), entry.get("holdout", {})):
                if "value_by_index" in part and len(part["value_by_index"]) == 40:
                    part["value_by_index"] = change(part["value_by_index"])
        path = tmp_path / "reference.json"
        path.write_text(json.dumps(raw))
        return f"retrained={path}"

    for change, message in (
        (lambda v: dict(list(v.items())[:-1]), "has 39 forget rows, and 40 are evaluated"),
        (lambda v: dict(zip(v, reversed(v.values()), strict=True)), "others than are evaluated, or in another order"),
    ):
        assert evaluate.main(asked(tmp_path / "out.json", reference(change))) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


# --- prompts that end in a space ------------------------------------------------------------------------------------
ASKED = "Question: {question} Answer: "
TOWNS = ["Turku is it", "Oulu, in the north", "near Rauma , I think", "it's Pori", "Kotka or Hamina"]


@pytest.fixture(scope="module")
def spaced():
    """A data set, a tokenizer whose tokens hold the space before a word, as GPT-2's, and a random model."""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    own.train_from_iterator([f"{ASKED.format(question='Where is it?')}{t}" for t in TOWNS] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", eos_token="</s>", padding_side="left")

    def rows(split: str, turn: int) -> tuple[Row, ...]:
        answers = TOWNS[turn:] + TOWNS[:turn]
        wrong = zip(answers[1:] + answers[:1], answers[2:] + answers[:2], strict=True)
        return tuple(
            Row(f"{split}/{i}", f"Where is {split} {i}?", a, f"so {a}", None, w)
            for i, (a, w) in enumerate(zip(answers, wrong, strict=True))
        )

    data = DataSet("towns", {split: rows(split, turn) for turn, split in enumerate(("forget", "retain", "holdout"))})
    return data, tokenizer, tiny_llama(4, vocabulary=len(tokenizer))


def test_where_labels_are_cut_gold_texts_and_zlib_texts_are_openunlearnings(spaced, monkeypatch):
    """Its arithmetic written out: a row at a time, transformers alone, rouge_score and zlib."""
    data, tokenizer, model = spaced
    cfg = EvalConfig(semantics="ou", groups=["privacy"], max_new_tokens=16, max_examples=None, resamples=0)
    encoder = Encoder(tokenizer, TemplateConfig("plain", ASKED, "{answer}"), 64)
    made, said = suite(data, encoder, cfg, {}, 1.0), {}
    for split in made.splits:  # what is generated, so that texts have words in common: an answer without its end
        said |= {p: tokenizer(r.answer)["input_ids"][:-1] for p, r in zip(split.prompts, split.rows, strict=True)}
    monkeypatch.setattr(evaluation, "greedy", lambda ensemble, prompts, *rest: [said[p] for p in prompts])
    alone = Ensemble((Member("model", llama.freeze(model), "", 1.0, 0.0, False),))
    found, table = evaluation.evaluate(alone, made, [1.0], None, None)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def text(ids) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)

    def logp(row: Row, answer: str) -> tuple[list[float], list[bool], list[int], list[int]]:
        """Of each label and whether it is the likeliest; ids of the prompt alone and of the whole conversation."""
        asked = ASKED.format(question=row.question)
        prompt, whole = tokenizer(asked)["input_ids"], [*tokenizer(asked + answer)["input_ids"], 1]
        with torch.no_grad():
            rows = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        at = range(len(prompt), len(whole))
        likeliest = rows.argmax(-1).tolist()
        return [rows[t - 1, whole[t]].item() for t in at], [likeliest[t - 1] == whole[t] for t in at], prompt, whole

    cut, scores = 0, {}
    for split in data.splits:
        expected = []
        for row in data.splits[split]:
            values, right, prompt, whole = logp(row, row.answer)
            labels = whole[len(prompt) :]
            nll, gold = -np.mean(values), text(whole).replace(text(prompt), "").strip()
            cut += tokenizer.decode(labels, skip_special_tokens=True).strip() != row.answer
            compared, *wrong = (-np.mean(logp(row, a)[0]) for a in (row.paraphrased_answer, *row.perturbed_answers))
            rouge = scorer.score(gold, text(said[tuple(prompt)]).strip())["rougeL"]
            size = len(zlib.compress(tokenizer.decode(labels, skip_special_tokens=True).encode()))
            least = sorted(values[:-1])[: max(1, int(0.4 * (len(values) - 1)))]
            expected.append({
                "gold": gold, "prob": np.exp(-nll), "rougeL_recall": rouge.recall, "rougeL_f1": rouge.fmeasure,
                "truth_ratio": np.exp(-np.mean(wrong)) / (np.exp(-compared) + 1e-10), "mia_zlib": nll / size,
                "mia_min_k": -np.mean(least), "exact_memorization": np.mean(right[:-1]),
            })  # fmt: skip
        expected, ours = pd.DataFrame(expected), table[table["split"] == split].reset_index(drop=True)
        expected = expected.drop(columns=["gold", "rougeL_recall", "rougeL_f1"] if split == "holdout" else [])
        expected = expected.drop(columns=["mia_zlib", "mia_min_k"] if split == "retain" else [])
        pd.testing.assert_frame_equal(ours[list(expected)], expected, rtol=1e-5, atol=1e-6)
        r = expected["truth_ratio"]
        expected["truth_ratio"] = np.minimum(r, 1 / (r + 1e-10)) if split == "forget" else np.maximum(0, 1 - r)
        for name in {"prob", "exact_memorization", "rougeL_recall", "rougeL_f1", "truth_ratio"} & set(expected):
            assert found[1.0][f"{split}/{name}"] == pytest.approx(expected[name].mean(), abs=1e-5)
        scores |= {
            (split, attack): list(expected[attack]) for attack in ("mia_zlib", "mia_min_k") if attack in expected
        }
    for attack in ("mia_zlib", "mia_min_k"):
        wins = [(h > f) + (h == f) / 2 for f in scores["forget", attack] for h in scores["holdout", attack]]
        assert found[1.0][attack.replace("_", "/", 1)] == pytest.approx(np.mean(wins), abs=1e-5)
    assert cut == 15  # every label lacks its first word, and no gold text does
