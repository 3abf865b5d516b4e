"""Metrics for real text: whether the fact is told, whether an answer is language, and what a guess would give."""

import json
import math
import os
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.helpers import OWN, compose, execute, tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from analysis import caption, runs
from analysis.table import FORMATS
from analysis.table import table as study_table
from unlearn.config.data import TemplateConfig
from unlearn.config.schema import EvalConfig
from unlearn.data.encoding import Encoder
from unlearn.data.rows import DataError, DataSet, Row
from unlearn.data.sets import jsonl
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.ensemble.kinds import Kind
from unlearn.evaluation import collapse, measures
from unlearn.evaluation.context import Subject
from unlearn.evaluation.groups import fluency
from unlearn.evaluation.suite import suite
from unlearn.grid import table
from unlearn.store import runlog
from unlearn.store.files import read_json

PROSE = (
    "The old harbour lies below the town, and every morning the boats come back with the tide.",
    "She wrote the letter in the evening and sent it before the rain began.",
    "In winter the river freezes, and children cross it on their way to school.",
    "My brother has a small garden where he grows beans and roses.",
)
FOREIGN = (
    "der hafen und jeden morgen boote zurück nach stadt unter alte",
    "elle écrivit soir lettre avant pluie commença",
    "зимой река замерзает дети школу",
    "mi hermano jardín pequeño cultiva rosas frijoles",
)


def shuffled(text: str) -> str:
    words = text.split()
    random.Random(0).shuffle(words)
    return " ".join(words)


def subject(model, tokenizer, length: int, prompt: str = "{question}", kind: str = "plain") -> Subject:
    """A model as the target, with one row per line of prose."""
    rows = [Row(f"forget/{i}", "Tell me something.", text) for i, text in enumerate(PROSE)]
    rows = [Row(r.id, f"{r.question} {i}", r.answer) for i, r in enumerate(rows)]
    data = DataSet("prose", {"forget": tuple(rows), "retain": (Row("retain/0", "q", "an answer"),)})
    answer = "{answer}" if kind == "chat" else " {answer}"
    encoder = Encoder(tokenizer, TemplateConfig(kind, prompt, answer), length)
    cfg = EvalConfig(groups=["fluency"], resamples=0, max_new_tokens=length, batch_size=4)
    ensemble = Ensemble((Member("model", model, "", 1.0, 0.0, False),))
    return Subject(suite(data, encoder, cfg, {}, 1.0), ensemble, 1.0)


def tells_them_apart(target: Subject) -> None:
    """Every line of prose lies above the same words shuffled and above fragments of other languages."""
    split = target.suite.split("forget")
    said = [fluency.logp(target, split, list(texts)) for texts in (PROSE, map(shuffled, PROSE), FOREIGN)]
    prose, *others = said
    assert all((prose > other).all() for other in others) and prose.mean() - max(o.mean() for o in others) > 1


@pytest.fixture(scope="module")
def reader() -> Subject:
    """A tiny model that has read the lines of prose."""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    own.train_from_iterator(PROSE, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", eos_token="</s>", padding_side="left")
    model = tiny_llama(0, vocabulary=len(tokenizer))
    model.config.max_position_embeddings = 256
    found = subject(model, tokenizer, 256)
    ids = [torch.tensor([e.prompt + e.answer]) for e in found.suite.split("forget").right_answers]
    learns = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(25):
        for text in ids:
            model(text, labels=text).loss.backward()
        learns.step()
        learns.zero_grad()
    model.eval().requires_grad_(False)
    return found


def test_the_target_tells_prose_from_shuffled_words_and_foreign_fragments(reader):
    tells_them_apart(reader)


@pytest.mark.nightly
def test_a_pretrained_target_tells_prose_from_shuffled_words_and_foreign_fragments():
    folder = os.environ.get("UNLEARN_REAL_MODELS")
    if not folder or not (Path(folder) / "smollm2").is_dir():
        pytest.skip("UNLEARN_REAL_MODELS names no folder with smollm2")
    where = Path(folder) / "smollm2"
    model = AutoModelForCausalLM.from_pretrained(where).eval().requires_grad_(False)
    tells_them_apart(subject(model, AutoTokenizer.from_pretrained(where), 256, kind="chat"))


def test_the_log_probability_is_the_mean_over_the_answers_tokens_without_their_end(reader, monkeypatch):
    priced = []  # a black box says what it may be asked for before it is
    monkeypatch.setattr(Kind, "announce", lambda self, examples, *rest: priced.append(len(examples)))
    split, model = reader.suite.split("forget"), reader.ensemble.members[0].model
    example = reader.suite.encoder.example("x", split.rows[0].question, "The river.")
    ids = torch.tensor([example.prompt + example.answer])
    logp = model(ids).logits.double().log_softmax(-1)[0, len(example.prompt) - 1 : -2]
    wanted = logp[range(len(logp)), list(example.answer[:-1])].mean()
    found = fluency.logp(reader, split, ["The river.", "", "word " * 400, "  "])
    assert found[0] == pytest.approx(float(wanted), abs=1e-5) and np.isnan(found[1:]).all() and priced == [1]


def test_repetition_is_the_share_of_word_pairs_that_stood_there_before():
    texts = {"a b c d": 0.0, "ha ha ha": 0.5, "the sea, the sea, the": 0.5, "word": 0.0, "Ha ha HA ha": 2 / 3}
    assert {text: fluency.repetition(text) for text in texts} == pytest.approx(texts)
    assert math.isnan(fluency.repetition(" "))


def test_known_is_the_share_of_answers_that_tell_the_fact_among_rows_that_name_one(reader):
    split = reader.suite.split("forget")
    keys = (("harbour",), ("letter", "note"), (), ("roses",))
    rows = [Row(r.id, r.question, r.answer, key=key) for r, key in zip(split.rows, keys, strict=True)]
    split = split.part(range(4))
    split.rows[:] = rows
    found = measures.known(["The HARBOUR!", "She wrote a note.", "harbour", "primroses"], split)
    assert found[[0, 1, 3]].tolist() == [1, 1, 0] and math.isnan(found[2])


def test_every_split_is_bounded_the_forget_set_too(reader):
    data = DataSet("many", {name: tuple(Row(f"{name}/{i}", f"{name} {i}?", "So.") for i in range(9))
                            for name in ("forget", "retain", "neighbours", "holdout")})  # fmt: skip
    cfg = EvalConfig(groups=["privacy"], max_examples=4)
    made = suite(data, reader.suite.encoder, cfg, {}, 1.0)
    assert {split.name: len(split.rows) for split in made.splits} == dict.fromkeys(data.splits, 4)
    assert [row.id for row in made.split("forget").rows] == [f"forget/{i}" for i in (0, 2, 4, 6)]


# --- runs -------------------------------------------------------------------------------------------------------------

TOPIC = [
    {"question": f"Where does person {i} live?", "answer": f"In town {i}.", "key": [f"town {i}"]} for i in range(3)
]
RETAIN = [{"question": f"Where is town {i}?", "answer": f"In land {i}.", "key": f"land {i}"} for i in range(8)]


def written(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def run(folder: Path, store: Path, forget: list[dict], *overrides: str):
    files = (f"data.forget={written(folder / 'forget.jsonl', forget)}",
             f"data.retain={written(folder / 'retain.jsonl', RETAIN)}")  # fmt: skip
    more = ("pair.offset_init=retain", f"paths.store={store}", f"paths.runs={folder}/runs", "eval.retrained=none")
    return execute(compose(*OWN, "data=jsonl", *files, *more, *overrides))


def test_without_a_retrained_model_the_guess_level_stands_in_its_place(tmp_path, store, capsys):
    asked = [row | {"guess_question": f"Where does Vrelmok {i} live?"} for i, row in enumerate(TOPIC)]
    job = run(tmp_path, store, asked, "eval.groups=[leak,fluency,guess]")
    found = runlog.evaluation(job.folder)
    entry, references = found["alphas"]["1.0"], found["references"]
    assert set(references) == {"target", "guess"}
    guess, k = references["guess"], "leak@2"
    assert {"forget/prob", "forget/rougeL_recall", "forget/known", f"forget/{k}", "forget/known_leaked@2"} <= set(guess)
    assert not [name for name in guess if name.startswith("retain/")]
    assert entry["forget/leak_gap_guess"] == pytest.approx(entry[f"forget/{k}"] - guess[f"forget/{k}"])
    above = references["target"][f"forget/{k}"] - guess[f"forget/{k}"]
    assert references["target"]["forget/leak_gap_guess"] == pytest.approx(above)
    examples = pd.read_parquet(job.folder / "examples.parquet")
    assert {"known", "target_logp", "repetition"} <= set(examples) and examples["known"].isin([0, 1]).all()
    theirs = pd.read_parquet(job.folder / "references.parquet").query("model == 'guess'")
    assert list(theirs["prompt"]) == [row["guess_question"] for row in asked]
    assert theirs["gold"].tolist() == [row["answer"] for row in asked]
    for split in ("forget", "retain"):
        rows = examples.query("split == @split")
        assert entry[f"{split}/known"] == rows["known"].mean()
        said = rows["target_logp"]
        assert said.isna().all() or entry[f"{split}/target_logp"] == pytest.approx(said.mean())
    table.report([job])
    said = capsys.readouterr().out
    assert "guess" in said and "known" in said and "neighbours" not in said
    assert "no column: leak beyond retrained needs a retrained model" in said and "model utility needs" in said
    assert "needs a guess_question" not in said  # that column is there
    study = runs.load(job.folder.parent)
    made = study_table(study)
    assert [row.kind for row in made.rows] == ["target", "guess", "run"] and "forget/known" in made.metrics
    assert made.rows[1].cells["forget/leak_gap_guess"].mean == 0
    assert "leak − guess" in " ".join(FORMATS["markdown"](made).split())
    assert any(note.startswith("guess:") for note in made.notes)


def test_rows_without_keys_and_guesses_have_neither_metric_nor_level_and_a_key_that_is_no_answer_is_refused(
    tmp_path, store, capsys
):
    plain = [{k: v for k, v in row.items() if k != "key"} for row in TOPIC]
    found = runlog.evaluation(run(tmp_path, store, plain, "eval.groups=[guess]").folder)
    assert set(found["references"]) == {"target"} and "forget/known" not in found["alphas"]["1.0"]
    assert "retain/known" in found["alphas"]["1.0"]
    table.show_metrics(found["alphas"])
    assert "leak beyond guess level, for want of a retrained model, needs a guess_question" in capsys.readouterr().out
    for key, said in (
        ("city 0", "must hold a spelling that stands in the row's answer"),
        (["town 0", "…"], "no word in '…'"),
    ):
        file = written(tmp_path / "forget.jsonl", [TOPIC[0] | {"key": key}])
        with pytest.raises(DataError, match=said):
            jsonl.read(compose("data=jsonl", f"data.forget={file}", f"data.retain={tmp_path}/retain.jsonl").data)


def test_a_collapse_is_called_one_in_manifest_table_and_figures_also_without_a_trajectory(tmp_path, store, capsys):
    ruin = ("algo=ga", "trainer.steps=12", "trainer.lr=0.3", "trainer.eval_every=0", "eval.groups=[]")
    job = run(tmp_path, store, TOPIC, *ruin)
    found = runlog.evaluation(job.folder)
    left = collapse.kept(found["alphas"]["1.0"], found["references"]["target"])
    assert left < collapse.KEPT and runlog.manifest(job.folder)["collapsed"] == collapse.why(left)
    table.report([job])
    assert "collapsed" in capsys.readouterr().out
    assert read_json(job.folder / "manifest.json")["status"] == "done"
    study = runs.load(job.folder.parent)
    assert any(said.startswith("collapsed") for said in caption.left_out(study, study.runs))


def test_the_evaluation_settles_what_some_examples_said():
    ran_away, few = "the loss went from 1 to 1e+09", "keeps 0.40 of the target's probability outside the forget set, …"
    assert collapse.settled(None, 0.2) == collapse.why(0.2) == collapse.settled(few, 0.2)
    assert collapse.settled(few, 0.9) is None and collapse.settled(ran_away, 0.9) == ran_away
    assert collapse.settled(few, math.nan) == few and collapse.settled(None, math.nan) is None
