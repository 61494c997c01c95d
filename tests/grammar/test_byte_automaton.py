import itertools
import random
import re

import numpy as np
import pytest

from presswork.errors import ConstraintError
from presswork.grammar.byte_automaton import ByteAutomaton, compile_expression
from presswork.grammar.code_points import EVERY, LAST, complement, normalize, one_of, unicode_class
from presswork.grammar.expression import (
    EMPTY_TEXT,
    NOTHING,
    Chars,
    Expression,
    Mark,
    Member,
    Text,
    chars,
    choices,
    intersection,
    literal,
    members,
    optional,
    repeat,
    sequence,
    union,
    without,
)
from presswork.grammar.regex import parse_regex
from presswork.tasks.structure.generate import random_regex
from tests.grammar.walks import distances

A, B, C = Text("a"), Text("b"), Text("c")


def texts(alphabet: str, longest: int) -> list[str]:
    """Every text over an alphabet up to a length."""
    return ["".join(parts) for n in range(longest + 1) for parts in itertools.product(alphabet, repeat=n)]


def language(expression: Expression, alphabet: str = "abc,", longest: int = 6) -> set[str]:
    """The short texts of an expression."""
    automaton = compile_expression(expression)
    return {text for text in texts(alphabet, longest) if automaton.matches(text.encode())}


def same(left: ByteAutomaton, right: ByteAutomaton) -> bool:
    return (
        np.array_equal(left.next, right.next)
        and np.array_equal(left.accepts, right.accepts)
        and left.marks == right.marks
    )


@pytest.mark.parametrize(
    ("expression", "pattern"),
    [
        (sequence(A, B, optional(C)), "abc?"),
        (union(A, sequence(B, C), EMPTY_TEXT), "a|bc|"),
        (repeat(A, 0), "a*"),
        (repeat(union(A, B), 2, 4), "[ab]{2,4}"),
        (repeat(optional(A), 1, 3), "a{0,3}"),
        (repeat(optional(A), 2), "a*"),
        (repeat(A, 0, None, Text(",")), "(a(,a)*)?"),
        (repeat(union(A, B), 2, 3, Text(",")), "[ab],[ab](,[ab])?"),
        (repeat(A, 0, 2, Text(",")), "(a(,a)?)?"),
        (repeat(EMPTY_TEXT, 3, 3, Text(",")), ",,"),
        (repeat(repeat(A, 1), 0, None, B), "(a+(ba+)*)?"),
        (sequence(repeat(A, 0), repeat(B, 0), repeat(A, 0)), "a*b*a*"),
        (Chars(((97, 98),)), "[ab]"),
        (Text(""), ""),
        (literal("ab"), "ab"),
        (choices(["ab", "a", "abc", "b"]), "ab|a|abc|b"),
    ],
)
def test_every_construct_agrees_with_a_regex(expression: Expression, pattern: str) -> None:
    assert language(expression) == {text for text in texts("abc,", 6) if re.fullmatch(pattern, text)}


@pytest.mark.parametrize("required", list(itertools.product([False, True], repeat=4)))
def test_members_are_joined_by_separators_between_those_present(required: tuple[bool, ...]) -> None:
    parts = [Member(Text(name), need) for name, need in zip("abcd", required, strict=True)]
    options = [[name] if need else ["", name] for name, need in zip("abcd", required, strict=True)]
    expected = {",".join(filter(None, chosen)) for chosen in itertools.product(*options)}
    assert language(members(parts, Text(",")), "abcd,", 7) == expected


def test_members_take_states_in_proportion_to_their_number() -> None:
    def num_states(num_parts: int) -> int:
        parts = [
            Member(sequence(Text(f"{n:03d}"), repeat(chars(EVERY), 0, 5), Text("\n")), True) for n in range(num_parts)
        ]
        return compile_expression(members(parts, Text(","))).num_states

    assert num_states(30) - num_states(20) == num_states(20) - num_states(10)


@pytest.mark.parametrize(("left", "right"), [("[ab]*", "(..)*"), ("a*b*", "b*a*"), ("(ab|c)*", ".*c.*"), ("a?b?", "")])
def test_products_are_those_of_sets(left: str, right: str) -> None:
    first, second = parse_regex(left), parse_regex(right)
    assert language(intersection(first, second)) == language(first) & language(second)
    assert language(without(first, second)) == language(first) - language(second)
    assert language(sequence(intersection(first, second), C)) == {
        text for text in language(sequence(first, C)) if text[:-1] in language(second)
    }


def test_what_cannot_be_is_dropped() -> None:
    assert sequence(A, NOTHING) is NOTHING
    assert union(NOTHING, A) is A
    assert repeat(NOTHING, 0, 3) is EMPTY_TEXT
    assert repeat(NOTHING, 1) is NOTHING
    assert repeat(A, 2, 1) is NOTHING
    assert members([Member(A, False), Member(NOTHING, True)], B) is NOTHING
    assert language(members([Member(A, False), Member(NOTHING, False)], B)) == {"", "a"}
    assert intersection(A, NOTHING) is NOTHING
    assert without(NOTHING, A) is NOTHING
    assert without(A, NOTHING) is A


@pytest.mark.parametrize(
    "expression",
    [
        NOTHING,
        chars(()),
        intersection(A, B),
        without(A, repeat(A, 0)),
        intersection(intersection(A, B), C),
        intersection(C, intersection(A, B)),
        without(intersection(A, B), C),
        sequence(A, intersection(A, B), C),
    ],
)
def test_an_empty_language_is_refused(expression: Expression) -> None:
    with pytest.raises(ConstraintError, match="no text at all"):
        compile_expression(expression)


def test_without_nothing_everything_is_left() -> None:
    assert language(without(A, intersection(A, B))) == {"a"}


def test_choices_must_be_texts() -> None:
    with pytest.raises(ConstraintError, match="empty"):
        choices([])
    with pytest.raises(ConstraintError, match="surrogate"):
        choices(["a", "\ud800"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(a|b)*", "(a*b*)*"),
        ("a(bc|bd)", "ab[cd]"),
        ("(aa|aaa)*", "(a{2,}|)"),
        ("[a-z]{2}", "[a-m][a-z]|[n-z][a-z]"),
        ("é|è|ê", "[èéê]"),
        ("x*x*x*", "x*"),
        ("(ab)?(ab)?", "(abab|ab)?"),
    ],
)
def test_two_spellings_of_a_language_give_equal_tables(one: str, other: str) -> None:
    assert same(compile_expression(parse_regex(one)), compile_expression(parse_regex(other)))


def test_a_mark_that_no_text_reaches_leaves_no_trace() -> None:
    unreachable = sequence(Mark("<gone>"), intersection(A, B))
    assert same(compile_expression(union(A, unreachable)), compile_expression(A))


def test_marks_are_symbols_of_their_own_in_order_of_name() -> None:
    automaton = compile_expression(sequence(Mark("<z>"), A, Mark("<b>")))
    assert automaton.marks == ("<b>", "<z>")
    assert automaton.next.shape == (4, 258)
    assert automaton.matches([257, ord("a"), 256])
    assert not automaton.matches(b"<z>a<b>")


def residuals_differ(automaton: ByteAutomaton) -> bool:
    """Whether all states differ, by Moore's algorithm on the whole table."""
    block = automaton.accepts.astype(int)
    for _ in range(automaton.num_states):
        rows = np.c_[block, np.where(automaton.next < 0, -1, block[automaton.next])]
        block = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    return len(set(block.tolist())) == automaton.num_states


def search_order(automaton: ByteAutomaton) -> list[int]:
    order = [0]
    for state in order:
        order += [
            target for target in dict.fromkeys(automaton.next[state].tolist()) if target >= 0 and target not in order
        ]
    return order


def test_tables_are_minimal_trimmed_and_numbered_by_search() -> None:
    random_ = random.Random(5)
    for _ in range(60):
        automaton = compile_expression(parse_regex(random_regex(random_), search=random_.random() < 0.5))
        assert residuals_differ(automaton)
        assert search_order(automaton) == list(range(automaton.num_states))
        assert min(distances(automaton)) == 0
        assert automaton.next.dtype == np.int32
        assert automaton.accepts.dtype == np.bool_
        assert not automaton.next.flags.writeable


CLASSES = {
    "every character": EVERY,
    "not a letter": complement(unicode_class("w")),
    "borders": normalize(
        (code, code) for border in (0x80, 0x800, 0x10000, 0xD800, 0xE000, LAST) for code in (border - 1, border)
    ),
    "odd ranges": normalize([(0x61, 0x7B0), (0x7FE, 0x801), (0xFFF, 0xD000), (0xFFFE, 0x10001), (0x40000, 0x8ABCD)]),
    "one": one_of("𐍈"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_holds_exactly_its_characters_among_all(name: str) -> None:
    automaton = compile_expression(Chars(CLASSES[name]))
    # One state more for what is dead, so that all characters can walk at once.
    table = np.vstack([automaton.next, np.full((1, 256), -1)])
    accepts = np.append(automaton.accepts, False)
    for first, last, length in [(0, 0x7F, 1), (0x80, 0x7FF, 2), (0x800, 0xFFFF, 3), (0x10000, LAST, 4)]:
        codes = np.arange(first, last + 1)
        codes = codes[(codes < 0xD800) | (codes > 0xDFFF)]
        encoded = "".join(map(chr, codes.tolist())).encode()
        data = np.frombuffer(encoded, dtype=np.uint8).reshape(-1, length)
        state = np.zeros(len(codes), dtype=int)
        for column in data.T:
            assert not accepts[state].any()
            state = table[state, column]
        held = np.zeros(LAST + 2, dtype=bool)
        for low, high in CLASSES[name]:
            held[low : high + 1] = True
        assert np.array_equal(accepts[state], held[codes])


@pytest.mark.parametrize("data", [b"\xed\xa0\x80", b"\xc0\x80", b"\xe0\x80\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xc3"])
def test_what_is_no_utf8_is_no_character(data: bytes) -> None:
    assert not compile_expression(Chars(EVERY)).matches(data)


def test_code_point_sets_follow_set_algebra() -> None:
    random_ = random.Random(2)
    for _ in range(50):
        pairs = [(low, low + random_.randrange(9)) for low in random_.choices(range(120), k=5)]
        members_ = {code for low, high in pairs for code in range(low, high + 1)}
        ranges = normalize(pairs)
        assert {code for low, high in ranges for code in range(low, high + 1)} == members_
        assert all(ranges[n][1] + 1 < ranges[n + 1][0] for n in range(len(ranges) - 1))
        assert complement(complement(ranges)) == ranges
        assert sum(high - low + 1 for low, high in complement(ranges)) == LAST + 1 - 2048 - len(members_)
