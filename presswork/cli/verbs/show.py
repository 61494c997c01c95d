"""`presswork show`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from presswork.cli.checkpoint import Checkpoint, read_checkpoint
from presswork.cli.options import JsonOption, ModelArgument
from presswork.cli.output import format_bytes, format_count, print_facts, print_json
from presswork.text.chat import ChatTemplate
from presswork.text.tokenizer import Tokenizer
from presswork.weights.config_files import read_generation_config

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_CARDS = ("README.md", "MODEL_CARD.md", "model_card.md")


@app.command()
def show(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Describe a model without loading it: architecture, parameters, files, defaults.

    Active parameters are those that one token's pass reads: of the experts, the ones it is routed to.

    \b
    Examples:
      presswork show sudoku
      presswork show FOLDER --json
    """
    checkpoint = read_checkpoint(model)
    facts = _facts(checkpoint)
    if as_json:
        print_json({**facts, "config": asdict(checkpoint.config)})
        return
    config = checkpoint.config
    num_full = sum(layer.is_full for layer in config.layers)
    print_facts({
        "model": facts["model"],
        "folder": facts["folder"],
        "kind": facts["kind"],
        "parameters": f"{format_count(facts['parameters'])}, {format_count(facts['active_parameters'])} active a token",
        "dtype": facts["dtype"],
        "on disk": format_bytes(facts["size_bytes"]),
        "layers": f"{config.num_layers} ({num_full} full, the others see {config.sliding_window - 1} back)",
        "width": f"{config.hidden_size}, {config.num_attention_heads} heads",
        "experts": f"{config.num_experts}, {config.top_k_experts} active, {config.moe_intermediate_size} wide",
        "vocabulary": f"{config.vocab_size:,}",
        "context": f"{config.max_position_embeddings:,}",
        "canvas": config.canvas_length,
        "chat template": "yes" if facts["has_chat_template"] else "no",
        "defaults": ", ".join(f"{k} {v}" for k, v in facts["generation_defaults"].items()) or "none",
        "model card": facts["model_card"] or "none",
    })  # fmt: skip


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    folder = checkpoint.folder
    kinds = {"diffusion": "diffusion", "autoregressive": "autoregressive, a diffusion model could start from it"}
    return {
        "model": checkpoint.name,
        "folder": str(folder),
        "kind": kinds[checkpoint.layout],
        "parameters": checkpoint.num_parameters,
        "active_parameters": checkpoint.num_active,
        "dtype": checkpoint.dtype,
        "weights_bytes": checkpoint.stored_bytes,
        "size_bytes": checkpoint.file_bytes,
        "has_tokenizer": (folder / "tokenizer.json").is_file(),
        "has_chat_template": _has_template(folder),
        "generation_defaults": read_generation_config(folder),
        "model_card": next((str(folder / name) for name in _CARDS if (folder / name).is_file()), None),
    }


def _has_template(folder: Path) -> bool:
    if not (folder / "tokenizer.json").is_file():
        return False
    return ChatTemplate.from_folder(folder, Tokenizer.from_folder(folder)) is not None
