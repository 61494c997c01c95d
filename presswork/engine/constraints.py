"""Languages that replies of one engine are kept to: prepared once, then shared by requests.

C classes, V vocabulary.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from presswork.diffusion.constraints.automaton import CanvasAutomaton, close, leave_open
from presswork.errors import ConstraintError, RequestError
from presswork.grammar import disk
from presswork.grammar.languages import Language
from presswork.grammar.token_automaton import TokenAutomaton, without_tokens
from presswork.grammar.vocabulary import Vocabulary
from presswork.ops.vocab_head import TokenClasses
from presswork.text.tokenizer import Tokenizer, with_token_texts

MAX_PREPARED = 32  # languages kept in memory; each has a few numbers for every token


_Key = tuple[str, frozenset[int], int | None, bytes]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Constraint:
    """A language over canvases, its classes of tokens as the vocabulary head takes them, and which have one token."""

    automaton: CanvasAutomaton
    classes: TokenClasses
    is_single: Bool[Tensor, "C"]


@dataclass(slots=True, kw_only=True, eq=False)
class ConstraintState:
    """How far into its language a request is."""

    constraint: Constraint
    state: int = 0
    _finals: tuple[tuple[int, int], np.ndarray] | None = None

    def take(self, token_ids: Sequence[int], end_ids: AbstractSet[int]) -> None:
        """Go on by committed tokens, up to an end. Mutates state."""
        automaton = self.constraint.automaton
        for token in token_ids:
            if token in end_ids:
                self.state = automaton.tail
                return
            self.state = automaton.text.after(self.state, token)
            assert self.state >= 0, "a committed canvas is in its language"

    def finals(self, canvas_index: int, tokens_left: int, pins: Mapping[int, int]) -> np.ndarray:
        """Where a canvas may end, remembered from step to step. Mutates what is remembered."""
        if self._finals is None or self._finals[0] != (canvas_index, tokens_left):
            self._finals = ((canvas_index, tokens_left), self.constraint.automaton.finals(tokens_left, pins))
        return self._finals[1]

    @property
    def most(self) -> int | None:
        """Tokens of the longest rest of the text, None where there is no longest."""
        most = int(self.constraint.automaton.text.most[self.state])
        return None if most < 0 else most


class ConstraintTable:
    """Prepares languages for one tokenizer; safe to use from several threads, which only wait for the same language."""

    def __init__(
        self, tokenizer: Tokenizer | None, vocab_size: int, name: str, folder: Path | None,
        end_ids: AbstractSet[int] = frozenset(),
    ):  # fmt: skip
        """Args:
        folder: where prepared languages are kept between processes; None keeps none.
        end_ids: the checkpoint's end tokens, which are no text even where they have some.
        """
        self._tokenizer, self._vocab_size, self._name, self._folder = tokenizer, vocab_size, name, folder
        self._end_ids = end_ids
        self._vocabulary: Vocabulary | None = None
        self._found: OrderedDict[_Key, Constraint] = OrderedDict()
        self._busy: dict[_Key, threading.Lock] = {}
        self._lock = threading.Lock()

    def find(
        self, language: Language, end_ids: frozenset[int], pad_id: int | None, never: np.ndarray | None = None
    ) -> Constraint:
        """A language prepared for canvases that these tokens end.

        Args: never: int64, tokens that may not be written.
        Raises:
            ConstraintError: a language that is malformed, too large, or beyond this tokenizer or what is left of it.
            UnsupportedError: no tokenizer, or one whose tokens have no bytes of their own.
        """
        whole = self._find((language.key, end_ids, pad_id, b""), lambda: self._prepared(language, end_ids, pad_id))
        if never is None or not len(never):
            return whole
        if not language.is_open and np.isin(list(end_ids), never).all():
            raise ConstraintError("every token that ends a text is ruled out, and a constraint needs one; allow one")

        def what_is_left() -> Constraint:
            text = without_tokens(whole.automaton.text, never)
            return whole if text is whole.automaton.text else self._for_canvases(text, language, end_ids, pad_id)

        digest = hashlib.blake2b(never.tobytes(), digest_size=16).digest()
        return self._find((language.key, end_ids, pad_id, digest), what_is_left)

    def _find(self, key: _Key, prepare: Callable[[], Constraint]) -> Constraint:
        with self._lock:
            found = self._known(key)
            if found is not None:
                return found
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:
            with self._lock:
                found = self._known(key)
            if found is None:
                try:
                    found = prepare()
                except BaseException:
                    with self._lock:
                        self._busy.pop(key, None)
                    raise
            with self._lock:
                self._found[key] = found
                self._busy.pop(key, None)
                while len(self._found) > MAX_PREPARED:
                    self._found.popitem(last=False)
            return found

    def is_prepared(self, language: Language, end_ids: frozenset[int], pad_id: int | None) -> bool:
        """Whether `find` has no work left to do for a language."""
        # Without the lock, which is held for long while the vocabulary is read.
        return (language.key, end_ids, pad_id, b"") in self._found

    def _known(self, key: "_Key") -> Constraint | None:
        found = self._found.get(key)
        if found is not None:
            self._found.move_to_end(key)
        return found

    def _prepared(self, language: Language, end_ids: frozenset[int], pad_id: int | None) -> Constraint:
        return self._for_canvases(self._text(language), language, end_ids, pad_id)

    def _for_canvases(
        self, text: TokenAutomaton, language: Language, end_ids: frozenset[int], pad_id: int | None
    ) -> Constraint:
        if language.is_open:
            automaton = leave_open(text, self._vocab_size)
        else:
            automaton = close(text, self._vocab_size, end_ids, () if pad_id is None else (pad_id,))
        classes = TokenClasses(class_of=torch.from_numpy(automaton.class_of), num_classes=automaton.num_classes)
        sizes = torch.bincount(classes.class_of[classes.class_of >= 0], minlength=automaton.num_classes)
        return Constraint(automaton=automaton, classes=classes, is_single=sizes == 1)

    def _text(self, language: Language) -> TokenAutomaton:
        vocabulary = self._spelling()
        if self._folder is None or not language.is_kept:
            return language.lifted(vocabulary)
        file = self._folder / disk.name_of(language.key, vocabulary.fingerprint)
        found = disk.read(file)
        if found is None:
            found = language.lifted(vocabulary)
            disk.write(file, found)
        return found

    def _spelling(self) -> Vocabulary:
        with self._lock:
            if self._vocabulary is None:
                tokenizer = with_token_texts(self._tokenizer, "a constraint needs", self._name)
                known = list(tokenizer.all_token_bytes[: self._vocab_size])
                for token in self._end_ids:
                    if token < len(known):
                        known[token] = b""
                marks = {name: i for name, i in tokenizer.added_tokens.items() if i < len(known)}
                self._vocabulary = Vocabulary(known, marks)
            return self._vocabulary


def check_room(state: ConstraintState, max_tokens: int, pins: Mapping[int, int]) -> None:
    """Raises RequestError where no text of the language fits max_tokens, or none has the pinned tokens in place."""
    fewest = int(state.constraint.automaton.fewest[state.state])
    if fewest > max_tokens:
        raise RequestError(
            f"max_tokens is {max_tokens}, but the constraint's shortest text and its end take {fewest} tokens; raise it"
        )
    alive = state.constraint.automaton.alive_before(pins, max_tokens)
    if not alive[state.state]:
        if not pins:
            raise RequestError(f"no text of the constraint has exactly {max_tokens} tokens; change max_tokens")
        raise RequestError("no text of the constraint has the pinned tokens in their places; change one of them")
