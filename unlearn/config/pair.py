"""The schema of a model pair: its models, where they come from, and how the trained one learns."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

OFFSET_INITS = ("general", "full", "retain")
LAYERS = "unlearning_layers"
TUNINGS = ("full", "lora", LAYERS)
ARCHITECTURES = ("llama", "t5")  # of models from scratch
ADAPTER_FILE, ADAPTER_PREFIX = "adapter_model.safetensors", "base_model.model."  # peft's names
GRAM = "gram.safetensors"  # beside the layers: what fusion needs of a request
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")  # of the unlearning layers
TOKENIZERS = ("words", "bpe", "pretrained")
DTYPES = ("float32", "bfloat16", "auto")
QUANTISATIONS = ("none", "8bit", "4bit")
TARGET_KINDS = ("model", "http")
FORMS = ("auto", "prompt_logprobs", "echo")
HOW_ASKED = (  # settings of `http` that say where and how a server is asked, and change no answer
    "url", "key_env", "form", "concurrency", "timeout_s", "retries", "max_requests", "max_tokens", "price",
)  # fmt: skip


@dataclass
class SourceConfig:
    """A pretrained model: where it is."""

    source: str | None = None  # a folder as `save_pretrained` writes it, or else a name on the hub
    revision: str | None = None  # of a name on the hub: branch, tag or commit; null: main


@dataclass
class TokenizerConfig(SourceConfig):
    """``source`` is for kind=pretrained; null: the target's."""

    kind: str = "words"  # trained on the data set: words (one token per word and mark), bpe (byte-level); or pretrained
    vocab_size: int = 2000  # bpe only; a word tokenizer takes every word of the data set


@dataclass
class StageConfig:
    """One stage of training a model. `epochs` of the stage's data; 0 leaves the stage out."""

    epochs: int = 0
    lr: float = 1e-3


@dataclass
class ModelConfig(SourceConfig):
    """A Llama or T5 trained from scratch, or a pretrained model (``source``) with its own size; and the stages that
    give it its knowledge. A pretrained model whose stages have 0 epochs is taken as it is."""

    architecture: str = "llama"  # t5: an encoder, and a decoder of as many layers; a pretrained model says so itself
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    intermediate_size: int = 320
    initializer_range: float = 0.02
    max_length: int = 320  # tokens: prompt, answer and end of sequence
    texts: bool = False  # both stages also teach the questions as texts: masked words (t5), or every word (llama)
    pretrain: StageConfig = field(default_factory=StageConfig)  # general facts in every wording
    finetune: StageConfig = field(default_factory=StageConfig)  # the data set, general facts mixed in
    general: StageConfig = field(default_factory=StageConfig)  # instead of `finetune` for offset_init=general


@dataclass
class HttpConfig:
    """A target behind a server that has OpenAI's /v1/completions and gives log-probabilities of prompt tokens, as vLLM
    does (docs/black_box.md). HOW_ASKED are no part of a run's hash.
    """

    url: str | None = None  # of the server, with or without /v1
    model: str | None = None  # as the server calls it
    revision: str | None = None  # a word of your own, for another model that the server now has under the same name
    key_env: str | None = None  # the environment variable that holds the key; null: the server asks for none
    k: int = 20  # likeliest tokens that are asked for at each position; 0: the whole vocabulary
    form: str = "auto"  # of the questions: prompt_logprobs (vLLM) | echo (with logprobs) | auto: what the server takes
    concurrency: int = 8  # requests at a time
    timeout_s: float = 120.0  # of one request
    retries: int = 6  # of a request that failed or was answered wrongly
    max_requests: int | None = None  # to this model, in all calls together, retries included; null: no limit
    max_tokens: int | None = None  # likewise, read and generated
    price: float | None = None  # of a million tokens, for the estimate that is shown


@dataclass
class TargetConfig(ModelConfig):
    """The target, and how it and the retrained reference are held in memory. The small pair is always fp32.

    With kind=http the target is a server, and everything else here is about the retrained reference.
    """

    kind: str = "model"  # model | http
    http: HttpConfig = field(default_factory=HttpConfig)
    dtype: str = "float32"  # float32 | bfloat16 | auto (as its weights were saved)
    quantisation: str = "none"  # none | 8bit | 4bit, by bitsandbytes
    device: str | None = None  # null: the run's; cpu, cuda, cuda:1 …; auto: spread over all GPUs


@dataclass
class LoraConfig:
    """Low-rank updates of every linear layer but the head (peft), beside the frozen model's own weights."""

    rank: int = 8
    alpha: float = 16.0  # updates are scaled by alpha / rank
    dropout: float = 0.0
    lr_factor: float = 3.0  # the learning rate is `algo.lr` times this: searched in experiments/lora


@dataclass
class LayersConfig:
    """Unlearning layers (EUL): a bottleneck after each feed-forward block, beside the frozen model's own weights."""

    bottleneck: int | None = None  # null: the size that gives about 0.5 % of the model's parameters
    activation: str = "relu"
    where: list[int] | None = None  # transformer layers 0, 1 …; null: all
    lr_factor: float = 30.0  # the learning rate is `algo.lr` times this: where a first look was best (docs/eul.md)


@dataclass
class PairConfig:
    """Target and small pair, with the retrained reference they imply.

    ``retrained``, ``small_full`` and ``small_retain`` name ready-made models; without a source they are trained as the
    target (or small) is, on what they may know.
    """

    name: str = MISSING
    seed: int = 0  # of the world and of every model's training; `seed` is the unlearning run's
    offset_init: str = "general"
    tuning: str = "full"  # of the trained member: all its weights, LoRA, or unlearning layers
    lora: LoraConfig = field(default_factory=LoraConfig)
    layers: LayersConfig = field(default_factory=LayersConfig)
    batch_size: int = 32  # examples per step when models are trained
    warmup: float = 0.1  # share of the steps
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    small: ModelConfig = field(default_factory=ModelConfig)
    retrained: SourceConfig = field(default_factory=SourceConfig)
    small_full: SourceConfig = field(default_factory=SourceConfig)
    small_retain: SourceConfig = field(default_factory=SourceConfig)
