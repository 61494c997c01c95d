"""Losses: worked by hand, against float64, what counts and what does not, and where gradients flow."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from presswork.models.adapters import LoraConfig
from presswork.models.transformer import Transformer
from presswork.testing import tiny_model
from presswork.training.loss import Batch, Drafts, RouterLoads, batch_losses, decode, draft_canvases, encode
from presswork.training.trainer import recompute_layers
from presswork.weights.lora import merge_adapter, new_adapter

CANVAS, VOCAB = 8, 64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def batch(**changes: object) -> Batch:
    ids = draw(2, 20)
    targets = torch.full_like(ids, -100)
    targets[:, 3:-1] = ids[:, 4:]
    whole = Batch(
        ids=ids, targets=targets, examples=torch.tensor([0, 1, 1]), starts=torch.tensor([4, 4, 12]),
        x0=torch.stack([ids[0, 4:12], ids[1, 4:12], ids[1, 12:20]]), xt=draw(3, CANVAS, seed=1),
        self_conditioned=torch.tensor([0, 2]),
    )  # fmt: skip
    return replace(whole, **changes)  # type: ignore[arg-type]


@pytest.fixture
def model() -> Transformer:
    return tiny_model().requires_grad_(True)


def softcapped(hidden: Tensor, model: Transformer) -> Tensor:
    cap = model.config.final_logit_softcapping
    return cap * torch.tanh(hidden @ model.head.T / cap)


def plain_losses(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """(diffusion, encoder) written out: whole logits, one canvas at a time, a first pass wherever it is fed back."""
    hidden, kept = encode(model, batch.ids)
    encoder = F.cross_entropy(softcapped(hidden, model), batch.targets.flatten(), ignore_index=-100)
    losses = []
    for i in range(batch.x0.shape[0]):
        where = (batch.examples[i : i + 1], batch.starts[i : i + 1], kept)
        belief = None
        if i in batch.self_conditioned.tolist():
            with torch.no_grad():
                first = softcapped(decode(model, batch.xt[i : i + 1], *where, None), model).softmax(-1)
            belief = first @ model.decoder.embedding
        logits = softcapped(decode(model, batch.xt[i : i + 1], *where, belief), model)
        losses.append(F.cross_entropy(logits, batch.x0[i]))
    return torch.stack(losses).mean(), encoder


@pytest.mark.parametrize("chosen", [[], [1], [0, 2], [0, 1, 2]])
def test_the_batch_loss_equals_the_loss_written_out(model, chosen: list[int]) -> None:
    given = batch(self_conditioned=torch.tensor(chosen, dtype=torch.int64))
    found = batch_losses(model, given, encoder_weight=0.5)
    found.total.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    diffusion, encoder = plain_losses(model, given)
    (diffusion + 0.5 * encoder).backward()
    torch.testing.assert_close(found.diffusion, diffusion.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.encoder, encoder.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.total.detach(), (diffusion + 0.5 * encoder).detach(), rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(grads[name], parameter.grad, rtol=2e-3, atol=2e-5, msg=name)


def test_without_the_canvas_loss_only_the_causal_mode_is_trained(model) -> None:
    """No canvas pass, no gradient for what only canvases use, and the same causal loss and gradient."""
    alone = batch_losses(model, batch(), diffusion_weight=0.0, balance_weight=0.5)
    both = batch_losses(model, batch())
    assert float(alone.diffusion) == 0 and alone.hidden.shape == (0, 16) and float(alone.balance) > 0
    torch.testing.assert_close(alone.encoder, both.encoder, rtol=0, atol=0)
    torch.testing.assert_close(alone.total, alone.encoder + 0.5 * alone.balance)
    alone.total.backward()
    assert all(p.grad is None for p in model.self_conditioning.parameters())
    assert model.decoder.embedding.grad is not None
    doubled = batch_losses(model, batch(), diffusion_weight=2.0)
    torch.testing.assert_close(doubled.total, 2 * both.diffusion + both.encoder)


def test_accuracy_counts_canvas_positions(model) -> None:
    given = batch(self_conditioned=torch.tensor([], dtype=torch.int64))
    argmax = softcapped(batch_losses(model, given).hidden, model).argmax(-1).view(3, CANVAS)
    right = argmax.clone()
    right[0, :4] = (right[0, :4] + 1) % VOCAB
    assert float(batch_losses(model, replace(given, x0=right)).canvas_accuracy) == pytest.approx(20 / 24)


def test_a_carried_belief_takes_the_place_of_a_first_pass(model) -> None:
    none = torch.tensor([], dtype=torch.int64)
    given = batch(self_conditioned=torch.tensor([0, 1, 2]))
    with torch.no_grad():
        first = batch_losses(model, batch(self_conditioned=none)).hidden
        belief = softcapped(first, model).softmax(-1) @ model.decoder.embedding
        expected = batch_losses(model, given)
        carried = replace(given, self_conditioned=none, belief=belief.unflatten(0, (3, CANVAS)))
        found = batch_losses(model, carried)
        mixed = batch_losses(model, replace(carried, self_conditioned=torch.tensor([1])))
    torch.testing.assert_close(found.diffusion, expected.diffusion)
    torch.testing.assert_close(mixed.diffusion, expected.diffusion)


def test_gradients_flow_into_the_encoders_keys_and_not_between_passes(model) -> None:
    """With no causal loss the encoder's embedding of prompt tokens still gets a gradient, through keys and values."""
    given = batch(targets=torch.full((2, 20), -100), self_conditioned=torch.tensor([0, 1, 2]))
    losses = batch_losses(model, given)
    assert float(losses.encoder) == 0
    losses.total.backward()
    grad = model.decoder.embedding.grad
    assert grad is not None and torch.isfinite(grad).all()
    only_prompt = set(given.ids[0, :4].tolist()) - set(given.xt.flatten().tolist())
    assert only_prompt
    # The head also reaches every embedding, so compare with what the head alone gives: a detached encoder.
    model.zero_grad()
    _, kept = encode(model, given.ids)
    with torch.no_grad():
        belief = softcapped(decode(model, given.xt, given.examples, given.starts, kept, None), model).softmax(-1)
        belief = belief @ model.decoder.embedding
    still = [(k.detach(), v.detach()) for k, v in kept]
    logits = softcapped(decode(model, given.xt, given.examples, given.starts, still, belief), model)
    F.cross_entropy(logits, given.x0.flatten()).backward()
    alone = model.decoder.embedding.grad
    assert alone is not None
    for token in only_prompt:
        assert (grad[token] - alone[token]).abs().max() > 1e-7


def test_a_switch_stops_gradients_at_the_encoders_keys(model) -> None:
    given = batch(targets=torch.full((2, 20), -100), self_conditioned=torch.arange(0))
    with torch.no_grad():
        _, kept = encode(model, given.ids)
    logits = softcapped(decode(model, given.xt, given.examples, given.starts, kept, None), model)
    F.cross_entropy(logits, given.x0.flatten()).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    batch_losses(model, given, keys_learn=False).total.backward()
    for name, parameter in model.named_parameters():
        found = parameter.grad if parameter.grad is not None else torch.zeros(())
        wanted = expected[name]
        torch.testing.assert_close(found, torch.zeros_like(found) if wanted is None else wanted, rtol=1e-4, atol=1e-6)


def test_recomputed_layers_give_the_same_gradients_and_keep_less() -> None:
    """The encoder's keys reach the decoder once, whether or not its layers are computed twice."""
    results, kept_bytes = [], []
    for is_recomputed in (False, True):
        model = tiny_model().requires_grad_(True)
        if is_recomputed:
            recompute_layers(model)
        sizes: dict[int, int] = {}

        def note(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = batch_losses(model, batch(), balance_weight=0.5)
        losses.total.backward()
        kept_bytes.append(sum(sizes.values()))
        results.append([losses.total.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept_bytes[1] < 0.7 * kept_bytes[0]


class TestBalance:
    def test_it_is_added_with_its_weight_and_trains_the_router(self, model) -> None:
        plain, balanced = batch_losses(model, batch()), batch_losses(model, batch(), balance_weight=0.5)
        assert float(plain.balance) == 0 and float(balanced.balance) > 0.9
        torch.testing.assert_close(balanced.total, plain.total + 0.5 * balanced.balance)
        (balanced.total - plain.total).backward()
        router = model.decoder.layers[0].experts.router.grad
        assert router is not None and float(router.abs().max()) > 0

    def test_by_hand(self) -> None:
        """Equal rows all choose expert 0, whose probability is e^2 / (e^2 + 1); two experts."""
        model = tiny_model()
        experts = model.decoder.layers[0].experts
        experts.top_k, experts.router = 1, nn.Parameter(torch.zeros(2, 16))
        with torch.no_grad():
            experts.router_scale.fill_(1.0)
            experts.router[0].fill_(0.5)
        loads = RouterLoads(model.decoder)
        loads(0, torch.full((5, 16), 3.0))
        # Normed rows are ones; times 16^-1/2 and summed over 16 entries of 0.5 they give the logit 2.
        assert float(loads.loss().detach()) == pytest.approx(2 * math.exp(2) / (math.exp(2) + 1), rel=1e-4)

    def test_padding_does_not_count(self, model) -> None:
        """Each row's last six tokens are padding, which no earlier position and no canvas sees."""
        given = batch(starts=torch.tensor([4, 6, 5]))
        targets = given.targets.clone()
        targets[:, 13:] = -100
        found = []
        for token in (1, 2):
            ids = given.ids.clone()
            ids[:, 14:] = token
            found.append(batch_losses(model, replace(given, ids=ids, targets=targets), balance_weight=1.0))
        assert float(found[0].encoder) == float(found[1].encoder)
        assert float(found[0].balance) == float(found[1].balance)
        none = replace(given, targets=torch.full_like(targets, -100))
        assert float(batch_losses(model, none, balance_weight=1.0).balance) > 0.9

    def test_an_adapted_router_is_the_one_that_is_watched(self) -> None:
        model = tiny_model().requires_grad_(False)
        model.adapter = new_adapter(model.config, LoraConfig(rank=2, targets=("*.router.proj",)))
        with torch.no_grad():
            for parameter in model.adapter.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        merged = tiny_model()
        merge_adapter(merged, model.adapter)
        last = model.adapter.decoder.layers[-1].experts.router.parts[0].b  # type: ignore[union-attr]
        steepest = []
        for weight in (0.0, 1e3):
            last.grad = None
            adapted = batch_losses(model, batch(), balance_weight=weight)
            adapted.total.backward()
            steepest.append(float(last.grad.abs().max()))
        torch.testing.assert_close(adapted.balance, batch_losses(merged, batch(), balance_weight=1.0).balance.detach())
        assert steepest[1] > 10 * steepest[0]

    def test_equal_shares_are_one(self) -> None:
        model = tiny_model()
        experts = model.decoder.layers[0].experts
        experts.top_k = experts.router.shape[0]
        loads = RouterLoads(model.decoder)
        loads(0, torch.randn(50, 16, generator=torch.Generator().manual_seed(0)))
        assert float(loads.loss()) == pytest.approx(1.0, rel=1e-5)


def drafts(canvases: list[int]) -> Drafts:
    num, generator = len(canvases), torch.Generator().manual_seed(5)
    return Drafts(
        canvases=torch.tensor(canvases), uniform=torch.rand(num, CANVAS, dtype=torch.float64, generator=generator),
        noise=draw(num, CANVAS, seed=9), bounds=torch.linspace(0.1, 30, num) if num > 1 else torch.tensor([12.0]),
    )  # fmt: skip


class TestDrafts:
    def test_a_draft_is_the_samplers_next_canvas(self, model) -> None:
        given = drafts([0, 1, 2])
        hidden = torch.randn(3, CANVAS, 16, generator=torch.Generator().manual_seed(4))
        found = draft_canvases(model, hidden, given)
        p = softcapped(hidden.flatten(0, 1), model).softmax(-1).double().detach()
        samples = (p.cumsum(-1) <= given.uniform.flatten()[:, None]).sum(-1).view(3, CANVAS)
        entropy = -(p * p.log()).sum(-1).view(3, CANVAS)
        for i, bound in enumerate(given.bounds.tolist()):
            spent, kept = 0.0, set()
            for position in entropy[i].argsort().tolist():
                if spent <= bound:
                    kept.add(position)
                spent += float(entropy[i, position])
            expected = [int((samples if j in kept else given.noise)[i, j]) for j in range(CANVAS)]
            assert found[i].tolist() == expected
        assert (found != given.noise).any() and (found == given.noise).any()

    def test_the_second_pass_reads_the_draft_and_the_first_passes_belief(self, model) -> None:
        given = batch(self_conditioned=torch.tensor([0, 1, 2]))
        with torch.no_grad():
            first = batch_losses(model, batch(self_conditioned=torch.tensor([], dtype=torch.int64))).hidden
            belief = (softcapped(first, model).softmax(-1) @ model.decoder.embedding).unflatten(0, (3, CANVAS))
            wanted = drafts([2])
            drafted = draft_canvases(model, first.unflatten(0, (3, CANVAS))[2:], wanted)
            xt = torch.cat([given.xt[:2], drafted])
            none = torch.tensor([], dtype=torch.int64)
            expected = batch_losses(model, replace(given, xt=xt, self_conditioned=none, belief=belief))
            found = batch_losses(model, replace(given, drafts=wanted))
        torch.testing.assert_close(found.diffusion, expected.diffusion)
        assert not torch.equal(drafted[0], given.xt[2])
