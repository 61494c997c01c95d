"""What a reply can be kept to, as people name it. Each is a plain value: equal keys are one language, prepared once."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from presswork.errors import ConstraintError
from presswork.grammar.byte_automaton import ByteAutomaton, compile_expression
from presswork.grammar.expression import Expression, choices, intersection, sequence, union, without
from presswork.grammar.json_schema import DEFAULT_DEPTH, schema_expression
from presswork.grammar.regex import ANY_TEXT, parse_regex
from presswork.grammar.token_automaton import TokenAutomaton, lift
from presswork.grammar.tool_calls import tool_calls_expression
from presswork.grammar.vocabulary import Vocabulary


class Language(ABC):
    """A set of replies."""

    __slots__ = ()

    @property
    @abstractmethod
    def key(self) -> str:
        """The language's name, the same for the same language in every process."""

    @abstractmethod
    def lifted(self, vocabulary: Vocabulary) -> TokenAutomaton:
        """The language over a tokenizer's tokens. Raises: ConstraintError."""

    @property
    def is_open(self) -> bool:
        """Whether a reply of the language stops without an end token, where max_tokens cuts it."""
        return False

    @property
    def is_kept(self) -> bool:
        """Whether it is worth a file: others may ask for it again."""
        return True


class TextLanguage(Language):
    """A set of texts, whatever tokens spell them."""

    __slots__ = ()

    @abstractmethod
    def expression(self) -> Expression:
        """The language as a tree. Raises: ConstraintError."""

    def automaton(self) -> ByteAutomaton:
        """The language over bytes. Raises: ConstraintError."""
        return compile_expression(self.expression())

    def lifted(self, vocabulary: Vocabulary) -> TokenAutomaton:
        return lift(self.automaton(), vocabulary)


@dataclass(frozen=True, slots=True)
class Regex(TextLanguage):
    """Texts that match a regular expression as a whole, in Python's syntax.

    `\\d`, `\\w` and `\\s` stand for ASCII. Refused: lookaround, backreferences, word borders, atomic groups.
    """

    pattern: str

    @property
    def key(self) -> str:
        return f"regex {self.pattern}"

    def expression(self) -> Expression:
        return parse_regex(self.pattern)


@dataclass(frozen=True, slots=True)
class Choices(TextLanguage):
    """One of the given texts."""

    options: Sequence[str]

    def __post_init__(self) -> None:
        options = (self.options,) if isinstance(self.options, str) else tuple(self.options)
        if not options or not all(isinstance(option, str) for option in options):
            raise ConstraintError(f"choices must be one or more texts, got {self.options!r}")
        object.__setattr__(self, "options", options)

    @property
    def key(self) -> str:
        return f"choices {json.dumps(self.options)}"

    def expression(self) -> Expression:
        return choices(self.options)


@dataclass(frozen=True, slots=True)
class JsonSchema(TextLanguage):
    """JSON texts of values that a schema, draft 2020-12, allows.

    Args:
        schema: as parsed JSON. Properties are written in the order in which it declares them.
        depth: how many times a definition may stand inside itself, itself counted.
    """

    schema: dict[str, Any] | bool
    depth: int = DEFAULT_DEPTH

    @property
    def key(self) -> str:
        return f"schema {self.depth} {_plain_json('a JSON schema', self.schema)}"

    def expression(self) -> Expression:
        return schema_expression(self.schema, depth=self.depth)


@dataclass(frozen=True, slots=True)
class ToolCalls(TextLanguage):
    """Calls of declared tools, in the syntax of Gemma 4's chat template, and nothing else.

    Args:
        tools: declarations as in OpenAI's protocol.
        names: tools that may be called; None allows all.
        min_calls, max_calls: how many; None for max_calls is any number.
    """

    tools: Sequence[Mapping[str, Any]]
    names: Sequence[str] | None = None
    min_calls: int = 1
    max_calls: int | None = 1

    @property
    def key(self) -> str:
        asked = [self.tools, self.names, self.min_calls, self.max_calls]
        return f"tools {_plain_json('tool declarations', asked)}"

    def expression(self) -> Expression:
        return tool_calls_expression(self.tools, names=self.names, min_calls=self.min_calls, max_calls=self.max_calls)


@dataclass(frozen=True, slots=True)
class Either(TextLanguage):
    """Texts of any of several languages."""

    languages: Sequence[TextLanguage]

    def __post_init__(self) -> None:
        object.__setattr__(self, "languages", _several(self.languages))

    @property
    def key(self) -> str:
        return f"either {json.dumps([one.key for one in self.languages])}"

    def expression(self) -> Expression:
        return union(*(one.expression() for one in self.languages))


@dataclass(frozen=True, slots=True)
class Both(TextLanguage):
    """Texts that are in each of several languages."""

    languages: Sequence[TextLanguage]

    def __post_init__(self) -> None:
        object.__setattr__(self, "languages", _several(self.languages))

    @property
    def key(self) -> str:
        return f"both {json.dumps([one.key for one in self.languages])}"

    def expression(self) -> Expression:
        return reduce(intersection, (one.expression() for one in self.languages))


@dataclass(frozen=True, slots=True)
class Without(TextLanguage):
    """Texts of a language that hold none of some phrases; of any text where no language is given."""

    phrases: Sequence[str]
    language: TextLanguage | None = None

    def __post_init__(self) -> None:
        phrases = (self.phrases,) if isinstance(self.phrases, str) else tuple(self.phrases)
        if not phrases or not all(isinstance(phrase, str) and phrase for phrase in phrases):
            raise ConstraintError(f"phrases must be one or more non-empty texts, got {self.phrases!r}")
        object.__setattr__(self, "phrases", phrases)

    @property
    def key(self) -> str:
        return f"without {json.dumps(self.phrases)} {'' if self.language is None else self.language.key}"

    def expression(self) -> Expression:
        inner = ANY_TEXT if self.language is None else self.language.expression()
        return without(inner, sequence(ANY_TEXT, choices(self.phrases), ANY_TEXT))


def _several(given: object) -> tuple[TextLanguage, ...]:
    """Languages, one at least. Raises ConstraintError."""
    languages = tuple(given) if isinstance(given, Sequence) else ()
    if not languages or not all(isinstance(one, TextLanguage) for one in languages):
        raise ConstraintError(f"languages must be one or more of Regex, Choices and the like, got {given!r}")
    return languages


def _plain_json(what: str, value: object) -> str:
    """A value as JSON. Raises ConstraintError where it is none."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConstraintError(f"{what} must be plain JSON, got what is not: {error}") from error
