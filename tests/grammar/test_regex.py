import itertools
import random
import re
import sys

import numpy as np
import pytest

from presswork.errors import ConstraintError, ConstraintTooLargeError
from presswork.grammar.byte_automaton import ByteAutomaton, compile_expression
from presswork.grammar.code_points import unicode_class
from presswork.grammar.regex import parse_regex
from presswork.tasks.structure.generate import random_regex
from tests.grammar.walks import random_text

SHORT = ["".join(parts) for n in range(5) for parts in itertools.product("abé1B\n", repeat=n)]


def compiled(pattern: str, *, search: bool = False) -> ByteAutomaton:
    return compile_expression(parse_regex(pattern, search=search))


PATTERNS = [
    "", "a", "ab|b", "(a|b)*a", "a{2}", "a{1,2}b{,2}", "a{1,}?", "a+?b??", ".", ".+", "(?s).", "(?s:.)b", "[^a]",
    "[^a1]b", r"\d\w", r"[\dB]+", r"\s?a", "(?i)aB", "(?i:b)B", "(?i)[a]", "(?i)[^b]", "(?x) a b # c", r"(?a)\w",
    "(?P<x>a)b", "(?:a)b", "a|", "(|a)(|b)", "^ab$", r"\Aa\Z", "^", "$", "^$", "(^a|b)", "(a|b$)", r"a\x62",
    r"\u00e9", r"\.", "[]a]", "[a-b]", r"[\n]", "(?-i:a)b", "((a))", "(a*)*", "(a?b?)*", "(a|ab)(|b)",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_full_match_agrees_with_re(pattern: str) -> None:
    automaton = compiled(pattern)
    # With the ASCII flag: our classes are ASCII.
    expected = re.compile(pattern, re.ASCII)
    for text in SHORT:
        assert automaton.matches(text.encode()) == bool(expected.fullmatch(text)), text


@pytest.mark.parametrize(
    "pattern", [*PATTERNS, "^a", "b$", "^a|b$", "(^|b)a", "a(b|$)", "(^a)(b$)", "^(a|b)$", "(?:a|)$"]
)
def test_search_agrees_with_re(pattern: str) -> None:
    automaton = compiled(pattern, search=True)
    # A dollar of Python's also matches before a last line break, ours as ECMA's does not.
    expected = re.compile(re.sub(r"(?<!\\)\$", r"\\Z", pattern), re.ASCII)
    for text in SHORT:
        assert automaton.matches(text.encode()) == bool(expected.search(text)), text


@pytest.mark.parametrize("seed", range(80))
def test_random_patterns_agree_with_re(seed: int) -> None:
    random_ = random.Random(seed)
    pattern = random_regex(random_)
    expected = re.compile(pattern)
    full, found = compiled(pattern), compiled(pattern, search=True)
    for text in random_.sample(SHORT, 300):
        assert full.matches(text.encode()) == bool(expected.fullmatch(text)), (pattern, text)
        assert found.matches(text.encode()) == bool(expected.search(text)), (pattern, text)
    for _ in range(10):
        assert expected.fullmatch(random_text(full, random_))
        assert expected.search(random_text(found, random_))


IN_UNICODE = {"d": str.isdecimal, "w": lambda c: c.isalnum() or c == "_", "s": lambda c: c.isspace() or c == "\ufeff"}


def held_by(pattern: str) -> np.ndarray:
    """For each code point, whether the class holds it."""
    held = np.zeros(sys.maxunicode + 1, dtype=bool)
    for low, high in parse_regex(pattern).ranges:  # type: ignore[attr-defined]
        held[low : high + 1] = True
    return held


@pytest.mark.parametrize("letter", IN_UNICODE)
def test_classes_are_ascii_and_their_complements_leave_out_unicode(letter: str) -> None:
    unicode_ = np.array([IN_UNICODE[letter](chr(code)) for code in range(sys.maxunicode + 1)])
    ascii_ = np.zeros_like(unicode_)
    ascii_[:128] = [re.match(rf"(?a)\{letter}", chr(code)) is not None for code in range(128)]
    is_character = np.ones_like(unicode_)
    is_character[0xD800:0xE000] = False
    for pattern, expected in [
        (rf"\{letter}", ascii_),
        (rf"[^\{letter.upper()}]", ascii_),
        (rf"\{letter.upper()}", is_character & ~unicode_),
        (rf"[^\{letter}]", is_character & ~unicode_),
        (rf"(?a)\{letter.upper()}", is_character & ~ascii_),
    ]:
        assert np.array_equal(held_by(pattern), expected)


def test_the_dot_leaves_out_the_line_terminators_of_its_dialect() -> None:
    for terminator in "\n\r\u2028\u2029":
        assert compiled(".").matches(terminator.encode()) == (terminator != "\n")
        assert not compiled("^.$", search=True).matches(terminator.encode())
        assert compiled("(?s)^.$", search=True).matches(terminator.encode())


def test_ignoring_case_stays_inside_what_every_dialect_calls_equal() -> None:
    assert compiled("(?i)k").matches(b"K")
    assert not compiled("(?i)k").matches("\u212a".encode())
    assert not compiled("(?i)[^k]").matches("\u212a".encode())
    assert compiled("(?ia)[^k]").matches("\u212a".encode())
    assert compiled("(?ia)é").matches("é".encode())


REFUSED = {
    "lookaround": ["a(?=b)", "(?<!a)b", "(?!)"],
    "backreference": [r"(a)\1"],
    "conditional": ["(a)?(?(1)b|c)"],
    r"\\b": [r"\ba"],
    r"\\B": [r"a\B"],
    "anchor in the middle": ["a^b", "a$b", "(^a)*", "(a|b$)c"],
    r"\(\?m\)": ["(?m)^a", "(?m:a)"],
    "possessive": ["a*+"],
    "atomic": ["(?>a)"],
    "not ASCII": ["(?i)é", "(?i)[à-ü]"],
    "malformed": ["(", "[b-a]", r"\p{L}", "a**"],
}


@pytest.mark.parametrize(("name", "pattern"), [(name, pattern) for name in REFUSED for pattern in REFUSED[name]])
@pytest.mark.parametrize("search", [False, True])
def test_what_cannot_be_kept_to_is_refused_by_name(name: str, pattern: str, search: bool) -> None:
    with pytest.raises(ConstraintError, match=name) as caught:
        parse_regex(pattern, search=search)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, ConstraintTooLargeError)


def test_unicode_classes_are_found_at_every_plane() -> None:
    assert any(low > 0x1D7CD for low, _ in unicode_class("d"))
