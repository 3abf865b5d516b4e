"""lm-eval's own command takes an export as any other model of transformers: with this package, or with the code that
comes with the export."""

import json
from importlib.util import find_spec

import pytest
import torch
from support.helpers import python
from transformers import AutoTokenizer

from unlearn.runs.learner import members
from unlearn.runs.workbench import workbench

WITH = ("-c", "import unlearn, lm_eval.__main__ as m; m.cli_evaluate()")
WITHOUT = ("-c", "import sys; sys.modules['unlearn'] = None; import lm_eval.__main__ as m; m.cli_evaluate()")


@pytest.mark.nightly
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs the extra lm-eval, which is not installed")
@pytest.mark.parametrize(
    "how, trusted", [(WITH, ""), (WITHOUT, ",trust_remote_code=True")], ids=["with", "without"]
)  # fmt: skip
def test_log_likelihoods_by_lm_evals_command_are_those_of_the_members(exported, tmp_path, how, trusted):
    job, folder = exported
    bench = workbench(job.cfg)
    rows, ask = bench.data.splits["retain"][:3], job.cfg.data.template.prompt
    asked = [
        {"query": ask.format(question=r.question), "choices": [r.answer, rows[i - 1].answer], "gold": 0}
        for i, r in enumerate(rows)
    ]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    task = {
        "task": "quiz", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": f"{tmp_path}/quiz.jsonl"}},
        "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "query", "doc_to_choice": "choices",
        "doc_to_target": "gold", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (tmp_path / "quiz.yaml").write_text(json.dumps(task))
    model = f"pretrained={folder},target={bench.folder('target')},alpha=0.5{trusted}"
    python(
        *how, "--model", "hf", "--model_args", model, "--tasks", "quiz", "--include_path", ".", "--device", "cpu",
        "--output_path", "said", "--log_samples", cwd=tmp_path, HF_HOME=str(tmp_path / "home"),
    )  # fmt: skip
    (samples,) = (tmp_path / "said").glob("**/samples_quiz_*.jsonl")
    tokenizer, ensemble = AutoTokenizer.from_pretrained(folder), members(job.cfg, bench, job.folder)
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(found) == 3
    for one in found:
        for (said, _), choice in zip(one["filtered_resps"], one["doc"]["choices"], strict=True):
            before, whole = (
                tokenizer(t)["input_ids"] for t in (one["doc"]["query"], f"{one['doc']['query']} {choice}")
            )
            ids = torch.tensor([whole])
            with torch.no_grad():
                logits = ensemble.logits({m.name: m.model(ids).logits[0] for m in ensemble.members}, 0.5)
            logp = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).flatten()
            assert float(said) == pytest.approx(float(logp[len(before) - 1 :].sum()), abs=1e-4)
