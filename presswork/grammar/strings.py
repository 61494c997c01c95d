"""The contents of strings under a schema's `minLength`, `maxLength`, `pattern` and `format`, before any quoting."""

from typing import Any

from presswork.errors import ConstraintError
from presswork.grammar.code_points import EVERY
from presswork.grammar.expression import Expression, chars, intersection, repeat
from presswork.grammar.formats import FORMATS
from presswork.grammar.regex import parse_regex


def string_expression(schema: dict[str, Any], path: str) -> Expression:
    """The strings that satisfy every string keyword of the schema.

    Raises: ConstraintError when `pattern` is no regex that can be kept to.
    """
    demands: list[Expression] = []
    if "pattern" in schema:
        try:
            demands.append(parse_regex(schema["pattern"], search=True))
        except ConstraintError as error:
            raise type(error)(f"{path}/pattern: {error}") from None
    if "format" in schema:
        demands.append(parse_regex(FORMATS[schema["format"]]))
    if not demands or "minLength" in schema or "maxLength" in schema:
        demands.append(repeat(chars(EVERY), schema.get("minLength", 0), schema.get("maxLength")))
    whole = demands[0]
    for demand in demands[1:]:
        whole = intersection(whole, demand)
    return whole
