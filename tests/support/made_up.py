"""Run folders of the contract's shape in which every number is made up."""

import json
from pathlib import Path

import pytest
import yaml

METRICS = ("forget/prob", "retain/prob", "forget/rougeL_recall", "retain/rougeL_recall")
MADE_UP_REFERENCES = {
    "target": dict(zip(METRICS, (0.99, 0.99, 0.998, 0.997), strict=True)),
    "retrained": dict(zip(METRICS, (0.15, 0.99, 0.293, 0.996), strict=True)),
}


def write_made_up_run(
    study: Path, alphas: dict, status="done", algo="npo", alpha=1.0, seed=0, pair_seed=0, **more
) -> Path:
    """A run folder of the contract's shape; ``alphas`` is {evaluated alpha: (forget/prob, retain/prob, …)}.

    A direct run trains at 1, whatever alpha its config holds.
    """
    settings = {"trainer": {"lr": more.get("lr", 1e-3), "log_every": 10}, "eval": {"alphas": list(alphas) or None}}
    config = {
        "algo": {"name": algo, "terms": ["npo", "gd"]},
        "method": {"name": more.get("method", "offset")},
        "pair": {"name": "tiny", "seed": pair_seed},
        "data": {"name": "bios", "forget_people": more.get("people", 1)},
        "alpha": alpha,
        "seed": seed,
        "study": study.name,
        **settings,
    }
    method, people = config["method"]["name"], config["data"]["forget_people"]
    folder = study / f"{algo}-{method}-a{alpha}-s{seed}-p{pair_seed}-lr{settings['trainer']['lr']}-f{people}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run = {"algo": algo, "method": method, "alpha": 1.0 if method == "direct" else alpha, "seed": seed}
    manifest = {"status": status, "run": run, "seconds": {"train": 3.0, "evaluate": 2.5}, "peak_memory_mb": 617.0}
    (folder / "manifest.json").write_text(json.dumps(manifest | ({"error": "no memory"} if status == "failed" else {})))
    steps = [{"step": s, "epoch": s / 5, "train/loss": -float(s), "forget/prob": 1 / s} for s in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
    if alphas:
        shown = {"settings": {"references": f"world {pair_seed} {people}"}, "complete": True, "forget_quality": None}
        entries = {str(a): dict(zip(METRICS, values, strict=False)) | shown for a, values in alphas.items()}
        references = {k: v | shown for k, v in more.get("references", MADE_UP_REFERENCES).items()}
        (folder / "eval.json").write_text(json.dumps({"alphas": entries, "references": references}))
    return folder


@pytest.fixture
def made_up(tmp_path) -> Path:
    """Made-up study: GA and NPO at two training alphas, one failed run and one that is still running."""
    study = tmp_path / "runs" / "made-up"
    write_made_up_run(study, {0.5: (0.20, 0.50, 0.30, 0.60)}, algo="ga", alpha=0.5)
    write_made_up_run(study, {1.0: (0.03, 0.14, 0.13, 0.24)}, algo="ga", alpha=1.0)
    write_made_up_run(study, {0.5: (0.30, 0.90, 0.40, 0.95)}, algo="npo", alpha=0.5)
    write_made_up_run(study, {1.0: (0.01, 0.89, 0.14, 0.89)}, algo="npo", alpha=1.0)
    write_made_up_run(study, {}, status="failed", algo="kl")
    write_made_up_run(study, {}, status="running", algo="gd")
    return study
