"""What editors send is answered as they expect: fill in the middle, next edit, apply."""

import asyncio
import json
import re
import threading
import time

import httpx
import pytest

from presswork.errors import QueueFullError, RequestError
from presswork.server.gaps import until_stop
from presswork.server.registry import Workers
from presswork.server.tagged import Sketch, read_next_edit, read_sketch

NEXT_EDIT = """<|recently_viewed_code_snippets|>
<|recently_viewed_code_snippet|>
code_snippet_file_path: other.py
x = 1
<|/recently_viewed_code_snippet|>
<|/recently_viewed_code_snippets|>
<|current_file_content|>
current_file_path: add.py
import os
<|code_to_edit|>
def add(a, b):
    return<|cursor|> a
<|/code_to_edit|>

print(add(1, 2))
<|/current_file_content|>
<|edit_diff_history|>
-x
+y
<|/edit_diff_history|>
"""


def post(served, path, body):
    return httpx.post(f"{served.url}{path}", json=body, timeout=60)


def test_a_continue_fill_in_the_middle_is_chat_shaped(served):
    body = {
        "model": "tiny", "prompt": "def add(", "suffix": "<|endoftext|>", "max_tokens": 8, "stop": ["\n\n"],
        "presence_penalty": 1.5, "temperature": 0,
    }  # fmt: skip
    told = post(served, "/v1/fim/completions", body).json()
    assert told["object"] == "chat.completion" and told["choices"][0]["finish_reason"] in ("stop", "length")
    text = told["choices"][0]["message"]["content"]
    assert "\n\n" not in text and told["usage"]["completion_tokens"] <= 8
    streamed = post(served, "/v1/fim/completions", {**body, "stream": True}).text
    assert streamed.rstrip().endswith("data: [DONE]")
    lines = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(line["choices"][0]["delta"]["content"] for line in lines) == text


def test_a_stop_string_does_not_cut_json_between_two_texts(served):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    body = {"prompt": "x = ", "suffix": "\ny = 2\n", "max_tokens": 20, "stop": ["}", "a"]}
    told = post(served, "/v1/completions", {**body, "structured_outputs": {"json": schema}}).json()
    assert json.loads(told["choices"][0]["text"])["a"] in (1, 2)
    told = post(served, "/v1/completions", {**body, "structured_outputs": {"regex": "ba+b"}}).json()
    assert told["choices"][0]["text"] == "b"


VIM_FIGURES = [
    f"timings/{kind}_{what}" for kind in ("prompt", "predicted") for what in ("n", "ms", "per_token_ms", "per_second")
]


def test_a_llama_vim_infill_has_the_fields_it_reads(served):
    body = {
        "input_prefix": "def add(a, b):\n", "input_suffix": "\n    return total\n", "prompt": "    total",
        "input_extra": [{"filename": "x.py", "text": "x = 1"}], "n_predict": 6, "n_indent": 4, "top_k": 40,
        "top_p": 0.9, "stream": False, "samplers": ["top_k", "top_p", "infill"], "cache_prompt": True,
        "t_max_prompt_ms": 500, "t_max_predict_ms": 1000, "model": "",
        "response_fields": ["content", "truncated", "tokens_predicted", *VIM_FIGURES],
    }  # fmt: skip
    told = post(served, "/infill", body).json()
    assert set(told) == set(body["response_fields"]) and told["truncated"] is False
    assert all(isinstance(told[name], (int, float)) for name in VIM_FIGURES)
    warmed = post(served, "/infill", {**body, "n_predict": 0, "response_fields": None}).json()
    assert warmed["content"] == "" and warmed["stop"] is True


def test_of_context_that_does_not_fit_the_end_is_read(served):
    """llama.vim sends up to a thousand lines of other files, and warms the server up with them."""
    extra = [{"filename": f"{i}.py", "text": f"x = {i}\n" * 40} for i in range(16)]
    body = {"input_prefix": "def add(a, b):\n", "input_suffix": "\n    return total\n", "n_predict": 6, "seed": 1}
    whole = post(served, "/infill", {**body, "input_extra": extra}).json()
    assert whole["truncated"] is True and 300 < whole["tokens_evaluated"] <= 512
    warmed = post(served, "/infill", {**body, "input_extra": extra, "n_predict": 0}).json()
    assert warmed["truncated"] is True and 0 < warmed["tokens_evaluated"] <= 512
    content = NEXT_EDIT.replace("x = 1", "x = 1\n" * 2000)
    told = post(served, "/v1/edit/completions", {"messages": [{"role": "user", "content": content}]})
    assert told.status_code == 200 and told.json()["choices"][0]["message"]["content"].startswith("```\n")


def test_gaps_and_decisions_are_in_the_servers_figures(served):
    def figure(name):
        text = httpx.get(f"{served.url}/metrics").text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    prompt, written = 'presswork_tokens_total{kind="prompt",model="tiny"}', 'presswork_tokens_total{kind="completion"'
    asks = [
        ("/infill", {"input_prefix": "def add(a, b):\n", "input_suffix": "\n", "n_predict": 6}),
        ("/v1/fim/completions", {"prompt": "def add(", "suffix": "):", "max_tokens": 4}),
        ("/v1/completions", {"prompt": "def add(", "suffix": "):", "max_tokens": 4}),
        ("/v1/systemone", {"state": "a", "questions": {"b": {"type": "noul"}}}),
    ]
    for path, body in asks:
        before = figure(prompt), figure(written)
        assert post(served, path, body).status_code == 200
        assert figure(prompt) > before[0] and figure(written) >= before[1]
    assert figure("presswork_cache_bytes") == 0 and figure("presswork_waiting_edits") == 0


def test_work_that_waits_for_a_thread_is_bounded():
    async def crowd():
        workers, gate = Workers(1, 2), threading.Event()
        calls = [asyncio.ensure_future(workers.run(gate.wait)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert workers.num_waiting == 2
        with pytest.raises(QueueFullError, match="2 requests wait and max_waiting is 2; try again later"):
            await workers.run(gate.wait)
        gate.set()
        assert await asyncio.gather(*calls) == [True] * 3
        await asyncio.sleep(0)
        assert workers.num_waiting == 0 and await workers.run(lambda: 5) == 5
        workers.shutdown()

    asyncio.run(crowd())


def test_a_llama_vscode_infill_gets_as_many_texts_as_it_asks_for(served):
    body = {"input_prefix": "def add(a, b):\n", "input_suffix": "\n", "n_predict": 6, "n_cmpl": 3, "lora": []}
    told = post(served, "/infill", body).json()
    assert [one["index"] for one in told] == [0, 1, 2]
    assert told[0]["generation_settings"]["n_ctx"] == 512 and told[0]["timings"]["predicted_n"] >= 0
    assert post(served, "/infill", {**body, "lora": [{"id": 0}]}).status_code == 400


def test_lines_are_indented_as_asked(served):
    body = {"input_prefix": "def add(a, b):\n", "input_suffix": "\n", "n_predict": 24, "n_indent": 4}
    # Of more texts than there are lengths to try, some float.
    for asked in ({}, {"n_cmpl": 12}):
        num_lines = 0
        for seed in range(6):
            told = post(served, "/infill", {**body, "seed": seed, **asked}).json()
            for one in told if asked else [told]:
                _, *lines = one["content"].split("\n")
                num_lines += len(lines)
                assert all(line.startswith("    ") or not line.strip(" \t") for line in lines)
    assert num_lines


def test_a_stop_ends_a_text_and_is_left_out():
    assert until_stop("one STOP two END", ["END", "STOP"]) == "one " and until_stop("one", ["x"]) == "one"


SKETCH = (
    "<|original_code|>\ndef add(a, b):\n    return a\n<|/original_code|>\n\n"
    "<|update_snippet|>\nreturn a + b\n<|/update_snippet|>"
)


def test_taking_a_next_edit_apart_is_linear():
    started = time.perf_counter()
    with pytest.raises(RequestError):
        read_next_edit("<|current_file_content|>" * 200_000)
    assert time.perf_counter() - started < 1


def test_a_next_edit_rewrites_the_region_alone(served):
    told = post(served, "/v1/edit/completions", {"messages": [{"role": "user", "content": NEXT_EDIT}]}).json()
    content = told["choices"][0]["message"]["content"]
    assert content.startswith("```\n") and content.endswith("\n```")
    same = {"messages": [{"role": "user", "content": NEXT_EDIT}], "strength": 0}
    content = post(served, "/v1/edit/completions", same).json()["choices"][0]["message"]["content"]
    assert content == "```\ndef add(a, b):\n    return a\n```"


def test_gaps_and_edits_keep_to_the_time_they_are_given(served):
    fill = {"texts": ["def add(a, ", "):\n    return ", "\n"]}
    edit = {"text": "def add(a, b):\n    return a\n", "strength": 1.0}

    def num_steps(**more):
        filled = post(served, "/v1/canvas/fill", {**fill, **more}).json()
        assert re.fullmatch(r"def add\(a, (?s:.*)\):\n    return (?s:.*)\n", filled["text"])
        edited = post(served, "/v1/canvas/edit", {**edit, **more}).json()
        return sum(one["denoise_steps"] for one in filled["candidates"]), edited["denoise_steps"]

    free, hurried = num_steps(), num_steps(max_time=0)
    assert hurried[0] < free[0] and hurried[1] < free[1]
    message = {"messages": [{"role": "user", "content": NEXT_EDIT}]}
    for path, body in (
        ("/v1/edit/completions", message), ("/v1/apply", {"initialCode": "a", "editSnippet": "b"})
    ):  # fmt: skip
        assert post(served, path, {**body, "max_time": 0}).status_code == 200
        refused = post(served, path, {**body, "max_time": -1})
        assert refused.status_code == 400 and "max_time" in refused.text


def test_a_next_edit_message_is_taken_apart():
    asked = read_next_edit(NEXT_EDIT)
    assert asked.before == "import os\n" and asked.after == "\n\nprint(add(1, 2))\n"
    assert asked.region == "def add(a, b):\n    return a" and asked.region[: asked.cursor].endswith("return")
    assert "x = 1" in asked.context and "+y" in asked.context
    for text, message in (
        ("no tags", "current_file_content"),
        ("<|current_file_content|>a<|/current_file_content|>", "to_edit"),
    ):
        with pytest.raises(RequestError, match=message):
            read_next_edit(text)


def test_a_change_is_worked_in(served):
    body = {"initialCode": "def add(a, b):\n    return a\n", "editSnippet": "return a + b", "strength": 0.3}
    for path in ("/v1/apply", "/v1/code/apply"):
        told = post(served, path, body).json()
        assert isinstance(told["mergedCode"], str) and told["usage"]["prompt_tokens"] > 0


def test_a_change_in_tagged_blocks_is_worked_in(served):
    plain = {"initialCode": "def add(a, b):\n    return a", "editSnippet": "return a + b"}
    merged = post(served, "/v1/apply", plain).json()["mergedCode"]
    body = {"messages": [{"role": "user", "content": SKETCH}]}
    for path in ("/v1/apply/completions", "/apply/completions"):
        told = post(served, path, body).json()["choices"][0]
        assert told["message"] == {"role": "assistant", "content": merged} and told["finish_reason"] == "stop"
    streamed = post(served, "/v1/apply/completions", {**body, "stream": True}).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == merged


@pytest.mark.parametrize(
    "text",
    [
        "ORIGINAL CODE:\n```\ndef add(a, b):\n    return a\n```\n\nSUGGESTED EDIT:\n```\nreturn a + b\n```\n\n"
        "Apply the SUGGESTED EDIT to the ORIGINAL CODE. Output the complete modified file.\n- Output ONLY code.",
        "def add(a, b):\n    return a\n\nThe following code was suggested as an edit:\n```\nreturn a + b\n```\n"
        "Please apply it to the previous code.",
    ],
)
def test_a_change_as_continue_sends_it_is_worked_in(served, text):
    plain = {"initialCode": "def add(a, b):\n    return a", "editSnippet": "return a + b"}
    merged = post(served, "/v1/apply", plain).json()["mergedCode"]
    messages = [{"role": "system", "content": "You edit."}, {"role": "user", "content": text}]
    body = {"messages": [*messages, {"role": "assistant", "content": "```\n"}], "top_p": 0.9, "stop": ["\n", "a"]}
    told = post(served, "/v1/apply/completions", body).json()
    assert told["choices"][0]["message"]["content"] == merged


def test_code_that_holds_tags_itself_is_taken_as_code():
    code = "a = '<|update_snippet|>x<|/update_snippet|>'"
    content = f"<|original_code|>\n{code}\n<|/original_code|>\n<|update_snippet|>\ny\n<|/update_snippet|>"
    assert read_sketch(content) == Sketch(code, "y")


def test_a_message_that_lacks_a_block_is_400_and_named(served):
    for missing in ("original_code", "update_snippet"):
        content = SKETCH.replace(f"<|{missing}|>", "")
        told = post(served, "/v1/apply/completions", {"messages": [{"role": "user", "content": content}]})
        assert told.status_code == 400 and f"<|{missing}|>" in told.json()["error"]["message"]


@pytest.mark.parametrize(
    "path, body, message",
    [
        ("/v1/fim/completions", {"prompt": ""}, "nothing around the gap"),
        ("/v1/fim/completions", {"prompt": "a", "min_tokens": 5}, "min_tokens is not supported"),
        ("/v1/fim/completions", {"prompt": "a", "temprature": 1}, "temprature"),
        ("/v1/fim/completions", {"prompt": "a", "max_tokens": 0}, "max_tokens must be at least 1 for a gap"),
        ("/v1/fim/completions", {"prompt": "a", "seed": 1, "random_seed": 2}, "seed is 1 and random_seed 2"),
        ("/v1/completions", {"prompt": "a", "suffix": "b", "max_tokens": 0}, "max_tokens must be at least 1 for a gap"),
        ("/v1/completions", {"prompt": "a", "suffix": "b", "logprobs": 0}, "logprobs cannot be kept together"),
        ("/v1/completions", {"prompt": "a", "suffix": "b", "best_of": 3}, "best_of must be n"),
        ("/infill", {"input_prefix": "a", "input_extra": [{"filename": 3}]}, "input_extra[0]"),
        ("/v1/edit/completions", {"messages": []}, "exactly one message"),
        ("/v1/edit/completions", {"messages": [{"role": "system", "content": "x"}]}, "exactly one message"),
        ("/v1/apply", {"initialCode": "a"}, "editSnippet is missing"),
        ("/v1/apply", {"initialCode": "a", "editSnippet": "b", "strength": 3}, "strength must be"),
    ],
)
def test_what_cannot_be_honoured_is_400_and_named(served, path, body, message):
    told = post(served, path, body)
    assert told.status_code == 400 and message in told.json()["error"]["message"]


def test_what_these_models_do_not_make_is_501_with_the_reason(served):
    told = post(served, "/v1/embeddings", {"input": "a", "model": "tiny"})
    assert told.status_code == 501 and "embeddings" in told.json()["error"]["message"]
