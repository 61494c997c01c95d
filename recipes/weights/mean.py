"""The mean of two models of one shape (Wortsman et al. 2022, arXiv:2203.05482), such as the `code` model's two runs.

python recipes/weights/mean.py runs/code/model runs/code_short/model --out runs/code_mean/model
"""

import argparse
from pathlib import Path

import torch

from presswork.text.tokenizer import tokenizer_files
from presswork.weights.config_files import read_generation_config
from presswork.weights.load import load_model
from presswork.weights.save import save_model


@torch.no_grad()
def average(first: Path, second: Path, out: Path) -> None:
    """Write the mean of two models of the same shape, in the first one's dtype, with the first one's other files."""
    model, other = load_model(first), load_model(second, dtype=torch.float32)
    others = dict(other.named_parameters())
    for name, weight in model.named_parameters():
        weight.copy_((weight.float() + others[name]) / 2)
    save_model(model, out, generation_config=read_generation_config(first), extra=tokenizer_files(first))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="folder of a model; its tokenizer and settings are kept")
    parser.add_argument("second", type=Path, help="folder of another of the same shape")
    parser.add_argument("--out", type=Path, required=True, help="where to write the mean")
    arguments = parser.parse_args()
    average(arguments.first, arguments.second, arguments.out)


if __name__ == "__main__":
    main()
