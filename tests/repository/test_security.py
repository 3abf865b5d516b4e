"""What comes from outside is never run and never leads out of its folder; keys and tokens are never written."""

import ast
import json
import pickle
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from support.helpers import ROOT, TINY, compose, execute, raw, tiny_llama, with_value

from unlearn.config.pair import SourceConfig, TargetConfig
from unlearn.config.schema import ConfigError
from unlearn.grid import rerun, standalone
from unlearn.grid.rules import parse
from unlearn.models import hub, llama, tokenizers
from unlearn.store import sources

# --- the source -----------------------------------------------------------------------------------------------------

FILES = sorted(p for folder in ("unlearn", "analysis") for p in (ROOT / folder).rglob("*.py"))
RUN_CODE = {"eval", "exec", "compile", "__import__"}
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
OWN = "unlearn/config/own.py"  # a user's own Python file, by the name that the user gives: documented


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


def test_no_line_runs_what_it_reads():
    assert len(FILES) > 150
    assert [fault for path in FILES for fault in faults(path.read_text(), str(path.relative_to(ROOT)))] == []


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

    from analysis.sources.folders import YAML_LOADER
    from unlearn.store.runlog import LOADER

    safe = (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert LOADER in safe and YAML_LOADER in safe
    assert llama.SAFE == {"trust_remote_code": False, "use_safetensors": True}


def test_configs_name_no_code_but_the_grid():
    lines = [line.strip() for p in (ROOT / "conf").rglob("*.yaml") for line in p.read_text().splitlines()]
    assert [line for line in lines if "_target_" in line] == ["_target_: unlearn.grid.call.Grid"]


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
    assert llama.config(folder).vocab_size == 40
    held = hub.load(folder, TargetConfig(), torch.device("cpu"))
    assert type(held).__module__.startswith("transformers.") and not mark.exists()


def test_a_model_that_only_its_own_code_can_run_is_refused(coded):
    folder, mark = coded("homemade")
    with pytest.raises(ConfigError, match="needs code of its own .* is never run here"):
        llama.config(folder)
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
        rerun.open_run(folder)
    assert "planted" not in str(error.value)


@pytest.mark.parametrize("group, key", [("algo", "file"), ("method", "file"), ("eval", "judge")])
def test_code_that_comes_with_a_run_folder_is_not_run(foreign, group, key):
    def plant(config, folder):
        (folder / "terms.py").write_text(f"open({str(folder / 'MARK')!r}, 'w').close()\n")
        config[group][key] = str(folder / "deep" / ".." / "terms.py")

    folder = foreign(plant)
    with pytest.raises(ConfigError, match=f"{group}.{key}=.*code that lies in the run's own folder is not run"):
        rerun.open_run(folder)
    assert not (folder / "MARK").exists()


# --- paths ------------------------------------------------------------------------------------------------------------

OUTSIDE = ["../x", "/tmp/x", "a/b", "..", ".", ".hidden", "-x", "a\\b", "a\0b", "a\nb", "a b", "ä", "x" * 81, ""]


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
