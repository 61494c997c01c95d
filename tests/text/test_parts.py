"""Parts as they arrive are the parts of the whole reply, however its tokens were split."""

import random

from presswork.text.parsers import ToolCall, parse_tool_calls, split_reasoning
from presswork.text.parts import PartReader, Piece
from presswork.text.tokenizer import Tokenizer

MARKS = ("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>")


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def read(reader: PartReader, ids: list[int], rng: random.Random | None = None) -> list[Piece | ToolCall]:
    found, start = [], 0
    while start < len(ids):
        stop = start + (1 if rng is None else rng.randrange(1, 9))
        found += reader.push(ids[start:stop])
        start = stop
    return found + reader.flush()


def put_together(parts: list[Piece | ToolCall]) -> tuple[str, str, list[ToolCall]]:
    """(text, reasoning, calls)."""
    pieces = [part for part in parts if isinstance(part, Piece)]
    text, reasoning = ("".join(p.text for p in pieces if p.kind == kind) for kind in ("text", "reasoning"))
    return text, reasoning, [part for part in parts if isinstance(part, ToolCall)]


def without_open_call(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Tokens up to a last call that is never closed, which is neither call nor text."""
    opening, closing = (tokenizer.id_of(mark) for mark in MARKS[:2])
    last = max((i for i, token in enumerate(ids) if token == opening), default=len(ids))
    return ids if closing in ids[last:] else ids[:last]


def test_parts_are_those_of_the_whole_reply(gemma: Tokenizer) -> None:
    rng = random.Random(3)
    marks = [gemma.id_of(mark) for mark in MARKS]
    syntax = encode(gemma, "call:f{a:1}call:g{}thought\nthoughtful é日 words\n")
    whole = [encode(gemma, "<|channel>thought\nso <channel|>"), encode(gemma, "<|tool_call>call:f{x:1}<tool_call|>")]
    seen_calls = seen_reasoning = 0
    for _ in range(400):
        ids: list[int] = []
        for _ in range(rng.randrange(12)):
            ids += rng.choice([[rng.choice(marks)], rng.choice(whole), [rng.choice(syntax)], [rng.choice(syntax)]])
        reasoning, answer = split_reasoning(ids, gemma)
        calls, rest = parse_tool_calls(without_open_call(answer, gemma), gemma)
        expected = gemma.decode(rest), gemma.decode(reasoning or []), calls
        assert put_together(read(PartReader(gemma), ids, rng)) == expected
        seen_calls, seen_reasoning = seen_calls + len(calls), seen_reasoning + bool(reasoning)
    assert seen_calls > 100 and seen_reasoning > 100


def test_the_texts_tokens_are_told_by_their_places(gemma: Tokenizer) -> None:
    ids = encode(gemma, "a <|tool_call>call:f{x:1}<tool_call|> b <|tool_call>broken<tool_call|>c")
    thoughts = encode(gemma, "<|channel>thought\nso <channel|>")
    reader, places = PartReader(gemma), []
    whole = thoughts + ids
    for token in whole:
        reader.push([token])
        places += reader.text_places()
    text = gemma.decode([whole[place] for place in places])
    assert places == sorted(places) and text == "a  b brokenc"
    assert whole[places[0]] == ids[0] and reader.text_places() == []


def test_text_before_a_call_is_out_before_the_call_and_a_call_comes_whole(gemma: Tokenizer) -> None:
    reader = PartReader(gemma)
    assert reader.push(encode(gemma, "so <|tool_call>call:f{x:")) == [Piece("text", "so ")]
    assert reader.push(encode(gemma, "1}")) == []
    assert reader.push(encode(gemma, "<tool_call|>then")) == [
        ToolCall(name="f", arguments={"x": 1}),
        Piece("text", "then"),
    ]
    assert reader.flush() == []


def test_a_channels_name_is_never_shown(gemma: Tokenizer) -> None:
    reader = PartReader(gemma)
    assert reader.push(encode(gemma, "<|channel>thought")) == []
    shown = reader.push(encode(gemma, "\nit is b")) + reader.push(encode(gemma, "<channel|>It is b."))
    assert put_together(shown + reader.flush()) == ("It is b.", "it is b", [])


def test_a_preview_is_what_would_come_and_changes_nothing(gemma: Tokenizer) -> None:
    ids = encode(gemma, "<|channel>thought\nhm<channel|>one é日 two<|tool_call>call:f{x:1}<tool_call|>three")
    for split in range(len(ids)):
        reader, twin = PartReader(gemma), PartReader(gemma)
        shown, same = reader.push(ids[:split]), twin.push(ids[:split])
        coming = reader.preview(ids[split:])
        rest = twin.push(ids[split:]) + twin.flush()
        assert coming == put_together(rest)[0]
        assert put_together(shown + reader.push(ids[split:]) + reader.flush()) == put_together(same + rest)


def test_stop_strings_end_the_text_and_never_show_in_part(gemma: Tokenizer) -> None:
    ids = encode(gemma, "<|channel>thought\nhm<channel|>one STOP two")
    for split in range(len(ids)):
        reader = PartReader(gemma, ["STOP"])
        first = reader.push(ids[:split])
        assert "S" not in put_together(first)[0]
        assert put_together(first + reader.push(ids[split:]) + reader.flush()) == ("one ", "hm", [])
