import random
from typing import Any

import pytest

from presswork.errors import ConstraintError
from presswork.grammar.byte_automaton import ByteAutomaton, compile_expression
from presswork.grammar.numbers import integer_expression, number_expression
from tests.grammar.walks import random_text


def random_bounds(random_: random.Random, low: float, high: float) -> dict[str, Any]:
    """None, one or two bounds, each inclusive or not."""
    bounds: dict[str, Any] = {}
    if random_.random() < 0.8:
        bounds[random_.choice(["minimum", "exclusiveMinimum"])] = low
    if random_.random() < 0.8:
        bounds[random_.choice(["maximum", "exclusiveMaximum"])] = high
    return bounds


def is_within(number: float, schema: dict[str, Any]) -> bool:
    """What the draft says of the bounds, literally."""
    infinity = float("inf")
    return (
        schema.get("minimum", -infinity) <= number <= schema.get("maximum", infinity)
        and schema.get("exclusiveMinimum", -infinity) < number < schema.get("exclusiveMaximum", infinity)
        and number % schema.get("multipleOf", 1) * ("multipleOf" in schema) == 0
    )


def compiled_or_none(build: Any, schema: dict[str, Any]) -> ByteAutomaton | None:
    try:
        return compile_expression(build(schema, "#"))
    except ConstraintError:
        return None


@pytest.mark.parametrize("seed", range(60))
def test_integers_are_exactly_those_within_the_bounds(seed: int) -> None:
    random_ = random.Random(seed)
    size = random_.choice([12, 130, 1100])
    schema = random_bounds(random_, *sorted(random_.randint(-size, size) for _ in range(2)))
    if random_.random() < 0.3:
        schema["multipleOf"] = random_.choice([1, 10, 100])
    automaton = compiled_or_none(integer_expression, schema)
    for number in range(-size - 100, size + 100):
        assert (automaton is not None and automaton.matches(str(number).encode())) == is_within(number, schema)
    for text in (b"-0", b"00", b"01", b"+1", b"", b"-", b"1."):
        assert automaton is None or not automaton.matches(text)


@pytest.mark.parametrize("seed", range(60))
def test_decimals_are_exactly_those_within_the_bounds(seed: int) -> None:
    random_ = random.Random(seed)
    low, high = sorted(
        round(random_.uniform(-3, 3) * 10 ** random_.randint(-1, 2), random_.randint(0, 3)) for _ in "ab"
    )
    schema = random_bounds(random_, low, high)
    automaton = compiled_or_none(number_expression, schema)
    if automaton is None:
        assert not is_within((low + high) / 2, schema)
        return
    for _ in range(200):
        number = random_.choice([low, high, random_.uniform(-400, 400)]) + random_.choice([0, 1e-3, -1e-3, 1e-6])
        text = f"{number:.{random_.randint(0, 6)}f}"
        if float(text) or not text.startswith("-"):
            assert automaton.matches(text.encode()) == is_within(float(text), schema), text
    assert all(is_within(float(random_text(automaton, random_)), schema) for _ in range(20))


def test_what_is_written_below_a_bound_is_below_it_as_parsed() -> None:
    automaton = compile_expression(number_expression({"exclusiveMaximum": 0.3, "minimum": 0}, "#"))
    assert float("0.29999999999999999") == 0.3
    assert automaton.matches(b"0.29999999999999")
    assert not automaton.matches(b"0.29999999999999999")
