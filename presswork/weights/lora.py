"""Adapters made, put together and merged into weights.

r rank, K inner width, M output columns, E experts.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.nn import functional as F

from presswork.config import ModelConfig
from presswork.errors import ConfigError
from presswork.models.adapters import (
    Adapter,
    ExpertsAdapter,
    LayerAdapter,
    LoraConfig,
    LowRank,
    MLPAdapter,
    StackAdapter,
    WeightAdapter,
)
from presswork.models.transformer import Transformer
from presswork.weights.names import MODE_PREFIXES, Mode, Place, product_places


@dataclass(frozen=True, slots=True)
class Factors:
    """a [r, K], b [M, r], or with a leading E; scale of their product."""

    a: Tensor
    b: Tensor
    scale: float


Sites = dict[tuple[Mode, str], Factors]
"""By mode and by the weight's name relative to the mode's prefix."""


def new_adapter(config: ModelConfig, lora: LoraConfig, seed: int = 0) -> Adapter:
    """Fresh float32 factors: A is random, B zero, so that nothing is added yet.

    Raises:
        ConfigError: a target pattern matches no weight.
    """
    places = product_places(config)
    chosen = _targeted(places, lora.targets)
    generator = torch.Generator().manual_seed(seed)
    modes: tuple[Mode, ...] = ("decoder",) if config.tie_word_embeddings else ("decoder", "encoder")
    sites: Sites = {}
    for mode in modes:
        for name in chosen:
            if mode == "encoder" and is_canvas_only(name):
                continue
            *experts, num_rows, inner = places[name].shape
            # The usual start of such a factor: uniform with a variance of 1 / (3 K).
            a = (2 * torch.rand(*experts, lora.rank, inner, generator=generator) - 1) / math.sqrt(inner)
            sites[mode, name] = Factors(a, torch.zeros(*experts, num_rows, lora.rank), lora.alpha / lora.rank)
    return assemble(config, sites, is_shared=config.tie_word_embeddings, dropout=lora.dropout)


def _targeted(places: Mapping[str, Place], patterns: tuple[str, ...]) -> list[str]:
    full = {name: MODE_PREFIXES["decoder"] + name.removesuffix(".weight") for name in places}
    for pattern in patterns:
        if not any(fnmatchcase(module, pattern) for module in full.values()):
            endings = sorted({module.rpartition(".")[2] for module in full.values()})
            raise ConfigError(
                f"target {pattern!r} matches none of the model's weights, whose names look like "
                f"{next(iter(full.values()))}; they end in {', '.join(endings)}"
            )
    return [name for name, module in full.items() if any(fnmatchcase(module, pattern) for pattern in patterns)]


def is_canvas_only(name: str) -> bool:
    """Whether a weight, named relative to its prefix, is in canvas passes alone."""
    return name.startswith("self_conditioning.")


def assemble(config: ModelConfig, sites: Sites, *, is_shared: bool, dropout: float = 0.0) -> Adapter:
    """The module of these factors."""
    decoder = StackAdapter(config.num_layers)
    encoder = decoder if is_shared else StackAdapter(config.num_layers)
    adapter = Adapter(decoder, encoder, None)
    parts: dict[tuple[Mode, str], list[LowRank]] = {}
    places = product_places(config)
    for (mode, name), factors in sites.items():
        if mode == "encoder" and is_shared:
            continue
        place = places[name]
        is_expert = len(place.shape) == 3
        part = LowRank(
            place.start, place.stop, factors.a, factors.b, factors.scale, dropout=0.0 if is_expert else dropout
        )
        parts.setdefault((mode, place.parameter), []).append(part)
    num_rows = dict.fromkeys((place.parameter for place in places.values()), 0)
    for place in places.values():
        num_rows[place.parameter] = max(num_rows[place.parameter], place.stop)
    for (mode, parameter), found in parts.items():
        _install(adapter, mode, parameter, WeightAdapter(num_rows[parameter], found))
    return adapter


def _install(adapter: Adapter, mode: Mode, parameter: str, weight: WeightAdapter) -> None:
    """Put the factors of one of our weights where its products look for them. Mutates the adapter."""
    names = parameter.split(".")
    if names[0] == "self_conditioning":
        adapter.self_conditioning = adapter.self_conditioning or MLPAdapter()
        setattr(adapter.self_conditioning, names[-1], weight)
        return
    layer: LayerAdapter = adapter.layers(mode == "decoder")[int(names[2])]  # type: ignore[assignment]
    if names[3] == "attention":
        setattr(layer, names[-1], weight)
    elif names[3] == "mlp":
        layer.mlp = layer.mlp or MLPAdapter()
        setattr(layer.mlp, names[-1], weight)
    else:
        layer.experts = layer.experts or ExpertsAdapter()
        setattr(layer.experts, names[-1], weight)


def adapted_weights(adapter: Adapter) -> Iterator[tuple[Mode, str, WeightAdapter]]:
    """(mode, name of our weight as the decoder has it, factors), the shared ones once, as the decoder's."""
    modes: tuple[tuple[Mode, StackAdapter], ...] = (("decoder", adapter.decoder), ("encoder", adapter.encoder))
    for mode, stack in modes[: 1 if adapter.is_shared else 2]:
        for path, module in stack.named_modules():
            if isinstance(module, WeightAdapter):
                yield mode, "decoder." + _own_name(path), module
    if adapter.self_conditioning is not None:
        for path, module in adapter.self_conditioning.named_modules():
            if isinstance(module, WeightAdapter):
                yield "decoder", f"self_conditioning.mlp.{path}", module


def _own_name(path: str) -> str:
    """`layers.0.qkv` is `layers.0.attention.qkv` in the model."""
    names = path.split(".")
    return path if len(names) > 3 else ".".join([*names[:2], "attention", names[2]])


def adapter_sites(config: ModelConfig, adapter: Adapter) -> Iterator[tuple[Mode, str, LowRank]]:
    """(mode, weight name relative to its prefix, factors)."""
    by_place = {(place.parameter, place.start): name for name, place in product_places(config).items()}
    for mode, parameter, weight in adapted_weights(adapter):
        for part in weight:
            yield mode, by_place[parameter, part.start], part


@torch.no_grad()
def merge_adapter(model: Transformer, adapter: Adapter) -> None:
    """Add the factors' products to the weights, in float32, rounded once. Mutates the model.

    Raises:
        ConfigError: the modes share weights and the adapter changes them differently.
    """
    is_tied = model.own_encoder is None
    if is_tied and not adapter.is_shared:
        raise ConfigError(
            "this adapter changes the causal and the canvas mode differently, and the model has one weight for both; "
            "it cannot be merged, use it beside the model"
        )
    state = model.state_dict()
    for mode, name, weight in list(adapted_weights(adapter)):
        own = name if mode == "decoder" else name.replace("decoder.", "own_encoder.", 1)
        names = [own]
        if adapter.is_shared and not is_tied and name.startswith("decoder."):
            names.append(name.replace("decoder.", "own_encoder.", 1))
        for target in names:
            for part in weight:
                rows = state[target] if part.a.ndim == 3 else state[target][part.start : part.stop]
                rows.copy_(rows.float() + part.delta().to(rows.device))


def padded(adapter: Adapter, multiple: int = 32) -> Adapter:
    """The adapter with ranks filled up with zeros, which changes no result: products of that width run on tiles,
    where a row's bits do not depend on how many rows there are. Mutates and returns the adapter."""
    for module in adapter.modules():
        if isinstance(module, LowRank):
            missing = -module.a.shape[-2] % multiple
            module.a.data = F.pad(module.a.data, (0, 0, 0, missing))
            module.b.data = F.pad(module.b.data, (0, missing))
    return adapter
