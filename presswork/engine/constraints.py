"""Languages that replies of one engine are kept to: prepared once, then shared by requests.

C classes, V vocabulary.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from presswork.diffusion.constraints.automaton import CanvasAutomaton, close, leave_open
from presswork.diffusion.constraints.conditioned import feasible
from presswork.errors import RequestError, UnsupportedError
from presswork.grammar import disk
from presswork.grammar.languages import Language
from presswork.grammar.token_automaton import TokenAutomaton
from presswork.grammar.vocabulary import Vocabulary
from presswork.ops.vocab_head import TokenClasses
from presswork.text.tokenizer import Tokenizer

MAX_PREPARED = 32  # languages kept in memory; one has some 8 MB at a vocabulary of 262,144


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

    def take(self, token_ids: Sequence[int], end_ids: AbstractSet[int]) -> None:
        """Go on by committed tokens, up to an end. Mutates state."""
        automaton = self.constraint.automaton
        for token in token_ids:
            if token in end_ids:
                self.state = automaton.tail
                return
            self.state = automaton.text.after(self.state, token)
            assert self.state >= 0, "a committed canvas is in its language"

    @property
    def most(self) -> int | None:
        """Tokens of the longest rest of the text, None where there is no longest."""
        most = int(self.constraint.automaton.text.most[self.state])
        return None if most < 0 else most


class ConstraintTable:
    """Prepares languages for one tokenizer; safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, name: str, folder: Path | None):
        """Args: folder: where prepared languages are kept between processes; None keeps none."""
        self._tokenizer, self._vocab_size, self._name, self._folder = tokenizer, vocab_size, name, folder
        self._vocabulary: Vocabulary | None = None
        self._texts: OrderedDict[str, TokenAutomaton] = OrderedDict()
        self._canvases: OrderedDict[tuple[str, frozenset[int], int | None], Constraint] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, language: Language, end_ids: frozenset[int], pad_id: int | None) -> Constraint:
        """A language prepared for canvases that these tokens end.

        Raises:
            ConstraintError: a language that is malformed, too large, or beyond this tokenizer.
            UnsupportedError: no tokenizer, or one whose tokens have no bytes of their own.
        """
        key = (language.key, end_ids, pad_id)
        with self._lock:
            if key not in self._canvases:
                text, tails = self._text(language), () if pad_id is None else (pad_id,)
                if language.is_open:
                    automaton = leave_open(text, self._vocab_size)
                else:
                    automaton = close(text, self._vocab_size, end_ids, tails)
                classes = TokenClasses(class_of=torch.from_numpy(automaton.class_of), num_classes=automaton.num_classes)
                sizes = torch.bincount(classes.class_of[classes.class_of >= 0], minlength=automaton.num_classes)
                self._canvases[key] = Constraint(automaton=automaton, classes=classes, is_single=sizes == 1)
            self._canvases.move_to_end(key)
            while len(self._canvases) > MAX_PREPARED:
                self._canvases.popitem(last=False)
            return self._canvases[key]

    def _text(self, language: Language) -> TokenAutomaton:
        if language.key not in self._texts:
            self._texts[language.key] = self._prepared(language)
        self._texts.move_to_end(language.key)
        while len(self._texts) > MAX_PREPARED:
            self._texts.popitem(last=False)
        return self._texts[language.key]

    def _prepared(self, language: Language) -> TokenAutomaton:
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
        if self._vocabulary is None:
            tokenizer = self._tokenizer
            if tokenizer is None or tokenizer.decoder_kind == "whole":
                raise UnsupportedError(
                    f"a constraint needs a tokenizer whose tokens have a text each; model {self._name!r} has none"
                )
            known = tokenizer.all_token_bytes[: self._vocab_size]
            self._vocabulary = Vocabulary(known, tokenizer.id_of)
        return self._vocabulary


def check_room(state: ConstraintState, max_tokens: int, pins: Mapping[int, int]) -> None:
    """Raises RequestError where no text of the language fits max_tokens, or none has the pinned tokens in place."""
    fewest = int(state.constraint.automaton.fewest[state.state])
    if fewest > max_tokens:
        raise RequestError(
            f"max_tokens is {max_tokens}, but the constraint's shortest text and its end take {fewest} tokens; raise it"
        )
    behind = max_tokens - max(pins, default=-1) - 1
    if pins and not feasible(state.constraint.automaton, state.state, pins, behind):
        raise RequestError("no text of the constraint has the pinned tokens in their places; change one of them")
