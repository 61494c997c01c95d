"""Training steps on the CPU, presswork's trainer against a plain autocast loop over transformers' model, alternated.

    python benchmarks/peers/transformers_training_cpu.py --runs 5

The 7M-parameter configuration of `recipes/code.py` from the same weights on the same batches: 16 rows of 256 tokens,
four canvases of 64 in each, half of them self-conditioned; causal loss over all tokens, canvas cross-entropy, backward,
AdamW. The loop over transformers runs under torch.autocast in bfloat16 with float32 weights, the encoder once and the
decoder once for each of a row's four canvases, with default attention and experts. Ratios are of medians of step times.
Writes benchmarks/results/transformers_training_cpu.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers_cpu import commit, hardware

from presswork.config import ModelConfig
from presswork.diffusion.corruption import corrupt, draw_times
from presswork.models.transformer import Transformer
from presswork.training.config import OptimizerConfig, TrainConfig
from presswork.training.loss import Batch
from presswork.training.recipe import FromScratch, load_recipe
from presswork.training.trainer import Trainer
from presswork.weights.save import save_model

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
ROWS, LENGTH, CANVASES = 16, 256, 4
RATE = 1e-3


def seven_million() -> ModelConfig:
    """The `code` recipe's architecture."""
    start = load_recipe(ROOT / "recipes" / "code.py").start
    assert isinstance(start, FromScratch)
    return replace(start.model, initializer_range=0.02)


def batch(config: ModelConfig, step: int) -> Batch:
    """Random tokens; every canvas of every row."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(3, config.vocab_size, (ROWS, LENGTH), generator=generator)
    targets = torch.full_like(ids, -100)
    targets[:, :-1] = ids[:, 1:]
    x0 = ids.view(-1, config.canvas_length)
    num = x0.shape[0]
    xt, _ = corrupt(x0, draw_times(num, generator), config.vocab_size, generator)
    chosen = torch.arange(num).view(ROWS, CANVASES)[:, : CANVASES // 2].flatten()
    return Batch(
        ids=ids, targets=targets, examples=torch.arange(ROWS).repeat_interleave(CANVASES),
        starts=torch.arange(0, LENGTH, config.canvas_length).repeat(ROWS), x0=x0, xt=xt, self_conditioned=chosen,
    )  # fmt: skip


def ours(model: Transformer, scratch: Path) -> Callable[[int], float]:
    """A function that trains one step and returns its loss."""
    config = TrainConfig(
        num_steps=1000, optimizer=OptimizerConfig(peak_rate=RATE, warmup_steps=0, schedule="constant"), compile=True,
        checkpoint_every=1000, log_every=1, ema_decay=0.99,
    )  # fmt: skip
    trainer = Trainer(model, lambda step: batch(model.config, step), config, scratch / "run")
    reports = trainer.run()
    return lambda step: next(reports).loss


def theirs(folder: Path) -> Callable[[int], float]:
    """The same by transformers' model and torch's AdamW."""
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=torch.float32).train()
    model.requires_grad_(True)
    text = model.config.text_config
    cap, length = text.final_logit_softcapping, model.config.canvas_length
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.1, fused=True)

    def losses(given: Batch) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            cache = transformers.DynamicCache(config=text)
            hidden = model.model.encoder(given.ids, past_key_values=cache).last_hidden_state
            causal = (cap * torch.tanh(model.lm_head(hidden) / cap)).float().flatten(0, 1)
            total = F.cross_entropy(causal, given.targets.flatten())
            xt, x0 = (part.view(ROWS, CANVASES, length) for part in (given.xt, given.x0))
            for j in range(CANVASES):
                start = j * length
                mask = torch.ones(ROWS, LENGTH + length, dtype=torch.bool)
                mask[:, start:LENGTH] = False
                where: dict[str, Any] = {
                    "decoder_input_ids": xt[:, j], "past_key_values": cache, "decoder_attention_mask": mask,
                    "decoder_position_ids": torch.arange(start, start + length).expand(ROWS, -1),
                }  # fmt: skip
                belief = None
                if j < CANVASES // 2:
                    with torch.no_grad():
                        belief = model(**where).logits
                logits = model(**where, self_conditioning_logits=belief).logits
                total = total + F.cross_entropy(logits.float().flatten(0, 1), x0[:, j].flatten()) / CANVASES
        return total

    def step(number: int) -> float:
        optimizer.zero_grad()
        total = losses(batch_of(number))
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(total.detach())

    config = seven_million()

    def batch_of(number: int) -> Batch:
        return batch(config, number)

    return step


def main() -> None:
    """Alternate, report, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="timed steps of each")
    runs = parser.parse_args().runs
    model = FromScratch(model=seven_million()).build()
    with tempfile.TemporaryDirectory() as scratch:
        save_model(model, Path(scratch) / "model")
        steppers = {"presswork": ours(model, Path(scratch)), "transformers": theirs(Path(scratch) / "model")}
        losses = {name: [step(number) for number in range(2)] for name, step in steppers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in steppers}
        for number in range(2, 2 + runs):
            for name, step in steppers.items():
                start = time.perf_counter()
                losses[name].append(step(number))
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    report = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_step": ROWS * LENGTH,
        "s_per_step": medians,
        "s_per_step_runs": seconds,
        "clean_tokens_per_s": {name: ROWS * LENGTH / value for name, value in medians.items()},
        "ratio": medians["transformers"] / medians["presswork"],
        "losses": losses,
        "hardware": hardware(),
        "commit": commit(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "transformers_training_cpu.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: report[key] for key in ("s_per_step", "clean_tokens_per_s", "ratio", "losses")}, indent=2))


if __name__ == "__main__":
    main()
