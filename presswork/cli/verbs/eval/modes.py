"""Which modes an evaluation runs."""

from presswork.engine.params import Mode
from presswork.errors import RequestError


def chosen_modes(mode: str) -> list[Mode]:
    """`both`, or one of them, as a list. Raises RequestError."""
    if mode not in ("both", "diffusion", "ar"):
        raise RequestError(f"--mode must be both, diffusion or ar, got {mode!r}")
    return ["diffusion", "ar"] if mode == "both" else [mode]  # type: ignore[list-item]
