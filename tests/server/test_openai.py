"""OpenAI's own client drives chat, completions and models; streams say what whole answers say."""

import json
from pathlib import Path

import httpx
import openai
import pytest

from presswork.engine.engine import Engine
from presswork.engine.loader import load
from presswork.errors import ConstraintError
from presswork.grammar.languages import Either, JsonSchema, ToolCalls
from presswork.server.constraints import of_tool_choice, or_calls
from presswork.server.turns import chat_tools, chat_turns, one_system
from presswork.text.chat import ChatTemplate

HELLO = [{"role": "user", "content": "def add"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"at": {"type": "string", "maxLength": 6}, "far": {"type": "boolean"}},
                "required": ["at"],
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}},
]


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def engine(folder) -> Engine:
    return load(folder)


def chunks_of(stream) -> list:
    return list(stream)


def test_models_say_their_window(client, engine):
    found = {model.id: model for model in client.models.list()}
    assert set(found) == {"tiny", "molecules"}
    entry = found["tiny"].to_dict()
    assert entry["context_length"] == entry["max_model_len"] == engine.max_context
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../../etc")


def test_chat_is_what_the_engine_says(client, engine):
    told = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=20, seed=3)
    expected = engine.chat(HELLO, max_tokens=20, seed=3)
    assert told.choices[0].message.content == expected.text
    assert told.choices[0].finish_reason == expected.finish_reason
    assert told.usage.prompt_tokens == expected.usage.prompt_tokens
    assert told.usage.completion_tokens == expected.usage.completion_tokens


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"temperature": 0.0}, {"extra_body": {"mode": "ar"}}, {"stop": ["e"]}])
def test_a_stream_says_what_the_whole_answer_says(client, more):
    ask = dict(model="tiny", messages=HELLO, max_tokens=40, seed=5, **more)
    whole = client.chat.completions.create(**ask)
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    usage = None
    for chunk in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
        usage = chunk.usage or usage
    assert [texts[choice.index] for choice in whole.choices] == [choice.message.content for choice in whole.choices]
    assert [reasons[choice.index] for choice in whole.choices] == [choice.finish_reason for choice in whole.choices]
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_required_tools_are_called_and_their_arguments_are_json(client):
    for choice, names in (
        ("required", {"look", "stop"}),
        ({"type": "function", "function": {"name": "look"}}, {"look"}),
    ):
        ask = dict(
            model="tiny", messages=HELLO, tools=TOOLS, tool_choice=choice, max_tokens=60, seed=1,
            parallel_tool_calls=False,
        )  # fmt: skip
        whole = client.chat.completions.create(**ask)
        (call,) = whole.choices[0].message.tool_calls
        assert whole.choices[0].finish_reason == "tool_calls" and whole.choices[0].message.content is None
        assert call.function.name in names and isinstance(json.loads(call.function.arguments), dict)
        name, arguments, ids = "", "", set()
        for chunk in client.chat.completions.create(**ask, stream=True):
            for delta in chunk.choices[0].delta.tool_calls or []:
                name += delta.function.name or ""
                arguments += delta.function.arguments or ""
                ids |= {delta.id} - {None}
                assert delta.index == 0
        assert (name, json.loads(arguments)) == (call.function.name, json.loads(call.function.arguments))
        assert len(ids) == 1


def test_a_schema_is_kept_to(client):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    told = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}},
    )  # fmt: skip
    assert isinstance(json.loads(told.choices[0].message.content)["n"], int)
    told = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=9, extra_body={"structured_outputs": {"regex": "[ab]{3}"}}
    )
    assert told.choices[0].message.content.strip("ab") == "" and len(told.choices[0].message.content) == 3
    told = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=200, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(told.choices[0].message.content), dict)


def test_logprobs_are_those_of_the_reply(client):
    told = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8, logprobs=True, top_logprobs=2)
    tokens = told.choices[0].logprobs.content
    assert b"".join(bytes(t.bytes) for t in tokens).decode("utf-8", "replace") == told.choices[0].message.content
    assert all(t.logprob <= 0 and len(t.top_logprobs) == 2 for t in tokens)


def test_reading_a_prompt_streams_nothing(served):
    body = {"messages": HELLO, "n_predict": 0, "stream": True}
    told = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    assert told.status_code == 400 and "n_predict" in told.json()["error"]["message"]


def test_a_prediction_starts_the_canvas_and_is_counted(client):
    num_accepted = 0
    for seed in range(8):
        ask = dict(model="tiny", messages=HELLO, max_tokens=16, seed=seed)
        text = client.chat.completions.create(**ask).choices[0].message.content
        predicted = {"type": "content", "content": text}
        told = client.chat.completions.create(**ask, prediction=predicted, extra_body={"start_noise": 0.1})
        details = told.usage.completion_tokens_details
        assert details.accepted_prediction_tokens >= 0 and details.rejected_prediction_tokens >= 0
        num_accepted += details.accepted_prediction_tokens
    # Of random weights some go on with what they wrote before.
    assert num_accepted > 0


def test_drafts_come_as_empty_deltas_and_full_texts_on_request(client):
    ask = dict(model="tiny", messages=HELLO, max_tokens=30, seed=5)
    whole = client.chat.completions.create(**ask)
    frames = 0
    text = ""
    for chunk in client.chat.completions.create(**ask, stream=True, extra_body={"stream_options": {"drafts": True}}):
        told = chunk.to_dict()
        if told.get("type") == "diffusion_frame":
            frames += 1
            assert told["choices"][0]["delta"] == {} and told["text"] == "".join(p[0] for p in told["pieces"])
        else:
            text += chunk.choices[0].delta.content or ""
    assert frames >= 2 and text == whole.choices[0].message.content
    states = [
        chunk.choices[0].delta.content
        for chunk in client.chat.completions.create(**ask, stream=True, extra_body={"diffusing": True})
        if chunk.choices[0].delta.content
    ]
    assert states[-1] == whole.choices[0].message.content and len(set(states)) > 1


def test_completions_write_on_and_fill(client, engine):
    told = client.completions.create(model="tiny", prompt="def add", max_tokens=12, seed=4)
    assert told.choices[0].text == engine.generate("def add", raw=True, max_tokens=12, seed=4).text
    several = client.completions.create(model="tiny", prompt=["def add", "x ="], max_tokens=8, n=2, echo=True)
    assert [c.index for c in several.choices] == [0, 1, 2, 3]
    assert [c.text.startswith(p) for c, p in zip(several.choices, ["def add"] * 2 + ["x ="] * 2, strict=True)] == [
        True
    ] * 4
    ids = engine.tokenizer.encode("def add")
    assert (
        client.completions.create(model="tiny", prompt=ids, max_tokens=12, seed=4).choices[0].text
        == told.choices[0].text
    )
    filled = client.completions.create(model="tiny", prompt="def add(", suffix="):\n    return", max_tokens=6)
    assert isinstance(filled.choices[0].text, str)
    joined = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(
            model="tiny", prompt="def add(", suffix="):\n    return", max_tokens=6, stream=True
        )
    )
    assert joined == filled.choices[0].text


def test_prompts_are_told_with_their_logprobs(client, engine):
    """What harnesses ask for that compare continuations by their likelihood."""
    ids = engine.encode_prompt("def add(a, b):", raw=True)
    bare = [i for i in ids if i not in engine.tokenizer.special_ids]
    for prompt, used in (("def add(a, b):", ids), (bare, bare)):
        told = client.completions.create(model="tiny", prompt=prompt, max_tokens=0, logprobs=2, echo=True)
        (choice,) = told.choices
        assert choice.text == "def add(a, b):" == "".join(choice.logprobs.tokens)
        assert told.usage.completion_tokens == 0 and told.usage.prompt_tokens == len(used)
        scores = engine.score(used[:1], used[1:])
        expected = scores if len(used) > len(bare) else [None, *scores]
        assert choice.logprobs.token_logprobs == pytest.approx(expected, abs=1e-6)
        # Two tokens of one text, such as parts of characters, are one entry.
        tops = [top for top in choice.logprobs.top_logprobs if top is not None]
        assert len(tops) == len(scores) and {len(top) for top in tops} <= {1, 2}
        assert choice.logprobs.text_offset[-1] + len(choice.logprobs.tokens[-1]) == len(choice.text)
    ask = dict(model="tiny", prompt="def add", max_tokens=6, logprobs=1, echo=True, seed=3)
    whole = client.completions.create(**ask).choices[0]
    assert len(whole.logprobs.tokens) == len(whole.logprobs.text_offset) > len(ids) - len(bare)
    assert "".join(whole.logprobs.tokens).startswith("def add")
    chunks = [chunk.choices[0] for chunk in client.completions.create(**ask, stream=True) if chunk.choices]
    assert [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.tokens] == whole.logprobs.tokens


def test_a_stream_of_several_prompts_says_what_the_whole_says(client):
    ask = dict(model="tiny", prompt=["def add", "x ="], max_tokens=24, n=2, seed=3, logprobs=1)
    whole = client.completions.create(**ask)
    texts = [""] * 4
    tokens: list[list[str]] = [[], [], [], []]
    offsets: list[list[int]] = [[], [], [], []]
    for chunk in client.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens if choice.logprobs else []
            offsets[choice.index] += choice.logprobs.text_offset if choice.logprobs else []
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices]


@pytest.mark.parametrize(
    "body, message",
    [
        ({"messages": HELLO, "temprature": 1}, "temprature: this field is not known"),
        ({"messages": HELLO, "temperature": "hot"}, "temperature: "),
        ({"messages": HELLO, "temperature": -1}, "temperature must be"),
        ({"messages": HELLO, "n": 0}, "n must be"),
        ({"messages": HELLO, "presence_penalty": 1000}, "presence_penalty must be"),
        ({"messages": HELLO, "logit_bias": {"x": 1}}, "logit_bias must map token ids"),
        ({"messages": HELLO, "logit_bias": {"99999": 1}}, "logit_bias must name tokens in"),
        ({"messages": HELLO, "top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"messages": HELLO, "stream_options": {}}, "stream_options are for streams"),
        ({"messages": HELLO, "diffusing": True}, "diffusing is for streams"),
        ({"messages": HELLO, "tool_choice": "required"}, "there are no tools"),
        ({"messages": HELLO, "response_fields": ["id"], "stream": True}, "response_fields pick from a whole answer"),
        ({"messages": HELLO, "response_format": {"type": "xml"}}, "response_format.type must be"),
        ({"messages": HELLO, "response_format": {"type": "json_schema", "schema": {"not": {}}}}, "'not'"),
        ({"messages": HELLO, "reasoning_effort": "huge"}, "reasoning_effort must be one of"),
        ({"messages": []}, "messages"),
        ({}, "messages is missing"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "max_tokens": 5, "n_predict": 6}, "differ"),
        ({"messages": HELLO, "stop": ["x"] * 65}, "stop takes at most 64"),
        ({"messages": HELLO, "stop": "x" * 1001}, "stop takes at most 64 strings of 1000"),
        ({"messages": HELLO, "max_denoising_steps": 10**6}, "max_denoising_steps must be at most"),
        ({"messages": [1] * 1000}, "messages.0"),
        ({"messages": HELLO, "mode": "ar", "canvas_length": 4}, "canvas_length must be none"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_400_and_named(served, body, message):
    for stream in ({}, {"stream": True}) if "diffusing" not in body and "stream_options" not in body else ({},):
        told = httpx.post(f"{served.url}/v1/chat/completions", json={**body, **stream})
        assert told.status_code == 400, told.text
        assert message in told.json()["error"]["message"]


def test_what_clients_always_send_does_no_harm(served):
    """Each of these is in every request of some client."""
    chat = {"model": "", "messages": HELLO, "max_tokens": 4}
    for more in (
        {"nextEdit": False}, {"think": False}, {"verbosity": "low"}, {"reasoning_summary_wait": False},
        {"top_p": 0.9, "top_k": 40, "response_format": {"type": "json_object"}, "max_tokens": 60}, {"top_k": -1},
    ):  # fmt: skip
        told = httpx.post(f"{served.url}/v1/chat/completions", json={**chat, **more}, timeout=60)
        assert told.status_code == 200, (more, told.text)
    fill = {"prompt": "def add(", "suffix": "\n", "top_p": 0.9, "top_k": -1, "max_tokens": 8}
    assert httpx.post(f"{served.url}/v1/completions", json=fill, timeout=60).status_code == 200


def test_a_stop_string_does_not_cut_a_form(served):
    form = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": form}}
    chat = {"messages": HELLO, "max_tokens": 60, "stop": [":", "a"]}
    told = httpx.post(f"{served.url}/v1/chat/completions", json={**chat, "response_format": schema}, timeout=60)
    assert list(json.loads(told.json()["choices"][0]["message"]["content"])) == ["a"]
    regex = {"structured_outputs": {"regex": "b{3}a{3}"}}
    told = httpx.post(f"{served.url}/v1/chat/completions", json={**chat, **regex}, timeout=60)
    assert told.json()["choices"][0]["message"]["content"] == "bbb"


@pytest.mark.parametrize("path, body", [
    ("/v1/canvas/fill", {"texts": ["def \ud800", "(a)"]}),
    ("/v1/canvas/edit", {"text": "def \ud800", "instruction": "x"}),
    ("/infill", {"input_prefix": "\ud800", "input_suffix": "b"}),
    ("/v1/fim/completions", {"prompt": "\ud800", "suffix": "b"}),
])  # fmt: skip
def test_half_a_character_is_400(served, path, body):
    json_body = {"content": json.dumps(body), "headers": {"Content-Type": "application/json"}}
    told = httpx.post(f"{served.url}{path}", **json_body, timeout=60)
    assert told.status_code == 400 and "lone surrogate" in told.text


def test_what_would_fail_again_is_not_tried_again(served):
    told = httpx.post(f"{served.url}/v1/embeddings", json={"input": "a"})
    assert told.status_code == 501 and told.headers["x-should-retry"] == "false"
    assert httpx.head(f"{served.url}/health").status_code == 200


def test_results_of_tools_reach_the_template_as_text_with_their_names():
    tools = chat_tools([{"type": "function", "function": {"name": "look"}}])
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    turns = chat_turns([
        {"role": "user", "content": "look there"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "here"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a hill"}, image]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I would rather not."}]},
        {"role": "user", "content": "why"},
    ])  # fmt: skip
    assert turns[2]["name"] == "look" and turns[2]["content"] == "a hill\n[image_url left out: this model reads text]"
    template = Path(__file__).parents[1] / "text" / "chat_template.jinja"
    text = ChatTemplate(template.read_text(encoding="utf-8")).render(turns, tools=tools)
    for said in ("look there", "here", "a hill", "I would rather not.", "why"):
        assert said in text


def test_a_tool_whose_parameters_cannot_be_kept_to_is_called_with_any_object():
    odd = {"type": "object", "properties": {"a": {"type": "string"}}, "propertyNames": {"pattern": "x"}}

    def tool(name, parameters, **more):
        return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}

    plain = tool("plain", {"type": "object", "properties": {"n": {"type": "integer"}}})
    language = of_tool_choice("required", [plain, tool("odd", odd)], is_parallel=False)
    assert [one["function"]["parameters"] for one in language.tools] == [
        plain["function"]["parameters"],
        {"type": "object"},
    ]
    language.expression()
    with pytest.raises(ConstraintError, match="propertyNames"):
        of_tool_choice("required", [tool("odd", odd, strict=True)], is_parallel=False).expression()
    # What is spent on tools that are not kept to is not counted against the others, whatever their order.
    large = {"$defs": {"a": {"type": "object"}}, "allOf": [{"$ref": "#/$defs/a"}] * 3000}
    many = [tool(f"large{n}", large) for n in range(4)]
    for tools in ([*many, plain], [plain, *many]):
        kept = of_tool_choice("required", tools, is_parallel=False)
        assert [t for t in kept.tools if t["function"]["parameters"] != {"type": "object"}] == [plain]
        kept.expression()
    named = of_tool_choice({"function": {"name": "plain"}}, [plain, tool("odd", odd, strict=True)], is_parallel=False)
    named.expression()


def test_an_unknown_model_is_404_and_no_path(served):
    for name in ("gpt-4", "/etc/passwd", "../tiny", "tiny:adapter"):
        told = httpx.post(f"{served.url}/v1/chat/completions", json={"model": name, "messages": HELLO})
        assert told.status_code == 404 and told.json()["error"]["type"] == "not_found_error"


def test_thinking_is_asked_for_by_request(client, engine):
    def prompt_tokens(**more):
        return client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1, **more).usage.prompt_tokens

    plain = prompt_tokens()
    assert prompt_tokens(reasoning_effort="high") > plain == prompt_tokens(reasoning_effort="none")
    assert prompt_tokens(extra_body={"chat_template_kwargs": {"enable_thinking": True}}) > plain


def test_several_calls_may_be_forced_and_have_places_of_their_own(client):
    told = client.chat.completions.create(
        model="tiny", messages=HELLO, tools=TOOLS, tool_choice="required", max_tokens=120, seed=4
    )
    calls = told.choices[0].message.tool_calls
    assert 1 <= len(calls) <= 4 and len({call.id for call in calls}) == len(calls)


def test_a_form_beside_tools_allows_calls_too(client):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = JsonSchema(schema)
    found = or_calls(form, TOOLS, "auto", is_parallel=False)
    assert isinstance(found, Either) and found.languages == (form, ToolCalls(TOOLS, max_calls=1))
    assert or_calls(form, TOOLS, "none", is_parallel=False) is or_calls(form, [], None, is_parallel=True) is form
    told = client.chat.completions.create(
        model="tiny", messages=HELLO, tools=TOOLS, max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )  # fmt: skip
    message = told.choices[0].message
    assert message.tool_calls or isinstance(json.loads(message.content)["n"], int)


def test_more_tokens_than_the_context_leaves_are_what_it_leaves(client):
    told = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=100_000, seed=1, extra_body={"ignore_eos": True}
    )
    assert told.choices[0].finish_reason == "length" and told.usage.total_tokens == 512


def test_a_prompt_that_is_too_long_is_told_in_the_words_agents_know(served):
    long = [{"role": "user", "content": "def add " * 400}]
    told = httpx.post(f"{served.url}/v1/chat/completions", json={"messages": long}).json()["error"]
    assert told["code"] == "context_length_exceeded" and "maximum context length is 512 tokens" in told["message"]
    told = httpx.post(f"{served.url}/v1/messages", json={"messages": long, "max_tokens": 5}).json()["error"]
    assert told["message"].startswith("prompt is too long: ")


def test_one_system_turn_reaches_the_template():
    turns = [
        {"role": "system", "content": "A"}, {"role": "developer", "content": [{"type": "text", "text": "B"}]},
        {"role": "user", "content": "hi"}, {"role": "system", "content": "C"}, {"role": "assistant", "content": "x"},
        {"role": "developer", "content": "D"},
    ]  # fmt: skip
    assert one_system(turns) == [
        {"role": "system", "content": "A\n\nB"},
        {"role": "user", "content": "hi\n\n<system-reminder>\nC\n</system-reminder>"},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "<system-reminder>\nD\n</system-reminder>"},
    ]
    assert one_system([{"role": "user", "content": "hi"}]) == [{"role": "user", "content": "hi"}]


def test_what_editors_send_to_chat_is_taken(served):
    body = {
        "messages": HELLO, "id_slot": 0, "min_p": 0.1, "temperature": 0.1, "samplers": ["min_p"], "cache_prompt": True,
        "n_predict": 0, "response_fields": ["usage"], "stream": False,
    }  # fmt: skip
    told = httpx.post(f"{served.url}/v1/chat/completions", json=body).json()
    assert set(told) == {"usage"} and told["usage"]["completion_tokens"] == 0
    told = httpx.post(f"{served.url}/v1/chat/completions", json={**body, "n_predict": 5, "seed": -1}).json()
    assert told["usage"]["completion_tokens"] <= 5
    rendered = httpx.post(f"{served.url}/apply-template", json={"messages": HELLO}).json()["prompt"]
    assert "user: def add" in rendered


def test_completions_fill_with_stops_as_continue_asks(served):
    body = {
        "prompt": "def add(", "suffix": "):\n    return", "max_tokens": 8, "stop": ["\n\n", "\n \n"], "stream": True,
        "presence_penalty": 1.5, "stream_options": {"include_usage": True},
    }  # fmt: skip
    told = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).text
    lines = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: {")]
    assert lines[-1]["choices"] == [] and lines[-1]["usage"]["prompt_tokens"] > 0
    assert "\n\n" not in "".join(line["choices"][0]["text"] for line in lines[:-1])
    plain = {"prompt": "def add", "max_tokens": 6, "seed": 3}
    expected = httpx.post(f"{served.url}/v1/completions", json=plain).json()["choices"]
    for suffix in ("", "<|endoftext|>"):
        asked = {**plain, "suffix": suffix, "echo": False, "stop": ["zzz"]}
        assert httpx.post(f"{served.url}/v1/completions", json=asked).json()["choices"] == expected
