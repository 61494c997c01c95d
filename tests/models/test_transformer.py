"""Properties of the whole stack that hold for any weights; what its numbers are is for tests/parity.

N rows, D model width, V vocabulary.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from presswork.cache.contiguous import SequenceCache
from presswork.config import LayerConfig, LayerKind, ModelConfig, RopeConfig, periodic_layers
from presswork.errors import ConfigError
from presswork.models.transformer import Transformer
from presswork.testing import fixture_config, fixture_model, tiny_config
from presswork.weights.names import checkpoint_places
from tests.models.passes import Piece, canvas, capped_logits, ids, prefill, prompt, run, run_split, stored

NOISE = 5e-5


def released_config() -> ModelConfig:
    """The text part of the released 26B-A4B checkpoint."""
    return ModelConfig(
        vocab_size=262144, hidden_size=2816, intermediate_size=2112, num_attention_heads=16,
        layers=periodic_layers(30, period=6, sliding=(256, 8), full=(512, 2)),
        num_experts=128, top_k_experts=8, moe_intermediate_size=704, sliding_window=1024, canvas_length=256,
        max_position_embeddings=262144,
    )  # fmt: skip


def released_vision_parameters() -> int:
    """Parameters of the released checkpoint's image path, from the shapes of its tensors (buffers excluded)."""
    width, inner, head, layers, patch, table = 1152, 4304, 72, 27, 16, 10240
    embedder = width * 3 * patch**2 + 2 * table * width
    layer = 4 * width * width + 2 * head + 3 * inner * width + 4 * width
    return embedder + layers * layer + 2816 * width


def test_the_released_configuration_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = Transformer(released_config())
    text = sum(parameter.numel() for parameter in model.parameters())
    assert released_vision_parameters() == 572_792_112
    assert text == 25_250_986_752
    assert text + released_vision_parameters() == 25_823_778_864
    places = checkpoint_places(released_config())
    assert len(places) == 1047 - 356
    assert sum(math.prod(place.shape) for place in places.values()) == text + 60


def test_the_embedding_scale_is_rounded_to_the_weights() -> None:
    with torch.device("meta"):
        model = Transformer(replace(tiny_config(), hidden_size=2816))
    assert model.embedding_scale == pytest.approx(53.06599, abs=1e-4)
    assert model.to(torch.bfloat16).embedding_scale == 53.0


def test_rope_angles_stay_exact_in_a_half_precision_model() -> None:
    model = fixture_model().to(torch.bfloat16)
    positions = torch.tensor([0, 1, 777, 100_000])
    tables = model.rope_tables(positions)
    widths: dict[LayerKind, int] = {"sliding": 16, "full": 32}
    for kind, width in widths.items():
        rope = model.config.rope(kind)
        pairs = torch.arange(width // 2, dtype=torch.float64)
        frequencies = rope.theta ** (-2 * pairs / width)
        if kind == "full":
            frequencies[4:] = 0  # a quarter of 32 components rotates, in pairs
        angles = positions[:, None].double() * frequencies
        for table, expected in zip(tables[kind], (angles.cos(), angles.sin()), strict=True):
            assert table.dtype == torch.bfloat16
            # Half a bf16 step, and the float32 rounding of an angle of 100,000.
            torch.testing.assert_close(table.double(), expected, atol=2**-9 + 0.01, rtol=0)


@pytest.fixture(params=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return fixture_model(fixture_config(tie_word_embeddings=request.param == "tied"))


def two_pieces(model: Transformer) -> list[Piece]:
    """A canvas each of two sequences."""
    caches = [prefill(model, ids(length, length))[0] for length in (3, 9)]
    return [canvas(model, cache, ids(8, 40 + i, 0, 64)) for i, cache in enumerate(caches)]


@pytest.mark.parametrize("rows", [[0], [15], [3, 4, 5], [12, 2, 9], list(range(16))], ids=str)
def test_output_rows_are_the_rows_of_the_full_output(model: Transformer, rows: list[int]) -> None:
    everything = run(model, two_pieces(model))
    wanted = run(model, two_pieces(model), torch.tensor(rows))
    torch.testing.assert_close(wanted, everything[rows], atol=NOISE, rtol=0)


def test_output_rows_of_a_mixed_pass_keep_their_own_modes() -> None:
    model = fixture_model()
    model.decoder_scalars[-1] *= -1  # the final norm hides any other difference between the last scalars
    rows = [29, 8, 0, 20]
    everything, wanted = run(model, mixed_pieces(model)), run(model, mixed_pieces(model), torch.tensor(rows))
    torch.testing.assert_close(wanted, everything[rows], atol=NOISE, rtol=0)


@pytest.mark.parametrize("rows", [[], [5]], ids=str)
def test_a_prefill_writes_the_same_cache_whatever_rows_are_wanted(model: Transformer, rows: list[int]) -> None:
    full, hidden = prefill(model, ids(9, 1))
    cache = SequenceCache(model.config)
    found = run(model, [prompt(model, cache, ids(9, 1))], torch.tensor(rows, dtype=torch.long))
    assert found.shape == (len(rows), model.config.hidden_size)
    torch.testing.assert_close(found, hidden[rows], atol=NOISE, rtol=0)
    for mine, theirs in zip(stored(cache), stored(full), strict=True):
        torch.testing.assert_close(mine, theirs, atol=NOISE, rtol=0)


def test_causal_rows_take_the_encoder_scalars_and_canvas_rows_the_decoder_scalars(model: Transformer) -> None:
    def read() -> tuple[Tensor, Tensor]:
        cache, hidden = prefill(model, ids(9, 1))
        return hidden, run(model, [canvas(model, cache, ids(8, 2, 0, 64))])

    encoder, decoder = read()
    model.decoder_scalars.mul_(1.25)
    other_encoder, other_decoder = read()
    assert torch.equal(other_encoder, encoder) and not torch.allclose(other_decoder, decoder, atol=1e-3)
    model.encoder_scalars.mul_(0.75)
    assert not torch.allclose(read()[0], encoder, atol=1e-3)


def test_the_decoder_scalar_of_each_layer_reaches_the_output() -> None:
    model = fixture_model()
    cache, _ = prefill(model, ids(9, 1))
    before = run(model, [canvas(model, cache, ids(8, 2, 0, 64))])
    for layer in range(model.config.num_layers - 1):  # the last layer's scale is undone by the final norm
        model.decoder_scalars[layer] *= 1.5
        after = run(model, [canvas(model, cache, ids(8, 2, 0, 64))])
        assert not torch.allclose(before, after, atol=1e-3), layer
        model.decoder_scalars[layer] /= 1.5


def mixed_pieces(model: Transformer) -> list[Piece]:
    """A canvas with a belief, a prompt's next chunk, a new prompt and a canvas over nothing."""
    caches = [prefill(model, ids(length, length))[0] for length in (7, 4)]
    belief = torch.randn(8, 64, generator=torch.Generator().manual_seed(5))
    return [
        canvas(model, caches[0], ids(8, 60, 0, 64), belief),
        prompt(model, caches[1], ids(9, 61)),
        prompt(model, SequenceCache(model.config), ids(5, 62)),
        canvas(model, SequenceCache(model.config), ids(8, 63, 0, 64)),
    ]


def test_a_mixed_pass_equals_separate_passes() -> None:
    model = fixture_model()
    together, alone = mixed_pieces(model), mixed_pieces(model)
    for found, piece in zip(run_split(model, together), alone, strict=True):
        torch.testing.assert_close(found, run(model, [piece]), atol=NOISE, rtol=0)
    for mine, theirs in zip(together[1:3], alone[1:3], strict=True):
        for a, b in zip(stored(mine.cache), stored(theirs.cache), strict=True):
            torch.testing.assert_close(a, b, atol=NOISE, rtol=0)


def test_the_order_of_sequences_in_a_pass_does_not_matter() -> None:
    model = fixture_model()
    forth = run_split(model, mixed_pieces(model))
    back = run_split(model, mixed_pieces(model)[::-1])
    for a, b in zip(forth, reversed(back), strict=True):
        torch.testing.assert_close(a, b, atol=NOISE, rtol=0)


def test_a_later_prompt_token_changes_no_earlier_row_and_every_later_one() -> None:
    model, tokens = fixture_model(), ids(12, 3)
    _, before = prefill(model, tokens)
    for place in range(12):
        other = tokens.clone()
        other[place] = (tokens[place] + 1) % 64
        change = (prefill(model, other)[1] - before).abs().amax(1)
        assert (change[:place] < NOISE).all() and (change[place:] > 1e-3).all(), place


def test_every_canvas_token_changes_every_canvas_row() -> None:
    model, tokens = fixture_model(), ids(8, 4, 0, 64)
    cache, _ = prefill(model, ids(9, 5))
    before = run(model, [canvas(model, cache, tokens)])
    for place in range(8):
        other = tokens.clone()
        other[place] = (tokens[place] + 1) % 64
        assert ((run(model, [canvas(model, cache, other)]) - before).abs().amax(1) > 1e-3).all(), place


def test_a_canvas_over_an_empty_prompt_is_finite_and_leaves_the_cache_empty() -> None:
    model = fixture_model()
    cache = SequenceCache(model.config)
    logits = capped_logits(model, run(model, [canvas(model, cache, ids(8, 6, 0, 64))]))
    assert logits.isfinite().all() and logits.std() > 0.1
    assert cache.length == 0


def test_only_relative_positions_matter() -> None:
    # Float32 angles of far positions are rounded, so the tolerance is wider than elsewhere.
    model = fixture_model()
    tokens = ids(8, 7, 0, 64)
    near = run(model, [canvas(model, SequenceCache(model.config), tokens, position=0)])
    far = run(model, [canvas(model, SequenceCache(model.config), tokens, position=300)])
    torch.testing.assert_close(far, near, atol=1e-3, rtol=0)


def test_a_zero_belief_equals_no_belief() -> None:
    model = fixture_model()
    tokens = ids(8, 8, 0, 64)
    assert torch.equal(model.embed_canvas(tokens, torch.zeros(8, 48)), model.embed_canvas(tokens, None))


def test_canvas_embeddings_have_unit_size_and_follow_the_belief() -> None:
    model = fixture_model()
    tokens, soft = ids(8, 9, 0, 64), model.decoder.embedding[ids(8, 10, 0, 64)]
    plain, conditioned = model.embed_canvas(tokens, None), model.embed_canvas(tokens, soft)
    for x in (plain, conditioned):
        torch.testing.assert_close(x.square().mean(-1), torch.ones(8), atol=1e-4, rtol=0)
    assert ((plain - conditioned).abs().amax(1) > 1e-3).all()


def test_sequences_resumed_from_one_snapshot_run_as_if_alone() -> None:
    model, tokens = fixture_model(), ids(9, 11)
    prefix, _ = prefill(model, tokens)
    twins = [prefix.snapshot() for _ in range(2)]
    prefix.release()
    ends = [ids(7, 12), ids(6, 13)]
    run(model, [prompt(model, cache, end) for cache, end in zip(twins, ends, strict=True)])
    for cache, end in zip(twins, ends, strict=True):
        alone, _ = prefill(model, torch.cat([tokens, end]))
        found, expected = (run(model, [canvas(model, c, ids(8, 14, 0, 64))]) for c in (cache, alone))
        torch.testing.assert_close(found, expected, atol=NOISE, rtol=0)


def test_an_untied_model_refuses_a_mixed_pass() -> None:
    model = fixture_model(fixture_config(tie_word_embeddings=False))
    pieces = [prompt(model, SequenceCache(model.config), ids(3, 15)),
              canvas(model, SequenceCache(model.config), ids(8, 16, 0, 64))]  # fmt: skip
    with pytest.raises(ValueError, match="separate passes"):
        run(model, pieces)


def test_an_untied_model_uses_its_own_encoder_and_head() -> None:
    model = fixture_model(fixture_config(tie_word_embeddings=False))
    assert model.own_encoder is not None and model.own_head is not None

    def read() -> tuple[Tensor, Tensor]:
        cache, hidden = prefill(model, ids(9, 1))
        return hidden, run(model, [canvas(model, cache, ids(8, 2, 0, 64))])

    encoder, decoder = read()
    logits = capped_logits(model, decoder)
    model.own_head.mul_(2)
    assert torch.equal(read()[1], decoder) and not torch.allclose(capped_logits(model, decoder), logits, atol=1e-2)
    for parameter in model.decoder.parameters():
        parameter.mul_(torch.linspace(0.5, 1.5, parameter.shape[-1]))
    assert torch.equal(read()[0], encoder) and not torch.allclose(read()[1], decoder, atol=1e-3)
    model.own_encoder.embedding.mul_(torch.linspace(0.5, 1.5, 48))
    assert not torch.allclose(read()[0], encoder, atol=1e-3)


def test_a_stretched_rope_moves_only_by_its_factor() -> None:
    plain = fixture_model(replace(fixture_config(), full_rope=RopeConfig(theta=1e6, proportional=True)))
    slow = fixture_model(replace(fixture_config(), full_rope=RopeConfig(theta=1e6, proportional=True, factor=4.0)))
    near, far = plain.rope_tables(torch.arange(6))["full"], slow.rope_tables(4 * torch.arange(6))["full"]
    for a, b in zip(near, far, strict=True):
        torch.testing.assert_close(a, b)


def test_layers_of_one_kind_that_cannot_share_a_rope_table_are_refused() -> None:
    layers = tuple(LayerConfig(kind="full", head_dim=width, num_key_value_heads=1) for width in (8, 16))
    with pytest.raises(ConfigError, match=r"all full layers must share one head_dim .* got \[8, 16\]"):
        tiny_config(layers=layers)


@pytest.mark.parametrize("sizes", [(300, 260), (1, 559), (257, 3, 300), (40,) * 14], ids=str)
def test_where_a_prefill_is_cut_changes_no_bit(sizes: tuple[int, ...]) -> None:
    # Longer than two aligned spans of attention, with a window far shorter than one.
    model, tokens = fixture_model(tiny_config(sliding_window=40)), ids(560, 17, 0, 64)
    whole, expected = prefill(model, tokens)
    cache = SequenceCache(model.config)
    hidden = torch.cat([run(model, [prompt(model, cache, chunk)]) for chunk in tokens.split(sizes)])
    assert torch.equal(hidden, expected)
    for mine, theirs in zip(stored(cache), stored(whole), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a, b)
