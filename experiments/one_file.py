"""δ-Unlearning (arXiv 2404.11045) by hand, from texts to a curve over α; nothing of the framework but its losses.

    python experiments/one_file.py TARGET SMALL --forget forget.jsonl --retain retain.jsonl [--loss npo] [--alpha 0 1 2]

TARGET and SMALL are folders of causal language models with one vocabulary; the files hold lines of {"question": …,
"answer": …}. For whoever wants to see the method whole: there is no store, no resuming, no check and no metric but one.
A test holds that its losses, weights and probabilities are those of `python -m unlearn.run`, in fp64.

B texts, S tokens, N answer tokens of a batch, V words of the vocabulary.
"""

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn.learning import losses
from unlearn.learning.answers import Answers

PROMPT, ANSWER = "Question: {question}\nAnswer:", " {answer}"
LOSSES = {  # (weight, term) of the forget set, then of the retain set: conf/algo/*.yaml
    "ga": [(1, losses.ga)],
    "gd": [(1, losses.ga), (5, losses.nll)],
    "kl": [(1, losses.ga), (5, losses.kl)],
    "npo": [(1, partial(losses.npo, beta=0.1)), (1, losses.nll)],
    "simnpo": [(1, partial(losses.simnpo, beta=2.5, gamma=0.0)), (1, losses.nll)],
}


@dataclass(frozen=True)
class Text:
    prompt: list[int]
    answer: list[int]  # ends with the token that ends a text


def read(path: Path, tokenizer, prompt: str = PROMPT, answer: str = ANSWER) -> list[Text]:
    """The file's questions and answers. Prompt and answer are split into tokens as one text."""
    texts = []
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        asked = prompt.format(question=row["question"])
        before = tokenizer(asked)["input_ids"]
        whole = tokenizer(asked + answer.format(answer=row["answer"]))["input_ids"]
        texts.append(Text(before, [*whole[len(before) :], tokenizer.eos_token_id]))
    return texts


@dataclass(frozen=True)
class Batch:
    ids: Tensor  # [B, S] padded on the right
    mask: Tensor  # [B, S]
    rows: Tensor  # [N] b · S + t of each position t that predicts an answer token
    labels: Tensor  # [N] the token that it should predict
    owner: Tensor  # [N] its text, 0 … B − 1


def batch(texts: Sequence[Text], pad: int) -> Batch:
    longest = max(len(t.prompt) + len(t.answer) for t in texts)
    ids = torch.full((len(texts), longest), pad)
    mask = torch.zeros_like(ids)
    rows, labels, owner = [], [], []
    for b, text in enumerate(texts):
        tokens = text.prompt + text.answer
        ids[b, : len(tokens)], mask[b, : len(tokens)] = torch.tensor(tokens), 1
        first = b * longest + len(text.prompt) - 1  # the row at t predicts the token at t + 1
        rows += range(first, first + len(text.answer))
        labels += text.answer
        owner += [b] * len(text.answer)
    return Batch(ids, mask, *map(torch.tensor, (rows, labels, owner)))


def logits(model: nn.Module, read: Batch) -> Tensor:
    """Next-token logits of the answer rows, [N, V]; no other row goes through the head."""
    states = model.base_model(input_ids=read.ids, attention_mask=read.mask, use_cache=False).last_hidden_state
    return model.get_output_embeddings()(states.flatten(0, 1)[read.rows])


@dataclass(frozen=True)
class Trio:
    target: nn.Module  # the black box: only its logits are used
    anchor: nn.Module  # the small model as it was
    offset: nn.Module  # the small model, which learns

    def logits(self, read: Batch, alpha: float) -> tuple[Tensor, Tensor]:
        """l = l_target + α (l_offset − l_anchor), and l_target; the difference first: at the start it is 0."""
        with torch.no_grad():
            target, anchor = logits(self.target, read), logits(self.anchor, read)
        return target + alpha * (logits(self.offset, read) - anchor), target


@dataclass(frozen=True)
class Settings:
    loss: str = "npo"
    alpha: float = 1.0
    epochs: int = 20  # of the forget set
    lr: float = 1e-4  # for pretrained models; conf/algo/*.yaml has a rate for each objective and size
    warmup: float = 0.1  # share of the steps
    final_lr: float = 0.1  # share of lr at the last step
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0  # of the gradient's norm
    batches: tuple[int, int] = (20, 60)  # forget and retain texts of a step
    seed: int = 0


def draws(forget: int, retain: int, s: Settings) -> list[tuple[list[int], list[int]]]:
    """Which texts each step reads: the forget set in epochs, of the retain set a fresh sample."""
    found, (size, beside) = [], s.batches
    for epoch in range(s.epochs):
        order = np.random.default_rng([s.seed, 0, epoch]).permutation(forget).tolist()
        for start in range(0, forget, size):
            rng = np.random.default_rng([s.seed, 1, len(found)])
            sample = rng.choice(retain, min(beside, retain), replace=False).tolist()
            found.append((order[start : start + size], sample))
    return found


def train(trio: Trio, forget: Sequence[Text], retain: Sequence[Text], pad: int, s: Settings) -> list[float]:
    """Train the offset model through the sum; the loss of each step."""
    optimizer = torch.optim.AdamW(trio.offset.parameters(), s.lr, s.betas, weight_decay=s.weight_decay)
    steps, said = draws(len(forget), len(retain), s), []
    warm = max(1, round(s.warmup * len(steps)))
    for step, (first, second) in enumerate(steps):
        trio.offset.train()
        loss = step_loss(trio, [forget[i] for i in first], [retain[i] for i in second], pad, s)
        loss.backward()
        nn.utils.clip_grad_norm_(trio.offset.parameters(), s.clip)
        done = (step - warm) / max(1, len(steps) - warm)  # up to lr, then down, in straight lines
        optimizer.param_groups[0]["lr"] = s.lr * ((step + 1) / warm if step < warm else 1 - (1 - s.final_lr) * done)
        optimizer.step()
        optimizer.zero_grad()
        said.append(loss.item())
    return said


def step_loss(trio: Trio, forget: Sequence[Text], retain: Sequence[Text], pad: int, s: Settings) -> Tensor:
    """Mean of the forget term plus mean of the retain term, over tokens or answers as each of them counts."""
    both = batch([*forget, *retain], pad)
    rows, target = trio.logits(both, s.alpha)
    total, is_forget = torch.zeros(()), both.owner < len(forget)
    for (weight, term), here in zip(LOSSES[s.loss], (is_forget, ~is_forget), strict=False):
        owner = both.owner[here] - both.owner[here][0]
        total = total + weight * term(Answers(rows[here], both.labels[here], owner, target[here])).mean()
    return total


@torch.no_grad()
def curve(trio: Trio, texts: Sequence[Text], pad: int, alphas: Sequence[float]) -> list[float]:
    """Mean probability of the answers at each α: of one, the geometric mean over its tokens."""
    trio.offset.eval()
    found = []
    for alpha in alphas:
        each = []
        for start in range(0, len(texts), 32):
            some = batch(texts[start : start + 32], pad)
            answers = Answers(trio.logits(some, alpha)[0], some.labels, some.owner)
            each += answers.mean(answers.logp).exp().tolist()
        found.append(sum(each) / len(each))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("small")
    parser.add_argument("--forget", type=Path, required=True)
    parser.add_argument("--retain", type=Path, required=True)
    parser.add_argument("--loss", choices=LOSSES, default="npo")
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0], help="to evaluate at")
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--lr", type=float, default=Settings.lr)
    asked = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(asked.target)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    target, small = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval()
        for folder in (asked.target, asked.small)
    )
    trio = Trio(target, anchor=small, offset=copy.deepcopy(small).requires_grad_(True))
    forget, retain = read(asked.forget, tokenizer), read(asked.retain, tokenizer)
    settings = Settings(loss=asked.loss, epochs=asked.epochs, lr=asked.lr)
    for step, loss in enumerate(train(trio, forget, retain, pad, settings), 1):
        print(f"step {step}: loss {loss:.4f}")
    curves = (curve(trio, texts, pad, asked.alpha) for texts in (forget, retain))
    for alpha, *probs in zip(asked.alpha, *curves, strict=True):
        print("α = {:g}: probability of the forget answers {:.3f}, of the retain answers {:.3f}".format(alpha, *probs))


if __name__ == "__main__":
    main()
