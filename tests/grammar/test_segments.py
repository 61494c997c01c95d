"""Texts with gaps, and token sequences with few changes, against their definitions."""

import itertools
import random
import re

import pytest

from presswork.errors import ConstraintError
from presswork.grammar.few_changes import FewChanges
from presswork.grammar.languages import Regex
from presswork.grammar.segments import Segments, anchor_length
from presswork.grammar.vocabulary import Vocabulary


def strings(alphabet: str, most: int):
    return ("".join(letters) for n in range(most + 1) for letters in itertools.product(alphabet, repeat=n))


@pytest.mark.parametrize("fixed", [("a", "b"), ("", "ab"), ("a", ""), ("", ""), ("a", "bb", "a"), ("", "ab", "ba", "")])
def test_a_text_is_in_if_its_fixed_parts_stand_in_order(fixed):
    automaton = Segments(fixed).automaton()
    pattern = re.compile(".*?".join(map(re.escape, fixed)), re.DOTALL)
    for text in strings("ab\n", 6):
        assert automaton.matches(text.encode()) == bool(pattern.fullmatch(text)), text


@pytest.mark.parametrize("fixed", [("a", "b"), ("a", "bb", "a"), ("", "ab", "ba", "")])
def test_gaps_end_where_the_next_part_first_occurs(fixed):
    language = Segments(fixed)
    automaton = language.automaton()
    pattern = re.compile("(.*?)".join(map(re.escape, fixed)), re.DOTALL)
    for text in strings("ab", 7):
        if automaton.matches(text.encode()):
            gaps = language.gaps_of(text.encode())
            assert b"".join(
                part for pair in zip([f.encode() for f in fixed], [*gaps, b""], strict=True) for part in pair
            )
            assert [gap.decode() for gap in gaps] == list(pattern.fullmatch(text).groups())


def test_what_a_gap_holds_can_be_told():
    automaton = Segments(("x=", "\ny=", "\n"), Regex("[0-9]+")).automaton()
    assert automaton.matches(b"x=12\ny=3\n")
    assert not automaton.matches(b"x=1a\ny=3\n") and not automaton.matches(b"x=\ny=3\n")


def test_an_open_text_ends_anywhere_in_its_last_part_once_enough_is_shown():
    language = Segments(("a", "bcbd"), shown=2)
    automaton = language.automaton()
    assert language.is_open and not Segments(("a", "b")).is_open
    for text in strings("abcd", 6):
        start = text.find("bc", 1)
        wanted = text[:1] == "a" and start > 0 and "bcbd".startswith(text[start:])
        assert automaton.matches(text.encode()) == wanted, text
    assert language.gaps_of(b"axybc") == [b"xy"]
    assert language.gaps_of(b"axybcb") == [b"xy"]
    with pytest.raises(ConstraintError, match="at least one character must follow a gap, got 1 bytes"):
        Segments(("", "\u00e9a"), shown=1)


def test_long_parts_are_known_by_their_beginnings(monkeypatch):
    monkeypatch.setattr("presswork.grammar.segments.ANCHOR", 2)
    for fixed in (("a", "bab"), ("", "abb", "ba", "b")):
        language = Segments(fixed)
        automaton = language.automaton()
        for text in strings("ab", 9):
            place, gaps = len(fixed[0]), []
            is_in = text.startswith(fixed[0])
            for number, part in enumerate(fixed[1:], start=1):
                is_last = number == len(fixed) - 1
                end = len(text) - len(part) if is_last and len(part) <= 2 else text.find(part[:2], place)
                is_in = is_in and end >= place and text[end : end + len(part)] == part
                gaps.append(text[place:end])
                place = end + len(part)
            is_in = is_in and place == len(text)
            assert automaton.matches(text.encode()) == is_in, text
            if is_in:
                assert [gap.decode() for gap in language.gaps_of(text.encode())] == gaps


def test_an_anchor_is_as_long_as_it_takes_to_tell_the_old_gap_from_what_follows():
    assert anchor_length("abc", "xyz") == 3
    assert anchor_length("x" * 60, "x" * 60) is None
    assert anchor_length("x" * 60, "x" * 60 + "y") == 61
    old, part = "a" * 50 + "b", "a" * 50 + "c"
    assert anchor_length(old, part) == 51
    language = Segments(("", part + "rest"), shown=51, anchors=(51,))
    assert language.automaton().matches((old + part).encode()) and language.gaps_of((old + part).encode()) == [
        old.encode()
    ]


def test_long_parts_stay_small():
    text = "".join(random.Random(0).choices("ab \n", k=400))
    automaton = Segments((text, text[::-1], text[:50], text)).automaton()
    assert automaton.num_states < 1500


def test_bad_segments_are_refused():
    with pytest.raises(ConstraintError, match="a gap lies between two texts, got 1"):
        Segments(("a",))
    with pytest.raises(ConstraintError, match="must not be empty; join the gaps"):
        Segments(("a", "", "b"))


def test_keys_tell_segments_apart():
    made = [Segments(("a", "b")), Segments(("ab", "")), Segments(("a", "b"), shown=1), Segments(("a", "b"), Regex("c"))]
    assert len({one.key for one in made}) == 4


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("max_changes", [0, 1, 2, 9])
def test_few_changes_are_counted(max_changes, ends):
    words = Vocabulary([b"", b"a", b"b", b"\xc3", b"c"], {})
    given, open_places = (
        (1, 3, 2, 1),
        frozenset({0, 1, 3}),
    )  # token 3 is part of a character: it stays, and is no substitute
    language = FewChanges(given, open_places, max_changes, ends=ends)
    automaton = language.lifted(words)
    assert language.is_open is not ends
    assert automaton.fewest[0] == automaton.most[0] == 4
    for ids in itertools.chain.from_iterable(itertools.product(range(5), repeat=n) for n in range(6)):
        state = 0
        for token in ids:
            state = automaton.after(state, token) if state >= 0 else -1
        is_text = all(token in (1, 2, 4) for i, token in enumerate(ids) if i != 1)
        changed = [i for i, (a, b) in enumerate(zip(ids, given, strict=False)) if a != b]
        wanted = len(ids) == 4 and is_text and set(changed) <= {0, 3} and len(changed) <= max_changes
        assert (state >= 0 and bool(automaton.accepts[state])) == wanted, ids


def test_what_is_no_text_cannot_be_edited():
    words = Vocabulary([b"", b"a"], {})
    with pytest.raises(ConstraintError, match="token 0 is no text"):
        FewChanges((1, 0), frozenset({0}), 1).lifted(words)
    with pytest.raises(ConstraintError, match="too many at once; lower max_changes"):
        FewChanges((1,) * 1000, frozenset(range(1000)), 999).lifted(words)
