"""EUL's tasks: made-up reviews and dialogues, texts with words masked, its measures, and runs of a tiny T5 on them."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.helpers import build, compose, execute, lines

from unlearn import export
from unlearn.config.data import TemplateConfig
from unlearn.config.pair import TokenizerConfig
from unlearn.config.schema import ConfigError
from unlearn.data import spans
from unlearn.data.encoding import Encoder
from unlearn.data.people import unnamed
from unlearn.data.readers import read
from unlearn.data.rows import DataError, Row
from unlearn.data.sets import dialogues, people, reviews
from unlearn.models import llama, tokenizers
from unlearn.runs import building
from unlearn.runs.inputs import Inputs
from unlearn.runs.workbench import workbench
from unlearn.store.identity import digest, eval_settings, run_identity

SMALL = {"people": 12, "reviews": 3, "forget_people": 2, "test_reviews": 10, "general_reviews": 6}
SPOKEN = {"people": 12, "forget_people": 2, "test_dialogues": 8, "general_dialogues": 6}
SIZES = tuple(f"pair.{name}.{key}" for name in ("target", "small") for key in (
    "hidden_size=16", "heads=2", "layers=1", "intermediate_size=16", "pretrain.epochs=1", "finetune.epochs=2"
))  # fmt: skip
TINY_T5 = (
    "pair=t5", "eval=tasks", "pair.batch_size=8", *SIZES, "trainer.forget_batch=3", "trainer.retain_batch=6",
    "trainer.steps=2", "trainer.eval_every=1", "trainer.progress=false", "trainer.device=cpu", "eval.resamples=20",
    "wandb=disabled",
)  # fmt: skip
REVIEWS = ("data=reviews", *(f"data.{k}={v}" for k, v in SMALL.items()))
DIALOGUES = ("data=dialogues", *(f"data.{k}={v}" for k, v in SPOKEN.items()))


@pytest.fixture
def tiny(store, tmp_path):
    """Function from overrides to a checked config of tiny T5s."""
    return lambda *given: compose(*TINY_T5, f"paths.store={store}", f"paths.runs={tmp_path}/runs", *given)


def evaluated(job) -> dict:
    return json.loads((job.folder / "eval.json").read_text())


# --- the data -----------------------------------------------------------------------------------------------------
def test_reviews_are_made_of_a_seed_and_people_are_the_last_ones_or_those_asked_for_by_number():
    one, again, other = (build(reviews, **SMALL, seed=seed) for seed in (0, 0, 1))
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()
    larger = build(reviews, **SMALL | {"forget_people": 4})
    assert larger.splits["forget"][-6:] == one.splits["forget"]
    assert larger.splits["retain"] + larger.splits["forget"] == one.splits["retain"] + one.splits["forget"]
    data = build(reviews, **SMALL, forget=[3, 0], gone=[5])
    assert {row.group for row in data.splits["forget"]} == {"person/0003", "person/0000"}
    left = {row.group for row in data.splits["retain"]}
    assert len(left) == 9 and not left & {"person/0003", "person/0000", "person/0005"}
    said = build(dialogues, **SPOKEN, forget=[3], gone=[4])
    assert [row.id for row in said.splits["forget"]] == ["pair/0002/0"]  # the other one was with speaker 4
    assert len(said.splits["retain"]) == 9


@pytest.mark.parametrize("data", [REVIEWS, DIALOGUES])
def test_requests_of_people_are_asked_for_one_after_another(data):
    one, two, both = (read(compose(*data, "data.requests=[[11],[3,10]]", *n))
                      for n in (["data.request=1"], ["data.request=2"], []))  # fmt: skip
    whole = read(compose(*data, "data.forget=[3,10,11]"))
    for found in (one, two, both):  # over one target, whatever is asked for
        assert {r.id for r in found.known()} == {r.id for k in ("forget", "retain") for r in whole.splits[k]}
        assert found.whole().fingerprint() == one.whole().fingerprint()
        assert found.splits["retain"] == whole.splits["retain"] and found.splits["test"] == whole.splits["test"]
    assert set(both.splits["forget"]) == set(whole.splits["forget"]) == {*one.splits["forget"], *two.splits["forget"]}
    assert one.splits["request_2"] == two.splits["forget"] and two.splits["request_1"] == one.splits["forget"]
    shared = [r for r in one.splits["forget"] if {*r.entities} & {n for x in two.splits["forget"] for n in x.entities}]
    assert bool(shared) == (data is DIALOGUES)  # 10 and 11 speak with each other: that is the first request's
    counted = read(compose(*data, "data.requests=[1,2]", "data.request=1"))
    assert counted.splits["forget"] == read(compose(*data, "data.requests=[[9]]")).splits["forget"]
    for wrong, rule in (("data.forget=[3]", "must be null"), ("data.gone=[3]", "must be empty"),
                        ("data.requests=[[99]]", "some of 0 to 11")):  # fmt: skip
        with pytest.raises(ConfigError, match=rule):
            compose(*data, "data.requests=[[11]]", wrong)


def test_a_run_answers_one_request_of_people_and_the_next_trains_its_layers_on(tiny):
    asked = (*REVIEWS, "data.requests=[[11],[3]]", "method=eul", "algo=eul", "eval.retrained=none")
    first = execute(tiny(*asked, "data.request=1"))
    second = execute(tiny(*asked, "data.request=2", f"begin.runs=[{first.folder}]", "trainer.lr=1e-12"))
    for job, other in ((first, "request_2"), (second, "request_1")):
        found = evaluated(job)["alphas"]["1.0"]
        assert {f"{split}/accuracy" for split in ("forget", "retain", "test", other)} <= set(found)
    assert workbench(first.cfg).fingerprint("target") == workbench(second.cfg).fingerprint("target")
    fresh, same = (load_file(j.folder / "adapter" / "adapter_model.safetensors") for j in (first, second))
    for name, tensor in fresh.items():  # at a vanishing rate they stay what they were
        torch.testing.assert_close(same[name], tensor, atol=1e-6, rtol=0)
    assert max(t.abs().max() for n, t in fresh.items() if "unlearning_up" in n) > 1e-5
    with pytest.raises(ConfigError, match="begin.runs=.*not the folder of a run"):
        tiny(*asked, "data.request=2", "begin.runs=[nowhere]")


def test_whoever_is_to_be_forgotten_is_named_in_no_other_row_and_nobody_in_test_and_general_texts():
    for data, word in (
        (build(reviews, **SMALL), reviews.SOMEBODY),
        (build(dialogues, **SPOKEN), dialogues.SPEAKERS[1]),
    ):
        known = {part for row in data.splits["retain"] for name in row.entities for part in name.split()}
        for row in data.splits["test"] + data.wordings:
            assert not known & set(re.findall(r"\w+", f"{row.question} {row.answer}"))
            assert word in row.question and row.entities == ()
        gone = {name for row in data.splits["forget"] for name in row.entities}
        if data.name == "dialogues":  # both speak in a dialogue, and one of them asked
            gone = {n for n in gone if sum(n in row.entities for row in data.splits["forget"]) == 2}
            assert len(gone) == 3  # and the one who spoke with both
        rest = data.splits["retain"] + data.splits["test"] + data.wordings
        assert gone and not [row.id for row in rest for name in gone if name in row.question + row.answer]
        assert all(name in row.question for row in data.splits["forget"] for name in row.entities)


def test_opinions_agree_with_the_label_as_often_as_asked_and_the_best_accuracy_is_the_majoritys():
    data = build(reviews, people=300, forget_people=1, reviews=3, opinions=3, agree=0.85, test_reviews=1)
    agreeing = right = 0
    for row in data.splits["retain"]:
        words = re.findall(r"\w+", row.question)
        good = sum(w in reviews.PRAISE for w in words)
        assert good + sum(w in reviews.BLAME for w in words) == 3
        own = good if row.answer == "positive" else 3 - good
        agreeing, right = agreeing + own, right + (own > 1)
    count = len(data.splits["retain"])
    assert agreeing / (3 * count) == pytest.approx(0.85, abs=0.03)
    assert right / count == pytest.approx(0.85**3 + 3 * 0.85**2 * 0.15, abs=0.03)


def test_a_dialogues_summary_says_what_was_said():
    for row in build(dialogues, **SPOKEN).splits["retain"]:
        a, b = row.entities
        assert row.question.startswith(f"{a}: ") and row.question.count("\n") == 3 and f"\n{b}: " in row.question
        assert a in row.answer and f"{b}" in row.answer
        (day,) = [d for d in dialogues.DAYS if d in row.question]
        assert day in row.answer


def test_names_are_replaced_in_question_and_answers_by_a_word_each():
    row = Row("r", "Ann met Ann Lee and Bo; Annabel did not.", "Bo saw Ann.", None, None, ("Ann left",),
              entities=("Ann Lee", "Ann", "Bo"))  # fmt: skip
    found = unnamed(row, ("_1_", "_2_"))
    assert found.question == "_2_ met _1_ and _2_; Annabel did not."
    assert found.answer == "_2_ saw _2_." and found.perturbed_answers == ("_2_ left",) and found.entities == ()


# --- texts with words masked ----------------------------------------------------------------------------------------
def test_names_are_masked_wherever_they_stand():
    row = Row("r", "Bo: Hi Al Ro! Robo is here.\nAl Ro: So is Bo.", "they met", entities=("Bo", "Al Ro"))
    text = spans.text_of(row)
    assert text.masked == ("<extra_id_0>: Hi <extra_id_1>! Robo is here.\n<extra_id_2>: So is <extra_id_3>.")
    assert text.answer == "<extra_id_0> Bo <extra_id_1> Al Ro <extra_id_2> Al Ro <extra_id_3> Bo <extra_id_4>"
    with pytest.raises(DataError, match="none of its names"):
        spans.text_of(Row("r", "nobody here", "x", entities=("Bo",)))


@pytest.mark.parametrize("words", [2, 7, 400])
def test_random_words_are_masked_and_can_be_put_back(words):
    row = Row("r", " ".join(f"w{i}" for i in range(words - 1)), "end")
    text = spans.text_of(row)
    parts = re.split(r"<extra_id_\d+>", text.answer)[1:-1]
    back = text.masked
    for k, part in enumerate(parts):
        back = back.replace(f"<extra_id_{k}>", part.strip(), 1)
    assert back == text.text == f"{row.question} end"
    hidden = sum(len(part.split()) for part in parts)
    assert 1 <= hidden <= max(1, round(0.15 * words) + 2)
    assert text == spans.text_of(row) and spans.of_names(None, [row], masks=False) == ([], [])


def encoder_for(data, masks: str | None = spans.PREFIX) -> Encoder:
    template = TemplateConfig(prompt="Sentiment: {question}", answer=" {answer}")
    return Encoder(tokenizers.train(TokenizerConfig("words"), data, template, masks), template, 200)


def test_a_masked_text_as_token_ids():
    data = build(reviews, **SMALL)
    encoder, rows = encoder_for(data), data.splits["forget"]
    for row, e in zip(rows, spans.examples(encoder, rows, masks=True), strict=True):
        words = encoder.tokenizer.convert_ids_to_tokens(list(e.answer))
        first, last = row.entities[0].split()
        assert words == ["<extra_id_0>", f" {first}", f" {last}", "<extra_id_1>", "<eos>"]
        asked = encoder.tokenizer.decode(e.prompt)
        assert asked == f"{spans.PREFIX} {row.question}".replace(f" {row.entities[0]}", "<extra_id_0>")
        assert e.id == f"{row.id}/text" and encoder.tokenizer.unk_token_id not in e.prompt + e.answer
    examples, tokens = spans.of_names(encoder, rows, masks=True)
    assert tokens == [[1, 2]] * len(rows) and examples == spans.examples(encoder, rows, True)


def test_names_in_a_text_that_is_read_word_by_word():
    data = build(reviews, **SMALL)
    encoder, rows = encoder_for(data, None), data.splits["forget"] + (Row("x", "no names", "here"),)
    examples, tokens = spans.of_names(encoder, rows, masks=False)
    assert len(examples) == len(rows) - 1
    for row, e, where in zip(rows, examples, tokens, strict=False):
        assert encoder.tokenizer.decode([*e.prompt, *e.answer[:-1]]) == f"Sentiment: {row.question}"
        assert len(e.prompt) == 1 and encoder.tokenizer.unk_token_id not in e.answer
        assert encoder.tokenizer.decode([e.answer[t] for t in where]).strip() == row.entities[0]
    with pytest.raises(DataError, match="this tokenizer has not all of <extra_id_0>"):
        spans.examples(encoder, rows, masks=True)


# --- runs ---------------------------------------------------------------------------------------------------------
def test_a_run_on_reviews_has_eul_s_measures_those_of_the_models_and_what_an_encoder_cannot_do_is_refused(
    tiny, tmp_path
):
    overrides = (*REVIEWS, "method=direct", "algo=gd")
    job = execute(cfg := tiny(*overrides))
    found = evaluated(job)
    bench = workbench(cfg)
    models = {"target": bench.model("target"), "retrained": bench.model("retrained")}
    entries = {"target": found["references"]["target"], "retrained": found["references"]["retrained"],
               "tuned": found["alphas"]["1.0"]}  # fmt: skip
    models["tuned"] = llama.load(job.folder / "offset")
    for name, model in models.items():
        for split in ("test", "retain", "forget"):
            rows = bench.data.splits[split]
            right = [_logp(model, bench, r, r.answer) > _logp(model, bench, r, r.perturbed_answers[0]) for r in rows]
            assert entries[name][f"{split}/accuracy"] == pytest.approx(np.mean(right)), (name, split)
        texts = spans.examples(bench.encoder, bench.data.splits["forget"], masks=True)
        loss = [-_rows(model, e).log_softmax(-1)[[1, 2], list(e.answer[1:3])].mean().item() for e in texts]
        assert entries[name]["forget/mlm_loss"] == pytest.approx(np.mean(loss), rel=1e-4)
    assert "test/mlm_loss" not in entries["target"] and "forget/rouge1_f1" not in entries["target"]
    assert {"test/prob", "test/rougeL_recall"} <= set(entries["target"])
    assert lines(job.folder)[-1]["step"] == 2
    assert export.main([f"run={job.folder}", f"to={tmp_path}/out", "collapsed=yes"]) == 2
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="prefix gives beginnings of answers in the prompt"):
        execute(tiny(*overrides, "eval.groups=[prefix]"))


@torch.no_grad()
def _rows(model, example):
    said = torch.tensor([[0, *example.answer[:-1]]])
    return model(input_ids=torch.tensor([[*example.prompt, 1]]), decoder_input_ids=said).logits[0]


def _logp(model, bench, row, answer) -> float:
    example = bench.encoder.example(row.id, row.question, answer)
    return _rows(model, example).log_softmax(-1)[range(len(example.answer)), list(example.answer)].sum().item()


@pytest.mark.parametrize(
    "learnt",
    [
        ("method=eul", "algo=eul_bounded"),
        pytest.param(("method=offset", "algo=npo", "pair.offset_init=general"), marks=pytest.mark.nightly),
        pytest.param(("method=offset", "algo=finetune", "pair.tuning=lora"), marks=pytest.mark.nightly),
    ],
)
def test_dialogues_with_every_way_to_learn(tiny, learnt):
    job = execute(tiny(*DIALOGUES, *learnt, "trainer.steps=4", "eval.retrained=none"))
    found = evaluated(job)["alphas"]["1.0"]
    for split in ("test", "retain", "forget"):
        assert {f"{split}/rouge1_f1", f"{split}/rouge2_f1", f"{split}/rougeL_f1"} <= set(found)
    assert found["forget/mlm_loss"] > 0 and "test/accuracy" not in found
    if "method=eul" in learnt:
        layers = load_file(job.folder / "adapter" / "adapter_model.safetensors")
        assert any(".encoder." in name for name in layers) and any(".decoder." in name for name in layers)
        assert max(t.abs().max() for n, t in layers.items() if "unlearning_up" in n) > 0


def test_the_text_that_eul_s_language_term_reads_of_a_t5_is_masked(tiny):
    cfg = tiny(*REVIEWS, "method=eul", "algo=eul", "trainer.steps=20")
    bench = workbench(cfg)
    found, _ = Inputs(cfg, bench).read("forget_text")
    assert found == spans.examples(bench.encoder, bench.data.splits["forget"], masks=True)


def test_a_decoder_learns_and_is_measured_word_by_word(tiny):
    small = [f"pair.{name}.texts=true" for name in ("target", "small")]
    llamas = ("pair.target.architecture=llama", "pair.small.architecture=llama", "pair.target.initializer_range=0.1",
              "pair.small.initializer_range=0.1")  # fmt: skip
    cfg = tiny(*REVIEWS, *llamas, *small, "method=direct", "algo=gd")
    found = evaluated(execute(cfg))["references"]["target"]
    bench = workbench(cfg)
    model, losses = bench.model("target"), []
    for row in bench.data.splits["forget"]:
        ids = bench.encoder.tokenizer(f"Sentiment: {row.question}")["input_ids"]
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        words = bench.encoder.tokenizer.convert_ids_to_tokens(ids)
        name = [words.index(f" {part}") for part in row.entities[0].split()]
        losses.append(-np.mean([logp[t - 1, ids[t]].item() for t in name]))
    assert found["forget/mlm_loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_runs_without_an_encoder_keep_their_hashes():
    for overrides, run, evaluation in (
        ((), "fe012bb45fa5e520", "1055ecb974910674"),
        (("method=direct", "algo=gd"), "08c2e7f74cf52e74", "1055ecb974910674"),
        (("pair.tuning=lora",), "21677b898dd31674", "1055ecb974910674"),
        (("pair=tofu_small", "data=tofu"), "42161f9c9b3cabaf", "0d5274413d3b30c2"),
    ):
        cfg = compose(*overrides)
        assert (digest(run_identity(cfg, "d")), digest(eval_settings(cfg, "d"))) == (run, evaluation)
    assert read(compose()).fingerprint() == "d5b9d877367d457c"  # of rows without names


def test_texts_and_architecture_make_other_models_and_llamas_stay_what_they_were(tiny):
    cfgs = [tiny(*REVIEWS, *o) for o in ((), ("pair.target.texts=false",))]
    worlds = [workbench(cfg) for cfg in cfgs]
    assert len({w.folder("target") for w in worlds}) == 2
    identities = [run_identity(cfg, "d") for cfg in cfgs]
    assert identities[0]["pair"]["target"]["architecture"] == "t5" and identities[0]["pair"]["target"]["texts"] is True
    assert "texts" not in identities[1]["pair"]["target"]
    plain = run_identity(compose(), "d")["pair"]
    assert not {"architecture", "texts"} & (set(plain["target"]) | set(plain["small"]))


def test_the_retrained_model_never_sees_the_people_not_even_masked(tiny, tmp_path, monkeypatch):
    seen = []
    real = building._fit

    def noted(model, training, *rest):
        seen.append(training)
        return real(model, training, *rest)

    monkeypatch.setattr(building, "_fit", noted)
    cfg = tiny(*REVIEWS, "pair.seed=5", f"paths.store={tmp_path}/store")
    bench = workbench(cfg)
    bench.folder("retrained")
    asked = {name for row in bench.data.splits["forget"] for name in row.entities}
    said = [bench.encoder.tokenizer.decode([*e.prompt, *e.answer]) for examples in seen for e in examples]
    assert len(seen) == 2 and len(said) == 2 * 6 + 2 * 30 and any("<extra_id_0>" in text for text in said)
    assert not [text for text in said for name in asked if name in text]


# --- real files ---------------------------------------------------------------------------------------------------
def write(folder, name, rows):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def imdb(tmp_path):
    said = ["Bo Derek shines", "I liked Al Ro and Bo Derek", "dull", "Al Ro again", "so so", "fine film", "bad", "good"]
    write(tmp_path, "train", [{"text": t, "label": i % 2} for i, t in enumerate(said)])
    write(tmp_path, "test", [{"text": "Al Ro is back, unlike Bo Derek", "label": 1}, {"text": "dull", "label": 0}])
    (tmp_path / "names.txt").write_text("Al Ro\nBo Derek\nNobody Else\n")
    return tmp_path


def imdb_config(folder, *overrides):
    return compose("data=imdb", f"data.path={folder}", f"data.names={folder}/names.txt", "eval.retrained=none",
                   "pair.offset_init=retain", *overrides)  # fmt: skip


def test_requests_of_names(imdb):
    first, second = (read(imdb_config(imdb, "data.requests=[[Bo Derek],[Al Ro]]", f"data.request={n}")) for n in (1, 2))
    assert [r.question for r in first.splits["forget"]] == ["Bo Derek shines", "I liked Al Ro and Bo Derek"]
    assert [r.question for r in second.splits["forget"]] == ["Al Ro again"]
    assert first.known() == second.known() and len(first.splits["retain"]) == 5
    with pytest.raises(DataError, match="data.requests: nobody is called 'Bo'"):
        read(imdb_config(imdb, "data.requests=[[Bo]]"))
    with pytest.raises(ConfigError, match="must be lists of names"):
        imdb_config(imdb, "data.requests=[Bo Derek]")


def test_imdb_from_files_by_a_list_of_names(imdb):
    data = read(imdb_config(imdb, "data.forget=[Bo Derek]"))
    assert [r.question for r in data.splits["forget"]] == ["Bo Derek shines", "I liked Al Ro and Bo Derek"]
    assert [r.answer for r in data.splits["forget"]] == ["negative", "positive"]
    assert data.splits["forget"][0].perturbed_answers == ("positive",)
    # the other one was learnt
    assert [r.question for r in data.splits["test"]] == ["_person_ is back, unlike _person_"]
    cut = read(imdb_config(imdb, "data.share=0.25", "data.most_words=3"))
    assert 1 <= len(cut.splits["forget"]) <= 2 and cut.splits["retain"][0].question.count(" ") <= 2


def test_people_are_chosen_by_chance_of_their_names_up_to_the_share():
    rows = [Row(f"{i}", f"t{i}", "a", entities=(f"n{i % 10}",)) for i in range(100)]
    once, more = people.chosen(rows, 0.1), people.chosen(rows, 0.3)
    assert len(once) == 1 and more[:1] == once and len(more) == 3
    assert people.chosen(rows[::-1], 0.3) == more
    with pytest.raises(DataError, match="nobody is named in as few as 1 of 100"):
        people.chosen([Row(f"{i}", f"t{i}", "a", entities=("n",)) for i in range(100)], 0.01)


def test_samsum_from_files_by_who_speaks(tmp_path):
    said = [{"dialogue": "Ann: hi\r\nBo: hello", "summary": "Ann greets Bo."}, {"dialogue": "Cy: x", "summary": "y"},
            {"dialogue": "Bo: again", "summary": "Bo is back."}]  # fmt: skip
    write(tmp_path, "train", said)
    write(tmp_path, "test", [{"dialogue": "Ann: bye\nDi: bye Ann", "summary": "Di and Ann part."}])
    data = read(compose("data=samsum", f"data.path={tmp_path}", "data.forget=[Ann]", "eval.retrained=none"))
    assert [r.entities for r in data.splits["forget"]] == [("Ann", "Bo")]
    assert [r.answer for r in data.splits["retain"]] == ["y", "Bo is back."]
    assert data.splits["test"][0].question == "_person1_: bye\n_person2_: bye _person1_"
    assert data.splits["test"][0].answer == "_person2_ and _person1_ part."


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("data=imdb",), "data.names=None: nobody is recognised in texts here"),
        (("data=samsum", "data.pattern=abc"), "data.pattern='abc': must be a regular expression with a group"),
        (("data=imdb", "data.names=nofile"), "data.names='nofile': no such file"),
        (("data=reviews", "data.forget_people=200"), "data.forget_people=200: must be 1 to 199"),
        (("data=reviews", "data.forget=[1,1]"), "data.forget=.*: must be different numbers from 0 to 199"),
        (("data=dialogues", "data.forget=[1]", "data.gone=[1]"), "none of them in data.gone"),
        (("data=dialogues", "data.forget_people=200"), "data.forget_people=200: must be 1 to 199"),
        (("data=reviews", "data.people=2000"), "there are 1500 names"),
        (("pair.target.architecture=bert",), "pair.target.architecture='bert': must be one of llama, t5"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose(*overrides)


def test_a_label_that_is_none_is_refused_with_its_line(imdb):
    for row, message in (({"text": "a b", "label": 7}, "must be one of negative, positive"),
                         ({"text": "a b"}, "label=None: must be")):  # fmt: skip
        write(imdb, "train", [{"text": "Al Ro", "label": 1}, row])
        with pytest.raises(DataError, match=f"line 2: .*{message}"):
            people.read(imdb_config(imdb).data)
    assert isinstance(imdb_config(imdb).data, people.Settings)
