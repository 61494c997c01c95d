"""`presswork doctor`."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from presswork.cli.checkpoint import Checkpoint, MemoryPlan, plan_memory, read_checkpoint
from presswork.cli.hardware import Hardware, available_bytes, read_hardware
from presswork.cli.measure import Comparison, compare_modes
from presswork.cli.model import apply_threads, open_engine
from presswork.cli.options import DeviceOption, DtypeOption, JsonOption
from presswork.cli.output import format_bytes, format_count, note, print_facts, print_json

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def doctor(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="A model to look at; without one, only the machine.")] = None,
    num_tokens: Annotated[int, typer.Option("--tokens", help="Text length to compare the modes for.", min=1)] = 256,
    measures: Annotated[bool, typer.Option("--measure/--no-measure", help="Load the model and time it.")] = True,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine is, what memory a model will need, and, if it fits, which mode is faster on it.

    The memory plan comes from file headers, before anything is loaded. Ends with code 1 when the model does not fit.

    \b
    Examples:
      presswork doctor
      presswork doctor sudoku
      presswork doctor FOLDER --no-measure --json
    """
    apply_threads(context.obj)
    hardware = read_hardware()
    if model is None:
        _print({"hardware": asdict(hardware)}, [("this machine", _hardware_facts(hardware))], as_json)
        return
    checkpoint = read_checkpoint(model)
    plan = plan_memory(checkpoint, available_bytes(device, hardware), dtype)
    report: dict[str, Any] = {
        "hardware": asdict(hardware),
        "plan": {"model": model, **plan.to_json()},
        "measured": None,
    }
    parts = [("this machine", _hardware_facts(hardware)), (model, _plan_facts(checkpoint, plan))]
    if measures and plan.fits:
        if not as_json:
            _print_parts(parts)
            parts = []
        note("measuring ...")
        engine = open_engine(context.obj, model, device=device, dtype=dtype)
        compared = compare_modes(engine, num_tokens)
        report["measured"] = compared.to_json()
        parts.append(("measured here", _measured_facts(compared)))
    _print(report, parts, as_json)
    if not plan.fits:
        raise typer.Exit(1)


Part = tuple[str, dict[str, object]]


def _print(report: dict[str, Any], parts: list[Part], as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        _print_parts(parts)


def _print_parts(parts: list[Part]) -> None:
    for title, facts in parts:
        typer.echo(title)
        print_facts(facts)


def _hardware_facts(hardware: Hardware) -> dict[str, object]:
    gpus = ", ".join(f"{name} ({format_bytes(memory)})" for name, memory in hardware.gpus)
    return {
        "cpu": f"{hardware.cpu}, {hardware.num_cores} cores, {hardware.num_threads} threads used",
        "instructions": " ".join(hardware.features) or "unknown",
        "memory": f"{format_bytes(hardware.available_bytes)} available of {format_bytes(hardware.memory_bytes)}",
        "gpu": gpus or "none",
        "torch": hardware.torch_version,
    }


def _plan_facts(checkpoint: Checkpoint, plan: MemoryPlan) -> dict[str, object]:
    context = f"{plan.max_context:,} tokens"
    active = format_count(checkpoint.num_active)
    return {
        "parameters": f"{format_count(checkpoint.num_parameters)}, {active} active a token",
        "weights": f"{format_bytes(plan.weights_bytes)} in {plan.dtype}",
        "keys and values": f"{format_bytes(plan.kv_bytes_per_token)} a token, "
        f"{format_bytes(plan.kv_bytes_at_max_context)} for {context}",
        "peak, estimated": f"{format_bytes(plan.peak_bytes)} for {context}, "
        f"{format_bytes(plan.working_bytes)} of it for passes",
        "available": format_bytes(plan.available_bytes),
        "verdict": plan.verdict,
    }


def _measured_facts(compared: Comparison) -> dict[str, object]:
    steps = f"{compared.steps_per_canvas} steps on an example"
    if not compared.is_settled:
        steps = f"not settled in the time allowed; {compared.steps_per_canvas} steps at most"
    return {
        "denoise step": f"{compared.ms_per_denoise_step:.3g} ms for {compared.canvas_length} tokens",
        "ar token": f"{compared.ms_per_ar_token:.3g} ms",
        "canvas": steps,
        f"{compared.num_tokens} tokens": f"{compared.diffusion_s:.3g} s by diffusion, {compared.ar_s:.3g} s by ar",
        "faster": f"{compared.faster}; diffusion is below {compared.break_even_steps:.3g} steps a canvas",
    }
