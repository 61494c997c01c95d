"""What all protocols have in common on the wire: strict bodies, and the engine's own sampling fields.

Bodies are pydantic models here and nowhere else; behind this border there are the engine's dataclasses.
"""

from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from presswork.engine.params import SamplingParams
from presswork.errors import RequestError

# What each protocol names or means in its own way, and what is no number or word.
_OTHERWISE = {
    *("max_tokens", "seed", "temperature", "top_p", "stop", "logprobs"),
    *("pins", "start", "start_noise", "constraint", "trace", "adapter"),
}


class Wire(BaseModel):
    """A body whose unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


def _of_json(hint: Any) -> Any:
    return list[get_args(hint)[0]] if get_origin(hint) is tuple else hint


_hints = get_type_hints(SamplingParams)
_own = [field.name for field in fields(SamplingParams) if field.name not in _OTHERWISE]

CanvasFields: Any = create_model(
    "CanvasFields", __base__=Wire, **{name: (_of_json(_hints[name]) | None, None) for name in _own}
)
"""A body with every field of SamplingParams that no protocol has an own word for; null is the checkpoint's default."""


def sampling(body: BaseModel, defaults: SamplingParams, **own: Any) -> SamplingParams:
    """A request's parameters: the model's defaults, the engine's own fields in the body, then what is given here.

    Args: own: fields of SamplingParams; None leaves the default.
    Raises: RequestError.
    """
    given = {name: getattr(body, name) for name in _own}
    return defaults.changed(**{name: value for name, value in {**given, **own}.items() if value is not None})


def refuse(body: BaseModel, neutral: dict[str, tuple[Any, ...]]) -> None:
    """Raises RequestError where a field that cannot be honoured has a value that asks for something.

    Args: neutral: by field, the values that ask for nothing; null always does.
    """
    for name, values in neutral.items():
        value = getattr(body, name)
        if value is not None and value not in values:
            accepted = " or ".join(["leaving it out", *map(repr, values)])
            raise RequestError(f"{name} is not supported: got {str(value)[:80]!r}, accepted: {accepted}")
