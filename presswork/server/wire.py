"""What all protocols have in common on the wire: strict bodies, and the engine's own sampling fields.

Bodies are pydantic models here and nowhere else; behind this border there are the engine's dataclasses.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, FailFast, create_model

from presswork.engine.params import SamplingParams
from presswork.errors import RequestError
from presswork.grammar.languages import Choices, Regex, TextLanguage

# What each protocol names or means in its own way, and what is no number or word.
_OTHERWISE = {
    *("max_tokens", "seed", "temperature", "top_p", "stop", "logprobs"),
    *("logit_bias", "pins", "start", "start_noise", "constraint", "trace", "adapter"),
}


_MOST_STOPS, _STOP_CHARACTERS = 64, 1000
_MOST_STEPS, _MOST_STABLE, _MOST_BIASES = 1024, 64, 1024


class Wire(BaseModel):
    """A body whose unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class _FirstFault(FailFast):
    """FailFast that may stand in a union, whose members are hashed."""

    def __hash__(self) -> int:
        return hash(_FirstFault)


T = TypeVar("T")
Listed = Annotated[list[T], _FirstFault()]
"""A list whose first fault is enough: one message for each of a million bad items would fill the memory."""


def _of_json(hint: Any) -> Any:
    return Listed[get_args(hint)[0]] if get_origin(hint) is tuple else hint


_hints = get_type_hints(SamplingParams)
_own = [field.name for field in fields(SamplingParams) if field.name not in _OTHERWISE]

_definitions: Any = {name: (_of_json(_hints[name]) | None, None) for name in _own}

CanvasFields: Any = create_model("CanvasFields", __base__=Wire, **_definitions)
"""A body with every field of SamplingParams that no protocol has an own word for; null is the checkpoint's default."""


def own_fields(body: BaseModel) -> dict[str, Any]:
    """The engine's own sampling fields in a body, those that were left out too."""
    return {name: getattr(body, name) for name in _own}


def bounded(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, null being nothing. Raises RequestError past what one request may cost.

    The engine itself has no such bounds.
    """
    bounds = {"max_denoising_steps": _MOST_STEPS, "stability_threshold": _MOST_STABLE}
    for name, most in bounds.items():
        value = given.get(name)
        if isinstance(value, int) and value > most:
            raise RequestError(f"{name} must be at most {most} here, got {value}")
    stops = given.get("stop")
    listed = [stops] if isinstance(stops, str) else stops or []
    if len(listed) > _MOST_STOPS or any(len(stop) > _STOP_CHARACTERS for stop in listed):
        raise RequestError(f"stop takes at most {_MOST_STOPS} strings of {_STOP_CHARACTERS} characters here")
    if len(given.get("logit_bias") or ()) > _MOST_BIASES:
        raise RequestError(f"logit_bias takes at most {_MOST_BIASES} tokens here")
    found = {name: value for name, value in given.items() if value is not None}
    # How vLLM's clients say that they want no such filter.
    return {**found, "top_k": 0} if found.get("top_k") == -1 else found


def sampling(body: BaseModel, defaults: SamplingParams, **own: Any) -> SamplingParams:
    """A request's parameters: the model's defaults, the engine's own fields in the body, then what is given here.

    Args: own: fields of SamplingParams; None leaves the default.
    Raises: RequestError.
    """
    given = bounded({**own_fields(body), **own})
    form = given.get("constraint")
    if form is not None:
        # The form decides what may be said; clients send these with every request. A cut JSON text is none.
        without = ("top_p", "top_k") if may_stop(form) else ("top_p", "top_k", "stop")
        given = {name: value for name, value in given.items() if name not in without}
    return defaults.changed(**given)


def may_stop(form: TextLanguage | None) -> bool:
    """Whether stop strings may cut what is kept to a form; a JSON text or a call that is cut is none."""
    return form is None or isinstance(form, Regex | Choices)


def or_none(number: int | None) -> int | None:
    """A number, where -1 is how llama.cpp's clients say that they ask for nothing."""
    return None if number == -1 else number


def time_limit(t_max_predict_ms: int | None) -> dict[str, float]:
    """llama.cpp's bound of the time as a parameter of the engine, none where there is none."""
    return {"max_time": t_max_predict_ms / 1000} if t_max_predict_ms and t_max_predict_ms > 0 else {}


def gap_tokens(given: int | None, default: int) -> int:
    """Most tokens of a gap. Raises RequestError: nothing cannot be written between two texts."""
    number = or_none(given)
    if number == 0:
        raise RequestError("max_tokens must be at least 1 for a gap, got 0")
    return default if number is None else number


def biases(given: Mapping[str, float] | None) -> dict[int, float] | None:
    """OpenAI's logit_bias, whose keys are token ids in text. Raises RequestError."""
    if not given:
        return None
    wrong = [key for key in given if not (key.isascii() and key.isdigit() and len(key) < 12)]
    if wrong:
        raise RequestError(f"logit_bias must map token ids to numbers, got {wrong[0][:40]!r}")
    return {int(key): float(bias) for key, bias in given.items()}


def refuse(body: BaseModel, neutral: dict[str, tuple[Any, ...]]) -> None:
    """Raises RequestError where a field that cannot be honoured has a value that asks for something.

    Args: neutral: by field, the values that ask for nothing; null always does.
    """
    for name, values in neutral.items():
        value = getattr(body, name)
        if value is not None and value not in values:
            accepted = " or ".join(["leaving it out", *map(repr, values)])
            raise RequestError(f"{name} is not supported: got {str(value)[:80]!r}, accepted: {accepted}")
