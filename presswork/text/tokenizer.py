"""The tokenizer of a model folder: text to ids and back, for every id a canvas can hold."""

import json
import operator
import shutil
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import tokenizers
from tokenizers import AddedToken, models

from presswork.errors import CheckpointError, RequestError, UnsupportedError
from presswork.text.files import read_json_object

DecoderKind = Literal["byte_level", "piecewise", "whole"]

# `save` copies these; the template travels with the tokenizer because neither is of use without the other.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.model",
)  # fmt: skip
_ID_LIMIT = 2**32


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer's files that a model's folder holds, and the chat template."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


class Tokenizer:
    """Text to token ids and back, over a `tokenizer.json`; load one with `from_folder`.

    Ids that the tokenizer does not know (a model's vocabulary may be padded past it, and canvas noise is drawn from all
    of it) stand for the empty text everywhere: decoding never raises on an id.

    `decoder_kind` says how the text of a token depends on its neighbours, which is what incremental decoding needs:
    "byte_level" (tokens are byte strings, decoded as UTF-8 together), "piecewise" (every token has its own text, except
    that byte-fallback tokens form runs and the very first token may lose a space) or "whole" (anything else).
    """

    def __init__(
        self, library: tokenizers.Tokenizer, *, named: Mapping[str, str] | None = None, folder: Path | None = None
    ):
        """Wrap a tokenizer of the `tokenizers` library.

        Args:
            library: Owned from here on; truncation, padding and merge dropout are switched off.
            named: Special tokens by role, such as {"bos_token": "<bos>"}.
            folder: Where the files of `save` are.
        """
        self._library = library
        self._folder = folder
        self.special_tokens: Mapping[str, str] = MappingProxyType(dict(named or {}))
        # Each of these would silently drop or vary part of a prompt.
        library.no_truncation()
        library.no_padding()
        if isinstance(library.model, models.BPE):
            library.model.dropout = None
        _mark_special(library, self.special_tokens.values())
        self.special_ids = frozenset(i for i, token in library.get_added_tokens_decoder().items() if token.special)
        steps = _decoder_steps(library)
        names = [step["type"] for step in steps]
        self.byte_values: Mapping[int, int] = MappingProxyType(_byte_ids(library) if "ByteFallback" in names else {})
        kind = _decoder_kind(steps)
        self._anchor = _anchor(library, self.byte_values.keys() | self.special_ids)
        self.decoder_kind: DecoderKind = "whole" if kind == "piecewise" and self._anchor is None else kind

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """Load a model folder's tokenizer.json, with tokenizer_config.json and special_tokens_map.json where present.

        Raises: CheckpointError naming the file that is missing or broken.
        """
        folder = Path(path)
        file = folder / "tokenizer.json"
        try:
            library = tokenizers.Tokenizer.from_buffer(file.read_bytes())
        except OSError as error:
            reason = error.strerror or str(error)
            raise CheckpointError(
                f"{file}: cannot be read ({reason}); a model folder needs a tokenizer.json, check the path"
            ) from error
        except ValueError as error:
            raise CheckpointError(
                f"{file}: not a tokenizer ({error}); expected the tokenizers library's JSON, fetch the model again"
            ) from error
        if not _covers_every_text(library):
            raise CheckpointError(
                f"{file}: the vocabulary has no unknown token; add one, or text outside it cannot be encoded"
            )
        config = read_json_object(folder / "tokenizer_config.json")
        named = _named_tokens(read_json_object(folder / "special_tokens_map.json")) | _named_tokens(config)
        return cls(library, named=named, folder=folder)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens spelled out in it become their ids.

        Args:
            add_special_tokens: Also add what the tokenizer puts around a text, such as a leading `<bos>`. Turn it off
                for the output of a chat template, which writes its own.

        Raises: RequestError when text is not a string or holds lone surrogates.
        """
        _check_text(text)
        return self._library.encode(text, add_special_tokens=add_special_tokens).ids

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        copy = tokenizers.Tokenizer.from_str(self._library.to_str())
        copy.encode_special_tokens = True
        return copy

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text as it stands: nothing is added, and a special token spelled out in it is mere text.

        Raises: RequestError as `encode`.
        """
        _check_text(text)
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids as one whole; any integer is accepted, unknown ids give no text."""
        valid = [i for i in map(operator.index, ids) if 0 <= i < _ID_LIMIT]
        return self._library.decode(valid, skip_special_tokens=skip_special_tokens)

    def decode_continuation(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text that ids add when they follow other text: a leading space is kept where `decode` may drop it."""
        if self.decoder_kind == "byte_level" or self._anchor is None:
            return self.decode(ids, skip_special_tokens)
        anchor, anchor_text = self._anchor
        return self.decode([anchor, *ids], skip_special_tokens)[len(anchor_text) :]

    def visible(self, ids: Iterable[int], skip_special_tokens: bool = True) -> list[int]:
        """The ids that take part in decoding: known ones, without special ones if those are skipped."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        return [i for i in map(operator.index, ids) if self._knows(i) and i not in skipped]

    def token_text(self, token_id: int) -> str:
        """One token shown by itself: special tokens by name, bytes of part of a character as U+FFFD, unknown ''."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes a token adds in the middle of a text (b'' when unknown, a special token's own name)."""
        if token_id in self.byte_values:
            return bytes([self.byte_values[token_id]])
        if self.decoder_kind != "byte_level":
            return self.decode_continuation([token_id], skip_special_tokens=False).encode()
        token = (self._library.id_to_token(token_id) or "") if self._knows(token_id) else ""
        try:
            return bytes([_BYTE_OF_CHARACTER[character] for character in token])
        except KeyError:  # An added token, stored as plain text.
            return token.encode()

    @cached_property
    def all_token_bytes(self) -> Sequence[bytes]:
        """`token_bytes` of every id below vocab_size, with b'' for special tokens."""
        return [b"" if i in self.special_ids else self.token_bytes(i) for i in range(self.vocab_size)]

    @cached_property
    def ids_without_text(self) -> Sequence[int]:
        """Ids below vocab_size whose `all_token_bytes` are empty."""
        return [i for i, text in enumerate(self.all_token_bytes) if not text]

    def ids_that_begin_with(self, text: bytes) -> list[int]:
        """Ids whose `all_token_bytes` begin with a text, ascending."""
        return _beginning(self._by_bytes, text, self._bytes_of)

    def ids_that_end_with(self, text: bytes) -> list[int]:
        """Ids whose `all_token_bytes` end with a text, ascending."""
        return _beginning(self._by_bytes_backwards, text[::-1], self._backwards_of)

    # A walk over a vocabulary of 262,144 takes 30 ms, a search in these microseconds; they take half a second once.
    @cached_property
    def _by_bytes(self) -> list[int]:
        return sorted(range(self.vocab_size), key=self._bytes_of)

    @cached_property
    def _by_bytes_backwards(self) -> list[int]:
        return sorted(range(self.vocab_size), key=self._backwards_of)

    def _bytes_of(self, token_id: int) -> bytes:
        return self.all_token_bytes[token_id]

    def _backwards_of(self, token_id: int) -> bytes:
        return self.all_token_bytes[token_id][::-1]

    @property
    def added_tokens(self) -> dict[str, int]:
        """Ids of the tokens that stand beside the vocabulary, by name."""
        return {token.content: i for i, token in self._library.get_added_tokens_decoder().items()}

    def id_of(self, token: str) -> int | None:
        """The id of a token written as in the vocabulary (`<|turn>`, `▁the`), or None."""
        return self._library.token_to_id(token)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included; the model's own vocabulary may be larger."""
        return max(self._library.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def save(self, folder: str | Path) -> None:
        """Copy the tokenizer's files, and the chat template beside them, into a folder (made if needed).

        Raises: CheckpointError when this tokenizer came from no folder, or a file cannot be copied.
        """
        if self._folder is None:
            raise CheckpointError("tokenizer: it was not loaded from a folder, so there are no files to copy")
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
            if target.samefile(self._folder):
                return
            for name in TOKENIZER_FILES:
                if name == "tokenizer.json" or (self._folder / name).exists():
                    shutil.copyfile(self._folder / name, target / name)
        except OSError as error:
            raise CheckpointError(
                f"{error.filename or target}: tokenizer files cannot be copied from {self._folder} "
                f"({error.strerror or error}); check both folders"
            ) from error

    def _knows(self, token_id: int) -> bool:
        return 0 <= token_id < _ID_LIMIT and self._library.id_to_token(token_id) is not None


def with_token_texts(tokenizer: Tokenizer | None, who: str, model: str) -> Tokenizer:
    """The tokenizer, if each of its tokens has a text of its own.

    Args: who: what needs that, with its verb, such as "fill needs". model: its name, for the message.
    Raises: UnsupportedError.
    """
    if tokenizer is None or tokenizer.decoder_kind == "whole":
        raise UnsupportedError(f"{who} a tokenizer whose tokens have a text each; model {model!r} has none")
    return tokenizer


def _check_text(text: object) -> None:
    """Raises RequestError where it is none."""
    if not isinstance(text, str):
        raise RequestError(f"text to encode: got {type(text).__name__}, expected a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"text to encode: lone surrogate at character {error.start}, which is not text; remove it"
        ) from error


def _beginning(in_order: Sequence[int], text: bytes, key: Callable[[int], bytes]) -> list[int]:
    """The ids whose keys, which they are ordered by, begin with a text; ascending."""
    first = bisect_left(in_order, text, key=key)
    last = bisect_right(in_order, text, lo=first, key=lambda i: key(i)[: len(text)])
    return sorted(in_order[first:last])


def _mark_special(library: tokenizers.Tokenizer, tokens: Iterable[str]) -> None:
    """Tokens that a config file names are special even if tokenizer.json forgets to say so; new ids are never made."""
    added = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
    missing = [t for t in tokens if t not in added and library.token_to_id(t) is not None]
    if missing:
        library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by role: `*_token` entries, `extra_special_tokens` too; text or {"content": text}."""
    extra = config.get("extra_special_tokens")
    entries = {**(extra if isinstance(extra, dict) else {}), **config}
    named = {}
    for key, value in entries.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str) and content:
            named[key] = content
    return named


def _covers_every_text(library: tokenizers.Tokenizer) -> bool:
    """Whether encoding has an answer for a piece outside the vocabulary (BPE drops it; the others need a token)."""
    model = library.model
    if isinstance(model, (models.WordLevel, models.WordPiece)):
        return library.token_to_id(model.unk_token) is not None
    if isinstance(model, models.Unigram):
        return json.loads(model.__getstate__())["unk_id"] is not None
    return True


def _decoder_steps(library: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    """The decoder's steps in order, nested sequences flattened."""

    def flatten(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if step["type"] == "Sequence":
            for part in step["decoders"]:
                yield from flatten(part)
        else:
            yield step

    return list(flatten(json.loads(library.decoder.__getstate__()))) if library.decoder is not None else []


def _anchor(library: tokenizers.Tokenizer, excluded: AbstractSet[int]) -> tuple[int, str] | None:
    """A token with visible text of its own, and that text: what continuations are decoded after."""
    candidates = (i for i in range(library.get_vocab_size()) if i not in excluded)
    texts = ((i, library.decode([i])) for i in candidates)
    return next(((i, text) for i, text in texts if text.strip()), None)


def _decoder_kind(steps: Sequence[dict[str, Any]]) -> DecoderKind:
    names = [step["type"] for step in steps]
    if "ByteLevel" in names:
        return "byte_level" if set(names) <= {"ByteLevel", "Fuse"} else "whole"
    # Once tokens are fused, only a strip at the start leaves the later text alone.
    fused = names.index("Fuse") if "Fuse" in names else len(names)
    before, after = steps[:fused], steps[fused + 1 :]
    local = {"Replace", "ByteFallback", "Metaspace", "WordPiece", "Strip"}
    is_local = all(step["type"] in local for step in before)
    is_leading = all(step["type"] == "Strip" and step["stop"] == 0 for step in after)
    return "piecewise" if is_local and is_leading else "whole"


def _byte_ids(library: tokenizers.Tokenizer) -> dict[int, int]:
    """Byte-fallback tokens `<0x00>` to `<0xFF>`: the byte of each id."""
    spelled = ((value, name) for value in range(256) for name in (f"<0x{value:02X}>", f"<0x{value:02x}>"))
    found = ((library.token_to_id(name), value) for value, name in spelled)
    return {token_id: value for token_id, value in found if token_id is not None}


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as a visible character: printable Latin-1 as itself, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in set(printable)]
    return {chr(value): value for value in printable} | {chr(0x100 + n): value for n, value in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()
