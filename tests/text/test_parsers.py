import random

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from presswork.text.parsers import ToolCall, parse_tool_calls, split_reasoning
from presswork.text.tokenizer import Tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def split(tokenizer: Tokenizer, text: str) -> tuple[str | None, str]:
    reasoning, answer = split_reasoning(encode(tokenizer, text), tokenizer)
    return None if reasoning is None else tokenizer.decode(reasoning), tokenizer.decode(answer)


@pytest.mark.parametrize(
    ("reply", "reasoning", "answer"),
    [
        ("<|channel>thought\nfirst a, then b\n<channel|>It is b.", "first a, then b\n", "It is b."),
        ("<|channel>thought\n<channel|>It is b.", "", "It is b."),
        ("<|channel><channel|>It is b.", "", "It is b."),
        ("It is b.", None, "It is b."),
        ("<|channel>thought\nnever closed", "never closed", ""),
        ("<|channel>thought", "", ""),
        ("<|channel>thoughtful words<channel|>b", "thoughtful words", "b"),
        ("<|channel>thought\none <channel|>a<|channel>thought\ntwo<channel|>b", "one two", "ab"),
        ("a stray <channel|>close", None, "a stray close"),
        ("", None, ""),
    ],
)
def test_reasoning_is_what_channel_marks_enclose(
    gemma: Tokenizer, reply: str, reasoning: str | None, answer: str
) -> None:
    assert split(gemma, reply) == (reasoning, answer)


def test_text_that_spells_a_channel_mark_is_not_one(gemma: Tokenizer) -> None:
    spelled = encode(gemma, "<|chan") + encode(gemma, "nel>thought\nhm<channel") + encode(gemma, "|>b")
    assert split_reasoning(spelled, gemma) == (None, spelled)


def test_a_token_that_joins_the_channel_name_to_the_reasoning_is_kept_whole() -> None:
    tokens = ["<|channel>", "<channel|>", "thought", "\n", "\n\n", "\nso", "b"]
    library = tokenizers.Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=[]))
    library.decoder = decoders.Fuse()
    tokenizer = Tokenizer(library)
    assert split_reasoning([0, 2, 5, 6, 1, 6], tokenizer) == ([2, 5, 6], [6])
    assert split_reasoning([0, 2, 4, 6, 1, 6], tokenizer) == ([6], [6])
    assert split_reasoning([0, 2, 3, 6, 1, 6], tokenizer) == ([6], [6])


def test_without_channel_tokens_everything_is_answer(all_tokenizers: dict[str, Tokenizer]) -> None:
    plain = all_tokenizers["metaspace"]
    ids = encode(plain, "<|channel>thought\nhm<channel|>b")
    assert split_reasoning(ids, plain) == (None, ids)
    assert parse_tool_calls(ids, plain) == ([], ids)


def test_reasoning_parses_with_byte_level_tokens_too(all_tokenizers: dict[str, Tokenizer]) -> None:
    assert split(all_tokenizers["byte_level"], "<|channel>thought\nhm 中<channel|>b") == ("hm 中", "b")


def parse(tokenizer: Tokenizer, text: str) -> tuple[list[ToolCall], str]:
    calls, rest = parse_tool_calls(encode(tokenizer, text), tokenizer)
    return calls, tokenizer.decode(rest, skip_special_tokens=False)


@pytest.mark.parametrize("kind", ["byte_fallback", "byte_fallback_with_prefix_space", "byte_level"])
def test_every_kind_of_value_is_read(all_tokenizers: dict[str, Tokenizer], kind: str) -> None:
    text = (
        '<|tool_call>call:get_weather{city:<|"|> São {Paulo}, [x]: 5<|"|>,days:3,dry:false,empty:<|"|><|"|>,'
        'list:[1,-2.5,<|"|>a<|"|>,[],{}],none:null,obj:{<|"|>quoted key<|"|>:1e3,nested:{ok:true}},'
        " spaced : 4 }<tool_call|>"
    )
    calls, rest = parse(all_tokenizers[kind], text)
    assert rest == ""
    assert calls == [
        ToolCall(
            name="get_weather",
            arguments={
                "city": " São {Paulo}, [x]: 5", "days": 3, "dry": False, "empty": "", "list": [1, -2.5, "a", [], {}],
                "none": None, "obj": {"quoted key": 1000.0, "nested": {"ok": True}}, "spaced": 4,
            },
        )
    ]  # fmt: skip
    assert isinstance(calls[0].arguments["days"], int)
    assert isinstance(calls[0].arguments["obj"]["quoted key"], float)


def test_quotes_that_are_no_token_are_read_as_text() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|tool_call>", "<tool_call|>"])
    call = ToolCall(name="f", arguments={"a": "x, y", "b": 1})
    assert parse(Tokenizer(library), '<|tool_call>call:f{a:<|"|>x, y<|"|>,b:1}<tool_call|>') == ([call], "")


def test_calls_leave_the_surrounding_text(gemma: Tokenizer) -> None:
    calls, rest = parse(
        gemma, "Let me see.<|tool_call>call:a{}<tool_call|><|tool_call>call:b.c-d{x:1}<tool_call|> done"
    )
    assert calls == [ToolCall(name="a", arguments={}), ToolCall(name="b.c-d", arguments={"x": 1})]
    assert rest == "Let me see. done"


@pytest.mark.parametrize(
    "inside",
    [
        "", "get_weather{}", "call:{}", "call:f", "call:f{", "call:f{}}", "call:f{} and more", "call:f{a}",
        "call:f{a:}", "call:f{a:1,}", "call:f{,}", "call:f{a:word}", "call:f{a:01x}", "call:f{a:[1}", "call:f{a:1]}",
        "call:f{a:{b:1}",
        'call:f{a:<|"|>open}', 'call:f{a:<|"|>x<|"|>y}', 'call:f{<|"|>a<|"|>}', "call:f{a:nan}", "call:f{a:--1}",
        "call:f{a:" + "9" * 5000 + "}", "call:f{a:" + "[" * 5000 + "]" * 5000 + "}",
    ],
)  # fmt: skip
def test_a_malformed_call_stays_in_the_answer(gemma: Tokenizer, inside: str) -> None:
    text = f"before<|tool_call>{inside}<tool_call|>after"
    assert parse(gemma, text) == ([], text)


def test_an_unclosed_call_stays_and_a_later_one_is_read(gemma: Tokenizer) -> None:
    assert parse(gemma, "a<|tool_call>call:f{x:1") == ([], "a<|tool_call>call:f{x:1")
    calls, rest = parse(gemma, "<|tool_call>call:f{x:<|tool_call>call:g{}<tool_call|>")
    assert (calls, rest) == ([ToolCall(name="g", arguments={})], "<|tool_call>call:f{x:")


def test_any_noise_is_read_without_error_or_loss(gemma: Tokenizer) -> None:
    rng = random.Random(5)
    marks = [gemma.id_of(mark) for mark in ("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>")]
    syntax = encode(gemma, "call:f{a:1,b:[true]}call:g{")
    for _ in range(500):
        pool = [*marks, *syntax, rng.randrange(300_000)]
        ids = [i for i in rng.choices(pool, k=rng.randrange(40)) if i is not None]
        calls, rest = parse_tool_calls(ids, gemma)
        assert len(rest) == len(ids) if not calls else len(rest) < len(ids)
        reasoning, answer = split_reasoning(ids, gemma)
        assert len(reasoning or []) + len(answer) <= len(ids)
