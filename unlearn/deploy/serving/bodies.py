"""Bodies of requests, in the terms of OpenAI's completions and chat completions, and of vLLM's additions to them.

Fields that would change the answer and are not known here are refused; those that would change nothing are ignored.
A field's ``description`` is what a refusal says of a wrong value, with the server's limits filled in; one that begins
with the field's name does not show the value.
"""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "request_id", "priority", "parallel_tool_calls",
)  # fmt: skip
# Fields of what is not done here, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "length_penalty": (1,),
    "logit_bias": ({},), "suffix": ("",), "best_of": (1,), "top_k": (-1, 0), "min_p": (0,), "min_tokens": (0,),
    "use_beam_search": (False,), "ignore_eos": (False,), "skip_special_tokens": (True,), "stop_token_ids": ([],),
    "spaces_between_special_tokens": (True,), "include_stop_str_in_output": (False,), "return_token_ids": (False,),
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "add_generation_prompt": (True,),
    "continue_final_message": (False,), "chat_template_kwargs": ({},), "documents": ([],),
}  # fmt: skip
MOST_STOPS, LONGEST_STOP = 16, 1000
ROLES = "system", "developer", "user", "assistant"


class BadRequest(ValueError):
    """A request that cannot be answered: what was given, the rule, and the choices."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


def whole(least: int | str, most: int | str) -> Any:
    """Whole numbers in a range, whose ends may be a server's limits, by name."""

    def check(value: int, info: ValidationInfo) -> int:
        if not info.context.get(least, least) <= value <= info.context.get(most, most):
            raise ValueError
        return value

    first, last = (f"{{{end}}}" if isinstance(end, str) else end for end in (least, most))
    return Annotated[int, AfterValidator(check), Field(description=f"must be a whole number from {first} to {last}")]


def number(least: float, most: float) -> Any:
    said = f"must be a number from {least:g} to {most:g}"
    return Annotated[float, Field(ge=least, le=most, allow_inf_nan=False, description=said)]


def _known(name: str, info: ValidationInfo) -> str:
    if name not in info.context["names"]:
        raise ValueError
    return name


def _ends(given: str | list[str]) -> tuple[str, ...]:
    texts = (given,) if isinstance(given, str) else tuple(given)
    if not all(texts):
        raise ValueError("stop: an empty text ends nothing; leave it out")
    if max(map(len, texts), default=0) > LONGEST_STOP:
        raise ValueError(f"stop: a text has at most {LONGEST_STOP:,} characters")
    return texts


def needed(description: str) -> Any:
    """A field that a body must have; its own rule says what is missing."""
    return Field(None, validate_default=True, description=description)


Flag = Annotated[bool, Field(description="must be true or false")]
Ids = Annotated[list[int], Field(min_length=1)]
Texts = Annotated[list[str], Field(max_length=MOST_STOPS)]
Offset = Annotated[str, AfterValidator(_known)]
Alpha = number(-1e6, 1e6)
Likeliest = whole("fewest", "likeliest")  # how many of the likeliest tokens; −1: all


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())
    like: ClassVar[str | None] = None  # what a body must be like


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Any = None


class Part(Body):
    type: Literal["text"]
    text: str


class Turn(Body):
    like = "must have role and content, and nothing besides"
    role: Literal[ROLES] = Field(description=f"must be one of {', '.join(ROLES)}")
    content: str | Annotated[list[Part], Field(min_length=1)] = Field(
        description="content must be a text, or a list of parts of type text"
    )
    name: Any = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Shared(Body):
    """What completions and chat completions have in common."""

    model: Any = None
    n: whole(1, "choices") = 1
    max_tokens: whole(0, "tokens") = None
    temperature: number(0, 100) = 1.0
    top_p: number(0, 1) = 1.0
    seed: whole(-(2**63), 2**64 - 1) = None
    stop: Annotated[str | Texts, AfterValidator(_ends)] = Field(
        (), description=f"stop: must be a text, or a list of at most {MOST_STOPS} texts"
    )
    stream: Flag = False
    stream_options: StreamOptions = Field(
        StreamOptions(), description="stream_options: may hold include_usage, true or false"
    )
    return_tokens_as_token_ids: Flag = False
    alpha: Alpha = None
    offsets: list[Offset] = Field(None, description="must be a list of names; there are {listed}")


class Completion(Shared):
    default: ClassVar[int | None] = 16  # tokens of an answer, where a body names no number: as OpenAI's
    prompt: str | Ids | Annotated[list[str | Ids], Field(min_length=1)] = needed(
        "prompt: must be a text, a list of token ids, or a list of either"
    )
    echo: Flag = False  # whether the answer begins with the prompt
    logprobs: Likeliest = None
    prompt_logprobs: Likeliest = None
    add_special_tokens: Flag = True

    @property
    def limit(self) -> tuple[str, int | None]:
        """The field that limits the tokens of an answer, and what it says."""
        return "max_tokens", self.max_tokens

    @property
    def shown(self) -> int | None:
        """How many of the likeliest tokens the reply shows of each place; −1: all; None: no log-probabilities."""
        return self.logprobs


class Dialogue(Shared):
    default: ClassVar[int | None] = None  # as many as fit
    messages: Annotated[list[Turn], Field(min_length=1)] = needed(
        'messages: must be a list like [{{"role": "user", "content": "…"}}]'
    )
    max_completion_tokens: whole(0, "tokens") = None
    logprobs: Flag = False
    top_logprobs: Likeliest = None
    echo: ClassVar[bool] = False
    prompt_logprobs: ClassVar[int | None] = None

    @property
    def limit(self) -> tuple[str, int | None]:
        name = "max_completion_tokens" if self.max_tokens is None else "max_tokens"
        return name, getattr(self, name)

    @property
    def shown(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class Switch(Body):
    like = 'the body must be like {"name": "…", "on": true, "alpha": 1.0}, with on, alpha or both'
    name: Offset = needed("must be one of {listed}")
    on: Flag = None  # left out; null is refused
    alpha: Alpha | None = Field(None, description="must be a number from -1e+06 to 1e+06")


B = TypeVar("B", bound=Body)


def read(kind: type[B], body: Any, allowed: dict[str, Any]) -> B:
    """A body, checked against what is ``allowed``, by the fields' names; null is nothing. Raises ``BadRequest``."""
    if not isinstance(body, dict):
        raise BadRequest(kind.like or "the body must be a JSON object")
    if issubclass(kind, Shared):
        body = {name: value for name, value in body.items() if value is not None and name not in IGNORED}
    for name in [name for name in body if name in NEUTRAL and issubclass(kind, Shared)]:
        value = body.pop(name)
        if not any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in NEUTRAL[name]):
            neutral = " or ".join(map(repr, NEUTRAL[name]))
            raise BadRequest(f"{name}={value!r:.80}: is not done here; leave it out, or give {neutral}", name)
    try:
        return kind.model_validate(body, context=allowed)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        unknown = [p for p in problems if p["type"] == "extra_forbidden" and len(p["loc"]) == 1]
        raise _refusal(kind, [*unknown, *problems][0], allowed) from None


def _refusal(kind: type[Body], problem: dict[str, Any], allowed: dict[str, Any]) -> BadRequest:
    loc, where = list(problem["loc"]), ""
    param = str(loc[0])[:80]
    if param == "messages" and len(loc) > 1:
        kind, where, loc = Turn, f"messages: number {loc[1]}: ", loc[2:]
    if not loc or (len(loc) == 1 and problem["type"] in ("extra_forbidden", "missing")):
        unknown = f"{param!r:.80}: no such field; there are {', '.join(kind.model_fields)}"
        return BadRequest(where + kind.like if kind.like else unknown, param)
    message = str(problem.get("ctx", {}).get("error", ""))
    rule = kind.model_fields[loc[0]].description.format(**allowed)
    shown = "" if rule.startswith(loc[0]) else f"{loc[0]}={problem['input']!r:.80}: "
    return BadRequest(where + (message or shown + rule), param)
