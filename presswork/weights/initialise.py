"""New models: allocated but unset, with random weights, or with only the self-conditioning new."""

import zlib

import torch
from torch import Tensor

from presswork.config import ModelConfig
from presswork.models.transformer import SelfConditioning, Transformer

_CHUNK = 1 << 20
_STARTS_AT_ONE = ("router_scale", "per_expert_scale")
_SELF_CONDITIONING_SEED = 0


def empty_model(config: ModelConfig, *, dtype: torch.dtype, device: torch.device | str) -> Transformer:
    """A frozen model in eval mode whose every parameter still has to be written."""
    with torch.device("meta"):
        model = Transformer(config)
    return model.to(dtype).to_empty(device=device).requires_grad_(False).eval()


def random_model(
    config: ModelConfig, *, dtype: torch.dtype = torch.float32, seed: int = 0, device: torch.device | str = "cpu"
) -> Transformer:
    """A frozen model in eval mode with the weights training from scratch starts from.

    Norms and scales are one, all else is normal with deviation `initializer_range`. Each parameter has its own
    random stream, drawn in float32 on the device: the same seed gives the same weights on the same kind of device.
    """
    model = empty_model(config, dtype=dtype, device=device)
    fill_random(model, seed)
    return model


def fill_random(model: Transformer, seed: int) -> None:
    """The weights of `random_model` in place of a model's own. Mutates the model."""
    model.encoder_scalars.fill_(1)
    model.decoder_scalars.fill_(1)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm", *_STARTS_AT_ONE)):
            parameter.fill_(1)
        else:
            fill_normal(parameter, model.config.initializer_range, f"{seed}/{name}")


def initialise_self_conditioning(module: SelfConditioning, deviation: float) -> None:
    """Fresh self-conditioning that contributes nothing until it is trained: its last projection is zero.

    Mutates: the module's parameters.
    """
    module.norm.fill_(1)
    fill_normal(module.mlp.gate_up, deviation, f"{_SELF_CONDITIONING_SEED}/self_conditioning.mlp.gate_up")
    module.mlp.down.zero_()


def fill_normal(tensor: Tensor, deviation: float, stream: str) -> None:
    """Fill a tensor with normal numbers of mean zero that depend only on the stream's name, shape and device kind.

    Mutates: the tensor.
    """
    generator = torch.Generator(tensor.device).manual_seed(zlib.crc32(stream.encode()))
    # Drawn in float32 whatever the dtype: a narrow model is then the rounded wide one, and it is faster.
    drawn = torch.empty(min(_CHUNK, tensor.numel()), device=tensor.device)
    for part in tensor.view(-1).split(_CHUNK):
        part.copy_(drawn[: part.numel()].normal_(0, deviation, generator=generator))
