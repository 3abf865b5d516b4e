"""A black box that continues texts, token by token or whole answers at once; and what is kept of its answers."""

import json
import sqlite3

import numpy as np
import pytest
import torch
from support.black_box_server import serve
from support.black_boxes import EXAMPLES, MODEL, TEST, TOKENIZER, box, check
from support.helpers import random_examples, tiny_llama

from unlearn.blackbox.questions import NEXT, ROWS, SAY, Answer, BlackBoxError, Memo, Question, rows_of
from unlearn.decoding.drafts import greedy_drafted, greedy_from_drafts
from unlearn.decoding.generation import Decoding, greedy, sample
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.store.entries import Store

PROMPTS = [e.prompt for e in random_examples(5, seed=3)]
ASKED = Decoding(0, 1, 8, 4)


def near(model, scale):
    changed, random = tiny_llama(2, hidden=8), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in changed.parameters():
            p += scale * p.std() * torch.randn(p.shape, generator=random)
    return changed


def pair_of(target, scale=0.1) -> Ensemble:
    anchor = tiny_llama(2, hidden=8)
    return Ensemble((
        Member("target", target, f"t{id(target)}", 1.0, 0.0, False),
        Member("offset", near(anchor, scale), "o", 0.0, 1.0, True),
        Member("anchor", anchor, "a", 0.0, -1.0, False),
    ))  # fmt: skip


@pytest.mark.parametrize("alpha", [1.0, *(pytest.param(a, marks=pytest.mark.nightly) for a in (0.0, 2.0))])
def test_what_is_said_with_the_whole_vocabulary_is_what_the_local_target_says(tmp_path, alpha):
    mine = greedy(pair_of(MODEL), PROMPTS, alpha, ASKED)
    with serve(MODEL, TOKENIZER) as server:
        theirs = pair_of(box(server.url, tmp_path, k=0))
        assert greedy(theirs, PROMPTS, alpha, ASKED) == mine
        assert greedy_from_drafts(theirs, PROMPTS, alpha, ASKED, Store(tmp_path), 1.0) == mine
        assert greedy_drafted(theirs, PROMPTS, alpha, ASKED, theirs.trained, 3) == mine
        drawn = sample(theirs, PROMPTS, alpha, Decoding(0, 1, 4, 4), 1.0, seed=2)
    assert drawn == sample(pair_of(MODEL), PROMPTS, alpha, Decoding(0, 1, 4, 4), 1.0, seed=2)


@pytest.mark.parametrize("k", [0, 6])
def test_where_the_offset_does_nothing_a_prompt_takes_one_question_or_two(tmp_path, k):
    with serve(MODEL, TOKENIZER) as server:
        model = box(server.url, tmp_path, k=k)
        said = greedy_from_drafts(pair_of(model, scale=0.0), PROMPTS, 1.0, ASKED, Store(tmp_path), 1.0)
        assert said == greedy(pair_of(MODEL, scale=0.0), PROMPTS, 0.0, ASKED)
        assert server.requests <= len(PROMPTS) * (1 if k else 2) + TEST
        before = server.requests
        alone = Ensemble((Member("target", model, "t", 1.0, 0.0, False),))
        assert greedy_from_drafts(alone, PROMPTS, 1.0, ASKED, Store(tmp_path), 1.0) == said
        assert greedy(alone, PROMPTS, 1.0, ASKED) == said
        assert k == 0 or server.requests == before, "rows along a draft are known one by one"


def test_rows_after_each_of_the_last_tokens(tmp_path):
    texts = [list(e.prompt + e.answer)[:6] for e in EXAMPLES if len(e.prompt + e.answer) >= 6]
    with torch.no_grad():
        true = torch.stack([MODEL(input_ids=torch.tensor([t])).logits[0, -3:].log_softmax(-1) for t in texts])
    with serve(MODEL, TOKENIZER) as server:
        for k in (0, 40, 5):
            model = box(server.url, tmp_path / str(k), k=k)
            found = model.following(texts, 3).rows(40, torch.device("cpu")).view(len(texts), 3, 40)
            last = model.following(texts).rows(40, torch.device("cpu"))
            if k == 5:
                best = true.topk(5).indices
                torch.testing.assert_close(found.gather(2, best), true.gather(2, best), atol=1e-5, rtol=0)
                torch.testing.assert_close(found[:, -1].exp().sum(-1), torch.ones(len(texts)), atol=1e-5, rtol=0)
                torch.testing.assert_close(last, found[:, -1], atol=1e-5, rtol=0)
            else:
                torch.testing.assert_close(found, true, atol=1e-5, rtol=0)
                torch.testing.assert_close(last, true[:, -1], atol=1e-5, rtol=0)


def test_the_price_is_said_before_and_then_a_line_for_each_kind_of_question(tmp_path, caplog):
    many = random_examples(60, seed=6)
    with serve(MODEL, TOKENIZER) as server, caplog.at_level("INFO"):
        model = box(server.url, tmp_path, price=2.5)
        model.announce(many, PROMPTS, PROMPTS[:3], 8)
        assert server.requests == 0
        for examples in (many[:20], many[20:40], many[40:]):
            list(model.answers(examples))
        greedy(pair_of(model), [e.prompt for e in many[:25]], 1.0, ASKED)
        model.announce(many, PROMPTS, [], 8)
    own = [record for record in caplog.records if record.name.startswith("unlearn.blackbox")]  # not those of progress
    said = [record.getMessage() for record in own if record.levelname == "INFO"]
    tokens = sum(len(e.prompt) + len(e.answer) + 1 for e in many) + sum(len(p) + 8 for p in PROMPTS)
    price = f"up to {tokens:,} tokens, about {tokens * 2.5e-6:.4g} at the price given"
    assert said[0].startswith(f"tiny may be asked for 60 texts and 5 answers, {price}")
    assert "token by token up to 24 times" in said[0] and said[-1].startswith("tiny may be asked for 0 texts")
    assert [line.split(":")[0] for line in said[1:-1]] == ["answer rows"]


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_answers_with_more_tokens_serve_who_asks_for_fewer(tmp_path):
    with serve(MODEL, TOKENIZER) as server:
        list(box(server.url, tmp_path, k=0).answers(EXAMPLES))
    check(box("http://127.0.0.1:9", tmp_path, k=6))
    with pytest.raises(BlackBoxError, match="ConnectError"):
        list(box("http://127.0.0.1:9", tmp_path / "b", k=6, retries=0).answers(EXAMPLES))


def test_what_a_memo_holds_says_nothing_of_the_texts_and_is_checked(tmp_path):
    memo, question = Memo(tmp_path, "m"), rows_of((7, 8, 9), (3, 1))
    answer = Answer(np.array([[5, 3], [1, 1]], dtype=np.int32), np.log(np.array([[0.5, 0.25], [0.5, 0.5]], np.float32)))
    memo.put(question, 1, answer)
    assert memo.get(question, 2) is None and memo.get(question, 0) is None
    found = memo.get(question, 1)
    assert (found.ids == answer.ids).all() and (found.logp == answer.logp).all()
    assert question.key != rows_of((7, 8), (9, 3, 1)).key != Question(NEXT, question.ids).key
    db = sqlite3.connect(memo.path)
    whole = db.execute("select value from answers").fetchone()[0]
    for changed in (whole[:-1], whole[:30] + bytes([whole[30] ^ 1]) + whole[31:], b""):
        db.execute("update answers set value = ?", (changed,))
        db.commit()
        assert memo.get(question, 1) is None
    db.close()


def test_a_continuation_is_kept_as_rows_and_as_next_tokens_too(tmp_path):
    memo = Memo(tmp_path, "m")
    answer = Answer(
        np.array([[5, 5], [1, 1]], np.int32), np.log(np.array([[0.5, 0.5], [0.9, 0.9]], np.float32)), (5, 1)
    )
    memo.put(Question(SAY, (2, 3), most=4), 1, answer)
    assert memo.get(rows_of((2, 3), (5, 1)), 1).logp.tolist() == answer.logp.tolist()
    assert memo.get(Question(NEXT, (2, 3, 5)), 1).ids.tolist() == [[1, 1]]
    assert memo.get(Question(NEXT, (2, 3, 6)), 1) is None and memo.get(Question(NEXT, (2, 3)), 2) is None
    assert json.dumps(memo.spent()) == '{"requests": 0, "tokens": 0}'
    assert Question(ROWS, (1, 2), first=1).tokens == 3 and Question(SAY, (1, 2), most=5).tokens == 7
