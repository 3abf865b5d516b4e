"""Answer rows of many answers to few prompts: one pass over each prompt, then its answers continue its KV cache.

Evaluation scores the right, the paraphrased and the wrong answers to a question, and each repeats the prompt. Where
prompts are short or have one answer each, whole texts are read: ``pays`` says which.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unlearn.data.encoding import Example, by_length, collate
from unlearn.models.llama import answer_states, has_encoder, head
from unlearn.models.seen import begun, seen
from unlearn.models.states import Cached

SAVED = 1 / 3  # share of the positions that must be saved: below it a second pass and copies of the cache cost as much
SHORT = 16  # tokens of a prompt, on average: below it likewise (experiments/speed/scoring.py)


def pays(examples: Sequence[Example]) -> bool:
    """Whether reading each prompt once is faster than reading every text whole."""
    texts = sum(len(e.prompt) + len(e.answer) for e in examples)
    prompts = {e.prompt for e in examples}
    read = sum(map(len, prompts)) + sum(len(e.answer) - 1 for e in examples)
    return sum(map(len, prompts)) >= SHORT * len(prompts) and texts - read >= SAVED * texts


def by_prompt(examples: Sequence[Example], batch_size: int, most_rows: int | None = None) -> list[list[int]]:
    """Indices in batches, within the limits of ``by_length``: answers to one prompt together where that pays."""
    if not pays(examples):
        return by_length(examples, batch_size, most_rows)
    families: dict[tuple[int, ...], list[int]] = {}
    for i, e in enumerate(examples):
        families.setdefault(e.prompt, []).append(i)
    found: list[list[int]] = []

    def extent(family: list[int]) -> tuple[int, int]:
        """What padding depends on: the longest answer, then the prompt."""
        return max(len(examples[i].answer) for i in family), len(examples[family[0]].prompt)

    for family in sorted(families.values(), key=extent, reverse=True):
        # what is left of the last batch must take the whole family, or the next batch would read its prompt again
        for part in by_length([examples[i] for i in family], batch_size, most_rows):
            together = [*(found[-1] if found else ()), *(family[k] for k in part)]
            rows = sum(len(examples[i].answer) for i in together)
            if found and len(together) <= batch_size and (most_rows is None or rows <= most_rows):
                found[-1] = together
            else:
                found.append([family[k] for k in part])
    return found


@torch.no_grad()
def shared_rows(model: nn.Module, examples: Sequence[Example], pad_id: int) -> Tensor:
    """Next-token logits of the answer rows, [N, V] in fp32 on the model's device, laid as ``collate`` lays them."""
    return head(model, shared_states(model, examples, pad_id)).to(next(model.parameters()).device)


@torch.no_grad()
def shared_states(model: nn.Module, examples: Sequence[Example], pad_id: int) -> Tensor:
    """Last hidden states of these rows, [N, D], on the head's device; an answer's first row is the prompt's last."""
    memory = seen(model)
    if has_encoder(model) or (memory is None and not pays(examples)):
        return answer_states(model, collate(examples, pad_id))
    number = {p: u for u, p in enumerate(dict.fromkeys(e.prompt for e in examples))}
    of = torch.tensor([number[e.prompt] for e in examples])
    lengths = torch.tensor([len(e.answer) for e in examples])
    longest, most = max(map(len, number)), int(lengths.max()) - 1
    # Padded on the left, so that all prompts end where the answers begin.
    prompts = torch.tensor([[pad_id] * (longest - len(p)) + list(p) for p in number])
    there = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in number])
    positions = (there.cumsum(-1) - 1).clamp(min=0)
    state = begun(model, list(number)) or Cached(model, whole=False)
    since = state.columns
    hidden = state.hidden(prompts[:, since:], there, positions[:, since:])[:, -1:]
    hidden = hidden[of.to(hidden.device)]
    if most:  # else every answer is EOS alone
        state.select(of.tolist())
        answers = torch.tensor([[*e.answer[:-1], *[pad_id] * (most + 1 - len(e.answer))] for e in examples])
        follow = (torch.arange(most) < lengths[:, None] - 1).long()
        after = positions[of, -1:] + 1 + torch.arange(most)
        mask = torch.cat([there[of], follow], dim=1)
        hidden = torch.cat([hidden, state.hidden(answers, mask, after)], dim=1)
        if memory is not None and memory.answers:
            memory.keep(model, [(*e.prompt, *e.answer[:-1]) for e in examples], state, mask)
    kept = torch.arange(most + 1) < lengths[:, None]
    return hidden[kept.to(hidden.device)]
