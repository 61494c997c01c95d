"""A model of twice the depth that starts almost as the model it is made of: behind every layer stands a weak copy.

What a layer adds to the residual stream goes through output norms; the copy's are small. Cheaper than training a deep
model from nothing, after Wu et al. 2024 (arXiv:2401.02415), whose copies add nothing at first.

python recipes/weights/deepen.py runs/sudoku_walks/model --out runs/sudoku_twice/model
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from presswork.models.transformer import Transformer
from presswork.text.tokenizer import tokenizer_files
from presswork.weights.config_files import read_generation_config
from presswork.weights.load import load_model
from presswork.weights.save import save_model

OUTPUT_NORMS = ("attention_output_norm", "output_norm")
SCALE = 0.1


@torch.no_grad()
def deepen(first: Path, out: Path, scale: float) -> None:
    """Write the model of twice as many layers, in the first one's dtype, with the first one's other files."""
    shallow = load_model(first)
    layers = [layer for layer in shallow.config.layers for _ in range(2)]
    deep = Transformer(replace(shallow.config, layers=tuple(layers))).to(shallow.dtype)
    weights = dict(shallow.named_parameters())
    for name, weight in deep.named_parameters():
        parts = name.split(".")
        is_copy = False
        if "layers" in parts:
            place = parts.index("layers") + 1
            is_copy = int(parts[place]) % 2 == 1
            parts[place] = str(int(parts[place]) // 2)
        weight.copy_(weights[".".join(parts)])
        if is_copy and parts[-1] in OUTPUT_NORMS:
            weight.mul_(scale)
    for name in ("encoder_scalars", "decoder_scalars"):
        getattr(deep, name).copy_(getattr(shallow, name).repeat_interleave(2))
    save_model(deep, out, generation_config=read_generation_config(first), extra=tokenizer_files(first))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="folder of a model; its tokenizer and settings are kept")
    parser.add_argument("--scale", type=float, default=SCALE, help="of the copies' output norms (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="where to write the deeper model")
    arguments = parser.parse_args()
    deepen(arguments.first, arguments.out, arguments.scale)


if __name__ == "__main__":
    main()
