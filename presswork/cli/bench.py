"""`presswork bench`: how fast a model generates here, both modes alternated in one run."""

import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from presswork.cli.options import DEFAULT_MODEL, DeviceOption, DtypeOption, JsonOption, open_engine, print_json

if TYPE_CHECKING:
    from presswork.engine.engine import Engine
    from presswork.engine.events import Stats


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("bench")(bench)


def bench(
    model: Annotated[str, typer.Argument(help="Embedded name, folder or Hub id.")] = DEFAULT_MODEL,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Random tokens in the prompt.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 128,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Fixed denoise steps a canvas; early stop otherwise.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Counted runs of each mode, after one warm-up.")] = 5,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    json: JsonOption = False,
) -> None:
    """Time diffusion and ar generation of one request on random prompts; medians of alternating runs."""
    engine = open_engine(model, device=device, dtype=dtype, prefix_cache_bytes=0)
    report = {"model": model, "prompt_tokens": prompt_tokens, "max_tokens": max_tokens, "runs": runs}
    report |= measure(engine, prompt_tokens, max_tokens, steps, runs)
    if json:
        print_json(report)
        return
    print(f"{'mode':<10} {'tokens/s':>9} {'ms/step':>8} {'steps/canvas':>13} {'first text ms':>14}")
    for mode in ("diffusion", "ar"):
        row = report[mode]
        print(
            f"{mode:<10} {row['tokens_per_s']:>9.1f} {row['ms_per_step']:>8.2f} {row['steps_per_canvas']:>13.1f} "
            f"{row['first_text_s'] * 1e3:>14.1f}"
        )


def measure(engine: "Engine", prompt_tokens: int, max_tokens: int, steps: int | None, runs: int) -> dict[str, Any]:
    """Medians for both modes; every run has its own random prompt, the same for both."""
    import torch

    vocab = engine.model.config.vocab_size
    fixed: dict[str, Any] = {} if steps is None else {"max_denoising_steps": steps, "stability_threshold": None}
    found: dict[str, list[Stats]] = {"diffusion": [], "ar": []}
    for number in range(runs + 1):
        ids = torch.randint(0, vocab, (prompt_tokens,), generator=torch.Generator().manual_seed(number)).tolist()
        for mode, stats in found.items():
            extra = fixed if mode == "diffusion" else {}
            reply = engine.generate(
                prompt_token_ids=ids, mode=mode, max_tokens=max_tokens, ignore_eos=True, seed=number, **extra
            )
            stats.append(reply.stats)
    return {mode: _medians(stats[1:]) for mode, stats in found.items()}


def _medians(stats: "list[Stats]") -> dict[str, Any]:
    def median(values: list[float]) -> float:
        return statistics.median(values)

    return {
        "tokens_per_s": median([s.tokens_per_s for s in stats]),
        "ms_per_step": median([1e3 * s.wall_s / s.num_passes for s in stats]),
        "steps_per_canvas": median([s.steps_per_canvas for s in stats]),
        # Text that is only markers never shows; the end is then the first sign of life.
        "first_text_s": median([s.first_text_s if s.first_text_s is not None else s.wall_s for s in stats]),
        "tokens_per_forward": median([s.tokens_per_forward for s in stats]),
        "all": [asdict(s) for s in stats],
    }
