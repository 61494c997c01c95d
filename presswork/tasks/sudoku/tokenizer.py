"""The tokenizer and chat template of the Sudoku model, built from the vocabulary in `encoding`."""

from pathlib import Path

from presswork.tasks.sudoku.encoding import EMPTY_CHARACTERS, SEPARATORS, vocabulary
from presswork.tasks.text_files import character_tokenizer, write_text_files

_TEXT_TOKENS = frozenset("\n123456789")

_TEMPLATE = """\
{#- The last user message is a puzzle: 81 digits by rows, 0 . _ or * for empty cells. -#}
{%- set found = namespace(text=none, cells=0) -%}
{%- for message in messages if message['role'] == 'user' -%}
    {%- if message['content'] is string -%}
        {%- set found.text = message['content'] -%}
    {%- else -%}
        {%- set found.text = message['content'] | map(attribute='text') | join('\\n') -%}
    {%- endif -%}
{%- endfor -%}
{%- if found.text is none -%}
    {{- raise_exception('no user message; send the puzzle as one') -}}
{%- endif -%}
{{- '<bos>' -}}
{%- for character in found.text -%}
    {%- set digit = '0' if character in 'EMPTY_CHARACTERS' else character -%}
    {%- if digit in '0123456789' -%}
        {%- if found.cells < 81 -%}
            {{- '<r' ~ (found.cells // 9 + 1) ~ 'c' ~ (found.cells % 9 + 1) ~ 'd' ~ digit ~ '>' -}}
            {{- '\\n' if found.cells % 9 == 8 else '' -}}
        {%- endif -%}
        {%- set found.cells = found.cells + 1 -%}
    {%- elif not character.isspace() and character not in 'SEPARATORS' -%}
        {{- raise_exception('unexpected character ' ~ character ~ ' in the puzzle; '
            ~ 'write digits, and 0 . _ or * for empty cells') -}}
    {%- endif -%}
{%- endfor -%}
{%- if found.cells != 81 -%}
    {{- raise_exception('the puzzle has ' ~ found.cells ~ ' cells, expected 81; '
        ~ 'write digits, and 0 . _ or * for empty cells') -}}
{%- endif -%}
{{- '<|solve|>' -}}
"""


def build_tokenizer(folder: str | Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into a folder, made if needed.

    The template renders a typed puzzle to text that encodes to what `encode_prompts` gives; a canvas decodes to lines.
    """
    tokens = vocabulary()
    library = character_tokenizer(tokens, [token for token in tokens if token not in _TEXT_TOKENS])
    write_text_files(library, _template(), Path(folder))


def _template() -> str:
    """The characters it knows are those of `read_puzzle`."""
    return _TEMPLATE.replace("EMPTY_CHARACTERS", EMPTY_CHARACTERS).replace("SEPARATORS", SEPARATORS)
