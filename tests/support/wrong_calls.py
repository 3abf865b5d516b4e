"""Wrong calls of every command, and what their refusal says; `test_bad_input` makes the files that they name."""

from support.helpers import OWN, TINY
from support.pretrained import AS_IT_IS

RUN, EVALUATE, GENERATE, CALIBRATE = "unlearn.run", "unlearn.evaluate", "unlearn.generate", "unlearn.calibrate"
COMPARE, PREPARE, STORE = "unlearn.compare", "unlearn.prepare", "unlearn.store.__main__"
TRADEOFF, TABLE, REPORT = "analysis.tradeoff", "analysis.table", "analysis.report.__main__"
BIOS = [o for o in TINY if o.startswith("data.")]
JSONL = ("data=jsonl", "pair.offset_init=retain")


def own(forget: str, retain: str = "other.jsonl", *more: str) -> tuple[str, ...]:
    return (*OWN, *JSONL, f"data.forget={forget}", f"data.retain={retain}", *more)


def pretrained(target: str, small: str = "good_model", *more: str) -> tuple[str, ...]:
    return (*TINY, *AS_IT_IS, f"pair.target.source={target}", f"pair.small.source={small}", *more)


VALUES = [  # one setting of a run, and what the message says
    ("trainer.epochs=1.5", "trainer.epochs=1.5: must be a whole number"),
    ("trainer.progress=maybe", "trainer.progress=maybe: must be true or false"),
    ("alpha=", "alpha=: must be a number"), ("alpha=abc", "alpha=abc: must be a number"),
    ("alfa=1", "alfa: unknown key, nearest is alpha; known keys here: algo, method"),
    ("=3", "=3: unknown key"), ("alpha", "alpha"), ("~algo", "algo: must be given"),
    ("data=bio", "data=bio: must be one of bios"),
    ("experiment=none", "experiment=none: must be one of"), ("hydra/launcher=x", "must be one of basic, joblib"),
    ("alpha=1,2", "alpha=1,2"), ("--config-name=nope", "nope"), ("--config-dir=nowhere", "nowhere"),
    ("--nope", "--nope"), ("eval.alphas=1", "eval.alphas=1: "), ("alpha=nan", "alpha=nan: must be a finite number"),
    ("hydra.searchpath=[file://mine] algo=npo", "mine/algo/npo.yaml: unlearn has a algo/npo.yaml itself"),
    ("-m algo=ga,gaa", "algo=gaa: must be one of altpo, ceu, distill"),
    ("algo.betta=1", "algo.betta: unknown key, nearest is beta; known keys here: name, forget, retain"),
    ("data.peple=3", "data.peple: unknown key, nearest is people; known keys here: name, reader, template, requests"),
    ("study=a=b", "is quoted for Hydra, too: 'KEY=\"VALUE\"'"), ("study=ü", "is quoted for Hydra, too: 'KEY="),
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
    ("eval.alphas=[1,nan]", "eval.alphas=nan"), ("eval.groups=[nope]", "eval.groups='nope': must be one of artefact"),
    ("eval.groups=[summary]", "list privacy before it"), ("eval.semantics=x", "must be one of default, ou, tofu"),
    ("eval.retrained=nowhere.json", "eval.retrained='nowhere.json': no such file"),
    ("eval.retrained=broken.json", "broken.json: not valid JSON"),
    ("eval.max_new_tokens=1", "eval.max_new_tokens=1 would cut generations short"),
    ("study=../up", "study='../up': names a folder"), ("study=", "study='': names a folder"),
    ("paths.runs=", "paths.runs='': must be the path of a folder"),
    ("algo=ga algo.beta=0.5", "algo.beta=0.5: neither 'ga' nor 'none' has it"),
    ("pair.target.max_length=10", "tokens, the models take at most 10"),
    ("pair.target.hidden_size=1000000", "from scratch are made models of at most 1e+10"),
    ("pair.target.heads=3", "must be a multiple of 2 × heads = 6"),
    ("pair.tuning=half", "must be one of full, lora, unlearning_layers"),
    ("pair.tokenizer.vocab_size=3", "must be at least 300"), ("data.people=-5", "with data.people=-5"),
    ("data.people=5000", "data.people=5000: must be 2"), ("data.forget_people=4", "must leave one to retain"),
    ("data.template.prompt=x", "must hold {question} and no other braces"),
    ("pair.target.source=nowhere/", "pair.target.source='nowhere/': no such folder"),
    ("algo.forget_weight=0 algo.retain_weight=0", "nothing would be trained"),
    ("algo.beta=null", "needs algo.beta, which is not set"), ("algo.forget=nope", "nope"),
    ("algo.file=nowhere.py", "algo.file='nowhere.py': no such file"), ("method.members=[]", "the frozen target"),
    ("paths.runs=file", "paths.runs='file': must be a folder, and 'file' is a file"),
    ("paths.runs=file paths.store=file/deeper", "paths.store='file/deeper': must be a folder"),  # both are named
    ("paths.store=file/deeper", "paths.store='file/deeper': must be a folder"),
    ("wandb.mode=maybe", "offline, online, disabled"),
]  # fmt: skip
DATA = [  # files that are wrong inside: tests/data/test_jsonl.py
    (own("folder.jsonl"), "data.forget='folder.jsonl': is a folder"), (own("null"), "data.forget: needs a file"),
    (own("5"), "data.forget=5: must be a file"), (own("utf16.jsonl"), "utf16.jsonl, line 1: not UTF-8"),
    (own("key_twice.jsonl"), "key_twice.jsonl, line 1: not usable JSON (it has 'answer' twice)"),
    (own("deep.jsonl"), "deep.jsonl: not usable JSON"), (own("empty_question.jsonl"), "'question' is empty"),
    (own("long.jsonl"), "tokens, the models take at most 320"), (own("good.jsonl", "good.jsonl"), "must not overlap"),
    (own("ids.jsonl", "other.jsonl", "data.columns.id=n"), "needs an id in 'n'"),
    (own("ids.jsonl", "ids.jsonl", "data.columns.id=n"), "that of another row"),
    (own("good.jsonl", "other.jsonl", "data.columns.question=q"), "needs 'q' and 'answer'"),
    (own("good.jsonl", "other.jsonl", "algo=idk"), "pair.tokenizer.kind='words': knows no word of the general"),
    ((*OWN, "data=tofu", "data.path=nowhere"), "data.path='nowhere': no such folder"),
    ((*OWN, "data=tofu", "data.path=void"), "is missing"), ((*OWN, "data=muse_news", "data.path=file"), "no such"),
    ((*OWN, "data=tofu", "data.path=void", "data.forget=forget02"), "must be one of forget01, forget05, forget10"),
]  # fmt: skip
MODELS = [
    (pretrained("nan"), "pair.target.source='nan': the tensor 'model.norm.weight' in model.safetensors holds NaN"),
    (pretrained("good_model", "inf"), "pair.small.source='inf': the tensor 'model.norm.weight'"),
    (pretrained("cut"), "pair.target.source='cut': model.safetensors is not a whole safetensors file"),
    (pretrained("garbage"), "model.safetensors is not a whole safetensors file"),
    (pretrained("no_weights"), "model.safetensors is missing in no_weights"),
    (pretrained("no_config"), "config.json is missing in no_config"), (pretrained("bad_config"), "bad_config"),
    (pretrained("pickle"), "model.safetensors is missing in pickle"), (pretrained("index"), "model.safetensors.index"),
    (pretrained("no_tokenizer"), "no tokenizer in the folder 'no_tokenizer'; give pair.tokenizer.source"),
    (pretrained("bad_tokenizer"), "pair.target.source='bad_tokenizer'"),
    (pretrained("good_model", "other_ids"), "all models of a pair must share one vocabulary, index for index"),
    (pretrained("good_model", "narrow"), "the widths of the heads are"), (pretrained("short"), "takes at most 8 tok"),
    (pretrained("compiled"), "compiled: its weights are not those of a LlamaForCausalLM: 21 are missing, e.g. lm_head"),
    (pretrained("adapted"), "adapted holds an adapter, which would change the model beside it: merge it"),
    (pretrained("nowhere/at/all"), "pair.target.source='nowhere/at/all': no such folder"),
    (pretrained("nobody/nothing"), "pair.target.source='nobody/nothing': no folder in"),
    (pretrained("void"), "is missing in void"), (pretrained("file"), "pair.target.source='file'"),
    (pretrained("good_model", "good_model", "eval.retrained=null"), "there is no retrained reference"),
    (pretrained("good_model", "good_model", "eval.retrained=null", "pair.retrained.source=nan"), "pair.retrained.so"),
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
    (EVALUATE, ("run=run", "eval.alphas=[x]"), "eval.alphas[0]: must be a number"),
    (EVALUATE, ("run=run", "eval.nope=1"), "eval.nope: unknown key; known keys here: alphas"),
    (EVALUATE, ("run=run", "paths.store=file"), "paths.store='file': must be a folder"),
    (EVALUATE, ("model=good_model",), "out=FILE"), (EVALUATE, ("model=/nowhere", "out=x.json"), "model='/nowhere'"),
    (EVALUATE, ("model=", "out=x.json"), "model='': no such folder"),
    (EVALUATE, ("model=void", "out=x.json", *BIOS), "model='void': has no tokenizer"),
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
    (RUN, ("--config-dir=mine", "algo=npo"), "mine/algo/npo.yaml: unlearn has a algo/npo.yaml itself; give yours anot"),
    (PREPARE, (*TINY, "alpha=nan"), "alpha=nan: must be a finite"), (PREPARE, ("algo=nope",), "algo=nope: must be one"),
    (STORE, (), "python -m unlearn.store list"),
    (STORE, ("list", "store=nowhere"), "store='nowhere': no such folder"),
    (STORE, ("prune", "store=void", "unused=-1"), "must be a number of days"),
    (STORE, ("burn",), "burn: must be one of list"),
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
