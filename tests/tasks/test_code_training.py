"""The recipes of the `code` model run one after the other, down to the mean of both."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from presswork.engine.loader import load
from presswork.tasks.code.tokenizer import TEMPLATE, train_tokenizer
from presswork.tasks.text_files import write_text_files
from presswork.text.tokenizer import Tokenizer
from presswork.training.packing import ANYWHERE, Documents, save_documents
from presswork.training.recipe import load_recipe, override
from presswork.training.run import export, open_run
from presswork.weights.load import load_model

RECIPES = Path(__file__).parents[2] / "recipes"
SOURCE = "def total(values):\n    count = 0\n    for value in values:\n        count += value\n    return count\n"


@pytest.mark.slow
def test_the_recipes_run_one_after_the_other(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = Path("data/code")
    data.mkdir(parents=True)
    write_text_files(train_tokenizer([SOURCE] * 4, vocab_size=300), TEMPLATE, data)
    ids = Tokenizer.from_folder(data).encode(SOURCE)
    documents = Documents(
        tokens=np.tile(np.array(ids, np.int32), 40), offsets=np.arange(41) * len(ids),
        prompt_lengths=np.full(40, ANYWHERE, np.int32),
    )  # fmt: skip
    for name in ("train", "validation"):
        save_documents(documents, data / f"{name}.npz")
    folders, lengths = [], []
    for name in ("code", "code_short"):
        made = override(load_recipe(RECIPES / f"{name}.py"), ["train.compile=false", "train.num_steps=2"])
        trainer = open_run(made, Path("runs") / name)
        lengths.append(made.data.open(trainer.model)(0).x0.shape[-1])
        assert [report.step for report in trainer.run()] == [1]
        folders.append(export(trainer, made))
    assert lengths == [64, 16]
    command = [sys.executable, str(RECIPES / "weights" / "mean.py"), *map(str, folders), "--out", "runs/mean/model"]
    subprocess.run(command, check=True, timeout=300)
    first, second, mean = (dict(load_model(folder).named_parameters()) for folder in (*folders, "runs/mean/model"))
    for name, weight in mean.items():
        expected = ((first[name].float() + second[name].float()) / 2).to(weight.dtype)
        assert (weight == expected).all() and not weight.requires_grad
    engine = load("runs/mean/model")
    assert engine.defaults.t_max == 0.9 and engine.generate(SOURCE, raw=True, max_tokens=4).token_ids
