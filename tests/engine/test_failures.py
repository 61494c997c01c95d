"""What goes wrong in one place stays there: broken passes, abandoned streams, impossible parameters, threads."""

import asyncio
import gc
import threading

import pytest
import torch

from presswork.cache.contiguous import SequenceCache
from presswork.engine.aio import AsyncEngine
from presswork.engine.engine import Engine, EngineConfig
from presswork.engine.events import Commit, Done
from presswork.engine.output import OutputText
from presswork.engine.params import SamplingParams
from presswork.errors import EngineClosedError, GenerationError, PressworkError, RequestError
from presswork.ops.attention import tiles
from tests.engine.conftest import prompt_ids

ASK = dict(max_tokens=16, ignore_eos=True)


def submit(engine: Engine, **params: object):
    return engine.submit(prompt_ids(7, 1), engine.defaults.changed(**{**ASK, **params}))


def finish(engine: Engine, request) -> list[int]:
    return next(event.reply.token_ids for event in engine.events(request) if isinstance(event, Done))


@pytest.fixture(scope="module")
def expected(confident_model) -> list[int]:
    engine = Engine(confident_model)
    return finish(engine, submit(engine))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (dict(stop_token_ids=[10**6]), "stop_token_ids must lie in 0..63, got 1000000"),
        (dict(stop_token_ids=[2**70]), "stop_token_ids must be an integer in"),
        (dict(stop_token_ids=7), "stop_token_ids must be a list of token ids, got 7"),
        (dict(stop=None), "stop must be one or more non-empty strings, got None"),
        (dict(stop=["a", 3]), "stop must be one or more non-empty strings"),
        (dict(top_k=2**70), "top_k must be an integer in"),
        (dict(temperature=1e-42), "temperature must be 0 or at least 1e-06"),
        (dict(t_max=float("inf")), "t_max must be at most 100"),
        (dict(canvas_length=10**12), "canvas_length is 1000000000000, but the prompt's 7 tokens leave 505"),
        (dict(mode="ar", canvas_length=4), "mode 'ar' has no canvas: canvas_length must be none"),
        (dict(mode="ar", accept_threshold=0.5), "mode 'ar' has no canvas: accept_threshold must be none"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(engine, params, message):
    with pytest.raises(RequestError, match=message):
        submit(engine, **params)
    assert engine.num_waiting == 0


def test_drafts_are_refused_in_ar_mode(engine):
    with pytest.raises(RequestError, match="mode 'ar' has no drafts"):
        engine.stream(prompt_token_ids=[1, 2], mode="ar", drafts=True)


def test_a_context_larger_than_the_models_is_refused(confident_model):
    with pytest.raises(PressworkError, match="max_context must be at most the model's 512, got 513"):
        Engine(confident_model, config=EngineConfig(max_context=513))


def test_end_tokens_the_model_does_not_have_do_no_harm(confident_model, expected):
    engine = Engine(confident_model, generation_config={"eos_token_id": [1, 10**6]})
    reply = engine.generate(prompt_token_ids=prompt_ids(7, 1), max_tokens=16, min_tokens=16, seed=0)
    assert len(reply.token_ids) == 16


def test_a_late_canvas_stays_inside_the_context(confident_model):
    engine = Engine(confident_model, config=EngineConfig(max_context=20))
    request = engine.submit(prompt_ids(7, 1), SamplingParams(canvas_length=8, ignore_eos=True))
    lengths = set()
    while not request.ended:
        engine.step()
        if request.canvas is not None:
            lengths.add(request.canvas.tokens.shape[0])
    assert len(request.output.token_ids) == 13 and lengths == {8, 5}


@pytest.mark.parametrize(
    "error", [ValueError("odd"), OverflowError("large"), RequestError("strange"), AssertionError()]
)
@pytest.mark.slow
def test_a_pass_that_breaks_fails_its_requests_and_nothing_else(engine, expected, error, monkeypatch):
    broken = submit(engine)

    def explode(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(engine._runner, "run", explode)
        with pytest.raises(PressworkError):
            finish(engine, broken)
    assert engine.num_running == engine.num_waiting == 0
    assert finish(engine, submit(engine)) == expected


def test_an_interrupted_pass_takes_its_requests_with_it(engine, expected, monkeypatch, caplog):
    """Some layers may have written their keys and others not: going on would give other tokens."""
    request = submit(engine)
    engine.step()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(engine._runner, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert isinstance(request.error, GenerationError) and request.cache is None and engine.num_running == 0
    assert not caplog.records
    assert finish(engine, submit(engine)) == expected


def test_the_async_worker_survives_a_bad_pass(confident_model, expected, monkeypatch):
    async def main() -> None:
        engine = AsyncEngine(Engine(confident_model))
        try:
            with monkeypatch.context() as patched:
                patched.setattr(engine.engine._loop, "step", lambda: 1 / 0)
                with pytest.raises(GenerationError, match="division by zero"):
                    await engine.generate(prompt_token_ids=prompt_ids(7, 1), **ASK)
            reply = await engine.generate(prompt_token_ids=prompt_ids(7, 1), **ASK)
            assert reply.token_ids == expected and engine.engine.num_running == 0
        finally:
            await engine.aclose()

    asyncio.run(main())


def test_cancelling_while_submitting_leaves_nothing_behind(confident_model):
    async def main() -> None:
        engine = AsyncEngine(Engine(confident_model))
        try:
            with engine.engine._lock:
                task = asyncio.ensure_future(engine.generate(prompt_token_ids=prompt_ids(7, 1), **ASK))
                await asyncio.sleep(0.1)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            for _ in range(100):
                await asyncio.sleep(0.01)
                if engine.engine.num_waiting == 0:
                    break
            assert engine.engine.num_waiting == engine.engine.num_running == 0
        finally:
            await engine.aclose()

    asyncio.run(main())


def test_submitting_while_closing_ends_in_an_error(confident_model):
    async def main() -> None:
        engine = AsyncEngine(Engine(confident_model))
        submit_now = engine.engine.submit

        def slow_submit(*arguments: object, **keywords: object):
            request = submit_now(*arguments, **keywords)
            closing.wait(2)
            return request

        closing = threading.Event()
        engine.engine.submit = slow_submit  # type: ignore[method-assign]
        task = asyncio.ensure_future(engine.generate(prompt_token_ids=prompt_ids(7, 1), **ASK))
        await asyncio.sleep(0.05)
        await engine.aclose()
        closing.set()
        with pytest.raises(EngineClosedError):
            await asyncio.wait_for(task, 5)

    asyncio.run(main())


@pytest.mark.parametrize("is_started", [False, True])
@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.slow
def test_a_stream_that_is_dropped_frees_its_request(engine, is_started: bool, is_closed: bool):
    stream = engine.stream(prompt_token_ids=prompt_ids(7, 1), max_tokens=200, ignore_eos=True)
    if is_started:
        assert isinstance(next(stream), Commit)
    if is_closed:
        stream.close()
    del stream
    gc.collect()
    assert engine.num_waiting == engine.num_running == 0


def test_a_stream_closed_inside_a_pass_waits_for_its_end(engine, expected, monkeypatch):
    """The garbage collector may do that."""
    other = engine.stream(prompt_token_ids=prompt_ids(9, 2), max_tokens=64, ignore_eos=True)
    request = submit(engine)
    run = engine._runner.run

    def close_inside(items):
        other.close()
        return run(items)

    monkeypatch.setattr(engine._runner, "run", close_inside)
    assert finish(engine, request) == expected
    assert engine.num_running == engine.num_waiting == 0


@pytest.mark.slow
def test_the_end_is_not_lost_between_threads(confident_model, expected):
    """Readers drain their requests while another thread drives."""

    def together() -> list[list[int]]:
        engine, found = Engine(confident_model), []
        requests = [submit(engine) for _ in range(4)]
        threads = [threading.Thread(target=lambda r=r: found.append(finish(engine, r))) for r in requests]
        threads.append(threading.Thread(target=lambda: [engine.step() for _ in range(200)]))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    assert all(together() == [expected] * 4 for _ in range(5))


def test_a_request_shows_its_end_only_when_it_can_be_read(engine):
    request = submit(engine, max_tokens=4)
    seen: list[bool] = []

    class Watched(type(request.events)):
        def append(self, event) -> None:
            seen.append(request.ended)
            super().append(event)

    request.events = Watched(request.events)
    finish(engine, request)
    assert seen and not any(seen)


@pytest.mark.slow
def test_scoring_keeps_no_memory(confident_model):
    engine = Engine(confident_model, config=EngineConfig(prefill_chunk=8))
    gc.collect()
    gc.disable()
    try:
        before = sum(type(thing) is SequenceCache for thing in gc.get_objects())
        for _ in range(3):
            engine.score(prompt_ids(7, 1), prompt_ids(30, 2))
            engine.canvas_logits(prompt_ids(7, 1), prompt_ids(4, 2))
        assert sum(type(thing) is SequenceCache for thing in gc.get_objects()) == before
    finally:
        gc.enable()


def test_scoring_lets_requests_through_between_its_chunks(confident_model, monkeypatch):
    engine = Engine(confident_model, config=EngineConfig(prefill_chunk=8))
    real, chunks, replies = engine._runner.causal_hidden, [], []

    def counted(*given):
        chunks.append(given[1])
        return real(*given)

    def ask() -> None:
        replies.append(engine.generate(prompt_token_ids=[3], max_tokens=4))

    def before_each_chunk() -> None:
        if len(chunks) == 1:
            # Another thread's reply takes passes of its own.
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join(30)

    monkeypatch.setattr(engine._runner, "causal_hidden", counted)
    monkeypatch.setattr("presswork.engine.probe.check_wanted", before_each_chunk)
    assert len(engine.score(prompt_ids(7, 1), prompt_ids(20, 2))) == 20
    assert len(chunks) == 4 and len(replies) == 1


class TestPrefixBudget:
    def cache(self, engine: Engine, length: int) -> tuple[list[int], SequenceCache]:
        ids, cache = prompt_ids(length, length), SequenceCache(engine.model.config)
        engine._runner.causal_hidden(cache, ids)
        return ids, cache

    def test_what_is_larger_than_the_budget_does_not_push_others_out(self, engine):
        ids, small = self.cache(engine, 5)
        engine.prefix.max_bytes = 2 * small.num_bytes
        engine.prefix.put(ids, small)
        engine.prefix.put(*self.cache(engine, 400))
        assert engine.prefix.longest(ids, 5) is not None

    def test_bytes_are_counted_once_and_given_back(self, engine):
        caches = [self.cache(engine, length) for length in (5, 9, 30)]
        for ids, cache in caches:
            engine.prefix.put(ids, cache)
            engine.prefix.put(ids[:3], self.cache(engine, 3)[1])
        ids, cache = caches[2]
        engine._runner.causal_hidden(cache, [1, 2])
        engine.prefix.put([*ids, 1, 2], cache)
        held: dict[int, int] = {}
        for entry in engine.prefix._entries.values():
            held |= entry.buffers()
        assert engine.prefix.num_bytes == sum(held.values()) > 0
        engine.prefix.clear()
        assert engine.prefix.num_bytes == 0


@pytest.mark.slow
def test_without_tiles_chunks_and_prefixes_change_no_bit_in_bfloat16(confident_model, monkeypatch):
    """Machines without AMX; the model is narrow enough for their products not to depend on company."""
    monkeypatch.setattr(tiles, "fits_tiles", lambda q: False)
    monkeypatch.setattr("presswork.ops.linear.fast.has_tiles", lambda: False, raising=False)
    import copy

    model = copy.deepcopy(confident_model).to(torch.bfloat16)
    texts = []
    for config in (EngineConfig(), EngineConfig(prefill_chunk=7), EngineConfig(prefill_chunk=40)):
        engine = Engine(model, config=config)
        ask = dict(prompt_token_ids=prompt_ids(300, 3), max_tokens=24, ignore_eos=True)
        texts += [engine.generate(**ask).token_ids, engine.generate(**ask).token_ids]
    assert texts.count(texts[0]) == len(texts)


def test_a_stop_string_in_held_back_text_ends_the_reply():
    class Whole:
        """Decodes everything at the end, as tokenizers do whose tokens cannot be decoded one by one."""

        def push(self, ids: list[int]) -> str:
            return ""

        def flush(self) -> str:
            return "abcd"

    output = OutputText(None, SamplingParams(stop=("c",)), frozenset(), 3)
    output._decoder = Whole()  # type: ignore[assignment]
    taken = output.take([1, 2, 3])
    assert (taken.text, taken.finish_reason, taken.stop_match) == ("ab", "stop", "c")
