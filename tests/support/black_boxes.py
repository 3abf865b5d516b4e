"""Black boxes around a tiny random model, and what must be so of everything that they give."""

import sqlite3
from pathlib import Path

import numpy as np
import torch
from support.black_box_server import Numbered
from support.helpers import random_examples, tiny_llama

from unlearn.blackbox.questions import Answer
from unlearn.blackbox.remote import Place, RemoteModel
from unlearn.config.pair import HttpConfig
from unlearn.models.prompts import shared_rows

TOKENIZER, MODEL, TEST = Numbered(), tiny_llama(0), 6  # the last: questions of a self-test, beside /tokenize
EXAMPLES = random_examples(12, seed=5)


def box(url, store, **settings) -> RemoteModel:
    given = {"url": url, "model": "tiny", "k": 6, "retries": 3} | settings
    return RemoteModel(HttpConfig(**given), Place(Path(store), TOKENIZER, 40, torch.device("cpu")))


def exact(examples=EXAMPLES) -> torch.Tensor:
    return shared_rows(MODEL, examples, 0).log_softmax(-1)


def kept(model: RemoteModel, store) -> list[tuple]:
    """Everything in the memo: question's key, k, answer."""
    db = sqlite3.connect(model.memo.path)
    found = db.execute("select key, k, value from answers").fetchall()
    db.close()
    return [(key, k, Answer.unpack(value)) for key, k, value in found]


def check(model: RemoteModel, examples=EXAMPLES) -> None:
    """All rows are right, whatever happened on the way."""
    for example, rows in zip(examples, model.answers(examples), strict=True):
        true = exact([example]).numpy()
        assert rows.ids.shape == (len(example.answer), 7)
        np.testing.assert_allclose(rows.logp, np.take_along_axis(true, rows.ids.astype(int), 1), atol=1e-5)
        assert [set(r[:-1]) for r in rows.ids] == [set(t) for t in np.argsort(-true, 1)[:, :6]]
        assert tuple(rows.ids[:, -1]) == example.answer
        listed = [sum(np.exp(true[n, list(set(ids))])) for n, ids in enumerate(rows.ids)]
        np.testing.assert_allclose(np.exp(rows.residual), 1 - np.array(listed), atol=1e-5)
