"""Tokens merged into classes, and weights on the classes. N rows, V vocab, C classes, T tokens, P pieces."""

from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from presswork.errors import RequestError

TILE = 2048  # ids a tile; 4 MiB of embedding at D = 1024
PIECE = 32  # tokens of one class whose masses are added in float32
NARROW = 16384  # most living tokens, where they are a quarter of all at most, that weighted readings gather
CROWDED = 0.5  # share of living tokens from which a tile is multiplied whole; below, their rows are gathered


class Chunk(NamedTuple):
    """Tokens whose products are made together, ordered by class, then id.

    first: where a whole tile of `width` ids starts, or -1: the embedding rows of `ids` are gathered.
    ids, columns: each token, and its place among the products.
    piece_starts, piece_class: pieces of at most PIECE neighbouring tokens of one class.
    """

    first: int
    width: int
    ids: np.ndarray
    columns: np.ndarray
    piece_starts: np.ndarray
    piece_class: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenClasses:
    """Tokens merged into classes, with the orders in which they are read: build it once, use it in every step.

    class_of: int32 class of each token, or -1: a token that is never wanted ("dead"; the others are "living").
    num_classes: C; classes are 0 to C - 1, any of them may be empty.
    slots: class_of with C in place of -1.
    chunks: all living tokens, each once.
    living_tiles: which tiles of TILE ids hold a living token.
    tile_classes: the classes of each tile, ascending.
    narrow: where few tokens live, their ids, and the same classes over them alone.
    places: place of each token's class among those of its tile; one past the last for -1.
    """

    class_of: Int[Tensor, "V"]
    num_classes: int
    slots: Int[Tensor, "V"] = field(init=False, repr=False)
    chunks: tuple[Chunk, ...] = field(init=False, repr=False)
    living_tiles: tuple[int, ...] = field(init=False, repr=False)
    tile_classes: tuple[np.ndarray, ...] = field(init=False, repr=False)
    places: np.ndarray = field(init=False, repr=False)
    narrow: "tuple[Int[Tensor, 'S'], TokenClasses] | None" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        class_of = _checked(self.class_of, self.num_classes)
        tiles = [class_of[first : first + TILE] for first in range(0, len(class_of), TILE)]
        tile_classes = tuple(np.unique(tile[tile >= 0]) for tile in tiles)
        derived = {
            "class_of": torch.from_numpy(class_of),
            "slots": torch.from_numpy(np.where(class_of < 0, np.int32(self.num_classes), class_of)),
            "chunks": tuple(_chunks(class_of)),
            "living_tiles": tuple(number for number, classes in enumerate(tile_classes) if len(classes)),
            "tile_classes": tile_classes,
            "places": np.concatenate([np.empty(0, np.int32), *map(_places, tiles, tile_classes)]),
        }
        living = np.flatnonzero(class_of >= 0)
        derived["narrow"] = None
        if 0 < len(living) <= min(NARROW, len(class_of) // 4):
            few = TokenClasses(class_of=torch.from_numpy(class_of[living]), num_classes=self.num_classes)
            derived["narrow"] = (torch.from_numpy(living), few)
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def in_tile(self, tile: int) -> tuple[np.ndarray, np.ndarray]:
        """(classes of a tile, places of its tokens)."""
        return self.tile_classes[tile], self.places[tile * TILE : (tile + 1) * TILE]


def _places(class_of: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return np.where(class_of < 0, len(classes), np.searchsorted(classes, class_of)).astype(np.int32)


def _checked(class_of: Int[Tensor, "V"], num_classes: int) -> np.ndarray:
    if class_of.ndim != 1 or class_of.is_floating_point():
        raise RequestError(f"class_of is {class_of.dtype} {list(class_of.shape)}; give one whole number a token, [V]")
    values = class_of.detach().cpu().numpy()
    low, high = (int(values.min()), int(values.max())) if len(values) else (-1, -1)
    if low < -1 or high >= num_classes:
        raise RequestError(f"class_of reaches from {low} to {high}; classes must be -1 to {num_classes - 1}")
    return values.astype(np.int32)


def _chunks(class_of: np.ndarray) -> list[Chunk]:
    """Whole tiles where most tokens live; the tokens of all other tiles packed together."""
    whole, rest = [], []
    for first in range(0, len(class_of), TILE):
        tile = class_of[first : first + TILE]
        ids = first + np.flatnonzero(tile >= 0)
        if len(ids) >= CROWDED * len(tile):
            ids = ids[np.argsort(class_of[ids], kind="stable")]
            whole.append(_chunk(first, len(tile), ids, ids - first, class_of))
        else:
            rest.append(ids)
    packed = np.concatenate(rest) if rest else np.empty(0, np.int64)
    # By class over all of them, which leaves few and long pieces.
    packed = packed[np.argsort(class_of[packed], kind="stable")]
    for start in range(0, len(packed), TILE):
        ids = packed[start : start + TILE]
        whole.append(_chunk(-1, len(ids), ids, np.arange(len(ids)), class_of))
    return whole


def _chunk(first: int, width: int, ids: np.ndarray, columns: np.ndarray, class_of: np.ndarray) -> Chunk:
    classes = class_of[ids]
    starts = np.flatnonzero(np.r_[True, classes[1:] != classes[:-1]])
    stops = np.r_[starts[1:], len(ids)]
    cuts = np.concatenate([np.arange(start, stop, PIECE) for start, stop in zip(starts, stops, strict=True)])
    return Chunk(
        first=first,
        width=width,
        ids=ids.astype(np.int32),
        columns=columns.astype(np.int32),
        piece_starts=np.r_[cuts, len(ids)].astype(np.int64),
        piece_class=classes[cuts],
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassWeights:
    """Weights that turn each row's distribution into softmax(z + log_weight of the token's class); no class, no mass.

    log_weight: any finite number, or minus infinity: no token of that class.
    sample_class: the class that a row's sample is drawn from, or -1: from all of them.
    """

    classes: TokenClasses
    log_weight: Float[Tensor, "N C"]
    sample_class: Int[Tensor, "N"]

    def select(self, rows: slice | Int[Tensor, "R"]) -> "ClassWeights":
        """The weights of some of the rows."""
        return ClassWeights(
            classes=self.classes, log_weight=self.log_weight[rows], sample_class=self.sample_class[rows]
        )

    def by_slot(self) -> tuple[Float[Tensor, "N C1"], Float64[Tensor, "N"]]:
        """(float32 weights less the row's largest, with a last column of minus infinity; that largest, or 0)."""
        weight = torch.nn.functional.pad(self.log_weight.double(), (0, 1), value=-torch.inf)
        shift = weight.amax(dim=1)
        shift = torch.where(shift.isfinite(), shift, 0.0)
        return (weight - shift[:, None]).float(), shift


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassReading:
    """What each row's logits z say of every class.

    log_mass: logsumexp of z over the class; minus infinity where no token is left.
    mean: mean of z under the class's own softmax, so that its entropy is log_mass - mean; 0 where no token is left.
    best: id of the largest z, ties to the lowest id; -1 where no token is left.
    top: the largest z.
    finite: False where a product of a token in some class is NaN or infinite. Such a row has ids 0 and numbers NaN.
    """

    log_mass: Float64[Tensor, "N C"]
    mean: Float64[Tensor, "N C"]
    best: Int[Tensor, "N C"]
    top: Float[Tensor, "N C"]
    finite: Bool[Tensor, "N"]

    def select(self, rows: slice) -> "ClassReading":
        """The reading of some of the rows."""
        return ClassReading(**{f.name: getattr(self, f.name)[rows] for f in fields(ClassReading)})

    def cpu(self) -> "ClassReading":
        """The reading on the CPU."""
        return ClassReading(**{f.name: getattr(self, f.name).cpu() for f in fields(ClassReading)})

    @staticmethod
    def from_sums(
        top: Float[Tensor, "N C"],
        mass: Float64[Tensor, "N C"],
        moment: Float64[Tensor, "N C"],
        best: Int[Tensor, "N C"],
        finite: Bool[Tensor, "N"],
    ) -> "ClassReading":
        """From mass, the sum of e = exp(z - top), and moment, the sum of (z - top) e. Mutates all but `finite`."""
        empty = mass == 0
        mean = moment.div_(mass).add_(top).masked_fill_(empty, 0.0)
        log_mass = mass.log_().add_(top)
        best.masked_fill_(empty, -1)
        top.masked_fill_(empty, -torch.inf)
        if not bool(finite.all()):
            for numbers in (log_mass, mean, top):
                numbers[~finite] = torch.nan
            best[~finite] = 0
        return ClassReading(log_mass=log_mass, mean=mean, best=best, top=top, finite=finite)


def concatenate_classes(parts: list[ClassReading]) -> ClassReading:
    """Readings of consecutive rows as one."""
    if len(parts) == 1:
        return parts[0]
    return ClassReading(
        log_mass=torch.cat([part.log_mass for part in parts]),
        mean=torch.cat([part.mean for part in parts]),
        best=torch.cat([part.best for part in parts]),
        top=torch.cat([part.top for part in parts]),
        finite=torch.cat([part.finite for part in parts]),
    )
