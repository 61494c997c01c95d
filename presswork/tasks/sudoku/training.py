"""What it takes to train the Sudoku model: its shape, its first weights and its batches.

B puzzles a step, R noised canvases of each.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from presswork.config import ModelConfig, RopeConfig, periodic_layers, require
from presswork.diffusion.accept import EntropyBoundRule
from presswork.diffusion.corruption import corrupt, draw_times
from presswork.diffusion.sampler import DiffusionRules
from presswork.diffusion.schedule import TemperatureSchedule
from presswork.diffusion.stopping import StableAndConfidentRule
from presswork.models.transformer import Transformer
from presswork.tasks.sudoku.encoding import (
    CANVAS_LENGTH,
    CELL_ID,
    DIGIT_ID,
    EOS_ID,
    NEWLINE_ID,
    PROMPT_LENGTH,
    VOCAB_SIZE,
    encode_prompts,
    encode_solutions,
)
from presswork.tasks.sudoku.generate import Clues, Grids, generate
from presswork.tasks.sudoku.symmetry import Symmetries, draw_symmetries
from presswork.training.carry import CarriedCanvases
from presswork.training.loss import IGNORED_TARGET, Batch

# What solutions are made of: digits 1 to 9 in order, then line end and end.
_ALPHABET = torch.tensor([*range(DIGIT_ID + 1, DIGIT_ID + 10), NEWLINE_ID, EOS_ID])


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkConfig:
    """How canvases walk: as in generation, and what is not solved in so many steps starts over.

    Args:
        num_steps, t_min, t_max, entropy_bound, confidence_threshold: of the sampler.
        num_boards: size of the store of boards, in whole steps.
        visits: how often a board comes up before a new one takes its place; 0 until each of its walks is over.
    """

    num_steps: int = 20
    t_min: float = 0.4
    t_max: float = 0.8
    entropy_bound: float = 0.1
    confidence_threshold: float = 0.005
    num_boards: int = 640
    visits: int = 12

    def __post_init__(self) -> None:
        require(self.visits >= 0, f"visits must not be negative, got {self.visits}")
        self.rules()

    def rules(self) -> DiffusionRules:
        """The sampler's."""
        return DiffusionRules(
            schedule=TemperatureSchedule(num_steps=self.num_steps, t_min=self.t_min, t_max=self.t_max),
            accept=EntropyBoundRule(entropy_bound=self.entropy_bound),
            stop=StableAndConfidentRule(confidence_threshold=self.confidence_threshold),
        )


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

    def normal(*shape: int, deviation: float) -> Tensor:
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
        num_held: of a puzzle's canvases, so many hold its clues throughout, as pinned ones do in generation.
        causal_every: the causal loss over the solution is computed in every so many-th step.
        seed: decides every batch together with the step.
    """

    num_puzzles: int = 32
    canvases_per_puzzle: int = 4
    minimal_share: float = 0.5
    curriculum_steps: int = 1000
    num_held: int = 0
    causal_every: int = 4
    seed: int = 777

    def __post_init__(self) -> None:
        for name in ("num_puzzles", "canvases_per_puzzle", "causal_every"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name in ("curriculum_steps", "num_held", "seed"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        most = self.canvases_per_puzzle
        require(self.num_held <= most, f"num_held must be at most the {most} canvases of a puzzle, got {self.num_held}")
        require(0 <= self.minimal_share <= 1, f"minimal_share must lie in [0, 1], got {self.minimal_share}")


class PuzzleBatches:
    """Batches as a pure function of the step, from a pool of minimal puzzles under fresh symmetries."""

    def __init__(self, pool_size: int, pool_seed: int, config: BatchConfig | None = None):
        self.config = config or BatchConfig()
        self._puzzles, self._solutions = generate(pool_size, pool_seed, Clues())

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.config.seed, step))
        puzzles, solutions = self.draw(rng, step)
        return self.assemble(puzzles, solutions, step, torch.Generator().manual_seed(int(rng.integers(1 << 62))))

    def draw(self, rng: np.random.Generator, step: int) -> tuple[Grids, Grids]:
        """B puzzles for this step: some minimal, the others with clues added, all under a random symmetry."""
        config = self.config
        chosen = rng.integers(0, len(self._puzzles), config.num_puzzles)
        puzzles, solutions = self._puzzles[chosen].copy(), self._solutions[chosen]
        share = config.minimal_share * min(1.0, (step + 1) / max(1, config.curriculum_steps))
        for i in range(config.num_puzzles):
            if rng.random() >= share:
                wanted = int(rng.integers(24, 56)) - int((puzzles[i] > 0).sum())
                added = rng.permutation(np.flatnonzero(puzzles[i] == 0))[: max(0, wanted)]
                puzzles[i, added] = solutions[i, added]
        symmetries = draw_symmetries(config.num_puzzles, rng)
        return symmetries.apply(puzzles), symmetries.apply(solutions)

    def assemble(self, puzzles: Grids, solutions: Grids, step: int, generator: torch.Generator) -> Batch:
        """A batch of R freshly corrupted canvases of each puzzle."""
        config = self.config
        prompts = torch.from_numpy(encode_prompts(puzzles))
        responses = torch.from_numpy(encode_solutions(solutions))
        repeats = config.canvases_per_puzzle
        num = config.num_puzzles * repeats
        x0 = responses.repeat_interleave(repeats, 0)
        xt, _ = corrupt(x0, draw_times(num, generator, repeats), VOCAB_SIZE, generator)
        is_held = torch.arange(num) % repeats >= repeats - config.num_held
        holds = clue_places(puzzles).repeat_interleave(repeats, 0) & is_held[:, None]
        xt = torch.where(holds, x0, xt)
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


def clue_places(puzzles: Grids) -> Bool[Tensor, "B L"]:
    """Where in a canvas the clues of puzzles stand."""
    places = torch.zeros(len(puzzles), 9, CANVAS_LENGTH // 9, dtype=torch.bool)
    places[:, :, :9] = torch.from_numpy(puzzles > 0).view(-1, 9, 9)
    return places.flatten(1)


class PuzzleWalks:
    """Batches in which most canvases go on from where the model left them when their board was last visited.

    A store of boards is visited in turn, B boards a step. Of a board's R canvases the first is corrupted afresh at
    every visit; the others walk from uniform noise through the sampler and start over once solved or out of steps.
    Between two visits a board and everything on it is put through a random symmetry: a model that sees the very same
    boards a dozen times knows them by heart. The last canvases of a board hold its clues where the batches say so.

    Args:
        model: the model in training, whose embedding the canvases' beliefs are told in.
        walk: how canvases walk, and for how long boards stay.
    """

    def __init__(self, batches: PuzzleBatches, model: Transformer, walk: WalkConfig | None = None):
        config, walk = batches.config, walk or WalkConfig()
        self._batches, self._model, self._visits = batches, model, walk.visits
        self._num_turns = walk.num_boards // config.num_puzzles
        num_boards = self._num_turns * config.num_puzzles
        self._walkers = config.canvases_per_puzzle - 1
        self._walks = CarriedCanvases(num_boards * self._walkers, CANVAS_LENGTH, VOCAB_SIZE, _ALPHABET, walk.rules())
        self._was_over = torch.zeros(num_boards * self._walkers, dtype=torch.bool)
        self._puzzles, self._solutions = np.zeros((num_boards, 81), np.uint8), np.zeros((num_boards, 81), np.uint8)
        self._is_walking = torch.arange(config.num_puzzles * config.canvases_per_puzzle) % (1 + self._walkers) > 0

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng((self._batches.config.seed, step))
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        boards, walks = self._turn(step)
        self._turn_over(boards, walks, draw_symmetries(self._batches.config.num_puzzles, rng))
        self._replace(boards, walks, rng, generator, step)
        self._hold(boards, walks)
        batch = self._batches.assemble(self._puzzles[boards], self._solutions[boards], step, generator)
        belief = torch.zeros(*batch.xt.shape, self._model.config.hidden_size, dtype=self._model.dtype)
        belief[self._is_walking] = self._walks.belief(walks, self._model.decoder.embedding)
        batch.xt[self._is_walking] = self._walks.tokens[walks]
        corrupted = torch.where(~self._is_walking)[0]
        # As many in every step: compiled passes are made for one shape.
        chosen = torch.randperm(len(corrupted), generator=generator)[: len(corrupted) // 2]
        return replace(batch, belief=belief, self_conditioned=corrupted[chosen].sort()[0])

    def observe(self, step: int, batch: Batch, hidden: Float[Tensor, "N D"], model: Transformer) -> None:
        """Take the walks of a step's boards one denoise step on; those that are over start again from noise."""
        seed = int(np.random.default_rng((self._batches.config.seed, step, 1)).integers(1 << 62))
        generator = torch.Generator().manual_seed(seed)
        walks, walking = self._turn(step)[1], self._is_walking
        rows = hidden.unflatten(0, (-1, CANVAS_LENGTH))[walking].flatten(0, 1)
        over = self._walks.advance(model, rows, batch.x0[walking], generator, walks)
        self._walks.restart(walks[over], generator)
        self._was_over[walks] |= over

    def _turn(self, step: int) -> tuple[slice, Tensor]:
        """(boards, their walks) that a step visits."""
        num = self._batches.config.num_puzzles
        first = step % self._num_turns * num
        return slice(first, first + num), torch.arange(first * self._walkers, (first + num) * self._walkers)

    def _turn_over(self, boards: slice, walks: Tensor, symmetries: Symmetries) -> None:
        """Put boards, drafts and beliefs through a symmetry each."""
        self._puzzles[boards] = symmetries.apply(self._puzzles[boards])
        self._solutions[boards] = symmetries.apply(self._solutions[boards])
        cells, digits = (torch.from_numpy(x).repeat_interleave(self._walkers, 0) for x in _by_canvas(symmetries))
        moved = self._walks.tokens[walks].gather(1, cells)
        is_digit = (moved > DIGIT_ID) & (moved <= DIGIT_ID + 9)
        renamed = digits.gather(1, (moved - DIGIT_ID).clamp(0, 9)) + DIGIT_ID
        self._walks.tokens[walks] = torch.where(is_digit, renamed, moved)
        probabilities = self._walks.probabilities[walks]
        probabilities = probabilities.gather(1, cells[:, :, None].expand_as(probabilities))
        # Digit d of the alphabet is its column d - 1; the columns behind the digits stay.
        targets = torch.arange(probabilities.shape[-1]).repeat(len(walks), 1)
        targets[:, :9] = digits[:, 1:] - 1
        targets = targets[:, None, :].expand_as(probabilities)
        self._walks.probabilities[walks] = torch.zeros_like(probabilities).scatter(2, targets, probabilities)

    def _replace(
        self, boards: slice, walks: Tensor, rng: np.random.Generator, generator: torch.Generator, step: int
    ) -> None:
        """Let in new boards for those that have had their time, or that were never there."""
        if self._visits:
            leaving = (np.arange(self._batches.config.num_puzzles) + step // self._num_turns) % self._visits == 0
        else:
            leaving = self._was_over[walks].view(-1, self._walkers).all(1).numpy()
        leaving |= ~self._puzzles[boards].any(1)
        puzzles, solutions = self._batches.draw(rng, step)
        self._puzzles[boards][leaving], self._solutions[boards][leaving] = puzzles[leaving], solutions[leaving]
        arrived = torch.from_numpy(leaving).repeat_interleave(self._walkers)
        self._walks.restart(walks[arrived], generator)
        self._was_over[walks[arrived]] = False

    def _hold(self, boards: slice, walks: Tensor) -> None:
        """Put the clues into the walks that hold them, which are certain of them but for their first step."""
        num_held = min(self._batches.config.num_held, self._walkers)
        held = walks.view(-1, self._walkers)[:, self._walkers - num_held :].flatten()
        puzzles = self._puzzles[boards].repeat(num_held, 0)
        if not len(held):
            return
        places, solutions = clue_places(puzzles), self._solutions[boards].repeat(num_held, 0)
        tokens = torch.from_numpy(encode_solutions(solutions))
        self._walks.tokens[held] = torch.where(places, tokens, self._walks.tokens[held])
        # Digit d of the alphabet is its column d - 1; elsewhere there are no clues.
        columns = (tokens - DIGIT_ID - 1).clamp(0, self._walks.probabilities.shape[-1] - 1)
        certain = torch.nn.functional.one_hot(columns, self._walks.probabilities.shape[-1]).float()
        is_told = places & (self._walks.steps[held] > 0)[:, None]
        self._walks.probabilities[held] = torch.where(is_told[:, :, None], certain, self._walks.probabilities[held])

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs."""
        boards = {"puzzles": torch.from_numpy(self._puzzles), "solutions": torch.from_numpy(self._solutions)}
        return boards | {"was_over": self._was_over} | self._walks.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from state(). Mutates the walks."""
        self._puzzles, self._solutions = state["puzzles"].numpy(), state["solutions"].numpy()
        self._was_over = state["was_over"]
        self._walks.restore(state)


def _by_canvas(symmetries: Symmetries) -> tuple[Grids, Grids]:
    """(the canvas position that comes to each canvas position, new names of digits): line ends stay."""
    num = len(symmetries.cells)
    places = np.tile(np.arange(CANVAS_LENGTH).reshape(9, 10), (num, 1, 1))
    places[:, :, :9] = (symmetries.cells // 9 * 10 + symmetries.cells % 9).reshape(num, 9, 9)
    return places.reshape(num, CANVAS_LENGTH), symmetries.digits


def _causal_part(prompts: Tensor, responses: Tensor, *, with_loss: bool) -> tuple[Tensor, Tensor]:
    """(ids, targets) of the causal pass: the prompt alone, or with the solution, whose tokens are then predicted."""
    if not with_loss:
        return prompts, torch.full_like(prompts, IGNORED_TARGET)
    ids = torch.cat([prompts, responses], 1)
    targets = torch.full_like(ids, IGNORED_TARGET)
    targets[:, PROMPT_LENGTH - 1 : -1] = responses
    return ids, targets


@dataclass(frozen=True, slots=True, kw_only=True)
class PuzzlePlan:
    """A recipe's data: freshly corrupted canvases.

    Args:
        pool_size, pool_seed: minimal puzzles to draw from, and what decides them.
        batch: how batches are drawn from them.
    """

    pool_size: int = 120_000
    pool_seed: int = 12345
    batch: BatchConfig = field(default_factory=BatchConfig)

    def __post_init__(self) -> None:
        require(self.pool_size > 0, f"pool_size must be positive, got {self.pool_size}")

    def open(self, model: Transformer) -> PuzzleBatches:
        """The training batches; making the pool takes a minute."""
        return PuzzleBatches(self.pool_size, self.pool_seed, self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkPlan:
    """A recipe's data: canvases that walk.

    Args:
        pool_size, pool_seed, batch: as in PuzzlePlan.
        walk: how canvases walk.
    """

    pool_size: int = 120_000
    pool_seed: int = 12345
    batch: BatchConfig = field(default_factory=BatchConfig)
    walk: WalkConfig = field(default_factory=WalkConfig)

    def __post_init__(self) -> None:
        require(self.pool_size > 0, f"pool_size must be positive, got {self.pool_size}")
        least, given = self.batch.num_puzzles, self.walk.num_boards
        require(given >= least, f"num_boards must be at least a step's {least}, got {given}")
        require(self.batch.canvases_per_puzzle > 1, "canvases_per_puzzle must be at least 2: one of them does not walk")

    def open(self, model: Transformer) -> PuzzleWalks:
        """The training batches, which watch this model."""
        batches = PuzzleBatches(self.pool_size, self.pool_seed, self.batch)
        return PuzzleWalks(batches, model, self.walk)
