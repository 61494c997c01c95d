"""What it takes to train the Sudoku model: its shape, its first weights and its batches.

B puzzles a step, R noised canvases of each.
"""

from dataclasses import dataclass

import numpy as np
import torch

from presswork.config import ModelConfig, RopeConfig, periodic_layers
from presswork.diffusion.corruption import MIN_TIME, corrupt
from presswork.models.transformer import Transformer
from presswork.tasks.sudoku.encoding import (
    CANVAS_LENGTH,
    CELL_ID,
    DIGIT_ID,
    PROMPT_LENGTH,
    VOCAB_SIZE,
    encode_prompts,
    encode_solutions,
)
from presswork.tasks.sudoku.generate import Clues, Grids, augment, generate
from presswork.training.loss import Batch

_IGNORED = -100


def model_config() -> ModelConfig:
    """1.8M parameters: 6 layers of width 128, 4 experts of which 2 are active; the window covers every prompt."""
    return ModelConfig(
        vocab_size=VOCAB_SIZE, hidden_size=128, intermediate_size=256, num_attention_heads=4,
        layers=periodic_layers(6, period=6, sliding=(32, 4), full=(32, 4)), num_experts=4, top_k_experts=2,
        moe_intermediate_size=64, sliding_window=256, canvas_length=CANVAS_LENGTH, sliding_rope=RopeConfig(theta=1e3),
        max_position_embeddings=512,
    )  # fmt: skip


@torch.no_grad()
def initialise(model: Transformer, seed: int = 0) -> None:
    """First weights. Mutates the model.

    A cell token's embedding is the sum of vectors for its row, column, box and clue, and a digit's shares the clue's:
    with 810 unrelated vectors training stays on a plateau while it finds that out.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, deviation: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * deviation

    for name, parameter in model.named_parameters():
        is_scale = "norm" in name or "scale" in name
        parameter.copy_(torch.ones(parameter.shape) if is_scale else normal(*parameter.shape, deviation=0.05))
        if name.endswith("q_norm"):
            # Attention has no 1/sqrt(h): without this the first softmax would be nearly one-hot.
            parameter.fill_(parameter.numel() ** -0.5)
    width = model.config.hidden_size
    unit = width**-0.5
    row, column, box, clue = (normal(num, width, deviation=0.5 * unit) for num in (9, 9, 9, 10))
    embedding = normal(VOCAB_SIZE, width, deviation=unit)
    for cell in range(81):
        place = row[cell // 9] + column[cell % 9] + box[cell // 27 * 3 + cell % 9 // 3]
        first = CELL_ID + 10 * cell
        embedding[first : first + 10] = place + clue + 0.2 * embedding[first : first + 10]
    digits = slice(DIGIT_ID + 1, DIGIT_ID + 10)
    embedding[digits] = 1.7 * clue[1:] + 0.2 * embedding[digits]
    model.decoder.embedding.copy_(embedding)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How batches are drawn from a pool of minimal puzzles.

    Args:
        num_puzzles, canvases_per_puzzle: B and R; the canvases of a puzzle share its prompt pass.
        minimal_share: share of puzzles kept minimal once the curriculum is through; the others get 24 to 55 clues.
        curriculum_steps: steps over which that share grows from 0.
        causal_every: the causal loss over the solution is computed in every so many-th step.
        seed: decides every batch together with the step.
    """

    num_puzzles: int = 32
    canvases_per_puzzle: int = 4
    minimal_share: float = 0.5
    curriculum_steps: int = 1000
    causal_every: int = 4
    seed: int = 777


class PuzzleBatches:
    """Batches as a pure function of the step, from a pool of minimal puzzles under fresh symmetries."""

    def __init__(self, pool_size: int, pool_seed: int, config: BatchConfig | None = None):
        self.config = config or BatchConfig()
        self._puzzles, self._solutions = generate(pool_size, pool_seed, Clues())

    def __call__(self, step: int) -> Batch:
        config = self.config
        rng = np.random.default_rng((config.seed, step))
        puzzles, solutions = self._draw(rng, step)
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        prompts = torch.from_numpy(encode_prompts(puzzles))
        responses = torch.from_numpy(encode_solutions(solutions))
        repeats = config.canvases_per_puzzle
        num = config.num_puzzles * repeats
        # One time from each of R equal parts of (0, 1) for the R canvases of a puzzle: U(0, 1) with less variance.
        part = torch.arange(repeats).repeat(config.num_puzzles)
        times = MIN_TIME + (1 - MIN_TIME) * (part + torch.rand(num, generator=generator)) / repeats
        x0 = responses.repeat_interleave(repeats, 0)
        xt, _ = corrupt(x0, times, VOCAB_SIZE, generator)
        ids, targets = _causal_part(prompts, responses, with_loss=step % config.causal_every == 0)
        return Batch(
            ids=ids,
            targets=targets,
            examples=torch.arange(config.num_puzzles).repeat_interleave(repeats),
            starts=torch.full((num,), PROMPT_LENGTH),
            x0=x0,
            xt=xt,
            self_conditioned=torch.randperm(num, generator=generator)[: num // 2].sort()[0],
        )

    def _draw(self, rng: np.random.Generator, step: int) -> tuple[Grids, Grids]:
        """Puzzles of this step: some minimal, the others with clues added, all under a random symmetry."""
        config = self.config
        chosen = rng.integers(0, len(self._puzzles), config.num_puzzles)
        puzzles, solutions = self._puzzles[chosen].copy(), self._solutions[chosen]
        share = config.minimal_share * min(1.0, step / max(1, config.curriculum_steps))
        for i in range(config.num_puzzles):
            if rng.random() >= share:
                wanted = int(rng.integers(24, 56)) - int((puzzles[i] > 0).sum())
                added = rng.permutation(np.flatnonzero(puzzles[i] == 0))[: max(0, wanted)]
                puzzles[i, added] = solutions[i, added]
        return augment(puzzles, solutions, int(rng.integers(1 << 62)))


def _causal_part(
    prompts: torch.Tensor, responses: torch.Tensor, *, with_loss: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, targets) of the causal pass: the prompt alone, or with the solution, whose tokens are then predicted."""
    if not with_loss:
        return prompts, torch.full_like(prompts, _IGNORED)
    ids = torch.cat([prompts, responses], 1)
    targets = torch.full_like(ids, _IGNORED)
    targets[:, PROMPT_LENGTH - 1 : -1] = responses
    return ids, targets
