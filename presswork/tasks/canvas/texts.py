"""Tasks cut out of plain texts."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from presswork.engine.engine import Engine
from presswork.errors import DataError, RequestError
from presswork.text.tokenizer import Tokenizer, with_token_texts
from presswork.training.text_files import read_records

_ROOM = 384  # tokens of a text that are shown
_TRIES = 200  # places tried for each task before the texts count as unfit


@dataclass(frozen=True, slots=True)
class CutText:
    """A text with a stretch marked in it: before + middle + after."""

    before: str
    middle: str
    after: str


def read_lines(files: Sequence[Path]) -> list[Any]:
    """Records of .jsonl files and texts of all others, in their order. Raises DataError for what cannot be read."""
    faults: list[str] = []
    records = [record for _, record in read_records(files, faults)]
    if faults:
        raise DataError(faults[0])
    return records


def read_texts(files: Sequence[Path]) -> list[str]:
    """The texts of files: every line's "text" in a .jsonl file, all of any other. Raises DataError."""
    texts = []
    for record in read_lines(files):
        text = record.get("text") if isinstance(record, dict) else record
        if not isinstance(text, str):
            raise DataError(f'expected lines such as {{"text": "..."}}, got {str(record)[:80]!r}')
        texts.append(text)
    if not any(texts):
        raise DataError(f"there is no text in {', '.join(map(str, files)) or 'no files'}")
    return texts


def cut_tasks(engine: Engine, files: Sequence[Path], num: int, seed: int, *, max_tokens: int) -> list[CutText]:
    """Stretches of files' texts that leave room for two canvases in a model's context. Raises DataError."""
    tokenizer = with_token_texts(engine.tokenizer, "texts need", engine.name)
    room = engine.max_context - 2 * engine.model.config.canvas_length
    if room < max_tokens + 2:
        raise RequestError(f"stretches of {max_tokens} tokens do not fit the context of {engine.max_context}")
    return list(cut_texts(tokenizer, read_texts(files), num, seed, max_tokens=max_tokens, room=min(room, _ROOM)))


def cut_texts(
    tokenizer: Tokenizer, texts: Sequence[str], num: int, seed: int, *, max_tokens: int, room: int
) -> Iterator[CutText]:
    """Stretches drawn by the seed: of which text, how many tokens up to a most, and where.

    Args: room: tokens of a text around and with the stretch; of a longer text only so many are taken.
    Raises: DataError where the texts have no such stretch.
    """
    known, encoded = tokenizer.all_token_bytes, {}
    for number in range(num):
        draw = random.Random(f"{seed} cut {number}")
        for _ in range(_TRIES):
            chosen = draw.randrange(len(texts))
            if chosen not in encoded:
                encoded[chosen] = tokenizer.encode_plain(texts[chosen])
            ids = encoded[chosen]
            count = draw.randint(1, max_tokens)
            if len(ids) < count + 2:
                continue
            first = draw.randrange(1, len(ids) - count)
            start = max(0, min(first - room // 2, len(ids) - room))
            parts = (ids[start:first], ids[first : first + count], ids[first + count : start + room])
            try:
                before, middle, after = (b"".join(known[i] for i in part).decode() for part in parts)
            except UnicodeDecodeError:
                continue
            if before and middle.strip() and after:
                yield CutText(before, middle, after)
                break
        else:
            raise DataError(f"the texts are too short to take {max_tokens} tokens out of them; give longer ones")
