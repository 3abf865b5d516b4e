"""Shared fixtures."""

import gc
import os
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from absl import logging as absl_logging
from omegaconf import DictConfig
from support import memo
from support.helpers import SHARED, TINY, compose, execute, forks, raw, run_and_export, shared_store
from support.made_up import made_up  # noqa: F401
from support.pretrained import made, pair  # noqa: F401

torch.set_num_threads(1)
memo.remember()
gc.freeze()  # what was imported stays; every collection would look at it again
os.fsync = lambda descriptor: None  # killed processes lose nothing by it, and no test cuts the power
# rouge-score brings absl, whose log handler closes the stream that it found at its import as soon as logging is set up
# anew (Hydra does so at each call) while stderr is another one: that would be pytest's, for all tests after it.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__
forks()  # before any test has left something behind


@pytest.fixture(scope="session")
def tiny() -> DictConfig:
    """The composed config of a tiny run, unchecked; to be copied before it is changed."""
    return raw(*TINY)


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """One store for the whole session: the tiny models are trained once."""
    return shared_store(tmp_path_factory)


@pytest.fixture
def config(store, tmp_path):
    """Function from overrides to a checked config of the tiny world, with runs under the test's own folder."""
    return lambda *overrides: compose(*TINY, f"paths.store={store}", f"paths.runs={tmp_path}/runs", *overrides)


@pytest.fixture(scope="session")
def _made(store, tmp_path_factory):
    return cache(
        lambda *overrides: (
            execute(
                compose(*TINY, f"paths.store={store}", f"paths.runs={tmp_path_factory.mktemp('made')}", *overrides)
            ).folder
        )
    )


@pytest.fixture
def finished(_made, tmp_path):
    """Function from overrides to the folder of a finished run of the test's own: the copy of one that is made once."""
    return lambda *overrides: Path(
        shutil.copytree(_made(*overrides), tmp_path / "runs" / "default" / _made(*overrides).name)
    )


@pytest.fixture(scope="session")
def bench(store):
    from unlearn.runs.workbench import workbench

    return workbench(compose(*TINY, f"paths.store={store}"))


@pytest.fixture(scope="session")
def exported(store, tmp_path_factory):
    """Job and export folder of a tiny run that was evaluated at α = 0.5 and 1."""
    return run_and_export(store, tmp_path_factory.mktemp("export"), "algo=npo", "eval.alphas=[0.5,1]")


@pytest.fixture(scope="session")
def served_runs(store, tmp_path_factory):
    """A run, another one that was trained beside the same models, and a third with another small pair."""
    root = tmp_path_factory.mktemp("serve")
    places = (*TINY, f"paths.store={store}", f"paths.runs={root}/runs", "eval.groups=[]", "trainer.lr=0.01")
    others = ("algo=npo",), ("algo=ga", "eval.alphas=[0.5,1]"), ("pair.offset_init=full",)
    return [execute(compose(*places, *o)) for o in others]


@pytest.fixture
def tofu_folder() -> Path:
    folder = SHARED / "data" / "tofu"
    if not folder.is_dir():
        pytest.skip(f"the real TOFU files are not at {folder}")
    return folder
