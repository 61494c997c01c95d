"""The engine end to end on the fixture model: exact lengths, equality of solo and crowded runs, events, failures."""

import threading

import pytest
import torch

from presswork.cache.contiguous import SequenceCache
from presswork.diffusion.accept import ConfidenceRule
from presswork.engine.engine import Engine, EngineConfig
from presswork.engine.events import Commit, Done, Draft
from presswork.engine.params import SamplingParams
from presswork.errors import EngineClosedError, NonFiniteError, QueueFullError, RequestError, UnsupportedError
from presswork.models.transformer import Transformer
from presswork.testing import full_logits, run_segment
from tests.engine.conftest import prompt_ids

MIXED = [
    dict(ids=prompt_ids(1, 1), max_tokens=5, seed=1),
    dict(ids=prompt_ids(4, 2), max_tokens=17, seed=2, max_denoising_steps=9),
    dict(ids=prompt_ids(5, 3), max_tokens=24, seed=3, entropy_bound=1.0, confidence_threshold=1.0),
    dict(ids=prompt_ids(13, 4), max_tokens=9, seed=4, mode="ar"),
    dict(ids=prompt_ids(30, 5), max_tokens=16, seed=5, accept_threshold=0.6),
    dict(ids=prompt_ids(7, 6), max_tokens=8, seed=6, top_k=3),
    dict(ids=prompt_ids(6, 7), max_tokens=20, seed=7, mode="ar", repetition_penalty=1.3, top_p=0.9),
    dict(ids=prompt_ids(19, 8), max_tokens=12, seed=8, canvas_length=5, temperature=0.0),
    dict(
        ids=prompt_ids(8, 9),
        max_tokens=24,
        seed=9,
        presence_penalty=1.5,
        frequency_penalty=0.5,
        logit_bias={3: -2.0},
        banned_token_ids=(4, 3),
    ),
]


def start(engine: Engine, case: dict):
    params = {key: value for key, value in case.items() if key != "ids"}
    return engine.submit(case["ids"], engine.defaults.changed(ignore_eos=True, **params))


def finish(engine: Engine, request) -> list[int]:
    return next(event.reply.token_ids for event in list(engine.events(request)) if isinstance(event, Done))


@pytest.fixture(scope="module")
def solo_tokens(confident_model):
    return [finish(engine, start(engine, case)) for case in MIXED for engine in (Engine(confident_model),)]


@pytest.mark.parametrize("num", [1, 7, 8, 9, 24, 25])
@pytest.mark.parametrize("mode", ["diffusion", "ar"])
def test_max_tokens_is_exact(engine, num, mode):
    reply = engine.generate(prompt_token_ids=prompt_ids(7, 1), max_tokens=num, ignore_eos=True, mode=mode)
    assert len(reply.token_ids) == num == reply.usage.completion_tokens
    assert reply.finish_reason == "length"


def test_a_crowd_changes_nothing(confident_model, solo_tokens):
    engine = Engine(confident_model)
    requests = [start(engine, case) for case in MIXED]
    assert [finish(engine, request) for request in requests] == solo_tokens


@pytest.mark.slow
def test_late_arrivals_change_nothing(confident_model, solo_tokens):
    engine = Engine(confident_model)
    requests = []
    for case in MIXED:
        requests.append(start(engine, case))
        engine.step()
        engine.step()
    assert [finish(engine, request) for request in requests] == solo_tokens


@pytest.mark.slow
def test_the_prefix_cache_changes_nothing(confident_model, solo_tokens):
    engine = Engine(confident_model)
    first = [finish(engine, start(engine, case)) for case in MIXED]
    again = [finish(engine, start(engine, case)) for case in MIXED]
    assert first == again == solo_tokens
    assert engine.prefix.num_hits >= sum(case.get("mode") != "ar" for case in MIXED)


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 8])
def test_prefill_chunks_change_nothing(confident_model, solo_tokens, chunk):
    engine = Engine(confident_model, config=EngineConfig(prefill_chunk=chunk))
    assert [finish(engine, start(engine, case)) for case in MIXED] == solo_tokens


@pytest.mark.slow
def test_few_rows_a_pass_and_few_running_change_nothing(confident_model, solo_tokens):
    engine = Engine(confident_model, config=EngineConfig(max_rows=9, max_running=3, prefix_cache_bytes=0))
    requests = [start(engine, case) for case in MIXED]
    assert [finish(engine, request) for request in requests] == solo_tokens


@pytest.mark.slow
def test_seeds_differ_and_repeat(engine):
    ask = dict(prompt_token_ids=prompt_ids(7, 1), max_tokens=16, ignore_eos=True, entropy_bound=1.0)
    one, two, again = (engine.generate(seed=seed, **ask).token_ids for seed in (1, 2, 1))
    assert one == again != two


def test_finished_canvases_leave_at_once(confident_model):
    """A request that converges early ends while a slow one is still on its first canvas: no lockstep."""
    engine = Engine(confident_model)
    slow = engine.submit(
        prompt_ids(7, 1), engine.defaults.changed(max_tokens=8, stability_threshold=None, ignore_eos=True)
    )
    fast = engine.submit(
        prompt_ids(7, 9), engine.defaults.changed(max_tokens=8, max_denoising_steps=2, ignore_eos=True)
    )
    while not fast.ended:
        engine.step()
    assert not slow.ended and slow.num_denoise_steps == 2
    assert len(finish(engine, slow)) == 8


def test_the_last_canvas_is_not_committed(engine):
    request = engine.submit(prompt_ids(7, 1), engine.defaults.changed(max_tokens=16, ignore_eos=True))
    lengths = []
    while not request.ended:
        engine.step()
        if request.cache is not None:
            lengths.append(request.cache.length)
    assert max(lengths) == 7 + 8
    assert request.num_passes == request.num_denoise_steps, "prefill and commits ride with denoise steps"


def test_automatic_canvas_length_shrinks_to_what_is_left(engine):
    request = engine.submit(
        prompt_ids(7, 1),
        engine.defaults.changed(max_tokens=11, max_denoising_steps=2, ignore_eos=True),
        wants_drafts=True,
    )
    drafts = [event for event in engine.events(request) if isinstance(event, Draft)]
    assert [len(draft.token_ids) for draft in drafts] == [8, 8, 3, 3]


def test_events_come_in_order_and_end_once(engine):
    events = list(engine.stream(prompt_token_ids=prompt_ids(7, 1), max_tokens=16, ignore_eos=True, drafts=True))
    assert isinstance(events[-1], Done) and sum(isinstance(event, Done) for event in events) == 1
    commits = [event for event in events if isinstance(event, Commit)]
    assert [token for commit in commits for token in commit.token_ids] == events[-1].reply.token_ids
    for commit in commits:
        own = [event for event in events if isinstance(event, Draft) and event.canvas_index == commit.canvas_index]
        assert [draft.step for draft in own] == list(range(1, commit.num_steps + 1))
        assert own[-1].token_ids[: len(commit.token_ids)] == commit.token_ids


@pytest.mark.slow
def test_end_tokens_end_and_min_tokens_holds_them_off(confident_model):
    ask = dict(prompt_token_ids=prompt_ids(7, 1), max_tokens=40, seed=0)
    engine = Engine(confident_model, generation_config={"eos_token_id": [39, 1, 16]})
    plain = engine.generate(**ask)
    assert plain.finish_reason == "stop" and plain.token_ids[-1] in (39, 1, 16)
    assert not set(plain.token_ids[:-1]) & {39, 1, 16}
    for mode in ("diffusion", "ar"):
        late = engine.generate(min_tokens=12, mode=mode, **ask)
        assert not set(late.token_ids[:12]) & {39, 1, 16}
    assert engine.generate(ignore_eos=True, **ask).finish_reason == "length"


@pytest.mark.parametrize("mode", ["diffusion", "ar"])
def test_biases_rule_tokens_in_and_out(engine, mode):
    ask = dict(prompt_token_ids=prompt_ids(5, 1), max_tokens=20, ignore_eos=True, mode=mode)
    assert engine.generate(**ask, logit_bias={5: 1000.0}).token_ids == [5] * 20
    plain = engine.generate(**ask).token_ids
    assert set(plain) & set(engine.generate(**ask, logit_bias=dict.fromkeys(set(plain), -1000.0)).token_ids) == set()


@pytest.mark.parametrize("mode", ["diffusion", "ar"])
def test_only_tokens_that_may_be_written_are(engine, mode):
    ask = dict(prompt_token_ids=prompt_ids(5, 1), max_tokens=20, mode=mode)
    for sampling in ({}, {"top_k": 5}, {"repetition_penalty": 1.5}, {"min_tokens": 20}):
        written = engine.generate(**ask, **sampling, allowed_token_ids=[5, 9, 20]).token_ids
        assert written and set(written) <= {5, 9, 20, *engine.end_ids}
        assert set(engine.generate(**ask, **sampling, allowed_token_ids=[5, 9], banned_token_ids=[9]).token_ids) <= {
            5, *engine.end_ids,
        }  # fmt: skip
    plain = engine.generate(**ask, ignore_eos=True).token_ids
    others = engine.generate(**ask, ignore_eos=True, banned_token_ids=sorted(set(plain))).token_ids
    assert not set(plain) & set(others)


def test_token_sets_that_leave_nothing_are_refused(engine):
    ask, vocab = dict(prompt_token_ids=[3], max_tokens=4), engine.model.config.vocab_size
    for params, message in (
        ({"banned_token_ids": range(vocab)}, "leave no token to write; allow some"),
        ({"allowed_token_ids": [vocab]}, f"allowed_token_ids must lie in 0..{vocab - 1}, got {vocab}"),
        ({"banned_token_ids": "abc"}, "banned_token_ids must be a list of token ids"),
        ({"banned_token_ids": [7], "pins": {2: 7}}, "pins hold token 7, which may not be written"),
        ({"allowed_token_ids": [8], "pins": {2: 7}}, "pins hold token 7, which may not be written"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.generate(**ask, **params)


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_penalties_count_what_was_written_before(engine, name):
    ask = dict(prompt_token_ids=prompt_ids(5, 1), ignore_eos=True)
    written = engine.generate(**ask, mode="ar", max_tokens=30, **{name: 100.0}).token_ids
    assert len(set(written)) == 30
    # Of a canvas's own tokens nothing is known before it is committed; later canvases keep off them.
    canvases = engine.generate(**ask, max_tokens=24, canvas_length=8, **{name: 100.0}).token_ids
    first, second, third = set(canvases[:8]), set(canvases[8:16]), set(canvases[16:])
    assert not (first & second or (first | second) & third)


def test_a_frequency_penalty_grows_with_every_use(engine):
    ask = dict(prompt_token_ids=prompt_ids(5, 1), ignore_eos=True, mode="ar", max_tokens=12, temperature=0.0)
    # Logits lie within 30 of zero: 200 ahead, 40 less with every use, it wins four times and cannot win an eighth.
    written = engine.generate(**ask, logit_bias={5: 200.0}, frequency_penalty=40.0).token_ids
    assert written[:4] == [5] * 4 and written.count(5) <= 7


def test_cancel_frees_everything(engine):
    requests = [engine.submit(prompt_ids(9, n), engine.defaults.changed(max_tokens=64)) for n in range(4)]
    engine.step()
    for request in requests:
        engine.cancel(request)
    assert engine.num_running == engine.num_waiting == 0
    assert all(request.cache is None and request.canvas is None for request in requests)
    assert [event.reply.finish_reason for event in engine.events(requests[0]) if isinstance(event, Done)] == [
        "cancelled"
    ]


def test_closing_a_stream_cancels(engine):
    stream = engine.stream(prompt_token_ids=prompt_ids(9, 1), max_tokens=64, drafts=True)
    next(stream)
    stream.close()
    assert engine.num_running == 0


def test_the_queue_is_bounded(confident_model):
    engine = Engine(confident_model, config=EngineConfig(max_waiting=2, max_running=1))
    requests = [engine.submit(prompt_ids(3, n)) for n in range(2)]
    with pytest.raises(QueueFullError, match="max_waiting is 2"):
        engine.submit(prompt_ids(3, 3))
    for request in requests:
        engine.cancel(request)
    engine.submit(prompt_ids(3, 4))


def test_a_long_list_of_prompts_waits_for_room_in_the_queue(confident_model):
    engine = Engine(confident_model, config=EngineConfig(max_waiting=2, max_running=2))
    prompts = [prompt_ids(3, n) for n in range(9)]
    replies = engine.generate(prompt_token_ids=prompts, max_tokens=3, max_denoising_steps=2, ignore_eos=True)
    assert [len(reply.token_ids) for reply in replies] == [3] * 9


def test_logits_that_are_not_finite_fail_their_request_alone(confident_model):
    params = dict(max_tokens=8, ignore_eos=True)
    alone = Engine(confident_model).generate(prompt_token_ids=[5, 6, 7], **params).token_ids
    engine = Engine(confident_model)
    sick, well = (engine.submit(ids, engine.defaults.changed(**params)) for ids in ([7, 5, 9], [5, 6, 7]))
    run = engine._runner.run
    engine._runner.run = lambda items: [  # type: ignore[method-assign]
        hidden * float("nan") if item.request is sick else hidden
        for item, hidden in zip(items, run(items), strict=True)
    ]
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        engine.reply(sick)
    assert engine.reply(well).token_ids == alone and engine.num_running == 0


@pytest.mark.parametrize("mode", ["diffusion", "ar"])
@pytest.mark.parametrize(
    "params", [dict(temperature=0.5), dict(top_k=3), dict(top_p=0.5), dict(repetition_penalty=2.0), {}]
)
def test_parameters_do_to_the_logits_what_they_say(engine, mode, params):
    """Entropies of the first step, or logs of the tokens drawn, against the definition."""
    prompt = prompt_ids(7, 1)
    request = engine.submit(
        prompt, engine.defaults.changed(mode=mode, max_tokens=8, max_denoising_steps=2, ignore_eos=True, **params)
    )
    engine.step()
    if mode == "diffusion":
        z, scale = engine.canvas_logits(prompt, request.noise.initial_canvas(0, 8, 64).tolist()), 0.8
    else:
        z, scale = causal_logits(engine.model, prompt)[-1:], 1.0
    if "repetition_penalty" in params:
        seen = torch.tensor(sorted(set(prompt)))
        z[:, seen] = torch.where(z[:, seen] > 0, z[:, seen] / 2, z[:, seen] * 2)
    p = (z / (scale * params.get("temperature", 1.0))).softmax(-1)
    p, order = p.sort(descending=True)
    if "top_k" in params:
        p[:, 3:] = 0
    if "top_p" in params:
        p[p.cumsum(-1) - p >= 0.5] = 0
    p /= p.sum(-1, keepdim=True)
    if mode == "diffusion":
        assert request.canvas is not None
        torch.testing.assert_close(request.canvas.entropy, torch.special.entr(p).sum(-1), atol=1e-4, rtol=1e-4)
        return
    allowed = set(order[0, p[0] > 1e-6].tolist())
    drawn = [engine.generate(
        prompt_token_ids=prompt, mode="ar", max_tokens=1, ignore_eos=True, seed=seed, **params
    ).token_ids[0] for seed in range(200)]  # fmt: skip
    assert set(drawn) <= allowed
    share = torch.tensor([drawn.count(token) / 200 for token in order[0].tolist()])
    assert (share - p[0]).abs().max() < 0.13  # four standard deviations and more


def test_an_accept_threshold_is_a_rule_of_its_own():
    assert SamplingParams(accept_threshold=0.6).rules().accept == ConfidenceRule(0.6)


def test_limits_of_a_pass_are_kept(confident_model):
    engine = Engine(confident_model, config=EngineConfig(prefill_chunk=8))
    request = engine.submit(prompt_ids(30, 1), engine.defaults.changed(max_tokens=8))
    engine.step()
    assert request.cache is not None and request.cache.length == 8
    engine = Engine(confident_model, config=EngineConfig(max_rows=9))
    requests = [engine.submit(prompt_ids(1, n), engine.defaults.changed(max_tokens=8)) for n in range(3)]
    engine.step()
    assert sum(one.num_passes for one in requests) == 1


def test_requests_share_a_pass_of_the_model(confident_model, monkeypatch):
    calls: list[int] = []
    forward = Transformer.forward
    monkeypatch.setattr(Transformer, "forward", lambda self, *args: calls.append(1) or forward(self, *args))
    engine = Engine(confident_model)
    for n in range(3):
        engine.submit(prompt_ids(3, n), engine.defaults.changed(max_tokens=8))
    engine.step()
    assert len(calls) == 1


def test_logprobs_match_the_model_at_the_committing_step(confident_model):
    engine = Engine(confident_model)
    reply = engine.generate(
        prompt_token_ids=prompt_ids(7, 1), max_tokens=8, max_denoising_steps=1, logprobs=3, ignore_eos=True, seed=3
    )
    request_noise = engine.submit(prompt_ids(7, 1), engine.defaults.changed(seed=3)).noise
    canvas = request_noise.initial_canvas(0, 8, 64).tolist()
    expected = torch.log_softmax(engine.canvas_logits(prompt_ids(7, 1), canvas), -1)
    assert reply.logprobs is not None and len(reply.logprobs) == 8
    for position, entry in enumerate(reply.logprobs):
        assert entry.token_id == int(expected[position].argmax()) == reply.token_ids[position]
        assert entry.logprob == pytest.approx(float(expected[position].max()), abs=1e-5)
        assert [token for token, _ in entry.top] == expected[position].topk(3).indices.tolist()
        assert entry.num_steps == entry.settled_step == 1


def causal_logits(model, ids: list[int]) -> torch.Tensor:
    embedded = model.embed_prompt(torch.tensor(ids))
    return full_logits(model, run_segment(model, embedded, SequenceCache(model.config), is_canvas=False))


def test_score_is_the_causal_likelihood(confident_model, engine):
    prompt, completion = prompt_ids(9, 1), prompt_ids(5, 2)
    logprobs = torch.log_softmax(causal_logits(confident_model, prompt + completion), -1)
    expected = logprobs[8:13].gather(1, torch.tensor(completion)[:, None])[:, 0]
    assert engine.score(prompt, completion) == pytest.approx(expected.tolist(), abs=1e-4)


def test_ar_tokens_follow_the_causal_distribution(engine):
    """Greedy ar decoding picks, at every position, the token that score calls most likely."""
    prompt = prompt_ids(7, 3)
    reply = engine.generate(prompt_token_ids=prompt, mode="ar", max_tokens=3, temperature=0.0, ignore_eos=True)
    for count in range(3):
        before = prompt + reply.token_ids[:count]
        chosen = engine.score(before, [reply.token_ids[count]])[0]
        assert all(engine.score(before, [token])[0] <= chosen + 1e-5 for token in range(0, 64, 3))


@pytest.mark.slow
def test_threads_share_the_engine(confident_model, solo_tokens):
    engine = Engine(confident_model)
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        found[number] = finish(engine, start(engine, MIXED[number]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(MIXED))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(len(MIXED))] == solo_tokens


def test_a_closed_engine_refuses(confident_model):
    engine = Engine(confident_model)
    request = engine.submit(prompt_ids(5, 1))
    engine.close()
    with pytest.raises(EngineClosedError):
        list(engine.events(request))
    with pytest.raises(EngineClosedError):
        engine.submit(prompt_ids(5, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(), "give either a prompt"),
        (dict(prompt_token_ids=[1, 64]), "token id 64 at position 1 is not an integer in 0..63"),
        (dict(prompt_token_ids=[1], max_tokens=0), "max_tokens must be an integer of at least 1"),
        (dict(prompt_token_ids=[1], max_tokens=10**6), "leave 511 of the context of 512"),
        (dict(prompt_token_ids=[1] * 512), "shorten the prompt"),
        (dict(prompt_token_ids=[], mode="ar"), "at least one prompt token"),
        (dict(prompt_token_ids=[1], mode="causal"), "'diffusion' or 'ar'"),
        (dict(prompt_token_ids=[1], temprature=1), "unknown sampling parameter 'temprature'"),
        (dict(prompt_token_ids=[1], temperature=-1), "temperature must be a number"),
        (dict(prompt_token_ids=[1], top_p=0), "top_p must be a number"),
        (dict(prompt_token_ids=[1], seed=-1), "seed must be an integer"),
        (dict(prompt_token_ids=[1], t_min=0.9), "t_min must lie in"),
        (dict(prompt_token_ids=[1], entropy_bound=0), "entropy_bound must be above 0"),
        (dict(prompt_token_ids=[1], stop=""), "stop must be one or more non-empty strings"),
        (dict(prompt_token_ids=[1], min_tokens=9, max_tokens=8), "must not exceed max_tokens"),
    ],
)
def test_bad_requests_say_what_is_wrong(engine, arguments, message):
    with pytest.raises(RequestError, match=message.replace("(", r"\(")):
        engine.generate(**arguments)


def test_text_needs_a_tokenizer(engine):
    with pytest.raises(UnsupportedError, match="has no tokenizer"):
        engine.generate("hello")
    with pytest.raises(UnsupportedError, match="stop strings need a tokenizer"):
        engine.generate(prompt_token_ids=[1], stop="x")
    with pytest.raises(UnsupportedError, match="no chat template"):
        engine.chat([{"role": "user", "content": "hello"}])


def test_an_empty_prompt_is_fine_in_diffusion_mode(engine):
    assert len(engine.generate(prompt_token_ids=[], max_tokens=9, ignore_eos=True).token_ids) == 9
