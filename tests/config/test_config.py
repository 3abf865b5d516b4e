"""Every YAML composes, bad values are refused before work with the value and the rule, and hashes cover what counts."""

import dataclasses
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.helpers import ALGOS, ROOT, TRAINED, compose, fits

from unlearn.config.derived import eval_alphas, learning_rate, terms_of
from unlearn.config.schema import ConfigError, conf_dir
from unlearn.data.readers import read
from unlearn.grid.rules import parse
from unlearn.learning.binding import bind
from unlearn.store.identity import run_folder, run_identity

CHOICES = sorted(
    (path.parent.name, path.stem)
    for path in (ROOT / "conf").glob("*/*.yaml")
    if path.parent.name not in ("experiment", "hydra")
)
NEEDS = {("algo", "rmu"): "method=direct", ("algo", "uld"): "method=uld", ("method", "uld"): "algo=uld",
         ("pair", "http"): "eval.retrained=none", ("pair", "pretrained"): "eval.retrained=none",
         ("data", "imdb"): f"data.names={ROOT}/README.md", ("data", "rwku"): "data.targets=[Stephen King]"}  # fmt: skip


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_is_named_as_its_file(group, choice):
    rate = ["trainer.lr=1e-5"] if group == "pair" else []  # of a pretrained model that learns with all its weights
    cfg = compose(f"{group}={choice}", *rate, *([NEEDS[group, choice]] if (group, choice) in NEEDS else []))
    if group in ("algo", "method", "pair", "data"):
        assert getattr(cfg, group).name == choice


def test_every_yaml_says_what_it_is_and_every_experiment_is_a_study_of_its_own_name():
    for path in (ROOT / "conf").glob("*/*.yaml"):
        assert path.read_text().startswith("# "), f"{path} has no opening comment"
        if path.parent.name == "experiment":
            beside = ["data.neighbours=beside.jsonl"] if path.stem == "refuse" else []  # it trains on half of them
            assert compose(f"experiment={path.stem}", *beside).study == path.stem


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("method", TRAINED)
def test_every_algorithm_binds_and_has_a_learning_rate_for_every_method_that_takes_it(algo, method):
    if not fits(algo, method):
        reason = "takes reversed|takes no reversed" if "uld" in (algo, method) else "what is to forget is a black box"
        with pytest.raises(ConfigError, match=reason):
            compose(f"algo={algo}", f"method={method}")
        return
    cfg = compose(f"algo={algo}", f"method={method}")
    assert bind(**terms_of(cfg))
    assert learning_rate(cfg) > 0


REFUSED = [  # beside those of support/wrong_calls.py, which are refused by the same check
    ("algo.beta=-1", "algo.beta=-1.0: must be a finite number above 0"),
    ("pair.offset_init=none", "must be one of general, full, retain"),
    ("pair.tokenizer.kind=chars", "must be one of words, bpe"),
    ("data.forget_people=0", "1 to 49 with data.people=50"),
    ("data.template.prompt='{question} {'", "must hold {question} and no other braces"),
    ("data.template.answer='{answer} {question}'", "must hold {answer} and no other braces"),
    ("seed=99999999999999999999", "must lie between 0 and 2^62"),
    ("trainer.beta1=1.0", "trainer.beta1=1.0: must be at least 0 and below 1"),
    ("algo.name=x/y", "algo.name='x/y': names a folder"),
    ("method.members=[{name:tuned,model:target,constant:1,trained:true}]", "must be the frozen target"),
    ("method.members=[{name:a,model:huge,constant:1}]", "must be one of target, small, small_general"),
    ("method.alone=true", "training sees no α"),
    ("method.members=[{name:target,model:target,slope:1}]", "at α = 0 the method must be the target"),
    ("method.file=nowhere.py", "method.file='nowhere.py': no such file"),
    ("algo=altpo algo.alternates.file=nowhere", "algo.alternates.file='nowhere': no such file"),
    ("algo=pdu algo.retain=none", "algo.dual is the weight of a retain term"),
    ("algo=pdu algo.dual.lr=0", "algo.dual.lr=0.0: must be a finite number above 0"),
    ("algo=distill algo.teacher.members=[]", "at least one, and none trained"),
    ("+algo.numbers.beta=1", "has a key of its own: algo.beta"),
    ("algo=distill algo.numbers.temperature=0", "algo.numbers.temperature=0.0: must be a finite number above 0"),
    ("algo=rmu method=direct algo.numbers.layer=1", "layer=1.0: must be a layer of the target but its last: 0 to 0"),
    ("algo=rmu method=direct algo.numbers.layer=0.5", "layer=0.5: must be a layer of the target but its last: 0 to 0"),
    ("method=uld algo=uld method.numbers.rate=-1", "method.numbers.rate=-1.0: must lie between 0 and 1"),
    ("method=uld algo=uld method.numbers.top=5", "method.numbers.top=5.0: must lie between 0 and 1"),
    ("pair.lora.rank=0", "must be a finite number of at least 1"),
    ("trainer.held_out=1", "must be at least 0 and below 1"),
    ("trainer.retain_batch=0", "trainer.retain_batch=0: must be a finite number of at least 1"),
    ("trainer.stored_rows=int8", "must be one of auto, fp32, hidden, fp16, topk"),
    ("trainer.stored_rows_k=0", "must be a finite number of at least 1"),
    ("trainer.stored_rows_gib=-1", "must be a finite number of at least 0"),
    ("trainer.stored_rows_over=wait", "must be one of live, refuse"),
    ("method=direct trainer.stored_rows=topk", "only the plain target's rows may be rounded, which method='direct'"),
    ("method=proxy trainer.stored_rows=fp16", "must be one of auto, fp32, hidden"),
    ("+algo.gama=1", "algo.gama: unknown key, nearest is gamma; known keys here: name, forget"),
    ("+nonsense=1", "nonsense: unknown key"),
    ("++pair.target.width=3", "pair.target.width: unknown key"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED)
def test_an_impossible_value_is_refused_with_the_value_and_the_rule(override, message):
    with pytest.raises(ConfigError) as error:
        compose(*([override] if "'" in override else override.split(" ")))
    assert message in str(error.value)


def test_all_problems_are_reported_at_once_and_a_lacking_learning_rate_with_how_to_give_one():
    with pytest.raises(ConfigError) as error:
        compose("alpha=nan", "algo.beta=-1", "trainer.epochs=0")
    assert len(str(error.value).splitlines()) == 3
    cfg = compose()
    cfg = dataclasses.replace(cfg, method=dataclasses.replace(cfg.method, name="mine"))
    with pytest.raises(ConfigError, match="Give trainer.lr=NUMBER or .algo.lr.mine=NUMBER"):
        parse(OmegaConf.structured(cfg))


CHANGES = ["algo=ga", "algo.beta=3", "alpha=0.5", "method=direct", "seed=1", "pair.seed=1", "pair.offset_init=full",
           "pair.small.hidden_size=32", "trainer.epochs=3", "trainer.lr=1e-4", "trainer.clip=2",
           "trainer.retain_batch=10", "data.forget_people=2", "algo.retain_weight=2",
           "pair.tuning=lora", "method=proxy", "pair.tuning=unlearning_layers", "method=eul", "algo.interleave=epochs",
           "trainer.held_out=0", "trainer.keep=best",
           "trainer.precision=bf16", "trainer.stored_rows=fp16", "trainer.stored_rows=topk"]  # fmt: skip
KEEPS = ["eval.alphas=[0,1]", "eval.max_examples=3", "trainer.eval_every=0", "trainer.threads=2",
         "trainer.accumulate=4", "trainer.progress=false", "wandb=disabled", "paths.store=elsewhere",
         "algo.lr.direct=1", "trainer.save_every=1", "pair.target.general.epochs=3", "pair.tokenizer.vocab_size=400",
         "pair.small.finetune.epochs=3", "pair.lora.rank=3", "pair.layers.bottleneck=3",
         "algo.interleave=none", "algo.lr.proxy=1",
         "wandb.project=other", "trainer.stored_rows=fp32", "trainer.stored_rows=hidden", "trainer.stored_rows_k=7",
         "trainer.stored_rows_gib=0", "trainer.stored_rows_over=refuse", "trainer.compile=true",
         "trainer.checkpointing=true"]  # fmt: skip


@cache
def identity(*overrides):
    cfg = compose(*overrides)
    return run_folder(cfg, read(cfg).fingerprint()).name.rsplit("-", 1)[1]


@pytest.mark.parametrize("override", CHANGES)
def test_what_changes_the_trained_weights_changes_the_hash(override):
    assert identity(override) != identity()


@pytest.mark.parametrize("override", KEEPS)
def test_what_does_not_change_the_trained_weights_keeps_the_hash(override):
    assert identity(override) == identity()


def test_what_nothing_reads_is_not_part_of_the_hash():
    assert identity("algo=ga", "algo.retain_weight=3") == identity("algo=ga")
    assert identity("trainer.steps=5", "trainer.epochs=3") == identity("trainer.steps=5")
    assert identity("method=direct", "pair.offset_init=full") == identity("method=direct")
    assert identity(f"trainer.lr={learning_rate(compose())}") == identity()
    topk = "trainer.stored_rows=topk"
    assert identity(topk, "trainer.stored_rows_k=7") != identity(topk)
    assert identity("trainer.stored_rows=fp16", "trainer.stored_rows_k=7") == identity("trainer.stored_rows=fp16")
    assert identity("method=direct", "alpha=0.5") == identity("method=direct", "alpha=2")
    assert eval_alphas(compose("method=direct", "alpha=0.5")) == [0.5]
    assert identity("method=dd", "algo=ga", "seed=3", "trainer.epochs=2") == identity("method=dd", "algo=npo")
    assert identity("method=dd_rank") != identity("method=dd") != identity("method=dd", "pair.seed=1")
    assert identity("method=dd_rank", "method.numbers.k=5") != identity("method=dd_rank")
    assert run_folder(compose("method=dd", "algo=ga"), "data").name.startswith("dd-")


def test_a_file_that_defines_its_own_sum_is_not_the_plain_sum(tmp_path):
    file = tmp_path / "rules.py"
    head = "from unlearn.ensemble.combination import Logits\n"
    text = head + "def sum(base: Logits, change: Logits, alpha: float) -> Logits:\n"
    hashes = [identity()]
    for body in ("    return base - alpha * change\n", "    return base\n"):
        file.write_text(text + body)
        hashes.append(identity.__wrapped__(f"method.file={file}"))  # not the answer of the file before
    assert len(set(hashes)) == 3


def test_the_study_is_a_folder_and_not_part_of_the_hash_and_every_setting_of_the_trainer_is_known_to_be_or_not():
    a, b = (run_folder(compose(f"study={s}"), "data") for s in ("one", "two"))
    assert a.name == b.name and a.parent == Path("runs/one") and b.parent == Path("runs/two")
    # A new setting must be decided on, not forgotten.
    part = {"epochs", "steps", "forget_batch", "retain_batch", "lr", "warmup", "final_lr", "weight_decay", "beta1",
            "beta2", "clip", "held_out", "keep"}  # fmt: skip
    assert set(run_identity(compose(), "data")["trainer"]) == part


def test_the_yaml_tree_is_found_wherever_the_command_is_called_from():
    assert Path(conf_dir()).is_absolute() and (Path(conf_dir()) / "config.yaml").is_file()
