"""Numbers in decimal notation between a schema's bounds.

An integer has at most 18 digits and so fits 64 bits. A bounded number has at most 15 in all: two different decimals of
so few digits are two different doubles, so what is below a bound as written is below it as parsed.
"""

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

from presswork.errors import ConstraintError
from presswork.grammar.expression import EMPTY_TEXT, NOTHING, Expression, Text, chars, repeat, sequence, union
from presswork.grammar.regex import parse_regex

MAX_INTEGER_DIGITS = 18
MAX_DIGITS = 15
# Of which so many stand before the point when a side has no bound.
_OPEN_WHOLE_DIGITS = 9
_ANY_INTEGER = r"0|-?[1-9]\d{0,17}"
_ANY_NUMBER = r"-?(?:0|[1-9]\d{0,14})(?:\.\d{1,15})?(?:e[+-]?\d{1,2})?"

_LOW_KEYS, _HIGH_KEYS = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")

_DIGIT = chars(((48, 57),))

Schema = dict[str, Any]


def has_bounds(schema: Schema) -> bool:
    """Whether any keyword bounds a number from below or above."""
    return any(key in schema for key in (*_LOW_KEYS, *_HIGH_KEYS))


def is_within(value: int | float, schema: Schema) -> bool:
    """Whether a number is within the schema's bounds and a multiple of its `multipleOf`."""
    number = _exact(value)
    bounds = {key: _exact(schema[key]) for key in (*_LOW_KEYS, *_HIGH_KEYS, "multipleOf") if key in schema}
    return (
        bounds.get("minimum", number) <= number <= bounds.get("maximum", number)
        and bounds.get("exclusiveMinimum", number - 1) < number < bounds.get("exclusiveMaximum", number + 1)
        and number % bounds.get("multipleOf", number or 1) == 0
    )


def integer_expression(schema: Schema, path: str) -> Expression:
    """Integers within the schema's bounds, multiples of its `multipleOf`.

    Raises: ConstraintError when there is none, or `multipleOf` is no power of ten.
    """
    step = _step(schema, path)
    if step == 1 and not has_bounds(schema):
        return parse_regex(_ANY_INTEGER)
    first, last = _range(schema, Fraction(1, step), 10**MAX_INTEGER_DIGITS // step - 1, path)
    zeros = Text(str(step)[1:])
    return union(
        sequence(Text("-"), _naturals(max(-last, 1), -first), zeros),
        Text("0") if first <= 0 <= last else NOTHING,
        sequence(_naturals(max(first, 1), last), zeros),
    )


def number_expression(schema: Schema, path: str) -> Expression:
    """Numbers within the schema's bounds.

    Raises: ConstraintError when there is none, or `multipleOf` is no power of ten.
    """
    if "multipleOf" in schema:
        return integer_expression(schema, path)
    if not has_bounds(schema):
        return parse_regex(_ANY_NUMBER)
    bounds = [_exact(schema[key]) for key in (*_LOW_KEYS, *_HIGH_KEYS) if key in schema]
    is_open = not (any(key in schema for key in _LOW_KEYS) and any(key in schema for key in _HIGH_KEYS))
    whole_digits = max(len(str(min(int(abs(bound)), 10**MAX_DIGITS - 1))) for bound in bounds)
    places = MAX_DIGITS - (max(whole_digits, _OPEN_WHOLE_DIGITS) if is_open else whole_digits)
    first, last = _range(schema, Fraction(10**places), 10**MAX_DIGITS - 1, path)
    return union(sequence(Text("-"), _decimals(max(-last, 1), -first, places)), _decimals(max(first, 0), last, places))


def _exact(bound: int | float) -> Fraction:
    """The number as it is written, not as its double rounds it."""
    return Fraction(Decimal(repr(bound)))


def _range(schema: Schema, scale: Fraction, most: int, path: str) -> tuple[int, int]:
    """The first and last integer, at most `most` from 0, that divided by the scale is within the bounds."""
    first, last = -most, most
    if "minimum" in schema:
        first = max(first, math.ceil(_exact(schema["minimum"]) * scale))
    if "exclusiveMinimum" in schema:
        first = max(first, math.floor(_exact(schema["exclusiveMinimum"]) * scale) + 1)
    if "maximum" in schema:
        last = min(last, math.floor(_exact(schema["maximum"]) * scale))
    if "exclusiveMaximum" in schema:
        last = min(last, math.ceil(_exact(schema["exclusiveMaximum"]) * scale) - 1)
    if first > last:
        raise ConstraintError(
            f"{path}: no number that can be written ({MAX_INTEGER_DIGITS} digits for integers, {MAX_DIGITS} for "
            "others) lies within the bounds; widen them"
        )
    return first, last


def _step(schema: Schema, path: str) -> int:
    """`multipleOf`, 1 without."""
    step = schema.get("multipleOf", 1)
    if step not in [10**power for power in range(MAX_INTEGER_DIGITS)]:
        raise ConstraintError(f"{path}: multipleOf {step} is not supported; only 1, 10, 100, ... are")
    return int(step)


def _naturals(first: int, last: int) -> Expression:
    """Integers from first (at least 0) to last without leading zeros; nothing when first is beyond last."""
    parts = []
    for length in range(len(str(first)), len(str(last)) + 1):
        low, high = max(first, 10 ** (length - 1) if length > 1 else 0), min(last, 10**length - 1)
        if low <= high:
            parts.append(_digits(str(low), str(high), can_stop=False))
    return union(*parts)


def _decimals(first: int, last: int, places: int) -> Expression:
    """Decimals d with first <= d * 10**places <= last and up to so many places; nothing when first is beyond last."""
    if first > last:
        return NOTHING
    (low, low_rest), (high, high_rest) = divmod(first, 10**places), divmod(last, 10**places)
    start, end = (str(rest).zfill(places) if places else "" for rest in (low_rest, high_rest))
    if low == high:
        return sequence(Text(str(low)), _fraction(start, end))
    zeros, nines = "0" * places, "9" * places
    return union(
        sequence(Text(str(low)), _fraction(start, nines)),
        sequence(_naturals(low + 1, high - 1), _fraction(zeros, nines)),
        sequence(Text(str(high)), _fraction(zeros, end)),
    )


def _fraction(low: str, high: str) -> Expression:
    """A point and digits, or neither where that counts as zeros."""
    whole = NOTHING if low.strip("0") else EMPTY_TEXT
    return union(whole, sequence(Text("."), _some_digits(low, high, can_stop=True))) if low else EMPTY_TEXT


def _digits(low: str, high: str, *, can_stop: bool) -> Expression:
    """Strings of len(low) digits from low to high; with can_stop also shorter ones that are so when zeros follow."""
    if not low:
        return EMPTY_TEXT
    return union(EMPTY_TEXT if can_stop and not low.strip("0") else NOTHING, _some_digits(low, high, can_stop=can_stop))


def _some_digits(low: str, high: str, *, can_stop: bool) -> Expression:
    """As `_digits`, but at least one digit."""
    zeros, nines = "0" * (len(low) - 1), "9" * (len(low) - 1)
    if (low, high) == ("0" + zeros, "9" + nines):
        return repeat(_DIGIT, 1 if can_stop else len(low), len(low))
    if low[0] == high[0]:
        return sequence(Text(low[0]), _digits(low[1:], high[1:], can_stop=can_stop))
    between = chars(((ord(low[0]) + 1, ord(high[0]) - 1),)) if ord(low[0]) + 1 < ord(high[0]) else NOTHING
    return union(
        sequence(Text(low[0]), _digits(low[1:], nines, can_stop=can_stop)),
        sequence(between, _digits(zeros, nines, can_stop=can_stop)),
        sequence(Text(high[0]), _digits(zeros, high[1:], can_stop=can_stop)),
    )
