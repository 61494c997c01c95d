"""The training losses and every gradient against transformers' model, one row at a time, in float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from presswork.models.transformer import Transformer
from presswork.testing import fixture_config, fixture_model
from presswork.training.loss import Batch, batch_losses
from presswork.weights.names import checkpoint_places
from tests.models.passes import ids

ROWS, LENGTH, CANVAS = 2, 24, 8
STARTS = ((4, 12), (9, 16))


def batch() -> Batch:
    """Two rows, two canvases of each; the second of the first row and the first of the second are fed a belief."""
    rows = torch.stack([ids(LENGTH, 1), ids(LENGTH, 2)])
    starts = torch.tensor(STARTS)
    x0 = torch.stack([rows[r, s : s + CANVAS] for r, row in enumerate(STARTS) for s in row])
    targets = torch.full_like(rows, -100)
    targets[:, 2:-1] = rows[:, 3:]
    return Batch(
        ids=rows, targets=targets, examples=torch.tensor([0, 0, 1, 1]), starts=starts.flatten(), x0=x0,
        xt=torch.stack([ids(CANVAS, 10 + i, 0, 64) for i in range(4)]), self_conditioned=torch.tensor([1, 2]),
    )  # fmt: skip


def reference_losses(oracle: Any, given: Batch) -> tuple[Tensor, Tensor]:
    """(canvas loss, causal loss) as spelled out by transformers' own passes."""
    causal, canvases = [], []
    cap = oracle.config.final_logit_softcapping
    for row in range(ROWS):
        cache = oracle.new_cache()
        hidden = oracle.encode(given.ids[row], cache)
        logits = cap * torch.tanh(oracle.model.lm_head(hidden) / cap)
        causal.append(F.cross_entropy(logits, given.targets[row], reduction="none", ignore_index=-100))
        for i in (given.examples == row).nonzero().flatten().tolist():
            start = int(given.starts[i])
            before = oracle.new_cache()
            oracle.encode(given.ids[row, :start], before)
            belief = None
            if i in given.self_conditioned.tolist():
                with torch.no_grad():
                    belief = oracle.denoise(given.xt[i], before)
            canvases.append(F.cross_entropy(oracle.denoise(given.xt[i], before, belief), given.x0[i]))
    counted = (given.targets != -100).sum()
    return torch.stack(canvases).mean(), torch.cat(causal).sum() / counted


@pytest.mark.parametrize("encoder_weight", [1.0, 0.25])
def test_losses_and_gradients_equal_transformers(encoder_weight: float, build_oracle: Callable) -> None:
    model: Transformer = fixture_model(fixture_config()).requires_grad_(True)
    oracle, given = build_oracle(model), batch()
    oracle.model.requires_grad_(True)
    found = batch_losses(model, given, encoder_weight=encoder_weight)
    found.total.backward()
    diffusion, encoder = reference_losses(oracle, given)
    (diffusion + encoder_weight * encoder).backward()
    torch.testing.assert_close(found.diffusion, diffusion.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.encoder, encoder.detach(), rtol=1e-5, atol=1e-5)
    theirs = dict(oracle.model.named_parameters(remove_duplicate=False))
    ours = dict(model.named_parameters())
    compared = 0
    for name, place in checkpoint_places(model.config).items():
        if name in theirs and theirs[name].grad is not None and place.parameter in ours:
            grad = ours[place.parameter].grad
            assert grad is not None
            expected = theirs[name].grad
            if place.parameter == "decoder.embedding":
                # transformers' lookup gives the padding token's row no gradient.
                grad[model.config.pad_token_id] = expected[model.config.pad_token_id]
            scale = float(expected.abs().max())
            torch.testing.assert_close(
                grad[place.start : place.stop].reshape(expected.shape), expected, rtol=1e-3, atol=2e-5 + 1e-4 * scale,
                msg=lambda text, name=name: f"{name}: {text}",
            )  # fmt: skip
            compared += 1
    assert compared >= len(ours)
