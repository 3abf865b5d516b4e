"""The models of a world that are trained here, where another process is making some of them."""

import dataclasses
import shutil

from unlearn.config.pair import TargetConfig
from unlearn.runs.workbench import Workbench, workbench
from unlearn.store.entries import Store
from unlearn.store.locks import LOCKS, lock

MODELS = ("target", "small", "retrained")


def test_what_another_process_trains_is_left_to_it_and_the_rest_is_made(config, tmp_path):
    cfg = config(f"paths.store={tmp_path / 'store'}")
    first = workbench(cfg)
    root, folders = first.store.root / "model", {name: first.folder(name) for name in MODELS}
    shutil.rmtree(root)

    def made(bench: Workbench) -> set[str]:
        bench.train(MODELS)
        return {name for name, folder in folders.items() if folder.is_dir()}

    with lock(root.parent / LOCKS, f"model-{folders['target'].name}"):
        fresh = dataclasses.replace(first, store=Store(root.parent), _models={}, _prints={})
        assert made(fresh) == {"small", "retrained"}
    assert made(fresh) == set(MODELS)


def test_ready_made_models_are_not_looked_for(config, tmp_path):
    """Nor a server: what the pair has of its own kind is the target's source."""
    plain = workbench(config(f"paths.store={tmp_path / 'store'}"))
    for target in (TargetConfig(source="nobody/nothing"), TargetConfig(kind="http")):
        pair = dataclasses.replace(plain.cfg.pair, target=target)
        bench = dataclasses.replace(plain, cfg=dataclasses.replace(plain.cfg, pair=pair))
        bench.train(["target"])
        assert not (bench.store.root / "model").exists()
