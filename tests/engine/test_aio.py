"""The asyncio facade: same events, cancellation, clean end."""

import asyncio
import threading

import pytest

from presswork.engine.aio import AsyncEngine
from presswork.engine.engine import Engine
from presswork.engine.events import Done, Draft
from presswork.errors import EngineClosedError, RequestError
from presswork.grammar.languages import Regex
from tests.engine.conftest import prompt_ids


@pytest.mark.slow
def test_concurrent_requests_equal_the_sync_engine(confident_model):
    async def main() -> list[list[int]]:
        engine = AsyncEngine(Engine(confident_model))
        replies = await asyncio.gather(
            *(engine.generate(prompt_token_ids=prompt_ids(5 + n, n), max_tokens=12, seed=n) for n in range(6))
        )
        await engine.aclose()
        return [reply.token_ids for reply in replies]

    sync = Engine(confident_model)
    expected = [sync.generate(prompt_token_ids=prompt_ids(5 + n, n), max_tokens=12, seed=n).token_ids for n in range(6)]
    assert asyncio.run(main()) == expected


def test_leaving_a_stream_cancels_the_request(confident_model):
    async def main() -> int:
        facade = AsyncEngine(Engine(confident_model))
        stream = facade.stream(prompt_ids(9, 1), facade.engine.defaults.changed(max_tokens=400), drafts=True)
        async for event in stream:
            assert isinstance(event, Draft)
            break
        await stream.aclose()
        for _ in range(500):
            if not facade.engine.num_running:
                break
            await asyncio.sleep(0.01)
        running = facade.engine.num_running
        await facade.aclose()
        return running

    assert asyncio.run(main()) == 0


def test_requests_do_not_wait_behind_languages_that_are_prepared(confident_model, monkeypatch):
    is_free = threading.Event()
    engine = Engine(confident_model)
    submit = engine.submit

    def slow(ids, params=None, **options):
        if params is not None and params.constraint is not None:
            assert is_free.wait(20)
            params = params.changed(constraint=None)
        return submit(ids, params, **options)

    monkeypatch.setattr(engine, "submit", slow)

    async def main() -> None:
        facade = AsyncEngine(engine)
        kept = {"constraint": Regex("a"), "max_tokens": 4}
        slow_ones = [asyncio.ensure_future(facade.generate(prompt_token_ids=[5], **kept)) for _ in range(40)]
        await asyncio.sleep(0.1)
        await asyncio.wait_for(facade.generate(prompt_token_ids=[5], max_tokens=4), 20)
        is_free.set()
        await asyncio.gather(*slow_ones)
        await facade.aclose()
        with pytest.raises(EngineClosedError):
            await facade.generate(prompt_token_ids=[5], max_tokens=4)

    asyncio.run(main())


def test_errors_reach_the_caller(confident_model):
    async def main() -> None:
        facade = AsyncEngine(Engine(confident_model))
        try:
            with pytest.raises(RequestError, match="token id 99"):
                await facade.generate(prompt_token_ids=[99], max_tokens=4)
            events = [
                event async for event in facade.stream(prompt_ids(5, 1), facade.engine.defaults.changed(max_tokens=4))
            ]
            assert isinstance(events[-1], Done)
        finally:
            await facade.aclose()

    asyncio.run(main())


def test_a_prompt_is_given_once(confident_model):
    async def ask(**prompt: object) -> None:
        engine = AsyncEngine(Engine(confident_model))
        try:
            await engine.generate(max_tokens=4, **prompt)
        finally:
            await engine.aclose()

    for prompt in ({}, {"prompt": "text", "prompt_token_ids": [1, 2]}):
        with pytest.raises(RequestError, match="either a prompt text or prompt_token_ids"):
            asyncio.run(ask(**prompt))
