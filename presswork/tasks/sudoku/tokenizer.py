"""The tokenizer and chat template of the Sudoku model, built from the vocabulary in `encoding`."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from presswork.tasks.sudoku.encoding import BOS_ID, EMPTY_CHARACTERS, SEPARATORS, vocabulary

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
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    _library().save(str(target / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (target / "chat_template.jinja").write_text(_template(), encoding="utf-8")


def _library() -> tokenizers.Tokenizer:
    tokens = vocabulary()
    library = tokenizers.Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    # Without a decoder tokens are joined by spaces.
    library.decoder = decoders.Fuse()
    library.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS_ID)])
    library.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens if token not in _TEXT_TOKENS]
    )
    return library


def _template() -> str:
    """The characters it knows are those of `read_puzzle`."""
    return _TEMPLATE.replace("EMPTY_CHARACTERS", EMPTY_CHARACTERS).replace("SEPARATORS", SEPARATORS)
