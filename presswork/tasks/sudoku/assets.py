"""Tokenizer and chat template of the Sudoku model, so that a puzzle's plain text is a prompt like any other."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models

from presswork.tasks.sudoku.encoding import FIRST_CELL, SOLVE, VOCAB_SIZE

# Walks the characters of the last user message; every cell becomes the token of its place and clue.
_TEMPLATE = """\
{%- set cells = namespace(count=0, text='') -%}
{%- for character in messages[-1]['content'] -%}
    {%- if character in '0123456789._*' -%}
        {%- set digit = character if character in '123456789' else '0' -%}
        {%- set row = cells.count // 9 + 1 -%}
        {%- set column = cells.count % 9 + 1 -%}
        {%- set cells.text = cells.text ~ '<r' ~ row ~ 'c' ~ column ~ 'd' ~ digit ~ '>' -%}
        {%- set cells.count = cells.count + 1 -%}
        {%- if cells.count % 9 == 0 -%}
            {%- set cells.text = cells.text ~ '\\n' -%}
        {%- endif -%}
    {%- elif character not in ' \\t\\r\\n|-+,' -%}
        {{- raise_exception("a puzzle holds digits and 0 . _ * for empty cells, got '" ~ character ~ "'") -}}
    {%- endif -%}
{%- endfor -%}
{%- if cells.count != 81 -%}
    {{- raise_exception('a puzzle has 81 cells, got ' ~ cells.count ~ '; write empty ones as 0 or a dot') -}}
{%- endif -%}
{{- '<bos>' ~ cells.text ~ '<solve>' -}}
"""


def token_names() -> list[str]:
    """The name of every id, in order."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "\n", *"123456789"]
    names += [f"<r{cell // 9 + 1}c{cell % 9 + 1}d{digit}>" for cell in range(81) for digit in range(10)]
    assert len(names) == SOLVE and names[FIRST_CELL] == "<r1c1d0>"
    names.append("<solve>")
    return names + [f"<unused{i}>" for i in range(VOCAB_SIZE - len(names))]


def write_text_assets(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    names = token_names()
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    # Text tokens are found in running text as added tokens; markers are special, so decoding leaves them out.
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names[4:14]])
    special = [name for i, name in enumerate(names) if not 4 <= i < 14]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    tokenizer.decoder = decoders.Fuse()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
