"""What a model has read is not read again; and what follows is what follows from texts that are read whole."""

from contextlib import contextmanager

import pytest
import torch
from support.helpers import random_examples, tiny_llama
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config

from unlearn.data.encoding import Example, Examples, collate
from unlearn.models import seen
from unlearn.models.llama import answer_states
from unlearn.models.prompts import shared_states
from unlearn.models.seen import begun, keeping_answers, remembered

SYSTEM = tuple(range(2, 14))
PROMPTS = [SYSTEM + e.prompt for e in random_examples(6, seed=3)]


@pytest.fixture(autouse=True)
def worth(monkeypatch):
    monkeypatch.setattr(seen, "WORTH", 0)


@contextmanager
def reads(model):
    """Tokens that a model reads, pass by pass, without padding."""
    found = []

    def note(module, args, kwargs):
        found.append(int(kwargs["attention_mask"][:, -kwargs["input_ids"].shape[1] :].sum()))

    hook = model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    yield found
    hook.remove()


def following(model, state, texts):
    """Last hidden states of texts of which the state has read all but the last token."""
    width = max(map(len, texts))
    ids = torch.tensor([[0] * (width - len(t)) + list(t) for t in texts])
    mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in texts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    assert state.columns == width - 1
    return state.hidden(ids[:, -1:], mask, positions[:, -1:])[:, 0]


def alone(model, text):
    ids = torch.tensor([text])
    return model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, -1]


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_a_state_of_texts_that_were_read_goes_on_as_texts_that_are_read_whole(seed):
    model = tiny_llama(seed)
    longer = [(*p, 5, 6, 7, 8)[: len(p) + i] for i, p in enumerate(PROMPTS[:4])]
    with remembered(1.0):
        for texts in (PROMPTS, PROMPTS[:2], longer, [(*longer[3], 9, 9), (30, 31), (30,), PROMPTS[0]], [(7,)]):
            states = following(model, begun(model, texts), texts)
            torch.testing.assert_close(states, torch.stack([alone(model, t) for t in texts]), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_texts_begin_with_is_read_once_and_what_was_read_never_again():
    model = tiny_llama(0)
    with remembered(1.0), reads(model) as read:
        begun(model, PROMPTS)
        one, shared, rest = read  # one token to see what the model keeps
        assert (one, shared) == (1, len(SYSTEM)) and rest <= len(PROMPTS) * (max(map(len, PROMPTS)) - 1 - len(SYSTEM))
        read.clear()
        begun(model, [*PROMPTS, PROMPTS[0]])
        begun(model, [p[:-1] for p in PROMPTS])
        assert not read
        begun(model, [(*p, 5) for p in PROMPTS])
        assert sum(read) == len(PROMPTS)
    with reads(model) as read:
        assert begun(model, PROMPTS) is None and not read


@torch.no_grad()
def test_answers_are_scored_from_one_reading_of_their_prompts_and_continued_from_their_own():
    model = tiny_llama(0)
    answers = [
        Examples(Example(e.id, p, e.answer) for p, e in zip(PROMPTS, random_examples(6, seed=s), strict=True))
        for s in (4, 5)
    ]
    with remembered(1.0), reads(model) as read:
        for some in answers:
            with keeping_answers():
                states = shared_states(model, some, 0)
            torch.testing.assert_close(states, answer_states(model, collate(some, 0)), atol=1e-5, rtol=1e-4)
        read.clear()
        texts = [(*e.prompt, *e.answer) for e in answers[1]]
        begun(model, texts)
        assert not read
        torch.testing.assert_close(
            following(model, begun(model, texts), texts),
            torch.stack([alone(model, t) for t in texts]), atol=1e-5, rtol=1e-4,
        )  # fmt: skip


@torch.no_grad()
def test_what_was_read_can_be_written_down_and_taken_up_without_the_model_having_read_it():
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_llama(0).to(dtype)
        with remembered(1.0):
            array = seen.seen(model).array(model, PROMPTS)
            size = seen.seen(model).size(model, PROMPTS)
        assert array.nbytes == size and array.shape[0] == sum(map(len, PROMPTS))
        with remembered(1.0), reads(model) as read:
            seen.seen(model).put(model, PROMPTS, array)
            read.clear()
            state = begun(model, [(*p, 5) for p in PROMPTS])
            assert not read and state.columns == max(map(len, PROMPTS))
        assert array.tobytes() == array.copy().tobytes()


@torch.no_grad()
def test_without_room_or_keys_of_every_token_or_size_nothing_is_kept(monkeypatch):
    with remembered(1e-9):
        assert begun(tiny_llama(0), PROMPTS) is None
    window = Gemma2Config(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
                          num_key_value_heads=1, intermediate_size=32, sliding_window=4, pad_token_id=0)  # fmt: skip
    other = GPT2Config(vocab_size=40, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    with remembered(1.0):
        assert begun(AutoModelForCausalLM.from_config(window).eval(), PROMPTS) is None
        assert begun(AutoModelForCausalLM.from_config(other).eval(), PROMPTS) is not None
        monkeypatch.setattr(seen, "WORTH", 2**24)
        assert begun(tiny_llama(0), PROMPTS) is None
