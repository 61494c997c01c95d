import random

import pytest

from presswork.errors import RequestError
from presswork.text.stream import StopScanner


def scan(stops: list[str], parts: list[str]) -> tuple[str, str | None]:
    """All text given out, and the stop string that was hit."""
    scanner = StopScanner(stops)
    emitted, hit = "", None
    for part in parts:
        text, hit = scanner.push(part)
        emitted += text
    return emitted + scanner.flush(), hit


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """The definition, by trying every end and, for each, the longest stop first."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


def test_any_split_gives_what_the_definition_says() -> None:
    rng = random.Random(3)
    hits = 0
    for _ in range(5000):
        stops = ["".join(rng.choices("ab", k=rng.randrange(1, 9))) for _ in range(rng.randrange(4))]
        starts = [stop[: rng.randrange(len(stop) + 1)] for stop in stops * 3] + ["a", "c"]
        text = "".join(rng.choices(starts, k=rng.randrange(7)))
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(5)))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        found = scan(stops, parts)
        assert found == expected(stops, text), (stops, parts)
        hits += found[1] is not None
    assert 1000 < hits < 4500


def test_only_the_possible_start_of_a_stop_is_held_back() -> None:
    scanner = StopScanner(["\n\nUser:"])
    assert scanner.push("hello\n") == ("hello", None)
    assert scanner.push("\nUse") == ("", None)
    assert scanner.push(" it\n") == ("\n\nUse it", None)
    assert scanner.flush() == "\n"


def test_a_failed_start_may_hold_a_later_start() -> None:
    assert scan(["aab"], ["aa", "ab", "c"]) == ("a", "aab")


def test_the_stop_that_is_complete_first_wins_and_of_two_the_longer() -> None:
    assert scan(["abcd", "bc"], ["abcd"]) == ("a", "bc")
    assert scan(["c", "abc"], ["xabc"]) == ("x", "abc")


def test_text_after_a_stop_is_dropped_for_good() -> None:
    scanner = StopScanner(["END"])
    assert scanner.push("one END two") == ("one ", "END")
    assert scanner.push("three") == ("", "END")
    assert scanner.flush() == ""


def test_without_stops_everything_passes() -> None:
    assert scan([], ["any", " text"]) == ("any text", None)


@pytest.mark.parametrize("stops", [[""], ["a", ""], "ab", [3], [None]])
def test_stops_that_are_no_strings_are_refused(stops: object) -> None:
    with pytest.raises(RequestError, match="stop"):
        StopScanner(stops)  # type: ignore[arg-type]
