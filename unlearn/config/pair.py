"""The schema of a model pair: its models, where they come from, and how the trained one learns."""

from dataclasses import dataclass, field
from importlib.util import find_spec

from omegaconf import MISSING

from unlearn.config.redaction import is_secret
from unlearn.config.setting import (
    A_NAME,
    BELOW_ONE,
    SEED,
    SHARE,
    Bound,
    above,
    at_least,
    at_most,
    matches,
    one_of,
    setting,
    unhashed,
)

LAYERS = "unlearning_layers"
TUNINGS = ("full", "lora", LAYERS)
ADAPTER_CONFIG, ADAPTER_FILE, ADAPTER_PREFIX = (  # peft's names
    "adapter_config.json", "adapter_model.safetensors", "base_model.model.",
)  # fmt: skip
GRAM = "gram.safetensors"  # beside the layers: what fusion needs of a request

AN_ADDRESS = matches(
    r"https?://[^\s/@?#]+(/[^\s?#@]*)?",
    "must be the address of a server, e.g. http://localhost:8000/v1; a key belongs in the environment (key_env)",
)
SECRET_VARIABLE = Bound(
    lambda v: v.isascii() and v.isidentifier() and is_secret(v),
    "must be the name of an environment variable that says it is secret, e.g. VLLM_API_KEY: logs hide its value",
)
CAN_QUANTISE = Bound(
    lambda v: v == "none" or find_spec("bitsandbytes") is not None,
    "needs bitsandbytes, which is not installed here: pip install bitsandbytes, or take none",
)
A_DEVICE = matches(r"auto|cpu|cuda(:\d+)?", "must be null, cpu, cuda, cuda:NUMBER or auto")
LAYERS_RULE = "must be null (all transformer layers), or one or more of them, each once, counted from 0"
SOME_LAYERS = Bound(lambda v: 0 < len(v) == len(set(v)) and min(v) >= 0, LAYERS_RULE, whole=True)


@dataclass
class SourceConfig:
    """A pretrained model: where it is."""

    source: str | None = setting(None, hashed=False)  # a folder, a .gguf file, or a name on the hub; content is hashed
    revision: str | None = setting(None, hashed=False)  # of a name on the hub: branch, tag or commit; null: main


@dataclass
class TokenizerConfig(SourceConfig):
    """``source`` is for kind=pretrained; null: the target's."""

    kind: str = setting("words", one_of("words", "bpe", "pretrained"))  # words, bpe: trained on the data set
    vocab_size: int = setting(2000, at_least(300, "must be at least 300 (256 bytes and the special tokens)"))  # of bpe


@dataclass
class StageConfig:
    """One stage of training a model. `epochs` of the stage's data; 0 leaves the stage out."""

    epochs: int = setting(0, at_least(0))
    lr: float = setting(1e-3, above(0))


@dataclass
class ModelConfig(SourceConfig):
    """A Llama or T5 trained from scratch, or a pretrained model (``source``) with its own size; and the stages that
    give it its knowledge. A pretrained model whose stages have 0 epochs is taken as it is."""

    architecture: str = setting("llama", one_of("llama", "t5"))  # of a model from scratch; t5: encoder and decoder
    hidden_size: int = setting(128, at_least(1))
    layers: int = setting(2, at_least(1))
    heads: int = setting(4, at_least(1))
    intermediate_size: int = setting(320, at_least(1))
    initializer_range: float = setting(0.02, above(0))
    max_length: int = setting(320, at_least(1))  # tokens: prompt, answer and end of sequence
    texts: bool = False  # both stages also teach the questions as texts: masked words (t5), or every word (llama)
    pretrain: StageConfig = field(default_factory=StageConfig)  # general facts in every wording
    finetune: StageConfig = field(default_factory=StageConfig)  # the data set, general facts mixed in
    general: StageConfig = field(default_factory=StageConfig)  # instead of `finetune` for offset_init=general


@dataclass
class HttpConfig:
    """A target behind a server that has OpenAI's /v1/completions and gives log-probabilities of prompt tokens, as vLLM
    does (docs/black_box.md). Where and how it is asked changes no answer."""

    url: str | None = setting(None, AN_ADDRESS, hashed=False)  # of the server, with or without /v1
    model: str | None = None  # as the server calls it
    revision: str | None = None  # a word of your own, for another model that the server now has under the same name
    key_env: str | None = setting(None, SECRET_VARIABLE, hashed=False)  # the variable with its key; null: none is asked
    k: int = setting(20, at_least(0))  # likeliest tokens that are asked for at each position; 0: the whole vocabulary
    form: str = setting("auto", one_of("auto", "prompt_logprobs", "echo"), hashed=False)  # of the questions; auto: any
    concurrency: int = setting(8, at_least(1), at_most(256), hashed=False)  # requests at a time
    timeout_s: float = setting(120.0, above(0), hashed=False)  # of one request
    retries: int = setting(6, at_least(0), hashed=False)  # of a request that failed or was answered wrongly
    max_requests: int | None = setting(None, at_least(0), hashed=False)  # in all calls, with retries; null: no limit
    max_tokens: int | None = setting(None, at_least(0), hashed=False)  # likewise, read and generated
    price: float | None = setting(None, at_least(0), hashed=False)  # of a million tokens, for the estimate


HOW_ASKED = unhashed(HttpConfig)


@dataclass
class TargetConfig(ModelConfig):
    """The target, and how it and the retrained reference are held in memory. With kind=http the target is a server, and
    everything else here is about the retrained reference. The small pair is always fp32."""

    kind: str = setting("model", one_of("model", "http"), hashed=False)
    http: HttpConfig = field(default_factory=HttpConfig, metadata={"hashed": False})
    dtype: str = setting("float32", one_of("float32", "bfloat16", "auto"))  # auto: as its weights were saved
    quantisation: str = setting("none", one_of("none", "8bit", "4bit"), CAN_QUANTISE)
    device_map: str | None = setting(None, A_DEVICE, hashed=False)  # null: the run's device; auto: spread over all GPUs


@dataclass
class LoraConfig:
    """Low-rank updates of every linear layer but the head (peft), beside the frozen model's own weights."""

    rank: int = setting(8, at_least(1))
    alpha: float = setting(16.0, above(0))  # updates are scaled by alpha / rank
    dropout: float = setting(0.0, BELOW_ONE)
    lr_factor: float = setting(3.0, above(0))  # the learning rate is `algo.lr` times this: searched in experiments/lora


@dataclass
class LayersConfig:
    """Unlearning layers (EUL): a bottleneck after each feed-forward block, beside the frozen model's own weights."""

    bottleneck: int | None = setting(None, at_least(1))  # null: about 0.5 % of the model's parameters in all
    activation: str = setting("relu", one_of("relu", "gelu", "silu", "tanh"))
    where: list[int] | None = setting(None, SOME_LAYERS)  # transformer layers 0, 1 …; null: all
    lr_factor: float = setting(30.0, above(0))  # of `algo.lr`: where a first look was best (docs/eul.md)


@dataclass
class PairConfig:
    """Target and small pair. ``retrained``, ``small_full`` and ``small_retain`` name ready-made models; without a
    source they are trained as the target (or small) is, on what they may know."""

    name: str = setting(MISSING, A_NAME)
    seed: int = setting(0, SEED)  # of the world and of every model's training; `seed` is the unlearning run's
    offset_init: str = setting("general", one_of("general", "full", "retain"))
    tuning: str = setting("full", one_of(*TUNINGS))  # of the trained member: all weights, LoRA, or unlearning layers
    lora: LoraConfig = field(default_factory=LoraConfig)
    layers: LayersConfig = field(default_factory=LayersConfig)
    batch_size: int = setting(32, at_least(1))  # examples per step when models are trained
    warmup: float = setting(0.1, SHARE)  # share of the steps
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    small: ModelConfig = field(default_factory=ModelConfig)
    retrained: SourceConfig = field(default_factory=SourceConfig)
    small_full: SourceConfig = field(default_factory=SourceConfig)
    small_retain: SourceConfig = field(default_factory=SourceConfig)
