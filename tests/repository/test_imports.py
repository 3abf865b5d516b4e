"""Imports run one way along the data flow, and the quick paths import nothing heavy."""

import ast
import subprocess
import sys

import pytest
from support.helpers import ROOT

# In the order of DESIGN's data flow: a module imports only from lines above its own.
ORDER = [
    "redaction", "config_data", "config_pair", "config", "files", "stopping", "places", "sources", "identity",
    "metrics.semantics", "room", "need", "groups", "rules_data", "rules_learning", "rules_pair",
    "rules_http", "rules", "launchers",
    "store", "store.inventory", "store.__main__",
    "data.rows", "data.requested", "refusal", "data.bios_words", "data.bios", "data.records", "data.texts", "data.tofu",
    "data.jsonl", "data.muse", "data.people", "data.reviews", "data.dialogues", "data.people_files",
    "data.readers", "traces", "gate", "data.encoding", "data.spans", "data.sampling", "threads",
    "own", "combination", "models.seq2seq", "models.llama", "models.prompts", "models.tokenizers", "models.hub",
    "models.weights",
    "ensemble", "opaque", "heap",
    "chunks", "placement", "rows", "frozen", "metrics.moments", "scoring",
    "answers", "losses", "binding", "trainer", "objective", "states", "generation", "ties", "drafts", "speculative",
    "metrics.base", "metrics.probability", "metrics.rouge", "metrics.rouge_n", "metrics.truth_ratio",
    "metrics.exact_memorization",
    "metrics.forget_quality", "metrics.arrays", "metrics.harmonic", "metrics.model_utility",
    "metrics.extraction_strength", "metrics.membership", "metrics.relative_membership", "metrics.privleak",
    "metrics.ou_aggregates", "metrics.fluency", "metrics.leak", "metrics.divergence",
    "metrics.three_sample", "metrics.bootstrap", "metrics.muse", "metrics.distance",
    "suite", "core", "layers", "fusion", "tuning",
    "groups.context", "groups.behaviour", "groups.leak", "groups.paraphrased",
    "groups.three_sample", "groups.privacy", "groups.gradnorm", "groups.summary", "groups.muse", "groups.prefix",
    "groups.contrast", "groups.quantised", "groups.relearn", "groups.gate", "groups.tasks", "evaluation", "foreign",
    "others", "reference",
    "blackbox", "blackbox.questions", "blackbox.memo", "blackbox.forms", "blackbox.client", "blackbox.selftest",
    "blackbox.asking", "blackbox.remote",
    "seal",
    "requests.chain", "requests.fingerprints", "requests.evidence", "requests.states", "requests.ledger", "requests",
    "mirror", "runlog", "ended", "building", "world", "collapse", "alternates", "trajectory", "training", "inspection",
    "forecast", "begin", "job", "sums",
    "calibration",
    "table", "overview", "rest", "grid", "run", "rerun", "fuse",
    "standalone", "evaluate", "generate", "prepare", "calibrate",
    "sequence", "requests.actions", "requests.fusing", "requests.records", "request", "compare", "choices",
    "causal_lm", "harness",
    "deployed", "export_card", "export_facts", "export",
    "serving.settings", "serving.offsets", "serving.sampling", "serving.text", "serving.lane", "serving.asks",
    "serving.engine", "serving.chat", "serving.protocol", "serving.replies", "serving.app", "serving.loading", "serve",
]  # fmt: skip


def imported(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("unlearn.") for name in found if name.startswith("unlearn.")}


def modules() -> dict:
    files = (ROOT / "unlearn").rglob("*.py")
    names = {".".join(f.relative_to(ROOT / "unlearn").with_suffix("").parts): f for f in files}
    return {name.removesuffix(".__init__"): f for name, f in names.items() if f.read_text().strip()}


def test_every_module_has_its_place_in_the_flow():
    assert sorted(modules()) == sorted(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_from_above(name):
    above = ORDER[: ORDER.index(name)]
    below = [other for other in imported(modules()[name]) if other in ORDER and other not in above]
    assert not below, f"unlearn.{name} imports {below}, which come after it"


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(out.splitlines()[-1].split())


def test_the_command_line_imports_neither_torch_nor_pandas_before_there_is_work():
    loaded = loaded_after("import unlearn.run, unlearn.grid.table")
    assert not loaded & {"torch", "transformers", "pandas", "wandb", "evaluate", "datasets", "matplotlib"}


def test_losses_know_neither_models_nor_config():
    assert {name.split(".")[0] for name in imported(ROOT / "unlearn" / "losses.py")} == {"answers"}
    assert imported(ROOT / "unlearn" / "answers.py") == set()
