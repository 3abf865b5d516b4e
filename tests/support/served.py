"""What tests of the server share: tiny engines, and asking them without a network."""

import asyncio
import json
import queue
from collections.abc import Callable, Sequence
from functools import cache

import httpx
import torch
from support.helpers import offset_ensemble, random_examples, tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from unlearn.config.data import TemplateConfig
from unlearn.data.encoding import Encoder
from unlearn.decoding.choosing import Draw, key
from unlearn.decoding.generation import Decoding, greedy
from unlearn.deploy.parts import Blend, Mix, Part
from unlearn.deploy.serving.answers import Ask, Failed, Read, Said
from unlearn.deploy.serving.app import create
from unlearn.deploy.serving.engine import Engine
from unlearn.deploy.serving.settings import Settings
from unlearn.ensemble.ensemble import Ensemble

PROMPTS = [e.prompt for e in random_examples(16, seed=3)]
GREEDY = Draw(0.0, 1.0, 0)
STEPS = 12
CHAT, MESSAGES = "/v1/chat/completions", [{"role": "user", "content": " w9 w12"}]


def tokenizer(words: int = 40) -> PreTrainedTokenizerFast:
    """Tokens 3, 4 … are the words " w3", " w4" …; a text is what its tokens say, one after the other."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f" w{i}": i for i in range(3, words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_next")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def bytewise() -> PreTrainedTokenizerFast:
    """A token for every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({a: i for i, a in enumerate(alphabet)} | {"<eos>": 256}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")


def encoder(longest: int = 40) -> Encoder:
    return Encoder(tokenizer(), TemplateConfig(prompt=" w5 w6{question} w7", answer=" {answer}"), longest)


def parts(count: int = 1) -> list[Part]:
    """Offsets that share target and anchor."""
    target, anchor = tiny_llama(0), tiny_llama(2, hidden=12)
    made = [offset_ensemble(target, tiny_llama(5 + i, hidden=8), anchor) for i in range(count)]
    return [Part(f"request{i}", ensemble, f"weights{i}", 1.0) for i, ensemble in enumerate(made)]


def engine(*given: Part, **settings) -> Engine:
    """Not started."""
    return Engine(Blend(given or parts()), encoder(), **settings)


def told(running: Engine, asks: Sequence[Ask]) -> list[list]:
    """All events of each, asked at once."""
    events: list[queue.Queue] = [queue.Queue() for _ in asks]
    running.submit([(ask, q.put) for ask, q in zip(asks, events, strict=True)])
    return [until_end(q) for q in events]


def until_end(events: queue.Queue) -> list:
    found = []
    while not found or (not isinstance(found[-1], Failed) and found[-1].finish is None):
        found.append(events.get(timeout=30))
    return found


def tokens(events: Sequence) -> list[int]:
    """Of an answer, without its end."""
    assert isinstance(events[0], Read)
    said = [e for e in events[1:] if isinstance(e, Said)]
    assert len(said) == len(events) - 1
    return [e.token for e in said if e.token != 1]


def ask(prompt: Sequence[int], mix: Mix = (("request0", 1.0),), **given) -> Ask:
    return Ask(tuple(prompt), mix, **({"limit": STEPS, "draw": GREEDY} | given))


def seeded(prompt: Sequence[int], seed: int, index: int = 0, temperature: float = 1.0, top_p: float = 1.0) -> Draw:
    return Draw(temperature, top_p, key(seed, prompt, index))


def questions(bench, count: int = 16) -> list[str]:
    rows = [*bench.data.splits["forget"], *bench.data.splits["retain"]]
    return [row.question for row in rows][:count]


def spoken(ids: Sequence[int]) -> str:
    return "".join({0: "<pad>", 1: "<eos>", 2: "<unk>"}.get(i, f" w{i}") for i in ids)


def plain(prompt: Sequence[int], alpha: float, steps: int = STEPS, made: Callable[[], list[Part]] = parts) -> list[int]:
    """What ``generation.greedy`` says to one prompt by the first of the parts ``made``."""
    return _plain(tuple(prompt), alpha, steps, made)


@cache
def _plain(prompt: tuple[int, ...], alpha: float, steps: int, made: Callable[[], list[Part]]) -> list[int]:
    return greedy(_first(made), [prompt], alpha, Decoding(0, 1, steps, 1))[0]


@cache
def _first(made: Callable[[], list[Part]]) -> Ensemble:
    return made()[0].ensemble


@torch.no_grad()
def logp_of(ensemble, ids: Sequence[int], alpha: float) -> torch.Tensor:
    """Straight from the models, [S, V]."""
    rows = {m.name: m.model(input_ids=torch.tensor([list(ids)])).logits[0].float() for m in ensemble.members}
    return ensemble.logits(rows, alpha).log_softmax(-1)


class Client:
    """Asks an application in this process, without a network; ``headers`` go with every request."""

    def __init__(self, running: Engine, client=("127.0.0.1", 1), **settings):
        self.app, self.client, self.headers = create(running, Settings(**({"run": "x"} | settings))), client, {}

    def get(self, path: str, **given) -> httpx.Response:
        return self._ask("GET", path, **given)

    def post(self, path: str, body=None, **given) -> httpx.Response:
        if "content" not in given:
            given["json"] = body
        return self._ask("POST", path, **given)

    def complete(self, **body) -> dict:
        """The reply of a completion that must be answered."""
        found = self.post("/v1/completions", body)
        assert found.status_code == 200, found.text
        return found.json()

    def text(self, **body) -> str:
        return self.complete(**body)["choices"][0]["text"]

    def refused(self, path: str = "/v1/completions", status: int = 400, **body) -> str:
        """The message of a request that must be refused."""
        found = self.post(path, body)
        assert found.status_code == status, found.text
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}
        return found.json()["error"]["message"]

    def stream(self, path: str = "/v1/completions", **body) -> list[dict]:
        """The pieces of a stream that must come to its end."""
        found = self.post(path, body | {"stream": True})
        assert found.headers["content-type"].startswith("text/event-stream"), found.text
        lines = [line.removeprefix("data: ") for line in found.text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    def _ask(self, method: str, path: str, headers=None, **given) -> httpx.Response:
        async def asked():
            transport = httpx.ASGITransport(self.app, client=self.client, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                return await client.request(method, path, headers=self.headers | (headers or {}), **given)

        return asyncio.run(asked())
