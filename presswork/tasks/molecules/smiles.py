"""SMILES as tokens, one a character, and the tokenizer of the molecules model."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from presswork.errors import DataError

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
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS))}
    library = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    library.decoder = decoders.Fuse()
    library.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS_ID)])
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    library.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
