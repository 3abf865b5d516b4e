"""Wrong calls of every command, by the true path: each is refused before any work, with one message and status 2."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import TINY, command, compose, execute, tiny_llama
from pretrained import AS_IT_IS
from refusals import assert_refused, call, check
from safetensors.torch import load_file, save_file

from unlearn.config import ConfigError
from unlearn.models import weights

RUN, EVALUATE, GENERATE, CALIBRATE = "unlearn.run", "unlearn.evaluate", "unlearn.generate", "unlearn.calibrate"
COMPARE, PREPARE, STORE = "unlearn.compare", "unlearn.prepare", "unlearn.store.inventory"
TRADEOFF, TABLE, REPORT = "analysis.tradeoff", "analysis.table", "analysis.report.__main__"
BIOS = [o for o in TINY if o.startswith("data.")]
OWN = [o for o in TINY if o not in BIOS]  # settings of runs on a data set of one's own
JSONL = ("data=jsonl", "pair.offset_init=retain")


@pytest.fixture(scope="module")
def place(tmp_path_factory, store, made):
    """A working directory with a trained run, and with files and models of every wrong kind."""
    root = tmp_path_factory.mktemp("bad")
    job = execute(compose(*TINY, f"paths.store={store}", f"paths.runs={root}/runs"))
    (root / "run").symlink_to(job.folder)
    _data(root)
    _models(root, made)
    _runs(root, job.folder)
    return root


def _data(root: Path) -> None:
    row = {"question": "Who wrote it?", "answer": "Ada."}
    texts = {
        "good": [row], "other": [{"question": "And who read it?", "answer": "Bob."}],
        "field": [row, {"question": "Who?"}], "type": [row | {"answer": 5}], "empty_answer": [row | {"answer": " "}],
        "empty_question": [row | {"question": ""}], "twice": [row, row], "list": [5],
        "wrong": [row | {"perturbed_answer": [1]}], "half": [row | {"answer": "\ud800"}],
        "long": [row | {"answer": "word " * 5000}], "some": [row | {"paraphrased_answer": "x"}, row | {"answer": "b"}],
    }  # fmt: skip
    for name, rows in texts.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (root / "broken.jsonl").write_text(json.dumps(row) + '\n{"question": "W')
    (root / "key_twice.jsonl").write_text('{"question": "a", "answer": "b", "answer": "c"}\n')
    (root / "deep.jsonl").write_text("[" * 100_000)
    (root / "utf16.jsonl").write_text(json.dumps(row), encoding="utf-16")
    (root / "nothing.jsonl").write_text("\n")
    (root / "binary.csv").write_bytes(bytes(range(256)))
    (root / "ids.jsonl").write_text("".join(json.dumps(r | {"n": 1}) + "\n" for r in (row, row | {"answer": "C"})))
    (root / "folder.jsonl").mkdir()
    (root / "void").mkdir()
    (root / "file").write_text("x")
    (root / "broken.json").write_text('{"a": ')


def _models(root: Path, made) -> None:
    good = made("llama")

    def variant(name: str) -> Path:
        shutil.copytree(good, root / name)
        return root / name

    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        tensors = load_file(variant(name) / "model.safetensors")
        tensors["model.norm.weight"][3] = value
        save_file(tensors, root / name / "model.safetensors", {"format": "pt"})
    whole = (variant("cut") / "model.safetensors").read_bytes()
    (root / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (variant("garbage") / "model.safetensors").write_bytes(b"\xff" * 4096)
    (variant("no_weights") / "model.safetensors").unlink()
    (variant("no_config") / "config.json").unlink()
    (variant("bad_config") / "config.json").write_text("{")
    (variant("pickle") / "model.safetensors").unlink()
    torch.save(load_file(good / "model.safetensors"), root / "pickle" / "pytorch_model.bin")
    (variant("no_tokenizer") / "tokenizer.json").unlink()
    (root / "no_tokenizer" / "tokenizer_config.json").unlink()
    (variant("bad_tokenizer") / "tokenizer.json").write_text('{"version": 1')
    tokenizer = json.loads((variant("other_ids") / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    one, two = list(ids)[10:12]
    ids[one], ids[two] = ids[two], ids[one]
    (root / "other_ids" / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((variant("short") / "config.json").read_text())
    (root / "short" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))
    tensors = load_file(variant("narrow") / "model.safetensors")
    (root / "narrow" / "config.json").write_text(json.dumps(config | {"vocab_size": 7}))
    save_file({k: v[:7] if v.shape[0] == config["vocab_size"] else v for k, v in tensors.items()},
              root / "narrow" / "model.safetensors", {"format": "pt"})  # fmt: skip
    (variant("index") / "model.safetensors").unlink()
    (root / "index" / "model.safetensors.index.json").write_text('{"weight_map": 5}')
    variant("good_model")


def _runs(root: Path, run: Path) -> None:
    for name, file, content in (
        ("torn", "config.yaml", b"a: ["), ("listed", "config.yaml", b"- 1"), ("bytes", "config.yaml", b"\xff\xfe\x00"),
        ("manifest", "manifest.json", b"[1]"), ("format", "manifest.json", b'{"format": 99, "trained": true}'),
        ("results", "eval.json", b'{"alphas": 5}'), ("steps", "metrics.jsonl", b"\xff\n"),
        ("table", "examples.parquet", b"PAR1"),
    ):  # fmt: skip
        copy = root / "studies" / name / "a_run"
        shutil.copytree(run, copy)
        (copy / file).write_bytes(content)
    copy = root / "studies" / "weights" / run.name
    shutil.copytree(run, copy)
    with (copy / "offset" / "model.safetensors").open("r+b") as stream:
        stream.seek(-4, 2)
        stream.write(b"\0\1\2\3")


def own(forget: str, retain: str = "other.jsonl", *more: str) -> tuple[str, ...]:
    return (*OWN, *JSONL, f"data.forget={forget}", f"data.retain={retain}", *more)


def pretrained(target: str, small: str = "good_model", *more: str) -> tuple[str, ...]:
    return (*TINY, *AS_IT_IS, f"pair.target.source={target}", f"pair.small.source={small}", *more)


VALUES = [  # one setting of a run, and what the message says
    ("trainer.epochs=1.5", "trainer.epochs=1.5: Value '1.5' of type 'float' could not be converted to Integer"),
    ("trainer.epochs=many", "trainer.epochs=many: "), ("alpha=", "alpha=: Value ''"), ("alpha=[1]", "alpha=[1]: "),
    ("alfa=1", "alfa: unknown key; known keys here: algo"), ("trainer.lrr=1", "trainer.lrr: unknown key; known keys"),
    ("=3", "=3: unknown key"), ("alpha", "alpha"), ("~algo", "algo: must be given"),
    ("algo=gaa", "algo=gaa: must be one of altpo"), ("data=bio", "data=bio: must be one of bios"),
    ("experiment=none", "experiment=none: must be one of"), ("hydra/launcher=x", "must be one of basic, joblib"),
    ("alpha=1,2", "alpha=1,2"), ("--config-name=nope", "nope"), ("--config-dir=nowhere", "nowhere"),
    ("study=", "study='': names a folder"),
    ("paths.runs=", "paths.runs='': must name a folder"), ("--nope", "--nope"),
    ("eval.alphas=1", "eval.alphas=1: "), ("data.path=x", "data.path: unknown key; known keys"),
]  # fmt: skip
CHECKED = [  # the same, where Hydra has no say: quicker, by the check that every call passes
    ("alpha=nan", "alpha=nan: must be a finite number"), ("alpha=-inf", "alpha=-inf: must be a finite number"),
    ("seed=-1", "seed=-1: must lie between 0 and 2^62"), ("trainer.lr=nan", "trainer.lr=nan: must be a finite"),
    ("trainer.lr=-1", "trainer.lr=-1.0: must be a finite number above 0"),
    ("trainer.clip=0", "trainer.clip=0.0: must be a finite number above 0"),
    ("trainer.steps=0", "trainer.steps=0: must be a finite number of at least 1"),
    ("trainer.epochs=99999999999", "trainer.epochs=99999999999: must be at most 1,000,000,000"),
    ("trainer.threads=100000", "trainer.threads=100000: must be at most 1024"),
    ("trainer.warmup=1.1", "trainer.warmup=1.1: must lie between 0 and 1"),
    ("trainer.precision=fp8", "must be one of fp32, bf16"), ("trainer.keep=all", "must be one of last, best"),
    ("trainer.keep=best trainer.eval_every=0", "trainer.keep=best needs trainer.eval_every above 0"),
    ("trainer.precision=bf16 trainer.compile=true", "trainer.compile=true needs trainer.precision=fp32"),
    ("trainer.device=tpu", "must be one of auto, cpu, cuda"), ("eval.alphas=[]", "must hold at least one α"),
    ("eval.alphas=[1,nan]", "eval.alphas=nan"), ("eval.groups=[nope]", "eval.groups='nope': must be one of leak"),
    ("eval.groups=[summary]", "list privacy before it"), ("eval.semantics=x", "must be one of default, ou, tofu"),
    ("eval.reference=nowhere.json", "eval.reference='nowhere.json': no such file"),
    ("eval.reference=broken.json", "broken.json: not valid JSON"),
    ("eval.max_new_tokens=1", "eval.max_new_tokens=1 would cut generations short"),
    ("study=../up", "study='../up': names a folder"),
    ("pair.target.max_length=10", "tokens, the models take at most 10"),
    ("pair.target.hidden_size=1000000", "from scratch are made models of at most 1e+10"),
    ("pair.target.heads=3", "must be a multiple of 2 × heads = 6"), ("pair.tuning=half", "must be one of full, lora"),
    ("pair.tokenizer.vocab_size=3", "must be at least 300"), ("data.people=-5", "with data.people=-5"),
    ("data.people=5000", "bios: people is 5000; it must be"), ("data.forget_people=4", "must leave one to retain"),
    ("data.template.prompt=x", "must hold {question} and no other braces"),
    ("pair.target.source=nowhere/", "pair.target.source='nowhere/': no such folder"),
    ("algo.forget_weight=0 algo.retain_weight=0", "nothing would be trained"),
    ("algo.beta=null", "needs algo.beta, which is not set"), ("algo.forget=nope", "nope"),
    ("algo.file=nowhere.py", "algo.file='nowhere.py': no such file"), ("method.members=[]", "the frozen target"),
    ("paths.runs=file", "paths.runs='file': must be a folder, and 'file' is a file"),
    ("paths.store=file/deeper", "paths.store='file/deeper': must be a folder"),
    ("wandb.mode=maybe", "offline, online, disabled"),
]  # fmt: skip
DATA = [
    (own("nowhere.jsonl"), "data.forget='nowhere.jsonl': no such file"),
    (own("folder.jsonl"), "data.forget='folder.jsonl': is a folder"), (own("null"), "data.forget: needs a file"),
    (own("5"), "data.forget=5: must be a file"), (own("nothing.jsonl"), "nothing.jsonl: the file is empty"),
    (own("utf16.jsonl"), "utf16.jsonl, line 1: not UTF-8"), (own("broken.jsonl"), "broken.jsonl, line 2: not valid"),
    (own("key_twice.jsonl"), "key_twice.jsonl, line 1: not usable JSON (it has 'answer' twice)"),
    (own("deep.jsonl"), "deep.jsonl: not usable JSON"), (own("field.jsonl"), "field.jsonl, line 2: needs a text in"),
    (own("type.jsonl"), "type.jsonl, line 1: needs a text in 'answer', found '5' (int)"),
    (own("list.jsonl"), "must be an object"), (own("empty_answer.jsonl"), "'answer' is empty"),
    (own("empty_question.jsonl"), "'question' is empty"), (own("twice.jsonl"), "the same answer twice"),
    (own("wrong.jsonl"), "needs a text or a list of texts in 'perturbed_answer'"), (own("half.jsonl"), "half a char"),
    (own("long.jsonl"), "tokens, the models take at most 320"), (own("some.jsonl"), "give it to all rows or to none"),
    (own("binary.csv"), "binary.csv: .csv: must be one of"), (own("good.jsonl", "good.jsonl"), "must not overlap"),
    (own("ids.jsonl", "other.jsonl", "data.columns.id=n"), "needs an id in 'n'"),
    (own("ids.jsonl", "ids.jsonl", "data.columns.id=n"), "that of another row"),
    (own("good.jsonl", "other.jsonl", "data.columns.question=q"), "needs 'q' and 'answer'"),
    ((*OWN, "data=tofu", "data.path=nowhere"), "data.path='nowhere': no such folder"),
    ((*OWN, "data=tofu", "data.path=void"), "is missing"), ((*OWN, "data=muse_news", "data.path=file"), "no such"),
    ((*OWN, "data=tofu", "data.path=void", "data.forget=forget02"), "must be one of forget01, forget05, forget10"),
]  # fmt: skip
MODELS = [
    (pretrained("nan"), "pair.target.source='nan': the tensor 'model.norm.weight' in model.safetensors holds NaN"),
    (pretrained("good_model", "inf"), "pair.small.source='inf': the tensor 'model.norm.weight'"),
    (pretrained("cut"), "pair.target.source='cut': model.safetensors is no whole safetensors file"),
    (pretrained("garbage"), "model.safetensors is no whole safetensors file"),
    (pretrained("no_weights"), "model.safetensors is missing in no_weights"),
    (pretrained("no_config"), "config.json is missing in no_config"), (pretrained("bad_config"), "bad_config"),
    (pretrained("pickle"), "model.safetensors is missing in pickle"), (pretrained("index"), "model.safetensors.index"),
    (pretrained("no_tokenizer"), "no tokenizer in the folder 'no_tokenizer'; give pair.tokenizer.source"),
    (pretrained("bad_tokenizer"), "pair.target.source='bad_tokenizer'"),
    (pretrained("good_model", "other_ids"), "all models of a pair must share one vocabulary, index for index"),
    (pretrained("good_model", "narrow"), "the widths of the heads are"), (pretrained("short"), "takes at most 8 tok"),
    (pretrained("nowhere/at/all"), "pair.target.source='nowhere/at/all': no such folder"),
    (pretrained("nobody/nothing"), "pair.target.source='nobody/nothing': no folder in"),
    (pretrained("void"), "is missing in void"), (pretrained("file"), "pair.target.source='file'"),
    (pretrained("good_model", "good_model", "eval.reference=null"), "there is no retrained reference"),
    (pretrained("good_model", "good_model", "eval.reference=null", "pair.retrained.source=nan"), "pair.retrained.so"),
]  # fmt: skip
NOT_RUN, STUDIES = "not the folder of a trained run", "--runs=studies"
COMMANDS = [
    (EVALUATE, (), "python -m unlearn.evaluate run=FOLDER"), (EVALUATE, ("run=nowhere",), NOT_RUN),
    (EVALUATE, ("run=",), "run='': not the folder"), (EVALUATE, ("run=file",), NOT_RUN),
    (EVALUATE, ("run=void",), NOT_RUN), (EVALUATE, ("run=good_model",), NOT_RUN),
    (EVALUATE, ("run=studies/torn/a_run",), "config.yaml: no config of a run, or damaged"),
    (EVALUATE, ("run=studies/listed/a_run",), "no config of a run, or damaged"),
    (EVALUATE, ("run=studies/bytes/a_run",), "no config of a run, or damaged"),
    (EVALUATE, ("run=studies/manifest/a_run",), "run format None, and this program reads"),
    (EVALUATE, ("run=studies/format/a_run",), "run format 99, and this program reads"),
    (EVALUATE, ("run=studies/steps/a_run",), "its config and data now identify"),
    (EVALUATE, ("run=run", "alpha=2"), "alpha=2: a finished run keeps it; what may change: eval."),
    (EVALUATE, ("run=run", "eval.alphas=[x]"), "eval.alphas[0]: Value 'x'"),
    (EVALUATE, ("run=run", "eval.nope=1"), "eval.nope: unknown key; known keys here: alphas"),
    (EVALUATE, ("run=run", "paths.store=file"), "paths.store='file': must be a folder"),
    (EVALUATE, ("model=good_model",), "out=FILE"), (EVALUATE, ("model=/nowhere", "out=x.json"), "model='/nowhere'"),
    (EVALUATE, ("model=", "out=x.json"), "model='': no such folder"),
    (EVALUATE, ("model=void", "out=x.json", *BIOS), "model='void': no tokenizer could be loaded"),
    (EVALUATE, ("model=good_model", "out=file/x.json"), "must be a folder, and 'file' is a file"),
    (EVALUATE, ("model=good_model", "out=void"), "out='void': must be a file, and is a folder"),
    (EVALUATE, ("model=nan", "out=x.json", *BIOS, "eval.max_examples=1"), "the tensor 'model.norm.weight' holds NaN"),
    (EVALUATE, ("model=good_model", "out=x.json", "eval=nope"), "eval=nope: must be one of default"),
    (GENERATE, ("run=nowhere", "prompt=x"), NOT_RUN), (GENERATE, ("run=run", "prompt=x", "alpha=a"), "finite numbers"),
    (GENERATE, ("run=run", "prompt=x", "draft=-1"), "must be a whole number of tokens"),
    (GENERATE, ("run=run", "prompt="), "prompt='': must be a question"),
    (GENERATE, ("run=run", f"prompt={'Who? ' * 400}"), "must be a question of 1 to 319 tokens"),
    (CALIBRATE, ("run=run",), "give one of METRIC=VALUE"), (CALIBRATE, ("run=run", "forget/prob=2"), "between 0 and"),
    (CALIBRATE, ("run=run", "forget/nope=0.1"), "can be calibrated to forget/prob"),
    (CALIBRATE, ("run=run", "tolerance=nan"), "tolerance=nan"), (CALIBRATE, ("run=file", "tolerance=0.1"), NOT_RUN),
    (COMPARE, (), "python -m unlearn.compare FILE"), (COMPARE, ("nowhere.json",), "nowhere.json: no such file"),
    (COMPARE, ("broken.json",), "broken.json: not valid JSON"), (COMPARE, ("binary.csv",), "binary.csv: not valid"),
    (COMPARE, ("run/eval.json",), "must be OpenUnlearning's"), (COMPARE, ("broken.json", "semantics=x"), "must be one"),
    (PREPARE, (*TINY, "alpha=nan"), "alpha=nan: must be a finite"), (PREPARE, ("algo=nope",), "algo=nope: must be one"),
    (STORE, (), "act"), (STORE, ("list", "--store=nowhere"), "--store='nowhere': there is no such folder"),
    (STORE, ("prune", "--store=void", "--unused=-1"), "must be a number of days"), (STORE, ("burn",), "'burn'"),
    (TRADEOFF, ("nope",), "no study 'nope'"), (TRADEOFF, ("default", "--x=nope"), "nope"),
    (TRADEOFF, ("default", "--out=file"), "file/tradeoff.png could not be written"),
    (TRADEOFF, ("torn", STUDIES), "cannot read studies/torn/a_run/config.yaml"),
    (TRADEOFF, ("manifest", STUDIES), "manifest.json: expected a mapping"),
    (TRADEOFF, ("results", STUDIES), "eval.json was changed or damaged since the run wrote it"),
    (TRADEOFF, ("steps", STUDIES), "metrics.jsonl was changed or damaged"), (TABLE, ("file",), "no study 'file'"),
    (TRADEOFF, ("wandb://x",), "must be wandb://ENTITY/PROJECT"), (TRADEOFF, ("offline:void",), "there is no offline-"),
    (TABLE, ("void", "--runs=."), "has no runs"), (TABLE, ("default", "--metrics=nope"), "has no metric 'nope'"),
    (TABLE, ("default", "--differences=nope"), "differences from 'nope'"), (REPORT, ("nope",), "no study 'nope'"),
    ("analysis.forgetting", ("table", STUDIES), "examples.parquet was changed or damaged"),
    ("analysis.forgetting", ("default", "--alpha=17"), "no run was evaluated at α = 17"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "said"), VALUES)
def test_a_call_that_hydra_refuses(place, override, said):
    assert_refused(call(RUN, *TINY, override, cwd=place), said)


@pytest.mark.parametrize(("override", "said"), CHECKED)
def test_a_value_that_is_refused(place, store, override, said):
    assert_refused(check(*TINY, f"paths.store={store}", *override.split(" "), cwd=place), said)


@pytest.mark.parametrize(("arguments", "said"), DATA, ids=[said[:40] for _, said in DATA])
def test_a_data_file_that_is_refused(place, store, arguments, said):
    assert_refused(check(*arguments, f"paths.store={store}", cwd=place), said)


@pytest.mark.parametrize(("arguments", "said"), MODELS, ids=[said[:40] for _, said in MODELS])
def test_a_model_that_is_refused(place, store, arguments, said):
    assert_refused(check(*arguments, f"paths.store={store}", cwd=place), said)


@pytest.mark.parametrize(("module", "arguments", "said"), COMMANDS, ids=[f"{m} {s[:30]}" for m, _, s in COMMANDS])
def test_a_command_that_is_refused(place, module, arguments, said):
    assert_refused(call(module, *arguments, cwd=place), said)


def test_the_true_command_line_refuses_with_one_message_and_status_2(tmp_path):
    done = command(RUN, *TINY, "-m", "alpha=1,nan", cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Refused before any work:\n  alpha=nan: must be a finite number, e.g. 0.5, 1 or 2\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "arguments"), [(RUN, ("algo=gaa",)), (RUN, (*TINY, "alpha=nan")), (EVALUATE, ("run=nowhere",))]
)
def test_the_traceback_is_shown_where_it_is_asked_for(tmp_path, monkeypatch, module, arguments):
    found = call(module, *arguments, cwd=tmp_path)
    assert found.status == 2 and "Traceback" not in found.err
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    asked = call(module, *arguments, cwd=tmp_path)
    assert asked.status == 2 and asked.err.startswith("Traceback")
    assert asked.err.endswith(found.err)
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_a_call_leaves_the_environment_as_it_was(tmp_path, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    assert call(RUN, *TINY, "algo=gaa", cwd=tmp_path).status == 2
    assert call(RUN, *TINY, f"paths.store={tmp_path}/store", cwd=tmp_path).status == 1  # it began to work
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_file_that_may_not_be_read_is_named(place, monkeypatch):
    """By injection: root may read everything."""

    def shut(self, *arguments, real=Path.read_text, **more):
        if self.name == "good.jsonl":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", shut)
    assert_refused(check(*own("good.jsonl", "other.jsonl", "data.name=shut"), cwd=place), "good.jsonl: cannot be read")


@pytest.mark.parametrize("key", ["runs", "store"])
def test_a_folder_that_may_not_be_written_is_named(place, monkeypatch, key):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "void")
    given = (*TINY, "study=fresh", "paths.store=here", f"paths.{key}=void")
    assert_refused(check(*given, cwd=place), f"paths.{key}='void': must be a folder that can be written")


def test_weights_that_were_found_sound_are_not_read_again(place, tmp_path, monkeypatch):
    weights.check_files("pair.target.source", place / "good_model", tmp_path)
    monkeypatch.setattr(weights, "_check", lambda *_: pytest.fail("read again"))
    weights.check_files("pair.target.source", place / "good_model", tmp_path)


def test_weights_of_a_loaded_model_are_checked_too():
    model = tiny_llama(0)
    assert weights.check(model, "mine") is model
    with torch.no_grad():
        model.model.norm.weight[2] = float("inf")
    with pytest.raises(ConfigError, match="mine: the tensor 'model.norm.weight' holds NaN or infinity"):
        weights.check(model, "mine")
