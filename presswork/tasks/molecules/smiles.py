"""SMILES as tokens, one a character, and the tokenizer of the molecules model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from presswork.errors import DataError
from presswork.tasks.text_files import character_tokenizer, write_text_files

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
CHARACTERS = "#()-123456=BCFHNOS[]clnors"
"""All that occur in the MOSES sets."""
VOCAB_SIZE = len(SPECIAL) + len(CHARACTERS)
EOS_ID, BOS_ID = 1, 2

# A prompt is how a molecule begins; an empty one asks for any molecule.
_TEMPLATE = """\
{{- '<bos>' -}}
{%- for message in messages if message['role'] == 'user' -%}
    {%- set content = message['content'] -%}
    {{- content if content is string else content | map(attribute='text') | join('') -}}
{%- endfor -%}
"""


def encode_molecules(molecules: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(tokens, offsets): each molecule is begin, its characters, end.

    Raises:
        DataError: a character that no MOSES molecule has.
    """
    table = np.full(256, -1, np.int32)
    for i, character in enumerate(CHARACTERS):
        table[ord(character)] = len(SPECIAL) + i
    lengths = np.array([len(molecule) + 2 for molecule in molecules], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.empty(offsets[-1], np.int32)
    is_text = np.ones(offsets[-1], bool)
    is_text[offsets[:-1]] = is_text[offsets[1:] - 1] = False
    characters = np.frombuffer("".join(molecules).encode("latin-1", "replace"), np.uint8)
    tokens[is_text] = table[characters]
    tokens[offsets[:-1]], tokens[offsets[1:] - 1] = BOS_ID, EOS_ID
    if (tokens < 0).any():
        bad = int(np.searchsorted(offsets, np.flatnonzero(tokens < 0)[0], side="right")) - 1
        raise DataError(f"molecule {bad + 1}, {molecules[bad]!r}, has a character outside {CHARACTERS}")
    return tokens, offsets


def build_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into a folder, made if needed."""
    write_text_files(character_tokenizer((*SPECIAL, *CHARACTERS), SPECIAL), _TEMPLATE, folder)
