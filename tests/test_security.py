"""What comes from outside is never run and never leads out of its folder; keys and tokens are never written."""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY, command, compose, execute, raw, tiny_llama
from omegaconf import OmegaConf

from unlearn import redaction, rerun, runlog, sources, standalone
from unlearn.config import ConfigError
from unlearn.config_pair import SourceConfig, TargetConfig
from unlearn.data.rows import DataError
from unlearn.identity import flatten
from unlearn.models import hub, llama, tokenizers
from unlearn.redaction import is_secret, redact, redacted, secret_in
from unlearn.rules import parse

# --- the source -----------------------------------------------------------------------------------------------------

FILES = sorted(p for folder in ("unlearn", "analysis") for p in (ROOT / folder).rglob("*.py"))
RUN_CODE = {"eval", "exec", "compile", "__import__"}
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
OWN = "unlearn/own.py"  # a user's own Python file, by the name that the user gives: documented


def faults(source: str, name: str = "x.py") -> list[str]:
    """Lines that could run what they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{where} imports {n}" for n in names if n.split(".")[0] in PICKLING]
            if name != OWN and any(n.startswith("importlib.util") for n in names):
                found += [f"{where} imports modules by path"] if not _only_find_spec(node) else []
        if isinstance(node, ast.Call):
            found += [f"{where} {said}" for said in _call_faults(node)]
    return found


def _only_find_spec(node: ast.Import | ast.ImportFrom) -> bool:
    return isinstance(node, ast.ImportFrom) and [a.name for a in node.names] == ["find_spec"]


def _call_faults(node: ast.Call) -> list[str]:
    called = ast.unparse(node.func)
    last = called.rsplit(".", 1)[-1]
    given = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
    spread = {ast.unparse(k.value).rsplit(".", 1)[-1] for k in node.keywords if k.arg is None}
    found = []
    if isinstance(node.func, ast.Name) and called in RUN_CODE:
        found.append(f"calls {called}")
    if called == "torch.load" and given.get("weights_only") != "True":
        found.append("torch.load without weights_only=True")
    if last in ("read_pickle", "to_pickle") or (last == "load" and given.get("allow_pickle", "False") != "False"):
        found.append("reads pickles")
    if called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load") and "LOADER" not in given.get("Loader", ""):
        found.append("yaml without a safe loader")
    if called in ("os.system", "os.popen") or given.get("shell", "False") != "False":
        found.append("starts a shell")
    if last == "from_pretrained" and not (given.get("trust_remote_code") == "False" or spread & {"NO_CODE", "SAFE"}):
        found.append("from_pretrained without trust_remote_code=False")
    if last == "from_pretrained" and "AutoModel" in called and "SAFE" not in spread:
        found.append("a model without use_safetensors=True")
    if given.get("trust_remote_code", "False") != "False":
        found.append("trusts remote code")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_line_runs_what_it_reads(path):
    assert faults(path.read_text(), str(path.relative_to(ROOT))) == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(cfg.x)", "exec(text)", "__import__(name)", "torch.load(p)", "torch.load(p, weights_only=False)",
        "import pickle", "from dill import loads", "np.load(p, allow_pickle=True)", "pd.read_pickle(p)",
        "yaml.load(t)", "yaml.load(t, Loader=yaml.Loader)", "os.system(x)", "subprocess.run(x, shell=True)",
        "AutoModelForCausalLM.from_pretrained(x, trust_remote_code=False)", "AutoTokenizer.from_pretrained(x)",
        "AutoModelForCausalLM.from_pretrained(x, **SAFE, trust_remote_code=True)", "import importlib.util",
        "from importlib.util import spec_from_file_location",
    ],
)  # fmt: skip
def test_such_lines_would_be_noticed(line):
    assert len(faults(line)) == 1 or line.endswith("trust_remote_code=True)")
    assert faults(line)


def test_the_loaders_of_yaml_are_safe_and_the_flags_say_what_they_should():
    import yaml

    from analysis.runs import YAML_LOADER
    from unlearn.table import LOADER

    safe = (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert LOADER in safe and YAML_LOADER in safe
    assert llama.SAFE == {"trust_remote_code": False, "use_safetensors": True}


def test_configs_name_no_code_but_the_grid():
    lines = [line.strip() for p in (ROOT / "conf").rglob("*.yaml") for line in p.read_text().splitlines()]
    assert [line for line in lines if "_target_" in line] == ["_target_: unlearn.grid.Grid"]


# --- models that bring code -----------------------------------------------------------------------------------------


class Bomb:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def pickled(tmp_path):
    """A model folder with config.json and pytorch_model.bin alone, and the file that loading it would make."""
    folder, mark = tmp_path / "pickled", tmp_path / "MARK"
    tiny_llama(0).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    return folder, mark


def test_pickled_weights_are_refused_by_name(pickled, config):
    folder, mark = pickled
    with pytest.raises(ConfigError, match="pytorch_model.bin may run code when loaded and is never read"):
        config("pair.tokenizer.kind=pretrained", f"pair.target.source={folder}")
    with pytest.raises(ConfigError, match="pytorch_model.bin may run code"):
        hub.locate("pair.small.source", SourceConfig(str(folder)))
    with pytest.raises(ConfigError, match="could not be loaded"):
        standalone._ensemble(str(folder), compose(*TINY), None)
    with pytest.raises(OSError, match="no file named model.safetensors"):
        llama.load(folder)
    assert not mark.exists()


@pytest.fixture
def coded(tmp_path):
    """Function from a model type to a model folder that names Python files of its own, and the file they would make."""

    def make(model_type: str) -> tuple[Path, Path]:
        folder, mark = tmp_path / model_type, tmp_path / "MARK"
        tiny_llama(0).save_pretrained(folder)
        (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass C: pass\nM = T = C\n")
        found = json.loads((folder / "config.json").read_text())
        own = {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}, "model_type": model_type}
        (folder / "config.json").write_text(json.dumps(found | own))
        tokenizer = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        return folder, mark

    return make


def test_code_of_a_model_is_not_run_where_transformers_knows_it(coded):
    folder, mark = coded("llama")
    assert hub.vocabulary(folder) == 40
    held = hub.load(folder, TargetConfig(), torch.device("cpu"))
    assert type(held).__module__.startswith("transformers.") and not mark.exists()


def test_a_model_that_only_its_own_code_can_run_is_refused(coded):
    folder, mark = coded("homemade")
    with pytest.raises(ConfigError, match="needs code of its own to be run .* is never run here"):
        hub.vocabulary(folder)
    with pytest.raises(ConfigError, match="could not be loaded"):
        standalone._ensemble(str(folder), compose(*TINY), None)
    with pytest.raises(ValueError, match="custom code"):
        llama.load(folder)
    with pytest.raises((ValueError, OSError)):
        tokenizers.load(folder)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "deep/a.safetensors", "weights.bin"])
def test_an_index_of_weights_leads_nowhere_else(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="must be a .safetensors file of the same folder"):
        sources.weight_files(tmp_path)


# --- somebody else's run folder -------------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path):
    """Function from a change of its config to a run folder that pretends to be trained."""

    def make(change) -> Path:
        folder = tmp_path / "runs" / "theirs" / "run"
        folder.mkdir(parents=True)
        config = OmegaConf.to_container(raw(*TINY), resolve=True)
        change(config, folder)
        OmegaConf.save(config, folder / "config.yaml")
        (folder / "manifest.json").write_text(json.dumps({"trained": True, "status": "done"}))
        return folder

    return make


def test_a_foreign_config_does_not_read_the_environment(foreign, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted0planted0planted0")
    folder = foreign(lambda c, _: c["wandb"].update(project="${oc.env:HF_TOKEN}"))
    with pytest.raises(ConfigError, match="wandb.project=.*a run's config is resolved; this is not one") as error:
        rerun.load(folder)
    assert "planted" not in str(error.value)


@pytest.mark.parametrize("group, key", [("algo", "file"), ("method", "file"), ("eval", "judge")])
def test_code_that_comes_with_a_run_folder_is_not_run(foreign, group, key):
    def plant(config, folder):
        (folder / "terms.py").write_text(f"open({str(folder / 'MARK')!r}, 'w').close()\n")
        config[group][key] = str(folder / "deep" / ".." / "terms.py")

    folder = foreign(plant)
    with pytest.raises(ConfigError, match=f"{group}.{key}=.*code that comes with results is not run"):
        rerun.load(folder)
    assert not (folder / "MARK").exists()


# --- paths ------------------------------------------------------------------------------------------------------------

OUTSIDE = ["../x", "/tmp/x", "a/b", "..", ".", ".hidden", "-x", "a\\b", "a\0b", "a\nb", "a b", "ä", "x" * 81, ""]


@pytest.fixture(scope="module")
def tiny():
    return raw(*TINY)


def with_value(cfg, key: str, value: str):
    changed = copy.deepcopy(cfg)
    OmegaConf.update(changed, key, value)
    return changed


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("key", ["study", "algo.name", "method.name", "data.name", "pair.name"])
def test_names_that_become_folders_cannot_lead_elsewhere(tiny, key, name):
    with pytest.raises(ConfigError, match=f"{key}=.*names a folder"):
        parse(with_value(tiny, key, name))


@pytest.mark.parametrize("key", ["paths.runs", "paths.store"])
@pytest.mark.parametrize("place", ["", "a\0b"])
def test_places_that_are_none_are_refused(tiny, key, place):
    with pytest.raises(ConfigError, match=f"{key}=.*must be the path of a folder"):
        parse(with_value(tiny, key, place))


def test_ids_and_texts_of_data_never_become_paths(store, tmp_path, monkeypatch):
    """A run over rows whose ids and texts look like paths: nothing appears but the run folder."""
    hostile = ["../../../up", f"{tmp_path}/planted", "CON", "a" * 300, "~/home", "$(touch planted)", "x.safetensors"]
    work = tmp_path / "deep" / "er" / "work"
    work.mkdir(parents=True)
    for split in ("forget", "retain"):
        rows = [{"id": h, "question": f"{h} {split}?", "answer": f"{h} says {split}"} for h in hostile]
        (work / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(work)
    before = {p for p in tmp_path.rglob("*")} | set(Path.home().iterdir())
    job = execute(
        compose(
            *(o for o in TINY if not o.startswith("data.")), "data=jsonl", "data.forget=forget.jsonl",
            "data.retain=retain.jsonl", "data.columns.id=id", "pair.offset_init=retain", "eval.groups=[leak]",
            "paths.runs=runs", f"paths.store={tmp_path}/store", "algo=npo", "trainer.held_out=0",
            "pair.target.max_length=800", "pair.small.max_length=800", "eval.max_new_tokens=32",
        )
    )  # fmt: skip
    after = ({p for p in tmp_path.rglob("*")} | set(Path.home().iterdir())) - before
    inside = (work / "runs", tmp_path / "store")
    assert job.folder.joinpath("eval.json").is_file()
    assert [p for p in after if not any(p.is_relative_to(i) for i in inside)] == []
    assert [p for p in after if any(h in p.name for h in ("up", "planted", "CON", "aaaa"))] == []


# --- keys and tokens --------------------------------------------------------------------------------------------------

PLANTED = {
    "WANDB_API_KEY": "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00",
    "HF_TOKEN": "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",
    "MY_SERVICE_PASSWORD": "correct-horse-battery-staple",
}


@pytest.fixture
def planted(monkeypatch):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


def pieces(secret: str) -> list[bytes]:
    """Parts of a secret, for files that are written in blocks."""
    return [secret[i : i + 12].encode() for i in range(len(secret) - 11)]


def test_a_run_writes_and_shows_no_secret_of_its_environment(tmp_path, planted, monkeypatch):
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("WANDB_DIR")
    given = (*(o for o in TINY if o != "wandb=disabled"), "wandb=offline", "algo=npo", "eval.groups=[]")
    done = command("unlearn.run", *given, cwd=tmp_path)
    found = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert any(p.suffix == ".wandb" for p in found) and any(p.name == "manifest.json" for p in found)
    for secret in PLANTED.values():
        for piece in pieces(secret):
            assert piece.decode() not in done.stdout + done.stderr
            assert [str(p) for p, data in found.items() if piece in data] == []


def test_a_secret_on_the_command_line_is_refused_without_showing_it(tmp_path):
    keys = ("wandb.api_key", "+hf_token", "hydra.job.env_set.HF_TOKEN", "wandb.password")
    done = command("unlearn.run", *(f"{key}=verysecretvalue" for key in keys), cwd=tmp_path, check=False)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert [line.split(": a key or token belongs in the environment")[0] for line in done.stderr.splitlines()] == [
        *keys
    ]
    assert "verysecretvalue" not in done.stdout + done.stderr


@pytest.mark.parametrize("value", [*PLANTED.values(), f"see-{PLANTED['MY_SERVICE_PASSWORD']}", "hf_" + "a1B2" * 8])
def test_a_config_that_holds_a_secret_is_refused_without_showing_it(planted, tiny, value):
    for key in ("study", "wandb.project", "data.template.system"):
        with pytest.raises(ConfigError, match=f"{key}: holds") as error:
            parse(with_value(tiny, key, value))
        assert value not in str(error.value)


def test_an_error_that_carries_a_secret_is_recorded_without_it(config, planted, monkeypatch, caplog):
    from unlearn import job as jobs
    from unlearn import run
    from unlearn.data.readers import read
    from unlearn.grid import job as job_of

    cfg = config("algo=npo")
    job = job_of(cfg, read(cfg).fingerprint())

    def failing(*_):
        logging.getLogger("urllib3").warning("asked with %s", PLANTED["HF_TOKEN"])
        raise OSError(f"401 for https://me:sesame1234@hub.example/x with token {PLANTED['HF_TOKEN']}")

    monkeypatch.setattr(jobs, "execute", failing)
    factory = logging.getLogRecordFactory()
    try:
        run.perform(raw(*TINY), job)
    finally:
        logging.setLogRecordFactory(factory)
    log = (job.folder / "log.txt").read_text()
    error = runlog.manifest(job.folder)["error"]
    assert "asked with ***" in log and "401 for https://***@hub.example/x with token ***" in log
    assert "Traceback" in log and "with token ***" in error
    for text in (log, error, caplog.text):
        assert PLANTED["HF_TOKEN"] not in text and "sesame" not in text


def test_the_command_of_a_manifest_is_redacted(planted, monkeypatch):
    given = ["run.py", "alpha=1", "eval.max_new_tokens=200", "x.api_key=abc", f"study={PLANTED['HF_TOKEN']}",
             "--token", "abc", "pair.tokenizer.kind=words", "a={SOME_TOKEN:abcdef,b:1}"]  # fmt: skip
    monkeypatch.setattr("sys.argv", given)
    assert runlog.environment()["command"] == [
        "run.py", "alpha=1", "eval.max_new_tokens=200", "x.api_key=***", "study=***", "--token", "***",
        "pair.tokenizer.kind=words", "a={SOME_TOKEN:***,b:1}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "HF_TOKEN", "token", "x.api_key", "--password", "AWS_SECRET_ACCESS_KEY", "dbPassword",
             "HUGGING_FACE_HUB_TOKEN", "hydra.job.env_set.MY_SECRET", "apikey", "credentials"],
)  # fmt: skip
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["eval.max_new_tokens", "pair.tokenizer", "TOKENIZERS_PARALLELISM", "monkey", "data.columns.id", "KEYBOARD",
             "trainer.keep", "hydra.job.env_set", "secretary", "-m"],
)  # fmt: skip
def test_names_of_none(name):
    assert not is_secret(name)


def test_no_setting_of_ours_is_named_like_a_secret():
    for data in ("bios", "tofu", "jsonl", "muse_news"):
        cfg = raw(f"data={data}")
        assert [k for k in flatten(OmegaConf.to_container(cfg, resolve=True)) if is_secret(k)] == []


def test_redaction_by_hand(planted):
    assert redact("a plain text, alpha=1: key figures") == "a plain text, alpha=1: key figures"
    assert redact(f"x {PLANTED['WANDB_API_KEY']} y") == "x *** y"
    assert redact('{"api_key": "abc", "n": 1}') == '{"api_key": "***", "n": 1}'
    assert redact("https://user:pass@host/x https://host/x") == "https://***@host/x https://host/x"
    assert redact("x=my_token=abc&y=1") == "x=my_token=***&y=1"
    assert redact("max_new_tokens=200 monkey=3 turkey: 4") == "max_new_tokens=200 monkey=3 turkey: 4"
    assert redact("Authorization: Bearer abcdefghijk") == "Authorization: Bearer ***"
    assert redacted(["token=a b c", "x"]) == ["token=***", "x"]
    assert secret_in("nothing") is None and secret_in("ghp_" + "a" * 36) == "what has the form of a token"
    path = "/disk-of-the-group-with-a-very-long-name/hf_checkpoints/task-with-a-name-of-more-than-thirty-letters"
    assert redact(path) == path
    commit = "79cc2b2f" * 5
    assert redact(commit) == commit, "a commit looks like some keys, and is none"


def test_errors_of_settings_and_data_are_redacted(planted):
    for kind in (ConfigError, DataError):
        assert str(kind(f"x={PLANTED['HF_TOKEN']}")) == "x=***"


def test_short_values_are_no_secrets(monkeypatch):
    monkeypatch.setenv("SHORT_TOKEN", "offline")
    assert "SHORT_TOKEN" not in redaction.variables() and redact("wandb offline") == "wandb offline"
    assert os.environ["SHORT_TOKEN"] == "offline"


# --- make audit -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FINE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    "packages, status, said",
    [
        ([FINE], 0, "no known vulnerabilities"),
        ([FINE, BAD], 1, "b 2: PYSEC-1; fixed in: 3"),
        ([FINE, SKIPPED], 3, "NOT looked up (1): c"),
        ([SKIPPED, BAD], 1, "NOT looked up (1): c"),
        ([], 3, "0 of 0"),
    ],
)
def test_an_audit_says_what_it_could_not_look_up(audit, packages, status, said):
    found, lines = audit.verdict({"dependencies": packages})
    assert found == status and said in "\n".join(lines)
    assert ("no known vulnerabilities" in "\n".join(lines)) == (status == 0)


@pytest.mark.parametrize("answer", ["raise SystemExit('no route to host')", "import time; time.sleep(60)"])
def test_an_audit_without_a_network_fails_and_says_so(audit, answer, tmp_path, monkeypatch, capsys):
    (tmp_path / "pip_audit.py").write_text(answer)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(audit, "SECONDS", 5)
    assert audit.main() == 3
    assert "nothing was audited" in capsys.readouterr().err


def test_the_audit_is_no_part_of_what_ci_runs():
    assert "audit" not in (ROOT / ".ci" / "run").read_text()
    verbs = (ROOT / "Makefile").read_text()
    assert "audit" not in verbs.split("check: setup")[1].split("\n\n")[0]
