"""Automata over tokens say what the bytes of the tokens say, and come back from disk as they were."""

import dataclasses
import logging
import os
import random
import re

import numpy as np
import pytest

from presswork.errors import ConstraintError, ConstraintTooLargeError
from presswork.grammar import disk, token_automaton
from presswork.grammar.byte_automaton import ByteAutomaton, compile_expression
from presswork.grammar.expression import EMPTY_TEXT, Mark, literal, sequence
from presswork.grammar.languages import Regex
from presswork.grammar.regex import parse_regex
from presswork.grammar.token_automaton import TokenAutomaton, lift
from presswork.grammar.vocabulary import Vocabulary
from presswork.tasks.structure.generate import random_regex

BYTES = [bytes([value]) for value in range(256)]
PIECES = [b"", b"a", b"ab", b"abc", b"b", b"ba", b"bb", b"cab", b"1", b"12", "é".encode(), "aé".encode(), b"\xa9", b"a"]


def vocabulary(tokens: list[bytes] = PIECES + BYTES, marks: dict[str, int] | None = None) -> Vocabulary:
    return Vocabulary(tokens, marks or {})


def compiled(pattern: str) -> ByteAutomaton:
    return compile_expression(parse_regex(pattern))


def walk(automaton: TokenAutomaton, ids: list[int]) -> int:
    state = 0
    for token in ids:
        state = automaton.after(state, token)
        if state < 0:
            return -1
    return state


@pytest.mark.parametrize("seed", range(25))
def test_token_sequences_are_accepted_as_their_bytes_are(seed):
    rng = random.Random(seed)
    language = compiled(random_regex(rng))
    words = vocabulary()
    automaton = lift(language, words)
    for _ in range(300):
        ids = [rng.randrange(len(words.token_bytes)) for _ in range(rng.randrange(5))]
        text = b"".join(words.token_bytes[i] for i in ids)
        state = walk(automaton, ids)
        has_text = all(words.token_bytes[i] for i in ids)
        assert (state >= 0) == (has_text and language.walk(text) >= 0)
        assert (state >= 0 and bool(automaton.accepts[state])) == (has_text and language.matches(text))


@pytest.mark.parametrize("seed", range(10))
def test_tokens_share_a_class_exactly_where_they_do_the_same_everywhere(seed):
    language, words = compiled(random_regex(random.Random(100 + seed))), vocabulary()
    automaton = lift(language, words)
    columns = [tuple(language.walk(text, state) for state in range(language.num_states)) for text in words.token_bytes]
    for i, j in [(i, j) for i in range(len(PIECES)) for j in range(len(words.token_bytes))]:
        if words.token_bytes[i] and words.token_bytes[j]:
            assert (automaton.class_of[i] == automaton.class_of[j]) == (columns[i] == columns[j])
    dead = [all(state < 0 for state in column) or not words.token_bytes[i] for i, column in enumerate(columns)]
    assert (automaton.class_of < 0).tolist() == dead


@pytest.mark.parametrize("seed", range(20))
def test_leaving_out_states_that_are_alike_changes_nothing(seed, monkeypatch):
    """The plain way signs pieces by every state."""
    rng = random.Random(200 + seed)
    bounds = sorted(rng.randrange(40) for _ in range(2))
    language = compiled(f"({random_regex(rng)}){{{bounds[0]},{bounds[1]}}}[a-c]?" if seed % 2 else random_regex(rng))
    plain = lift(language, vocabulary())
    monkeypatch.setattr(token_automaton, "_SAMPLE", 1)
    monkeypatch.setattr(token_automaton, "_WORTH_UNFOLDING", -1)
    for most in (token_automaton._MAX_UNFOLDING, 500):
        monkeypatch.setattr(token_automaton, "_MAX_UNFOLDING", most)
        for name, value in fields_of(lift(language, vocabulary())).items():
            assert np.array_equal(value, fields_of(plain)[name]), name


def test_a_counted_repeat_has_few_states_that_are_not_alike():
    """Of a{0,300} those whose next three letters may be its last, and one for all before them."""
    language, seen = compiled("a{0,300}"), token_automaton._unlike
    rest = seen(np.ascontiguousarray(language.next[:, :256]), np.arange(language.num_states), 3)
    assert language.num_states == 301 and len(rest) == 4


def test_steps_to_the_end_are_counted_in_tokens():
    automaton = lift(compiled("(abc){2}"), vocabulary())
    assert automaton.fewest[0] == 2  # abc abc
    assert automaton.most[0] == 6
    assert lift(compiled("ab*"), vocabulary()).most[0] == -1
    assert lift(compiled("a?"), vocabulary()).fewest[0] == 0


def test_the_empty_text_alone_is_a_language():
    automaton = lift(compile_expression(EMPTY_TEXT), vocabulary())
    assert automaton.num_states == 1 and automaton.fewest[0] == automaton.most[0] == 0


def test_marks_are_single_tokens_and_their_spelling_is_not():
    language = compile_expression(sequence(Mark("<call>"), literal("a")))
    words = vocabulary([b"", b"a", b"<call>"], {"<call>": 0})
    automaton = lift(language, words)
    assert automaton.accepts[walk(automaton, [0, 1])]
    assert walk(automaton, [2]) == -1


def test_what_the_tokenizer_cannot_spell_is_refused():
    with pytest.raises(ConstraintError, match="special token '<call>', which this model does not have"):
        lift(compile_expression(Mark("<call>")), vocabulary())
    with pytest.raises(ConstraintError, match="no text of the constraint can be spelt"):
        lift(compiled("x"), vocabulary([b"a", b"b"]))


def test_ways_that_the_tokenizer_cannot_finish_are_left_out():
    automaton = lift(compiled("ax|b"), vocabulary([b"a", b"b"]))
    assert automaton.after(0, 0) == -1
    assert automaton.accepts[automaton.after(0, 1)]


def test_a_language_too_large_to_lift_is_refused(monkeypatch):
    monkeypatch.setattr(token_automaton, "MAX_STEPS", 100)
    monkeypatch.setattr(token_automaton, "_SAMPLE", 2)
    with pytest.raises(ConstraintTooLargeError, match="more than can be prepared"):
        lift(compiled("(ab|c){1,9}"), vocabulary())
    monkeypatch.undo()
    monkeypatch.setattr(token_automaton, "MAX_CLASS_EDGES", 3)
    with pytest.raises(ConstraintTooLargeError, match="edges, at most 3 are taken"):
        lift(compiled("(ab|c){1,9}"), vocabulary())


def fields_of(automaton: TokenAutomaton) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(automaton, name)) for name in TokenAutomaton.__slots__}


def test_a_language_comes_back_from_disk_as_it_was(tmp_path):
    automaton = lift(compiled("(ab|c){1,9}"), vocabulary())
    file = tmp_path / "folder" / disk.name_of(Regex("(ab|c){1,9}").key, vocabulary().fingerprint)
    assert disk.read(file) is None
    disk.write(file, automaton)
    found = disk.read(file)
    assert found is not None
    for name, value in fields_of(automaton).items():
        np.testing.assert_array_equal(fields_of(found)[name], value)
    assert [f.name for f in file.parent.iterdir()] == [file.name]


def test_numbers_that_do_not_fit_together_are_no_language(tmp_path):
    automaton = lift(compiled("(ab|c){1,9}"), vocabulary())
    for name, value in (("edge_to", 10_000), ("edge_group", 10_000), ("group_classes", -1), ("class_of", 10_000)):
        broken = getattr(automaton, name).copy()
        broken[0] = value
        disk.write(tmp_path / "a.npz", dataclasses.replace(automaton, **{name: broken}))
        assert disk.read(tmp_path / "a.npz") is None


def test_a_byte_changed_anywhere_never_raises(tmp_path):
    file = tmp_path / "a.npz"
    disk.write(file, lift(compiled("(ab|c){1,9}"), vocabulary()))
    whole, rng = file.read_bytes(), random.Random(0)
    for _ in range(400):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(data))
        disk.read(file)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nonsense", b"not a zip file at all"])
def test_a_damaged_file_is_no_language(tmp_path, damage, caplog):
    file = tmp_path / "a.npz"
    file.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert disk.read(file) is None
    assert "it is prepared anew" in caplog.text
    disk.write(file, lift(compiled("ab"), vocabulary()))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert disk.read(file) is None


def test_a_folder_that_cannot_be_written_costs_the_file_and_nothing_else(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        disk.write(blocked / "a.npz", lift(compiled("ab"), vocabulary()))
    assert "cannot be written" in caplog.text


def test_the_oldest_files_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "MAX_FILES", 2)
    automaton = lift(compiled("ab"), vocabulary())
    for age, name in enumerate("abc"):
        disk.write(tmp_path / f"{name}.npz", automaton)
        os.utime(tmp_path / f"{name}.npz", (age, age))
    disk.read(tmp_path / "b.npz")  # used again, and so the newest
    disk.write(tmp_path / "d.npz", automaton)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["b.npz", "d.npz"]


def test_names_tell_languages_and_vocabularies_apart():
    names = {disk.name_of(language, words) for language in ("a", "b") for words in ("x", "y")}
    assert len(names) == 4 and all(re.fullmatch(r"[0-9a-f]{40}\.npz", name) for name in names)
    assert vocabulary().fingerprint != vocabulary(PIECES).fingerprint
    assert vocabulary([b"ab", b"c"]).fingerprint != vocabulary([b"a", b"bc"]).fingerprint
