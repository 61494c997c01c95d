"""The rendered prompt against transformers, which runs the same template in its own environment."""

from pathlib import Path
from typing import Any

import pytest

from presswork.text.chat import ChatTemplate

TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather, <hot> & cold",
        "parameters": {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "number"}}},
    },
}
USER = {"role": "user", "content": " Olá, 'world' <b>&\n"}
CALL = {
    "role": "assistant",
    "reasoning": "need\nit",
    "tool_calls": [{"function": {"name": "weather", "arguments": {"b": "x", "a": [1.5, None]}}}],
}
RESULT = {"role": "tool", "name": "weather", "content": "12"}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": "Be brief.\n"}, USER],
    [USER, {"role": "assistant", "content": "<|channel>thought\nx<channel|> yes "}, USER],
    [USER, CALL, RESULT],
    [USER, CALL, RESULT, {"role": "assistant", "content": "12 degrees"}, USER],
    [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize(
    "options", [{}, {"enable_thinking": True}, {"tools": [WEATHER]}, {"add_generation_prompt": False}]
)
def test_rendering_equals_the_reference(messages: list[dict[str, Any]], options: dict[str, Any]) -> None:
    render_jinja_template = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    options = {"add_generation_prompt": True, **options}
    expected, _ = render_jinja_template([messages], chat_template=TEMPLATE, bos_token="<bos>", **options)
    assert ChatTemplate(TEMPLATE, special_tokens={"bos_token": "<bos>"}).render(messages, **options) == expected[0]
