"""`presswork bench`: one request at a time, in this process."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer

from presswork.cli.measure import Timing, example_prompt, random_prompt, time_request
from presswork.cli.model import open_engine
from presswork.cli.options import DeviceOption, DtypeOption, JsonOption, ModelArgument
from presswork.cli.output import note, print_columns, print_json
from presswork.cli.progress import progress_bar
from presswork.cli.sudoku import MAX_TOKENS, is_sudoku
from presswork.engine.engine import Engine
from presswork.engine.params import Mode
from presswork.errors import ConfigError

_MODES: tuple[Mode, ...] = ("diffusion", "ar")
_PROMPT_TOKENS, _MAX_TOKENS = 256, 256


def offline(
    context: typer.Context,
    model: ModelArgument = "sudoku",
    prompt_tokens: Annotated[
        int | None, typer.Option(help="Random prompt tokens; the Sudoku model's default is a puzzle.", min=1)
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens to generate, exactly.", min=2)] = None,
    steps: Annotated[int | None, typer.Option(help="Fixed denoise steps a canvas: no early stop.", min=2)] = None,
    runs: Annotated[int, typer.Option(help="Timed runs of each mode, after one that is not timed.", min=1)] = 5,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure generation speed of one request at a time; both modes take turns, and medians are reported.

    Tokens per second are delivered tokens over wall time, prefill included. End tokens are ignored, so that both modes
    write equally long texts. Random prompts make steps a canvas meaningless: fix them with --steps.

    \b
    Examples:
      presswork bench sudoku --runs 9
      presswork bench FOLDER --prompt-tokens 1024 --max-tokens 256 --steps 16 --json
    """
    diffusion = {} if steps is None else {"max_denoising_steps": steps, "stability_threshold": None}
    engine = open_engine(context.obj, model, device=device, dtype=dtype, sampling=diffusion, prefix_cache_bytes=0)
    prompts = _prompts(engine, prompt_tokens, runs + 1)
    if len(prompts[0]) >= engine.max_context:
        raise ConfigError(
            f"--prompt-tokens is {len(prompts[0])}, and the model's context of {engine.max_context} has to hold a "
            "reply too; lower it"
        )
    is_puzzle = is_sudoku(engine) and prompt_tokens is None
    length = max_tokens or min(MAX_TOKENS if is_puzzle else _MAX_TOKENS, engine.max_context - len(prompts[0]))
    params: dict[Mode, dict[str, Any]] = {"diffusion": diffusion, "ar": {}}

    def case(mode: Mode, ids: Sequence[int], seed: int) -> Timing:
        return time_request(engine, ids, mode=mode, max_tokens=length, ignore_eos=True, seed=seed, **params[mode])

    speeds = _alternate(case, prompts)
    report = {
        "model": model, "device": device, "dtype": str(engine.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(), "prompt_tokens": len(prompts[0]), "max_tokens": length, "runs": runs,
        "fixed_steps": steps, **{mode: speed.to_json() for mode, speed in speeds.items()},
        "diffusion_over_ar": speeds["diffusion"].tokens_per_s / speeds["ar"].tokens_per_s,
    }  # fmt: skip
    if as_json:
        print_json(report)
        return
    _print_report(report, speeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Medians over the runs of one mode.

    Args:
        ms_per_step: between denoise steps or ar tokens. steps_per_canvas: None in ar mode.
        first_text_s: from the request to its first text (diffusion: its first canvas).
    """

    tokens_per_s: float
    ms_per_step: float | None
    steps_per_canvas: float | None
    first_text_s: float | None

    def to_json(self) -> dict[str, float | None]:
        """Plain data."""
        return {name: getattr(self, name) for name in self.__slots__}


def _prompts(engine: Engine, num_tokens: int | None, num: int) -> list[list[int]]:
    if num_tokens is None and is_sudoku(engine):
        return [example_prompt(engine)] * num
    wanted = num_tokens or min(_PROMPT_TOKENS, engine.max_context // 2)
    return [random_prompt(engine, wanted, seed) for seed in range(num)]


def _alternate(
    case: Callable[[Mode, Sequence[int], int], Timing], prompts: Sequence[Sequence[int]]
) -> dict[Mode, Speed]:
    """Speeds of both modes over all prompts but the first, which warms up."""
    timings: dict[Mode, list[Timing]] = {mode: [] for mode in _MODES}
    with progress_bar("measuring", 2 * len(prompts)) as advance:
        for run, ids in enumerate(prompts):
            for mode in _MODES:
                timing = case(mode, ids, run)
                advance(1)
                if run:
                    timings[mode].append(timing)
    return {mode: _speed(mode, rows) for mode, rows in timings.items()}


def _speed(mode: Mode, timings: Sequence[Timing]) -> Speed:
    stats = [timing.reply.stats for timing in timings if timing.reply is not None]
    first = [s.first_text_s for s in stats if s.first_text_s is not None]
    gaps = [gap for timing in timings for gap in timing.step_s]
    return Speed(
        tokens_per_s=statistics.median(s.tokens_per_s for s in stats),
        ms_per_step=1e3 * statistics.median(gaps) if gaps else None,
        steps_per_canvas=statistics.median(s.steps_per_canvas for s in stats) if mode == "diffusion" else None,
        first_text_s=statistics.median(first) if first else None,
    )


def _print_report(report: dict[str, Any], speeds: dict[Mode, Speed]) -> None:
    note(
        f"{report['prompt_tokens']} prompt tokens, {report['max_tokens']} generated, {report['dtype']}, "
        f"{report['threads']} threads, medians of {report['runs']} runs"
    )
    rows = [("MODE", "TOKENS/S", "MS/STEP", "STEPS/CANVAS", "FIRST TEXT")]
    for mode, speed in speeds.items():
        steps = "-" if speed.steps_per_canvas is None else f"{speed.steps_per_canvas:.1f}"
        first = "-" if speed.first_text_s is None else f"{speed.first_text_s:.3f} s"
        step = "-" if speed.ms_per_step is None else f"{speed.ms_per_step:.3g}"
        rows.append((mode, f"{speed.tokens_per_s:.1f}", step, steps, first))
    print_columns(rows)
    typer.echo(f"diffusion over ar: {report['diffusion_over_ar']:.2f}")
