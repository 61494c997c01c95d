"""The masks of the two training passes: what a row must not see changes not a bit of its gradient or output.

keys      0 .. a-1 | a .. T-1 | canvas
canvas    x x x x  | . . . .  | x x x
"""

import pytest
import torch

from presswork.cache.contiguous import SequenceCache
from presswork.testing import run_segment, tiny_config, tiny_model
from presswork.training.attention import as_bias, attend_batch, attend_canvases, canvas_visibility
from presswork.training.loss import decode, encode

LENGTH, CANVAS = 14, 8


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(seed))


def test_the_drawn_mask() -> None:
    visible = canvas_visibility(torch.tensor([0, 3]), 5, None)
    assert visible.int().tolist() == [[0, 0, 0, 0, 0], [1, 1, 1, 0, 0]]
    windowed = canvas_visibility(torch.tensor([1, 4]), 5, 3)
    assert windowed.int().tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 1, 0]]
    packed = canvas_visibility(torch.tensor([2, 4]), 5, None, torch.tensor([0, 2]))
    assert packed.int().tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]


@pytest.mark.parametrize("start", [0, 1, 5, 6, 13, 14])
def test_a_canvas_sees_clean_tokens_before_its_start_and_no_other(model, start: int) -> None:
    """Every clean position is changed in turn: full layers carry anything before the start to the canvas."""
    ids, canvas = tokens(1, LENGTH), tokens(1, CANVAS, seed=1)

    def hidden(clean: torch.Tensor) -> torch.Tensor:
        _, kept = encode(model, clean)
        return decode(model, canvas, torch.tensor([0]), torch.tensor([start]), kept, None)

    before = hidden(ids)
    for position in range(LENGTH):
        other = ids.clone()
        other[0, position] = (other[0, position] + 1) % 64
        assert torch.equal(hidden(other), before) is (position >= start), position


def test_every_canvas_position_sees_every_other(model) -> None:
    ids, canvas = tokens(1, LENGTH), tokens(1, CANVAS, seed=1)
    _, kept = encode(model, ids)
    before = decode(model, canvas, torch.tensor([0]), torch.tensor([4]), kept, None)
    for position in range(CANVAS):
        other = canvas.clone()
        other[0, position] = (other[0, position] + 1) % 64
        after = decode(model, other, torch.tensor([0]), torch.tensor([4]), kept, None)
        assert (after != before).any(1).all()


def test_the_encoder_is_causal_and_examples_are_apart(model) -> None:
    ids = tokens(3, LENGTH)
    before = encode(model, ids)[0].unflatten(0, (3, LENGTH))
    for position in range(LENGTH):
        other = ids.clone()
        other[1, position] = (other[1, position] + 1) % 64
        changed = (encode(model, other)[0].unflatten(0, (3, LENGTH)) != before).any(-1)
        assert not changed[[0, 2]].any() and not changed[1, :position].any() and changed[1, position:].all()


def test_canvases_in_one_pass_equal_canvases_alone(model) -> None:
    ids, canvases = tokens(2, LENGTH), tokens(4, CANVAS, seed=1)
    examples, starts = torch.tensor([0, 1, 1, 0]), torch.tensor([6, 14, 3, 10])
    _, kept = encode(model, ids)
    together = decode(model, canvases, examples, starts, kept, None).unflatten(0, (4, CANVAS))
    for i in range(4):
        alone = decode(model, canvases[i : i + 1], examples[i : i + 1], starts[i : i + 1], kept, None)
        torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-6)


def test_right_padding_changes_nothing_before_it(model) -> None:
    ids, canvas = tokens(1, LENGTH), tokens(1, CANVAS, seed=1)
    padded = torch.cat([ids, torch.zeros(1, 9, dtype=torch.int64)], 1)
    outputs = [
        decode(model, canvas, torch.tensor([0]), torch.tensor([10]), encode(model, clean)[1], None)
        for clean in (ids, padded)
    ]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_attention_and_its_gradients_equal_float64(groups: int) -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, n, h, 8, generator=generator) for n, h in ((5, 4), (9, 4 // groups), (9, 4 // groups)))
    visible = torch.rand(2, 1, 1, 9, generator=generator) < 0.7
    visible[..., 0] = True
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).clone().requires_grad_() for x in (q, k, v)]
        if dtype is torch.float32:
            out = attend_batch(*leaves, as_bias(visible))
        else:
            spread = [x.repeat_interleave(groups, 2) for x in leaves[1:]]
            scores = torch.einsum("bthd,bshd->bhts", leaves[0], spread[0]).masked_fill(~visible, float("-inf"))
            out = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), spread[1])
        out.square().sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_canvas_attention_and_its_gradients_equal_float64(groups: int, repeats: int) -> None:
    generator = torch.Generator().manual_seed(3)
    kv_heads, shape = 4 // groups, (2 * repeats, 5)
    q, k, v = (torch.randn(*shape, heads, 8, generator=generator) for heads in (4, kv_heads, kv_heads))
    before = [torch.randn(2, 7, kv_heads, 8, generator=generator) for _ in range(2)]
    visible = torch.rand(2, repeats, 7, generator=generator) < 0.6
    visible[0, 0] = False  # a canvas may see nothing but itself
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).clone().requires_grad_() for x in (q, *before, k, v)]
        if dtype is torch.float32:
            out = attend_canvases(*leaves, as_bias(visible))
        else:
            spread = [x.repeat_interleave(groups, 2) for x in leaves[1:]]
            keys, values = (
                torch.cat([prefix.repeat_interleave(repeats, 0), own], 1)
                for prefix, own in ((spread[0], spread[2]), (spread[1], spread[3]))
            )
            mask = torch.cat([visible.flatten(0, 1), torch.ones(2 * repeats, 5, dtype=torch.bool)], 1)[:, None, None]
            scores = torch.einsum("bthd,bshd->bhts", leaves[0], keys).masked_fill(~mask, float("-inf"))
            out = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), values)
        out.square().sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_packed_documents_equal_documents_alone(model) -> None:
    """Three documents in one row give what each gives in a row of its own, in both passes."""
    lengths, ids = (5, 3, 6), tokens(1, LENGTH)
    firsts = (0, 5, 8)
    origins = torch.tensor([[0] * 5 + [5] * 3 + [8] * 6])
    starts, canvases = torch.tensor([2, 7, 14]), tokens(3, CANVAS, seed=1)
    hidden, kept = encode(model, ids, origins=origins)
    examples = torch.zeros(3, dtype=torch.int64)
    together = decode(model, canvases, examples, starts, kept, None, origins=torch.tensor(firsts))
    for i, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
        alone, own = encode(model, ids[:, first : first + length])
        torch.testing.assert_close(hidden[first : first + length], alone, rtol=1e-5, atol=1e-6)
        canvas = decode(model, canvases[i : i + 1], torch.tensor([0]), starts[i : i + 1] - first, own, None)
        torch.testing.assert_close(together.unflatten(0, (3, CANVAS))[i], canvas, rtol=1e-5, atol=1e-6)


def test_training_passes_equal_generation_passes() -> None:
    """The same weights give the trainer and the engine the same numbers."""
    model = tiny_model()
    ids, canvas = tokens(1, LENGTH), tokens(1, CANVAS, seed=1)
    hidden, kept = encode(model, ids)
    cache = SequenceCache(tiny_config())
    torch.testing.assert_close(
        hidden, run_segment(model, model.embed_prompt(ids[0]), cache, is_canvas=False), rtol=1e-5, atol=5e-6
    )
    belief = torch.randn(CANVAS, 16, generator=torch.Generator().manual_seed(3)) / 4
    found = decode(model, canvas, torch.tensor([0]), torch.tensor([LENGTH]), kept, belief)
    expected = run_segment(model, model.embed_canvas(canvas[0], belief), cache, is_canvas=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-6)
