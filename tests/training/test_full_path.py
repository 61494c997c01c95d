"""From a checkpoint to an adapted one and back to transformers: train, kill, resume, merge, save, load, same logits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from presswork.engine.loader import load
from presswork.testing import tiny_model
from presswork.weights.save import save_model
from tests.training.recipe_for_tests import write_text_files

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).parent / "lora_recipe_for_tests.py"
PROMPT, CANVAS = [3, 4, 5, 6], [20, 8, 9, 41, 11, 12, 50, 14]


def presswork(base: Path, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "presswork", "--threads", "1", *map(str, arguments)]
    environment = {**os.environ, "LORA_BASE": str(base), "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out + err


@pytest.mark.slow
# peft calls a name that this version of transformers has renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_is_trained_killed_resumed_merged_and_loaded_everywhere(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is a development dependency")
    peft = pytest.importorskip("peft", reason="peft is a development dependency")
    base = tmp_path / "base"
    model = tiny_model()
    save_model(model, base, generation_config={"max_denoising_steps": 4, "eos_token_id": [1]})
    write_text_files(base)

    killed = presswork(base, "train", RECIPE, "--out", tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 25):
        assert time.monotonic() < deadline and killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    resumed = finish(presswork(base, "train", RECIPE, "--out", tmp_path / "run"))
    assert "going on at step" in resumed and f"--adapter {tmp_path / 'run' / 'adapter'} --model {base}" in resumed
    finish(presswork(base, "train", RECIPE, "--out", tmp_path / "whole"))
    found, whole = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("run", "whole"))
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
    losses = [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]
    assert sum(losses[-5:]) < sum(losses[:5])

    merged = tmp_path / "merged"
    finish(presswork(base, "merge", base, tmp_path / "run" / "adapter", merged))
    assert "token" in finish(presswork(base, "run", "--raw", "C", "--model", merged, "--max-tokens", "4"))

    beside = load(base)
    beside.load_adapter("it", tmp_path / "run" / "adapter")
    ours = {
        "merged": load(merged).canvas_logits(PROMPT, CANVAS),
        "beside": beside.canvas_logits(PROMPT, CANVAS, adapter="it"),
    }
    plain = transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(base, attn_implementation="eager")
    theirs = {
        "merged": transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(merged, attn_implementation="eager"),
        "beside": peft.PeftModel.from_pretrained(plain, str(tmp_path / "run" / "adapter")),
    }
    assert (ours["merged"] - load(base).canvas_logits(PROMPT, CANVAS)).abs().max() > 0.1
    for name, logits in ours.items():
        with torch.no_grad():
            out = theirs[name].eval()(input_ids=torch.tensor([PROMPT]), decoder_input_ids=torch.tensor([CANVAS]))
        torch.testing.assert_close(logits, out.logits[0], atol=5e-5, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
