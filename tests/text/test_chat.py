import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from presswork.errors import CheckpointError, RequestError, TemplateError, UnsupportedError
from presswork.text.chat import ChatTemplate
from presswork.text.tokenizer import Tokenizer

TEMPLATE = Path(__file__).parent / "chat_template.jinja"
USER = {"role": "user", "content": "  What is the weather? "}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"days": {"type": "integer"}, "city": {"type": "string"}}},
    },
}  # fmt: skip


def call(name: str, arguments: object) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.fixture
def template(gemma: Tokenizer, tmp_path: Path) -> ChatTemplate:
    shutil.copyfile(TEMPLATE, tmp_path / "chat_template.jinja")
    loaded = ChatTemplate.from_folder(tmp_path, gemma)
    assert loaded is not None
    return loaded


def test_a_turn_is_trimmed_and_the_model_is_asked(template: ChatTemplate) -> None:
    expected = "<bos><|turn>user\nWhat is the weather?<turn|>\n"
    assert template.render([USER]) == expected + "<|turn>model\n"
    assert template.render([USER], add_generation_prompt=False) == expected


def test_the_rendered_prompt_encodes_to_the_marks_ids(template: ChatTemplate, gemma: Tokenizer) -> None:
    ids = gemma.encode(template.render([USER]), add_special_tokens=False)
    assert ids[:2] == [gemma.id_of("<bos>"), gemma.id_of("<|turn>")]
    assert ids.count(gemma.id_of("<|turn>") or -1) == 2


def test_thinking_adds_a_system_turn_that_starts_with_its_mark(template: ChatTemplate) -> None:
    system = {"role": "system", "content": "Be brief."}
    thinking = template.render([system, USER], enable_thinking=True)
    assert thinking.startswith("<bos><|turn>system\n<|think|>\nBe brief.<turn|>\n<|turn>user\n")
    assert template.render([USER], enable_thinking=True).startswith("<bos><|turn>system\n<|think|>\n<turn|>\n")
    assert template.render([system, USER]).startswith("<bos><|turn>system\nBe brief.<turn|>\n")


def test_tools_are_declared_in_the_system_turn(template: ChatTemplate) -> None:
    declaration = (
        '<|tool>declaration:get_weather{description:<|"|>Weather of a city<|"|>'
        ',city:<|"|>STRING<|"|>,days:<|"|>INTEGER<|"|>}<tool|>'
    )
    assert template.render([USER], tools=[TOOL]).startswith(f"<bos><|turn>system\n{declaration}<turn|>\n<|turn>user")
    assert "system" not in template.render([USER], tools=[])


def test_thought_channels_of_past_turns_are_stripped(template: ChatTemplate) -> None:
    past = {"role": "assistant", "content": "<|channel>thought\nhm\n<channel|> Sunny. ", "reasoning": "hm"}
    rendered = template.render([USER, past, USER])
    assert "<|turn>model\nSunny.<turn|>\n<|turn>user" in rendered
    assert "thought" not in rendered


def test_calls_and_responses_share_one_turn_and_reasoning_is_kept_for_them(template: ChatTemplate) -> None:
    arguments = {"city": "Faro", "days": 2, "wet": False, "near": ["a", {"b": 1}]}
    messages = [
        USER,
        {
            "role": "assistant",
            "content": None,
            "reasoning": "I need data.",
            "tool_calls": [call("get_weather", arguments)],
        },
        {"role": "tool", "name": "get_weather", "content": "sunny"},
    ]
    expected = (
        "<|turn>model\n<|channel>thought\nI need data.\n<channel|>"
        '<|tool_call>call:get_weather{city:<|"|>Faro<|"|>,days:2,near:[<|"|>a<|"|>,{b:1}],wet:false}<tool_call|>'
        '<|tool_response>response:get_weather{value:<|"|>sunny<|"|>}<tool_response|>'
    )
    assert template.render(messages).endswith(expected)
    answered = template.render([*messages, {"role": "assistant", "content": "Sunny."}, USER])
    assert "<tool_response|>Sunny.<turn|>\n<|turn>user\n" in answered
    assert "I need data." not in answered


def test_arguments_in_json_text_render_as_the_object_they_hold(template: ChatTemplate) -> None:
    as_text, as_object = (
        template.render([USER, {"role": "assistant", "tool_calls": [call("f", arguments)]}])
        for arguments in ('{"a": [1, true]}', {"a": [1, True]})
    )
    assert as_text == as_object
    assert "call:f{a:[1,true]}" in as_text


def test_text_parts_reach_the_template_as_given(template: ChatTemplate) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": " two"}]
    assert "<|turn>user\nonetwo<turn|>" in template.render([{"role": "user", "content": parts}])


def test_rendering_does_not_change_the_messages(template: ChatTemplate) -> None:
    messages = [USER, {"role": "assistant", "tool_calls": [call("f", '{"a": 1}')]}]
    before = json.dumps(messages)
    template.render(messages)
    assert json.dumps(messages) == before


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source, special_tokens={"bos_token": "<s>"}).render([USER], **variables)


def test_helpers_that_published_templates_use() -> None:
    value = {"z": "é<&>'", "a": [1]}
    assert render("{{ v | tojson }}", v=value) == '{"z": "é<&>\'", "a": [1]}'
    assert render("{{ v | tojson(indent=1, sort_keys=true) }}", v={"b": 1, "a": 2}) == '{\n "a": 2,\n "b": 1\n}'
    assert render("{{ 'é' | tojson(ensure_ascii=true) }}") == '"\\u00e9"'
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert render("{{ bos_token }}{{ missing }}{{ missing is defined }}") == "<s>False"
    assert render("{% generation %}\n{{ messages[0].role }}\n{% endgeneration %}\n") == "user\n"
    loop = "{% for n in range(9) %}\n  {% if n == 1 %}{% continue %}{% endif %}\n  "
    loop += "{% if n == 3 %}{% break %}{% endif %}\n{{ n }}{% endfor %}"
    assert render(loop) == "02"


def test_loops_keep_their_helpers_and_conditions() -> None:
    shown = "{{ loop.index }}/{{ loop.length }}{{ '.' if loop.last }} "
    loop = "{% for n in range(6) if n % 2 %}" + shown + "{% else %}none{% endfor %}"
    assert render(loop) == "1/3 2/3 3/3. "
    assert render("{% for n in [] %}{% else %}none{% endfor %}") == "none"
    tree = [{"n": 1, "kids": [{"n": 2, "kids": []}]}]
    source = "{% for t in tree recursive %}{{ t.n ~ '(' ~ loop(t.kids) ~ ')' }}{% endfor %}"
    assert render(source, tree=tree) == "1(2())"


def test_the_templates_own_refusal_is_told_in_one_line(template: ChatTemplate) -> None:
    with pytest.raises(TemplateError, match=r"^messages: refused by the chat template \(unknown role pirate\)"):
        template.render([{"role": "pirate", "content": "arr"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].nothing.at.all }}", "{{ messages[0]['role'] + 3 }}", "{{ 1 // 0 }}", "{% include 'other' %}",
        "{{ messages | tojson(indent=1, separators=4) }}", "{{ undefined_thing() }}", "{{ missing | tojson }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ [].index(3) }}", "{{ namespace(1) }}",
    ],
)  # fmt: skip
def test_a_template_that_fails_is_a_template_error_in_one_line(source: str) -> None:
    with pytest.raises(TemplateError, match=r"^the chat template failed") as caught:
        render(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ raise_exception.__globals__['os'] }}"]
)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(TemplateError, match="unsafe"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for n in range(10 ** 9) %}{% endfor %}",
        "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
        "{% set r = range(99999) %}{% for a in r %}{% for b in r if false %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for a in range(999) recursive %}{% if loop.depth < 5 %}{{ loop(range(999)) }}{% endif %}{% endfor %}",
        "{{ 'x' * 10 ** 9 }}", "{{ [1] * (10 ** 9) }}", "{{ 9 ** (9 ** 9) }}", "{{ (9 ** 60) ** 60 }}",
        "{% set s = namespace(t='x') %}{% for n in range(60) %}{% set s.t = s.t + s.t %}{% endfor %}",
        "{% set s = namespace(t='x') %}{% for n in range(60) %}{% set s.t = s.t ~ s.t %}{% endfor %}",
        "{% set t = 'x' * 1000000 %}{% for n in range(99999) %}{{ t }}{% endfor %}",
        "{% set s = namespace(n=9) %}{% for i in range(40) %}{% set s.n = s.n * s.n %}{% endfor %}",
    ],
)  # fmt: skip
def test_a_costly_template_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("presswork.text.sandbox.MAX_STEPS", 20_000)
    monkeypatch.setattr("presswork.text.sandbox.MAX_CHARACTERS", 2_000_000)
    with pytest.raises(TemplateError, match=r"stopped at|OverflowError: Range too big|RecursionError"):
        render(source)


@pytest.mark.parametrize("name", ["messages", "tools", "self", "add_generation_prompt", "raise_exception", 3])
def test_variables_that_are_not_the_callers_are_refused(name: object) -> None:
    template = ChatTemplate("{{ enable_thinking }}")
    assert template.check_variables({"enable_thinking": True}) == {"enable_thinking": True}
    with pytest.raises(RequestError, match=r"template_variables: .* cannot be set"):
        template.check_variables({name: 1})  # type: ignore[dict-item]


def test_a_system_message_in_parts_reaches_the_template_as_text() -> None:
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    template = ChatTemplate("{{ messages[0]['content'] | trim }}")
    assert template.render([{"role": "system", "content": parts}, USER]) == "Be brief."


def test_each_rendering_has_its_own_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("presswork.text.sandbox.MAX_STEPS", 250)
    template = ChatTemplate("{% for n in range(200) %}{% endfor %}ok")
    assert [template.render([USER]) for _ in range(3)] == ["ok"] * 3


@pytest.mark.parametrize(
    ("source", "match"),
    [("{% for %}", "line 1"), ("\n{{ x | nosuch }}", "line 2.*nosuch"), ("{% if x %}", "does not compile")],
)
def test_a_template_that_does_not_compile_is_the_checkpoints_fault(
    tmp_path: Path, gemma: Tokenizer, source: str, match: str
) -> None:
    (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"chat_template.jinja.*{match}") as caught:
        ChatTemplate.from_folder(tmp_path, gemma)
    assert "\n" not in str(caught.value)


def test_nesting_that_python_cannot_compile_is_the_checkpoints_fault() -> None:
    with pytest.raises(CheckpointError, match="does not compile"):
        ChatTemplate("{% for a in x %}" * 30 + "{% endfor %}" * 30)
    with pytest.raises(CheckpointError, match="does not compile"):
        ChatTemplate("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")


def write_config(folder: Path, template: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")


def test_the_template_file_comes_before_the_configs_key(tmp_path: Path, gemma: Tokenizer) -> None:
    assert ChatTemplate.from_folder(tmp_path, gemma) is None
    write_config(tmp_path, None)
    assert ChatTemplate.from_folder(tmp_path, gemma) is None
    write_config(tmp_path, "config {{ bos_token }}{{ eos_token }}")
    template = ChatTemplate.from_folder(tmp_path, gemma)
    assert template is not None and template.render([USER]) == "config <bos><eos>"
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    template = ChatTemplate.from_folder(tmp_path, gemma)
    assert template is not None and template.render([USER]) == "file"


def test_of_named_templates_tool_use_serves_requests_with_tools(tmp_path: Path, gemma: Tokenizer) -> None:
    names = ["default", "tool_use", "rag"]
    write_config(tmp_path, [{"name": name, "template": f"{name} {{{{ tools is none }}}}"} for name in names])
    template = ChatTemplate.from_folder(tmp_path, gemma)
    assert template is not None
    assert template.render([USER]) == "default True"
    assert template.render([USER], tools=[TOOL]) == "tool_use False"


@pytest.mark.parametrize("value", [3, {}, [], ["text"], [{"name": "default"}], [{"name": "rag", "template": "x"}]])
def test_a_malformed_template_key_is_the_checkpoints_fault(tmp_path: Path, gemma: Tokenizer, value: object) -> None:
    write_config(tmp_path, value)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        ChatTemplate.from_folder(tmp_path, gemma)


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "at least one message"), ("hello", "at least one message"), (["hello"], r"messages\[0\]"),
        ([USER, {"content": "x"}], r"messages\[1\]\.role"), ([{"role": 3, "content": "x"}], "role"),
        ([{"role": "user"}], "no content"), ([{"role": "user", "content": 3}], r"content: got 3"),
        ([{"role": "user", "content": ["x"]}], r"content\[0\]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "'text' with a text"),
        ([{"role": "user", "content": [{"type": "poem", "text": "x"}]}], "'poem'"),
        ([{"role": "assistant", "tool_calls": {"a": 1}}], "tool_calls: got"),
        ([{"role": "assistant", "tool_calls": [{"name": "f"}]}], r"tool_calls\[0\]"),
        ([{"role": "assistant", "tool_calls": [call("f", "{")]}], "not JSON"),
        ([{"role": "assistant", "tool_calls": [call("f", "[1]")]}], "expected an object"),
    ],
)  # fmt: skip
def test_malformed_messages_are_named(template: ChatTemplate, messages: Any, match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        template.render(messages)
    assert not isinstance(caught.value, (TemplateError, UnsupportedError))


@pytest.mark.parametrize("kind", ["image", "image_url", "input_image", "input_audio", "video", "file"])
def test_images_and_other_media_are_unsupported(template: ChatTemplate, kind: str) -> None:
    with pytest.raises(UnsupportedError, match=f"'{kind}'; images and other media are not supported yet"):
        template.render([{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": kind}]}])


@pytest.mark.parametrize("tools", ["get_weather", {"name": "f"}, [3]])
def test_malformed_tools_are_refused(template: ChatTemplate, tools: Any) -> None:
    with pytest.raises(RequestError, match="tools"):
        template.render([USER], tools=tools)
