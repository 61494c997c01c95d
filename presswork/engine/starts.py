"""Canvases that start from a text instead of noise. L canvas."""

import math

import torch

from presswork.diffusion.sampler import Start
from presswork.engine.request import Request


def start_of(request: Request, length: int, device: torch.device) -> Start | None:
    """What the request's next canvas starts from, None where that is noise alone; pure.

    A share n of noise leaves out the first N - ceil(n N) of N steps, but for one.
    """
    first = len(request.output.token_ids)
    ids = request.start_ids[first : first + length]
    if not ids:
        return None
    given = torch.tensor([*ids, *[-1] * (length - len(ids))], device=device)
    share, num_steps = request.params.start_noise, request.rules.schedule.num_steps
    is_noised = request.noise.start(request.num_canvases, length).to(device) < share
    left = max(1, math.ceil(share * num_steps))
    # Where the start is shorter than the canvas, the rest is noise and needs every step.
    first_step = num_steps - left if len(ids) == length else 0
    return Start(given=given, is_noised=is_noised, first_step=first_step)
