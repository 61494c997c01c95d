"""`presswork list`, `show` and `pull`: which models there are and what they are."""

from pathlib import Path
from typing import Annotated, Any

import typer

from presswork.cli.options import JsonOption, ModelArgument, print_json
from presswork.errors import CheckpointError


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("list")(list_command)
    app.command("show")(show)
    app.command("pull")(pull_command)


def list_command(json: JsonOption = False) -> None:
    """List models that load without a download: embedded ones and those in the Hub cache."""
    from presswork.weights.hub import list_models

    models = list_models()
    if json:
        print_json([{"name": m.name, "kind": m.kind, "path": str(m.path), "bytes": m.size_bytes} for m in models])
        return
    width = max((len(m.name) for m in models), default=4)
    for m in models:
        print(f"{m.name:<{width}}  {m.kind:<9}  {m.size_bytes / 1e6:>10,.1f} MB")


def pull_command(
    repo_id: Annotated[str, typer.Argument(help="Hub id, such as google/diffusiongemma-26b-a4b-it.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Download a checkpoint from the Hub; an interrupted download goes on where it stopped."""
    from presswork.weights.hub import pull

    print(pull(repo_id, revision=revision))


def show(model: ModelArgument, json: JsonOption = False) -> None:
    """Show a model's architecture, size and defaults without loading its weights."""
    from presswork.weights.config_files import read_generation_config
    from presswork.weights.hub import resolve

    folder = resolve(model, may_pull=False)
    facts = describe(folder) | {"generation": read_generation_config(folder)}
    if json:
        print_json(facts)
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {item}" for name, item in value.items()) or "none"
        print(
            f"{key.replace('_', ' '):<22} {value:,}"
            if isinstance(value, int)
            else f"{key.replace('_', ' '):<22} {value}"
        )


def describe(folder: Path) -> dict[str, Any]:
    """What a model folder holds: shape, parameter counts, dtypes, bytes."""
    from presswork.weights.config_files import read_config

    config = read_config(folder)
    total, active = count_parameters(config)
    dtypes = stored_bytes(folder)
    kinds = [layer.kind for layer in config.layers]
    card = folder / "README.md"
    return {
        "folder": str(folder),
        "parameters": total,
        "active_per_token": active,
        "layers": f"{len(kinds)} ({kinds.count('sliding')} sliding, {kinds.count('full')} full)",
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "experts": f"{config.num_experts}, {config.top_k_experts} active",
        "sliding_window": config.sliding_window,
        "canvas_length": config.canvas_length,
        "context": config.max_position_embeddings,
        "bytes_by_dtype": dtypes,
        "chat_template": "yes" if (folder / "chat_template.jinja").is_file() else "no",
        "model_card": str(card) if card.is_file() else "none",
    }


def count_parameters(config: Any) -> tuple[int, int]:
    """(all parameters of the text model, those that one token's pass touches; embeddings count once)."""
    import torch

    from presswork.models.transformer import Transformer

    with torch.device("meta"):
        model = Transformer(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    per_expert = 3 * config.hidden_size * config.moe_intermediate_size
    idle = (config.num_experts - config.top_k_experts) * per_expert * config.num_layers
    idle *= 1 if config.tie_word_embeddings else 2
    return total, total - idle - config.vocab_size * config.hidden_size


def stored_bytes(folder: Path) -> dict[str, int]:
    """Bytes of tensors by dtype, from the headers of the safetensors files; nothing is loaded."""
    import json
    import struct

    totals: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as source:
                (length,) = struct.unpack("<Q", source.read(8))
                header = json.loads(source.read(min(length, 1 << 27)))
        except (OSError, ValueError, struct.error) as error:
            raise CheckpointError(f"cannot read the header of {file}: {error}; download the file again") from error
        for name, entry in header.items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                totals[entry["dtype"]] = totals.get(entry["dtype"], 0) + stop - start
    return totals
