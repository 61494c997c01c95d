"""`presswork bench serve`: a server under load."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from presswork.cli.files import read_text
from presswork.cli.options import JsonOption
from presswork.cli.output import note, print_columns, print_json
from presswork.cli.progress import progress_bar
from presswork.errors import ConfigError, RequestError


def serve(
    url: Annotated[str, typer.Argument(help="The server's address.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option("--model", "-m", help="Of the server's models; its default.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts: lines of a text, or .jsonl lines with a prompt or messages.", show_default=False),
    ] = None,
    num: Annotated[int, typer.Option(help="Requests in all.", min=1)] = 100,
    concurrency: Annotated[int, typer.Option(help="Closed loop: so many clients, each asks again at once.", min=1)] = 8,
    rate: Annotated[
        float | None,
        typer.Option(help="Open loop instead: requests a second, at random times, whatever is unanswered.", min=0.01),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Of each reply.", min=1)] = 128,
    mode: Annotated[str, typer.Option(metavar="diffusion|ar", help="How replies are written.")] = "diffusion",
    seed: Annotated[int, typer.Option(help="Of the order of prompts and of the open loop's times.", min=0)] = 0,
    api_key: Annotated[str | None, typer.Option(help="Of the server.", show_default=False)] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw latencies into this .svg or .png.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send a server many requests and say how long they took.

    Reports percentiles of the time to the first text and of whole replies, delivered tokens a second, and denoise steps
    a canvas. Without --prompts, short requests for functions are sent.

    \b
    Examples:
      presswork bench serve --num 200 --concurrency 16
      presswork bench serve http://127.0.0.1:8000 --rate 4 --prompts prompts.jsonl --json --plot load.svg
    """
    from presswork.server.load import read_prompts, run_load, summary

    if not url.startswith(("http://", "https://")):
        raise RequestError(f"the server's address must begin with http:// or https://, got {url!r}")
    if mode not in ("diffusion", "ar"):
        raise RequestError(f"--mode must be diffusion or ar, got {mode!r}")
    if plot is not None:
        _check_can_plot(plot)
    asked = read_prompts(None if prompts is None else (prompts.name, read_text(prompts, "prompts")))
    body: dict[str, Any] = {"max_tokens": max_tokens, "mode": mode, **({} if model is None else {"model": model})}
    with progress_bar("requests", num) as advance:
        load = run_load(
            url.rstrip("/"), asked, body, num=num, concurrency=concurrency, rate=rate, seed=seed, api_key=api_key,
            on_done=lambda: advance(1),
        )  # fmt: skip
        results, wall_s = asyncio.run(load)
    loop = {"loop": "closed", "concurrency": concurrency} if rate is None else {"loop": "open", "rate_per_s": rate}
    report = {"url": url, "num": num, **loop, **body, **summary(results, wall_s)}
    if as_json:
        print_json(report)
    else:
        _print(report)
    if plot is not None:
        _draw(results, plot)
    if not report["num_ok"]:
        raise typer.Exit(1)


def _print(report: dict[str, Any]) -> None:
    note(f"{report['num_ok']} of {report['num']} requests answered in {report['wall_s']:.1f} s")
    for error, count in report["errors"].items():
        note(f"{count} times: {error}")
    rows: list[tuple[str, ...]] = [("SECONDS", "P50", "P90", "P99", "MEAN")]
    for name, label in (("first_text_s", "first text"), ("latency_s", "whole reply")):
        found = report[name]
        shown = ("-",) * 4 if found is None else tuple(f"{found[key]:.3f}" for key in ("p50", "p90", "p99", "mean"))
        rows.append((label, *shown))
    print_columns(rows)
    steps = report["steps_per_canvas"]
    typer.echo(
        f"{report['tokens_per_s']:.1f} delivered tokens/s, {report['requests_per_s']:.2f} requests/s"
        + ("" if steps is None else f", {steps:.1f} steps a canvas")
    )


def _check_can_plot(file: Path) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib; in the checkout, pip install -e '.[plots]'") from error
    if file.suffix not in (".svg", ".png"):
        raise ConfigError(f"--plot takes a .svg or .png file, got {str(file)!r}")


def _draw(results: list[Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg" if file.suffix == ".svg" else "agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, label in (("first_text_s", "first text"), ("latency_s", "whole reply")):
        values = sorted(value for one in results if (value := getattr(one, name)) is not None)
        if values:
            axes.step(values, [100 * (i + 1) / len(values) for i in range(len(values))], where="post", label=label)
    axes.set(xlabel="seconds", ylabel="% of requests", ylim=(0, 101), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    try:
        figure.savefig(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error}") from error
    finally:
        pyplot.close(figure)
