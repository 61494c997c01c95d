"""Evaluations that break off go on where they were."""

import json
from pathlib import Path

import pytest

from presswork.errors import DataError
from presswork.tasks.journal import NO_JOURNAL, Journal, open_journal

ABOUT = {"model": "code", "seed": 1}


def parts(file: Path) -> list[str]:
    return [json.loads(line).get("part") for line in file.read_text().splitlines()[1:]]


def never() -> dict[str, object]:
    raise AssertionError("this part is done")


def test_a_part_that_is_done_is_read_and_one_that_is_not_is_done(tmp_path: Path) -> None:
    file = tmp_path / "found.jsonl"
    with open_journal(file, ABOUT) as journal:
        assert journal.once("a", lambda: {"x": 1}) == {"x": 1}
    with open_journal(file, ABOUT) as journal:
        assert journal.once("a", never) == {"x": 1}
        assert journal.once("b", lambda: {"x": [2.5, None]}) == {"x": [2.5, None]}
    assert parts(file) == ["a", "b"]
    assert NO_JOURNAL.once("a", lambda: {"x": 3}) == {"x": 3}


def test_what_broke_off_in_the_middle_of_a_line_is_done_again(tmp_path: Path) -> None:
    file = tmp_path / "found.jsonl"
    with open_journal(file, ABOUT) as journal:
        journal.once("a", lambda: {"x": 1})
        journal.once("b", lambda: {"x": 2})
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with open_journal(file, ABOUT) as journal:
            journal.once("a", lambda: {"x": 1})
            journal.once("b", lambda: {"x": 2})
        assert file.read_bytes() == whole


def test_a_part_that_fails_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "found.jsonl"
    with pytest.raises(KeyboardInterrupt), open_journal(file, ABOUT) as journal:
        journal.once("a", lambda: {"x": 1})

        def interrupted() -> dict[str, object]:
            raise KeyboardInterrupt

        journal.once("b", interrupted)
    assert parts(file) == ["a"]


def test_the_journal_of_another_evaluation_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "found.jsonl"
    with open_journal(file, ABOUT) as journal:
        journal.once("a", lambda: {"x": 1})
    before = file.read_bytes()
    with pytest.raises(DataError, match="seed was 1 there and is 2 now"), open_journal(file, {**ABOUT, "seed": 2}):
        pass
    with pytest.raises(DataError, match="another evaluation holds"), open_journal(file, ABOUT):  # noqa: SIM117
        with open_journal(file, ABOUT):
            pass
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", ["notes\n", "notes", "{}\n", "[1]\n", '{"about": 3}\n', '{"part": "a"}\n'])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: str) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(content)
    with pytest.raises(DataError, match=r"journal|not of"), open_journal(file, ABOUT):
        pass
    assert file.read_text() == content


def test_a_journal_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be used as a journal"), open_journal(tmp_path, ABOUT):
        pass
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this machine has no /dev/full")
    with full.open("wb", buffering=0) as opened, pytest.raises(DataError, match="No space left on device; make room"):
        Journal({}, opened).once("a", lambda: {"x": 1})
    with pytest.raises(DataError, match="it is no file"), open_journal(full, ABOUT):
        pass
