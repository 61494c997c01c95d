import random
from typing import Any

import pytest
import tokenizers
from jsonschema import Draft202012Validator
from tokenizers import AddedToken, decoders, models

from presswork.errors import ConstraintError
from presswork.grammar import dialects
from presswork.grammar.byte_automaton import NUM_BYTES, ByteAutomaton, compile_expression
from presswork.grammar.dialects import TOOL_CALL
from presswork.grammar.json_schema import schema_expression
from presswork.grammar.tool_calls import tool_calls_expression
from presswork.tasks.structure.generate import random_schema
from presswork.text import parsers
from presswork.text.parsers import ToolCall, parse_tool_calls
from presswork.text.tokenizer import Tokenizer
from tests.grammar.walks import random_symbols

MARKS = [parsers.CALL_OPEN, parsers.CALL_CLOSE, parsers.QUOTE]


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "does it", "parameters": parameters}}


@pytest.fixture(scope="module")
def bytes_and_marks() -> Tokenizer:
    """A tokenizer of bytes: ids 0 to 255, then the marks."""
    vocabulary = {f"<0x{value:02X}>": value for value in range(256)}
    library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    library.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    return Tokenizer(library)


def read_back(symbols: list[int], automaton: ByteAutomaton, tokenizer: Tokenizer) -> list[ToolCall]:
    """The calls that the server's parser finds; nothing may be left over."""
    marks = [tokenizer.id_of(mark) for mark in automaton.marks]
    ids = [symbol if symbol < NUM_BYTES else marks[symbol - NUM_BYTES] for symbol in symbols]
    calls, rest = parse_tool_calls([number for number in ids if number is not None], tokenizer)
    assert rest == []
    return calls


def written(text: str, automaton: ByteAutomaton) -> list[int]:
    """The symbols of a text that spells the marks."""
    symbols: list[int] = []
    while text:
        mark = next((mark for mark in MARKS if text.startswith(mark)), None)
        if mark is None:
            symbols += text[0].encode()
        elif mark not in automaton.marks:
            return [-1]
        else:
            symbols.append(NUM_BYTES + automaton.marks.index(mark))
        text = text[len(mark or "x") :]
    return symbols


def test_the_marks_are_the_parsers() -> None:
    assert tuple(MARKS) == (dialects.CALL_OPEN, dialects.CALL_CLOSE, dialects.QUOTE)


@pytest.mark.parametrize("seed", range(40))
def test_every_call_is_read_back_into_valid_arguments(seed: int, bytes_and_marks: Tokenizer) -> None:
    random_ = random.Random(seed)
    schema = random_schema(random_)
    # A part of the tool's parameters, which are an object; $defs stay at the root.
    parameters = {
        "type": "object",
        "properties": {"value": {k: v for k, v in schema.items() if k != "$defs"}, "note": {"type": "string"}},
        "required": ["value"],
        "$defs": schema["$defs"],
    }
    automaton = compile_expression(tool_calls_expression([tool("do_it", parameters), tool("stop")], max_calls=None))
    oracle = Draft202012Validator(parameters)
    for _ in range(8):
        calls = read_back(random_symbols(automaton, random_, random_.choice([5, 60])), automaton, bytes_and_marks)
        assert calls
        for call in calls:
            if call.name == "stop":
                assert call.arguments == {}
            else:
                oracle.validate(call.arguments)


PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "tags": {"items": {"enum": ["a", True]}}},
    "required": ["city"],
}


@pytest.mark.parametrize(
    ("text", "is_inside"),
    [
        ('<|tool_call>call:get{city:<|"|>Rome<|"|>}<tool_call|>', True),
        ('<|tool_call>call:get{city:<|"|>{"\n\\<|"|>,days:3,tags:[<|"|>a<|"|>,true]}<tool_call|>', True),
        ("<|tool_call>call:stop{}<tool_call|>", True),
        ("<|tool_call>call:stop{}<tool_call|>" * 2, True),
        ("<|tool_call>call:stop{}<tool_call|>" * 3, False),
        ("", False),
        ("<|tool_call>call:go{}<tool_call|>", False),
        ("<|tool_call>call:get{}<tool_call|>", False),
        ('<|tool_call>call:get{city: <|"|>Rome<|"|>}<tool_call|>', False),
        ('<|tool_call>call:get{city:<|"|>Rome<|"|>, days:3}<tool_call|>', False),
        ('<|tool_call>call:get{"city":<|"|>Rome<|"|>}<tool_call|>', False),
        ('<|tool_call>call:get{city:"Rome"}<tool_call|>', False),
        ("call:stop{}", False),
    ],
)
def test_what_is_a_call(text: str, is_inside: bool) -> None:
    automaton = compile_expression(tool_calls_expression([tool("get", PARAMETERS), tool("stop", {})], max_calls=2))
    symbols = written(text, automaton)
    assert automaton.matches(symbols) == is_inside


def test_names_choose_among_the_tools() -> None:
    tools = [tool("one"), tool("two")]
    automaton = compile_expression(tool_calls_expression(tools, names=["two"], min_calls=0))
    assert automaton.matches([])
    assert automaton.matches(written("<|tool_call>call:two{}<tool_call|>", automaton))
    assert not automaton.matches(written("<|tool_call>call:one{}<tool_call|>", automaton))


def test_free_keys_are_those_that_are_read_back() -> None:
    automaton = compile_expression(schema_expression({"additionalProperties": {"type": "null"}}, TOOL_CALL))
    for key, is_inside in {
        "a": True,
        "a b": True,
        "é": True,
        "": False,
        " a": False,
        "a\n": False,
        "a:b": False,
        "[": False,
    }.items():
        assert automaton.matches(f"{{{key}:null}}".encode()) == is_inside, key


@pytest.mark.parametrize(
    ("tools", "arguments", "message"),
    [
        ([], {}, "no tool may be called"),
        ([tool("a")], {"names": ["b"]}, "tool 'b' is not declared; declared are: a"),
        ([tool("a")], {"names": []}, "no tool may be called"),
        ([tool("a"), tool("a")], {}, "tool 'a' is declared twice"),
        ([tool("a b")], {}, "tool 0 has the name 'a b'"),
        ([{"type": "function"}], {}, "tool 0 is no function"),
        (["a"], {}, "tool 0 is no function"),
        ([tool("a", {"type": "string"})], {}, "tool 'a': parameters must be a schema of type object"),
        ([tool("a", True)], {}, "tool 'a': parameters must be"),
        ([tool("a", {"properties": {"x": {"not": {}}}})], {}, "tool 'a': #/properties/x: keyword 'not'"),
        (
            [tool("a", {"properties": {"x:y": {}}})],
            {},
            "tool 'a': #/properties/x:y: key 'x:y' cannot be written in a tool",
        ),
        ([tool("a")], {"min_calls": 2, "max_calls": 1}, "2 to 1 calls are no range"),
        ([tool("a")], {"min_calls": -1}, "-1 to 1 calls are no range"),
    ],
)
def test_what_is_malformed_is_refused(tools: list[Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        tool_calls_expression(tools, **arguments)
    assert message in str(caught.value)
