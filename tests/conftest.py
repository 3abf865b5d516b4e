"""Everything is tiny, offline, on the CPU, and writes under temporary folders alone. Fixtures: support/fixtures.py."""

import os
import tempfile

os.environ.pop("COLUMNS", None)  # a worker of pytest-xdist has that of the terminal, and tables and help follow it
_scratch = tempfile.mkdtemp(prefix="unlearn-tests-")
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": f"{_scratch}/hf",
    "WANDB_MODE": "offline",
    "WANDB_DIR": f"{_scratch}/wandb",
    "WANDB_DATA_DIR": f"{_scratch}/wandb-data",
    "WANDB_CACHE_DIR": f"{_scratch}/wandb-cache",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def pytest_configure(config) -> None:
    """Shared fixtures, for all but the process that hands out tests to others: it has no use for what they import."""
    if not getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
        config.pluginmanager.import_plugin("support.fixtures")
