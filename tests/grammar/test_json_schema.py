import json
import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from presswork.errors import ConstraintError
from presswork.grammar.byte_automaton import ByteAutomaton, compile_expression
from presswork.grammar.formats import FORMATS
from presswork.grammar.json_schema import schema_expression
from presswork.tasks.structure.generate import random_schema
from tests.grammar.walks import random_text


def compiled(schema: Any, depth: int = 3) -> ByteAutomaton:
    return compile_expression(schema_expression(schema, depth=depth))


def validator(schema: Any) -> Draft202012Validator:
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def check_walks(schema: Any, random_: random.Random, count: int) -> None:
    automaton, oracle = compiled(schema), validator(schema)
    for _ in range(count):
        text = random_text(automaton, random_, random_.choice([5, 30, 100]))
        oracle.validate(json.loads(text))


@pytest.mark.parametrize("seed", range(60))
def test_all_that_a_random_schema_generates_is_valid(seed: int) -> None:
    random_ = random.Random(seed)
    check_walks(random_schema(random_), random_, 10)


@pytest.mark.slow
def test_all_that_many_random_schemas_generate_is_valid() -> None:
    for seed in range(1000, 1100):
        random_ = random.Random(seed)
        check_walks(random_schema(random_), random_, 10)


OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}}
NODE = {"properties": {"v": {"const": 1}, "next": {"$ref": "#"}}, "required": ["v"]}
CAT = {"properties": {"kind": {"const": "cat"}, "age": {"const": 1}}, "required": ["kind"], "type": "object"}
DOG = {"properties": {"kind": {"enum": ["dog", "wolf"]}}, "required": ["kind"], "type": "object"}

# Schema, texts that it generates, texts that it does not (some of them valid, but not written so).
TABLE: list[tuple[Any, list[str], list[str]]] = [
    (True, ["null", "1", '"x"', "[1, [2]]", '{"a":{"b":1}}', "[]"], ["", "nul", "[[[1]]]"]),
    ({}, ["true", "[null]"], ["True"]),
    ({"type": "null"}, ["null"], ["0"]),
    ({"type": "boolean"}, ["true", "false"], ["1"]),
    ({"type": ["null", "integer"]}, ["null", "-5"], ['"5"', "1.5"]),
    ({"type": "integer"}, ["0", "-1", "9" * 18], ["-0", "01", "1.0", "9" * 19, "1e5", ""]),
    ({"type": "integer", "minimum": -3, "maximum": 12}, ["-3", "0", "7", "12"], ["-4", "13", "120"]),
    ({"type": "integer", "exclusiveMinimum": 1.5, "exclusiveMaximum": 4}, ["2", "3"], ["1", "4"]),
    ({"type": "integer", "multipleOf": 10, "minimum": 0}, ["0", "10", "12340"], ["5", "-10", "00"]),
    ({"type": "integer", "multipleOf": 1.0}, ["7"], ["7.5"]),
    ({"type": "number"}, ["0", "-1.5", "2e10", "3.25e-7"], [".5", "1.", "01", "1e999", "NaN"]),
    ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, ["0", "0.0", "0.999999"], ["1", "1.0", "-0.1", "1e-3"]),
    ({"minimum": 3}, ["3", "3.5", "1000"], ["2.9", '"x"']),
    ({"type": "string"}, ['""', '"é\\n\\"\\\\/"', '"𐍈"'], ['"', '"\n"', '"\\u0041"', '"\\/"', '"\x01"']),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"éé"', '"\\n\\"a"'], ['"a"', '"abcd"']),
    ({"maxLength": 0}, ['""'], ['"a"', "1"]),
    ({"pattern": "^a"}, ['"ab\\n"'], ['"ba"']),
    ({"pattern": "b$", "minLength": 2}, ['"ab"'], ['"b"', '"ba"']),
    ({"type": "string", "pattern": '^[^"]{2}$'}, ['"a\\\\"'], ['"\\"\\""', '"a"']),
    ({"format": "date"}, ['"2024-02-29"', '"1999-12-31"'], ['"2023-02-29"', '"1900-02-29"', '"2024-04-31"']),
    ({"format": "ipv4", "maxLength": 7}, ['"1.2.3.4"'], ['"10.2.3.4"', '"1.2.3"']),
    ({"enum": ["a", 1, None, {"k": [True, "\n"]}]}, ['"a"', "1", "null", '{"k": [true,"\\n"]}'], ["true", '{"k":[]}']),
    ({"const": 2.5}, ["2.5"], ["2.50"]),
    ({"type": "string", "enum": ["a", 1]}, ['"a"'], ["1"]),
    ({"enum": ["a", "abc", 5], "minLength": 2}, ['"abc"', "5"], ['"a"']),
    ({"enum": [1, 5, 9], "type": "integer", "minimum": 4}, ["5", "9"], ["1"]),
    ({"enum": [1, 2], "const": 2}, ["2"], ["1"]),
    ({"enum": [{"a": 1, "b": 2}, {"b": 1}, {"a": 1}], "required": ["b"]}, ['{"a":1, "b":2}', '{"b":1}'], ['{"a":1}']),
    ({"enum": [{"b": 1, "a": 2}], "properties": {"a": {"type": "integer"}, "b": {}}}, ['{"b":1,"a":2}'], ["{}"]),
    ({"enum": [{"a": 1}, {"a": "x"}, {"c": 1}], "properties": {"a": {"type": "integer"}},
      "additionalProperties": False}, ['{"a":1}'], ['{"a":"x"}', '{"c":1}']),
    ({"enum": [{"a": {"b": [1, "x"]}}, {"a": {"b": [2]}}, 7],
      "properties": {"a": {"properties": {"b": {"items": {"anyOf": [{"maximum": 1}, {"type": "string"}]}}}}}},
     ['{"a":{"b":[1,"x"]}}', "7"], ['{"a":{"b":[2]}}']),
    ({"const": [1, 2, 3], "prefixItems": [{"type": "integer"}]}, ["[1,2,3]"], ["[1]"]),
    ({"enum": [[1], [1, "a"], []], "prefixItems": [{"const": 1}], "items": {"minLength": 1}, "minItems": 1},
     ["[1]", '[1,"a"]'], ["[]"]),
    ({"enum": [1, 1e30, 12345678901234567890, 0.5], "minimum": 1}, ["1", "1e+30", "12345678901234567890"], ["0.5"]),
    ({"enum": [3, 6, 7, 0], "multipleOf": 3, "exclusiveMaximum": 6}, ["3", "0"], ["6", "7"]),
    ({"enum": [True, False, None], "minimum": 5, "minItems": 1}, ["true", "null"], ["1"]),
    ({"enum": [1, "a"], "anyOf": [{"type": "null"}, {"type": "string"}]}, ['"a"'], ["1", "null"]),
    ({"enum": [{}, {"a": 1}, {"a": 1, "b": 1}], "minProperties": 1, "maxProperties": 1}, ['{"a":1}'], ["{}"]),
    (OBJECT, ["{}", '{"a":1}', '{"a": 1, "b": true}', '{"b":true}'], ['{"b":true,"a":1}', '{"c":1}', '{"a":1,}']),
    ({**OBJECT, "required": ["b"]}, ['{"b":true}', '{"a":1,"b":true}'], ["{}", '{"a":1}']),
    ({**OBJECT, "required": ["b", "z"]}, ['{"b":true,"z":[1]}'], ['{"b":true}', '{"z":1,"b":true}']),
    ({**OBJECT, "required": ["z"], "additionalProperties": {"type": "null"}}, ['{"z":null}'], ['{"z":1}']),
    ({**OBJECT, "minProperties": 1}, ['{"a":1}', '{"b":true}'], ["{}"]),
    ({**OBJECT, "required": ["a"], "minProperties": 1, "maxProperties": 2}, ['{"a":1}'], ["{}"]),
    ({"properties": {"a": False, "b": {}}}, ["{}", '{"b":1}'], ['{"a":1}']),
    ({"type": "object"}, ["{}", '{"x":1,"":[2]}'], ['{"x":{"y":[]}}']),
    ({"type": "object", "properties": {}}, ["{}"], ['{"x":1}']),
    ({"type": "object", "additionalProperties": False}, ["{}"], ['{"x":1}']),
    ({"properties": {}, "additionalProperties": {"type": "integer"}}, ["{}", '{"x":1}'], ['{"x":"1"}']),
    ({"additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
     ['{"x":1}', '{"x":1, "y":2}'], ["{}", '{"a":1,"b":2,"c":3}']),
    ({"type": "array"}, ["[]", "[1, 2]"], ["[1,,2]", "[1 ,2]"]),
    ({"items": {"type": "integer"}}, ["[]", "[1,2]"], ['["a"]', "1"]),
    ({"items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, ["[1]", "[1, 2]"], ["[]", "[1,2,3]"]),
    ({"items": False}, ["[]"], ["[1]"]),
    ({"prefixItems": [{"const": 1}, {"const": 2}]}, ["[]", "[1]", "[1,2]"], ["[2]", "[1,2,3]"]),
    ({"prefixItems": [{"const": 1}], "items": {"const": 0}, "minItems": 1}, ["[1]", "[1,0,0]"], ["[]", "[0]"]),
    ({"prefixItems": [{"const": 1}], "minItems": 2}, ["[1,true]"], ["[1]"]),
    ({"prefixItems": [{"const": 1}, {"const": 2}], "maxItems": 1}, ["[1]"], ["[1,2]"]),
    ({"prefixItems": [{"const": 1}, False], "items": {}}, ["[1]", "[]"], ["[1,2]"]),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ["1", "null"], ["true"]),
    ({"type": "integer", "anyOf": [{"maximum": 0}, {"minimum": 9}]}, ["-1", "10"], ["5"]),
    ({**OBJECT, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, ['{"a":1}', '{"b":true}'], ["{}"]),
    ({"anyOf": [False, {"const": 1}]}, ["1"], ["2"]),
    ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"a"'], ["1.5"]),
    ({"oneOf": [{"const": 1}, {"enum": [2, "a"]}]}, ["1", "2", '"a"'], ["3"]),
    ({"oneOf": [CAT, DOG]}, ['{"kind":"cat","age":1}', '{"kind":"wolf"}'], ['{"kind":"dog","age":1}']),
    ({"oneOf": [{"$ref": "#/$defs/c"}, DOG], "$defs": {"c": {"allOf": [CAT]}}}, ['{"kind":"cat"}'], ["{}"]),
    ({"allOf": [OBJECT, {"properties": {"c": {"const": 1}}, "required": ["c"]}]}, ['{"a":1,"c":1}'], ['{"a":1}']),
    ({"allOf": [OBJECT, {"properties": {"a": {"minimum": 5}}}]}, ['{"a":5}', "{}"], ['{"a":4}']),
    ({"allOf": [{"properties": {"a": {}}, "additionalProperties": False},
                {"properties": {"a": {"const": 1}, "b": {}}}]},
     ['{"a":1}', "{}"], ['{"b":1}', '{"a":2}']),
    ({"allOf": [{"minimum": 2, "maximum": 9}, {"minimum": 5}, {"type": "integer"}]}, ["5", "9"], ["4", "5.5"]),
    ({"allOf": [{"type": ["number", "null"]}, {"type": ["integer", "string"]}]}, ["1"], ["null", "1.5", '"a"']),
    ({"allOf": [{"enum": [1, 2, "1"]}, {"enum": [2.0, "1", 1.5]}]}, ["2", '"1"'], ["1", "1.5"]),
    ({"allOf": [{"items": {"minimum": 2}}, {"items": {"type": "integer"}}], "type": "array"},
     ["[2]"], ["[1]", "[2.5]"]),
    ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "integer"}}}, ["1"], ['"1"']),
    ({"$ref": "#/definitions/x~1y", "maximum": 3, "definitions": {"x/y": {"type": "integer"}}}, ["3"], ["4", "2.5"]),
    ({"$ref": "#/$defs/a%20b/items/0", "$defs": {"a b": {"items": [{"const": 1}]}}}, ["1"], ["2"]),
    ({"items": {"$ref": "#/$defs/x"}, "$defs": {"x": {"anyOf": [{"const": 1}, {"$ref": "#"}]}}}, ["[1,[1]]"], ["[2]"]),
    (NODE, ['{"v":1}', '{"v":1,"next":{"v":1,"next":{"v":1}}}'], ['{"next":{"v":1}}']),
    ({"title": "t", "description": "d", "default": 5, "examples": [], "$comment": "c", "deprecated": True, "const": 1},
     ["1"], ["5"]),
]  # fmt: skip


@pytest.mark.parametrize("case", TABLE, ids=lambda case: json.dumps(case[0])[:60])
def test_each_keyword_lets_in_and_keeps_out(case: tuple[Any, list[str], list[str]]) -> None:
    schema, inside, outside = case
    automaton = compiled(schema)
    oracle = None if "items/0" in str(schema) else validator(schema)
    for text in inside:
        assert automaton.matches(text.encode()), text
        assert oracle is None or oracle.is_valid(json.loads(text)), text
    for text in outside:
        assert not automaton.matches(text.encode()), text
    assert oracle is None or not [t for t in walks(automaton) if not oracle.is_valid(json.loads(t))]


def walks(automaton: ByteAutomaton) -> list[str]:
    random_ = random.Random(0)
    return [random_text(automaton, random_) for _ in range(10)]


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_what_the_checkers_accept(name: str) -> None:
    checker = Draft202012Validator.FORMAT_CHECKER
    automaton = compiled({"type": "string", "format": name})
    random_ = random.Random(7)
    for _ in range(60):
        checker.check(json.loads(random_text(automaton, random_, random_.choice([1, 20, 80]))), name)


def test_depth_counts_how_often_a_definition_stands_inside_itself() -> None:
    def nested(times: int) -> bytes:
        return b'{"v":1,"next":' * (times - 1) + b'{"v":1}' + b"}" * (times - 1)

    for depth in (1, 2, 4):
        automaton = compiled(NODE, depth)
        assert [automaton.matches(nested(times)) for times in range(1, 7)] == [times <= depth for times in range(1, 7)]


def test_a_definition_that_never_refers_to_itself_may_stand_inside_itself() -> None:
    def nested(levels: int) -> dict[str, Any]:
        inner = {} if levels == 0 else {"child": nested(levels - 1)}
        return {"allOf": [{"$ref": "#/$defs/base"}], "properties": inner}

    base = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
    automaton = compiled({**nested(5), "$defs": {"base": base}}, 1)
    assert automaton.matches(b'{"child":' * 5 + b'{"id":1}' + b',"id":1}' * 5)
    # One that does refer to itself, through another, still counts.
    loop = {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": "array", "items": {"$ref": "#/$defs/a"}, "maxItems": 1}}
    }
    automaton = compiled({**loop, "$ref": "#/$defs/a"}, 2)
    assert automaton.matches(b"[[]]") and not automaton.matches(b"[[[]]]")


def test_names_that_are_keywords_elsewhere_are_names() -> None:
    assert compiled({"$id": "x", "properties": {"$id": {"const": 1}}, "required": ["$id"]}).matches(b'{"$id":1}')


def test_the_same_language_from_different_schemas_is_one_table() -> None:
    one = compiled({"anyOf": [{"const": "a"}, {"const": "b"}]})
    other = compiled({"type": "string", "enum": ["b", "a"], "description": "x"})
    assert (one.next == other.next).all()
    assert (one.accepts == other.accepts).all()


def test_a_string_is_one_loop_and_its_continuation_bytes() -> None:
    # Start, loop, escape, end, and seven states inside characters of several bytes.
    assert compiled({"type": "string"}).num_states == 11


ERRORS: list[tuple[Any, str]] = [
    ({"not": {}}, "#: keyword 'not' is not supported"),
    ({"properties": {"age": {"if": {}}}}, "#/properties/age: keyword 'if'"),
    ({"items": {"anyOf": [{}, {"contains": {}}]}}, "#/items/anyOf/1: keyword 'contains'"),
    ({"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"a/b": {"wrong": 1}}}}}, "#/$defs/x/properties/a~1b: key"),
    ({"allOf": [{"properties": {"a": {"uniqueItems": True}}}, {}]}, "#/allOf/0/properties/a: keyword 'uniqueItems'"),
    ({"prefixItems": [{}, {"patternProperties": {}}]}, "#/prefixItems/1: keyword 'patternProperties'"),
    ({"additionalProperties": {"propertyNames": {}}}, "#/additionalProperties: keyword 'propertyNames'"),
    ({"oneOf": [{"nullable": True}]}, "#/oneOf/0: keyword 'nullable'"),
    ([], "a schema is an object"),
    ({"properties": {"a": 5}}, "#/properties/a: a schema is an object"),
    ({"items": [{}]}, "items is"),
    ({"type": "text"}, "type is 'text'; it must be one of null, boolean"),
    ({"type": []}, "type is"),
    ({"minLength": -1}, "minLength is -1; it must be a whole number"),
    ({"maxItems": True}, "maxItems is True"),
    ({"minimum": "1"}, "minimum is '1'; it must be a number"),
    ({"minimum": float("nan")}, "minimum is nan"),
    ({"maximum": 10**5000}, "maximum is"),
    ({"required": ["a", "a"]}, "required is"),
    ({"required": "a"}, "required is 'a'"),
    ({"enum": []}, "enum is []"),
    ({"anyOf": []}, "anyOf is []"),
    ({"const": float("inf")}, "constant inf is no JSON value"),
    ({"enum": [{1: 2}]}, "is no JSON value"),
    ({"enum": [b"x"]}, "is no JSON value"),
    ({"const": "\ud800"}, "surrogate"),
    ({"const": "\x01"}, "#: string '\\x01' cannot be written in JSON"),
    ({"properties": {"\x00": {}}}, "cannot be written in JSON"),
    ({"minLength": 3, "maxLength": 2}, "#: minLength 3 is above maxLength 2"),
    ({"minItems": 3, "maxItems": 2}, "minItems 3 is above"),
    ({"properties": {"a": False}, "required": ["a"]}, "#: property 'a' is required, but its schema is false"),
    ({"required": ["a"], "additionalProperties": False}, "property 'a' is required"),
    ({"type": "string", "enum": [1]}, "#: no value of enum or const is of the schema's type"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "#: no number"),
    ({"type": "integer", "minimum": 10**18}, "#: no number"),
    ({"type": "number", "exclusiveMinimum": 1, "maximum": 1}, "#: no number"),
    ({"type": "number", "multipleOf": 0.01}, "#: multipleOf 0.01 is not supported"),
    ({"type": "integer", "multipleOf": 3}, "#: multipleOf 3 is not supported"),
    ({"multipleOf": 0}, "multipleOf is 0; it must be a number above 0"),
    ({"properties": {"p": {"pattern": "(?=a)"}}}, "#/properties/p/pattern: the regex '(?=a)' uses lookaround"),
    ({"type": "string", "format": "iri"}, "#: format is 'iri'; it must be one of date"),
    ({"type": "integer", "format": "int32"}, "#: format is 'int32'"),
    ({"$ref": "#/$defs/x"}, "#: $ref '#/$defs/x' leads nowhere"),
    ({"$ref": "#x"}, "leads nowhere"),
    ({"items": {"$ref": "http://x/y#"}}, "#/items: $ref 'http://x/y#' leaves the document"),
    ({"$ref": "#/type", "type": "string"}, "#/type: a schema is an object"),
    ({"$ref": "#"}, "no value can satisfy the schema"),
    ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no value can satisfy the schema"),
    (False, "no value can satisfy"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "no value can satisfy"),
    ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "#: keyword 'pattern' has two values"),
    ({"allOf": [{"prefixItems": [{}]}, {"items": {}}]}, "prefixItems of one schema and items of another"),
    ({"anyOf": [{"oneOf": [{}]}], "oneOf": [{"type": "null"}]}, "keyword 'oneOf' has two values"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf: branches 0 and 1 may both hold; use anyOf"),
    (
        {"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"properties": {"a": {"const": True}}}]},
        "no value can satisfy",
    ),
    ({"anyOf": [{"const": 1}], "allOf": [{"anyOf": [{"const": True}]}]}, "keyword 'anyOf' has two values"),
    ({"allOf": [{"prefixItems": [{"const": 1}]}, {"prefixItems": [{"const": True}]}]}, "'prefixItems' has two values"),
    ({"$defs": {"a": {"$id": "x", "type": "null"}}, "$ref": "#/$defs/a"}, "#/$defs/a: $id is only supported at the"),
    ({"$defs": {"a": {"$id": "x", "$defs": {"b": {}}}}, "$ref": "#/$defs/a/$defs/b"}, "$id is only supported at the"),
    (
        {"properties": {"a": {"$id": "x", "items": {"$ref": "#/items"}}}, "items": {}},
        "#/properties/a: $id is only supported at the root",
    ),
    ({"oneOf": [{"minLength": 2}, {"type": "integer"}]}, "may both hold"),
    ({"oneOf": [{"enum": [1, 2]}, {"enum": [2.0]}]}, "may both hold"),
    ({"oneOf": [CAT, {**DOG, "required": []}]}, "may both hold"),
    ({"properties": {"a": {}}, "minProperties": 2, "maxProperties": 2}, "#: minProperties 2 is above"),
    ({"properties": {"a": {}, "b": {}}, "maxProperties": 1}, "#: maxProperties 1 is below"),
    ({"type": "object", "minProperties": 2}, "#: minProperties 2 is not supported for free keys"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "message"), ERRORS, ids=[message[:50] for _, message in ERRORS])
def test_what_cannot_be_kept_to_says_what_and_where(schema: Any, message: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        schema_expression(schema)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reference_that_is_never_written_may_lead_nowhere() -> None:
    for unused in ("#/$defs/odd", "#/$defs/none", "https://x/y"):
        schema = {
            "properties": {"a": {"$ref": "#/$defs/null"}}, "additionalProperties": {"$ref": unused},
            "required": ["a"], "$defs": {"null": {"type": "null"}, "odd": {"not": {"type": "null"}}},
        }  # fmt: skip
        assert compiled(schema).matches(b'{"a":null}')
        with pytest.raises(ConstraintError, match=r"not supported|leads nowhere|leaves the document"):
            compiled({**schema, "required": ["a", "b"]})


def test_an_id_without_references_names_a_schema_and_no_more() -> None:
    schema = {"properties": {"a": {"$id": "#/properties/a", "type": "integer"}}, "required": ["a"]}
    assert compiled(schema).matches(b'{"a":7}') and not compiled(schema).matches(b'{"a":"7"}')


def test_demands_that_contradict_each_other_are_found_when_compiled() -> None:
    with pytest.raises(ConstraintError, match="no text at all"):
        compiled({"type": "string", "pattern": "^a+$", "format": "date"})


def test_a_branch_that_recursion_leaves_out_still_tells_oneof_apart() -> None:
    schema = {"type": "object", "properties": {"x": {"oneOf": [{"$ref": "#"}, {"type": "object"}]}}}
    for depth in (1, 2):
        with pytest.raises(ConstraintError, match="branches 0 and 1 may both hold"):
            schema_expression(schema, depth=depth)


def test_depth_is_at_least_one() -> None:
    with pytest.raises(ConstraintError, match="depth is 0"):
        schema_expression({}, depth=0)


def test_reading_leaves_the_schema_as_it_was() -> None:
    schema = random_schema(random.Random(3))
    before = json.dumps(schema)
    schema_expression(schema)
    assert json.dumps(schema) == before
