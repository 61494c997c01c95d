"""Documents packed into rows, and the batches of a training run over them.

B rows a step, T tokens of a row, R canvases of a row, L canvas.

    row      | doc 7 ........... | doc 2 ..... | doc 9 ....... | padding
    canvases         ~~~~~~~~        ~~~~__       ~~~~~~~~        each over the tokens before it in its own document;
                                                                  what lies behind a document's end is end-of-text

Every row is a function of (seed, its number in the run's endless sequence of rows) alone: a resumed run sees the rows
it would have seen.
"""

import logging
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from presswork.config import ModelConfig, require
from presswork.diffusion.corruption import MIN_TIME
from presswork.errors import DataError
from presswork.models.transformer import Transformer
from presswork.ops.lanes import kernel
from presswork.training.loss import IGNORED_TARGET, Batch, Drafts

logger = logging.getLogger(__name__)

ANYWHERE = -1

DRAFT_TIME = 0.75
"""More noise leaves open what the text was: a draft of it is as good as the text, and no mistake to learn from."""

_DRAFT_BOUNDS = (0.1, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """Tokenised documents, one after the other.

    Args:
        tokens: all tokens; each document begins with a token that no canvas covers, and ends with its end token.
        offsets: where each document begins, and the end of the last.
        prompt_lengths: leading tokens of each document that no canvas covers, at least 1; canvases then lie side by
            side behind them. ANYWHERE: plain text, whose canvases may begin at any token but the first.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    prompt_lengths: NDArray[np.int32]

    def __post_init__(self) -> None:
        offsets, lengths = self.offsets, self.prompt_lengths
        if len(offsets) != len(lengths) + 1 or offsets[0] != 0 or offsets[-1] != len(self.tokens):
            raise DataError(
                f"documents do not fit together: {len(self.tokens)} tokens, {len(offsets)} offsets, "
                f"{len(lengths)} prompt lengths"
            )
        if (np.diff(offsets) < 0).any() or ((lengths < 1) & (lengths != ANYWHERE)).any():
            raise DataError("documents are broken: offsets must rise and prompt lengths be 1 or more, or ANYWHERE")

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackConfig:
    """How documents become batches.

    Args:
        canvas_length: L; None is the model's.
        num_rows, row_length: B and T.
        canvases_per_row: R.
        span_share: share of canvases whose noise covers one span while all else is clean, as in filling a gap.
        self_conditioned_share: share of the canvases that are fed a first pass's belief.
        draft_share: share of self-conditioned canvases, among those with at most DRAFT_TIME of noise all over, whose
            second pass reads the sampler's next canvas in place of the noised one: it holds the model's own mistakes.
        causal_on_prompt: whether the causal loss counts prompt tokens too.
        seed: decides everything that is drawn.
    """

    canvas_length: int | None = None
    num_rows: int = 16
    row_length: int = 256
    canvases_per_row: int = 4
    span_share: float = 0.0
    self_conditioned_share: float = 0.5
    draft_share: float = 0.0
    causal_on_prompt: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("canvas_length", "num_rows", "canvases_per_row"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive, got {value}")
        require(self.row_length > 1, f"row_length must be at least 2, got {self.row_length}")
        require(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        for name in ("span_share", "self_conditioned_share", "draft_share"):
            require(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens begin .. end - 1 of all tokens, in a row; `is_last` if the document ends here."""

    begin: int
    end: int
    prompt_length: int
    is_last: bool


class PackedBatches:
    """The batch of step 0, 1, ... over packed documents; documents come in a new order in every epoch.

    Plain text longer than a row is cut into pieces of a row's length, each a document of its own; of a longer document
    with a prompt the first piece is used. Pieces that leave no room for a canvas are left out.

    Raises:
        ConfigError: a row is no longer than a canvas.
        DataError: no document has room for a canvas, or one has a token the model does not know.
    """

    def __init__(self, documents: Documents, config: PackConfig, model: ModelConfig):
        self.config = config
        self._vocab_size, self._eos_id = model.vocab_size, model.eos_token_id
        self._canvas_length = config.canvas_length or model.canvas_length
        self._documents = documents
        length = self._canvas_length
        require(config.row_length > length, f"row_length must be above the canvas's {length}, got {config.row_length}")
        low, high = (0, 0) if not len(documents.tokens) else (documents.tokens.min(), documents.tokens.max())
        if low < 0 or high >= model.vocab_size:
            raise DataError(
                f"the documents hold token {int(low if low < 0 else high)}, the model knows 0 to "
                f"{model.vocab_size - 1}; they were made with another tokenizer"
            )
        pieces = _cut(documents, config.row_length)
        has_room = np.array([len(_places(_piece(row), 0, length)[0]) > 0 for row in pieces], bool)
        self._pieces = pieces[has_room] if len(pieces) else pieces
        if not len(self._pieces):
            raise DataError("there is nothing to train on: no document has room for a canvas behind its first token")
        if not has_room.all():
            logger.warning("left out, no room for a canvas: %d pieces of documents", int((~has_room).sum()))
        self._rows = pack(self._pieces[:, 1] - self._pieces[:, 0], config.row_length, config.seed)
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        first = step * self.config.num_rows
        return self.assemble([first + i for i in range(self.config.num_rows)])

    def assemble(self, rows: list[int]) -> Batch:
        """The batch made of these rows of the endless sequence."""
        config, num = self.config, len(rows)
        shape = (num, config.row_length)
        ids, origins = np.full(shape, self._eos_id, np.int64), np.zeros(shape, np.int64)
        targets = np.full(shape, IGNORED_TARGET, np.int64)
        canvases = (num, config.canvases_per_row)
        starts, canvas_origins = np.zeros(canvases, np.int64), np.zeros(canvases, np.int64)
        x0 = np.full((*canvases, self._canvas_length), self._eos_id, np.int64)
        xt, chosen, drafted = x0.copy(), np.zeros(canvases, bool), np.zeros(canvases, bool)
        uniform, noise, bounds = np.zeros(x0.shape), np.zeros_like(x0), np.zeros(canvases)
        for i, row in enumerate(rows):
            rng = np.random.default_rng((config.seed, row, 1))
            ends = self._fill(row, ids[i], targets[i], origins[i])
            self._place(rng, ends, ids[i], starts[i], canvas_origins[i], x0[i])
            xt[i], times = self._noised(rng, x0[i])
            # Rows take turns at what is left over, so that batches differ little in how many are chosen.
            wanted = config.self_conditioned_share * config.canvases_per_row
            num_chosen = math.floor((row + 1) * wanted + 1e-9) - math.floor(row * wanted + 1e-9)
            chosen[i, rng.permutation(config.canvases_per_row)[:num_chosen]] = True
            drafted[i] = chosen[i] & (times <= DRAFT_TIME) & (rng.random(len(times)) < config.draft_share)
            uniform[i], noise[i] = rng.random(x0[i].shape), rng.integers(0, self._vocab_size, x0[i].shape)
            bounds[i] = np.exp(rng.uniform(math.log(_DRAFT_BOUNDS[0]), math.log(_DRAFT_BOUNDS[1]), len(times)))
        flat = [torch.from_numpy(part.reshape(num * config.canvases_per_row, -1)) for part in (x0, xt)]
        return Batch(
            ids=torch.from_numpy(ids),
            targets=torch.from_numpy(targets),
            origins=torch.from_numpy(origins),
            examples=torch.arange(num).repeat_interleave(config.canvases_per_row),
            starts=torch.from_numpy(starts.reshape(-1)),
            canvas_origins=torch.from_numpy(canvas_origins.reshape(-1)),
            x0=flat[0],
            xt=flat[1],
            self_conditioned=torch.from_numpy(np.flatnonzero(chosen)),
            drafts=Drafts(
                canvases=torch.from_numpy(np.flatnonzero(drafted)),
                uniform=torch.from_numpy(uniform[drafted]),
                noise=torch.from_numpy(noise[drafted]),
                bounds=torch.from_numpy(bounds[drafted]),
            ),
        )

    def _fill(
        self, row: int, ids: NDArray[np.int64], targets: NDArray[np.int64], origins: NDArray[np.int64]
    ) -> list[tuple[int, int, _Piece]]:
        """Write a row's documents; returns (first, end, piece) of each in the row."""
        placed, at = [], 0
        for index in self._pieces_of(row):
            piece = _piece(self._pieces[index])
            stop = at + piece.end - piece.begin
            ids[at:stop], origins[at:stop] = self._documents.tokens[piece.begin : piece.end], at
            targets[at : stop - 1] = ids[at + 1 : stop]
            if not self.config.causal_on_prompt and piece.prompt_length > 1:
                targets[at : at + piece.prompt_length - 1] = IGNORED_TARGET
            placed.append((at, stop, piece))
            at = stop
        origins[at:] = at
        return placed

    def _place(
        self, rng: np.random.Generator, placed: list[tuple[int, int, _Piece]], ids: NDArray[np.int64],
        starts: NDArray[np.int64], origins: NDArray[np.int64], x0: NDArray[np.int64],
    ) -> None:  # fmt: skip
        """Choose where a row's canvases begin, evenly over its tokens, and copy what they hold."""
        length = self._canvas_length
        places: list[tuple[int, int, int]] = []
        weights: list[int] = []
        for at, stop, piece in placed:
            found, weight = _places(piece, at, length)
            places += [(start, at, stop) for start in found]
            weights += [weight] * len(found)
        ends = np.cumsum(weights)
        marks = (np.arange(len(starts)) + rng.random()) * ends[-1] / len(starts)
        for i, chosen in enumerate(np.searchsorted(ends, marks, side="right")):
            start, origin, stop = places[chosen]
            starts[i], origins[i] = start, origin
            x0[i, : min(length, stop - start)] = ids[start : min(stop, start + length)]

    def _noised(
        self, rng: np.random.Generator, x0: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        """(xt, t): uniform corruption with evenly spread times; in some canvases of one span alone, whose t is 1."""
        num, length = x0.shape
        times = MIN_TIME + (1 - MIN_TIME) * rng.permutation((np.arange(num) + rng.random(num)) / num)
        replaced = rng.random((num, length)) < times[:, None]
        noise = rng.integers(0, self._vocab_size, (num, length))
        spanned = np.zeros(num, bool)
        for i in np.flatnonzero(rng.random(num) < self.config.span_share):
            width = int(rng.integers(1, max(2, length // 2 + 1)))
            first = int(rng.integers(0, length - width + 1))
            replaced[i, :first] = replaced[i, first + width :] = False
            spanned[i] = True
        # A draft would put mistakes into what a span leaves clean.
        return np.where(replaced, noise, x0), np.where(spanned, 1.0, times)

    def _pieces_of(self, row: int) -> NDArray[np.int64]:
        """The pieces in a row of the endless sequence: every epoch has all packed rows in an order of its own."""
        epoch, place = divmod(row, len(self._rows))
        if epoch != self._epoch:
            self._epoch, self._order = (
                epoch,
                np.random.default_rng((self.config.seed, epoch)).permutation(len(self._rows)),
            )
        return self._rows[self._order[place]]


def _piece(row: NDArray[np.int64]) -> _Piece:
    begin, end, prompt_length, is_last = (int(x) for x in row)
    return _Piece(begin, end, prompt_length, bool(is_last))


def _places(piece: _Piece, at: int, canvas_length: int) -> tuple[range, int]:
    """(rows' positions where canvases of a piece that lies at `at` may begin, tokens that each stands for).

    Behind a document's end comes end-of-text; a piece that was cut has whole canvases only.
    """
    stop = at + piece.end - piece.begin
    limit = stop if piece.is_last else stop - canvas_length + 1
    if piece.prompt_length == ANYWHERE:
        return range(at + 1, limit), 1
    return range(at + piece.prompt_length, limit, canvas_length), canvas_length


def _cut(documents: Documents, row_length: int) -> NDArray[np.int64]:
    """(begin, end, prompt length, is last) of pieces of at most a row's length; pieces of one token are left out."""
    pieces = []
    for i in range(len(documents)):
        begin, stop = int(documents.offsets[i]), int(documents.offsets[i + 1])
        prompt_length = int(documents.prompt_lengths[i])
        while stop - begin > 1:
            end = min(stop, begin + row_length)
            pieces.append((begin, end, prompt_length, end == stop))
            if prompt_length != ANYWHERE:
                break
            begin = end
    return np.array(pieces, np.int64).reshape(-1, 4)


@kernel()
def _best_fit(order, lengths, capacity, row_of):
    """Put the longest piece that still fits into each row until all are placed; returns the number of rows.

    `order` lists pieces by falling length; pieces of one length are taken in that order.
    """
    first, stop = np.zeros(capacity + 2, np.int64), np.zeros(capacity + 2, np.int64)
    for i in range(len(order)):
        stop[lengths[order[i]]] += 1
    total = 0
    for length in range(capacity, -1, -1):
        first[length] = total
        total += stop[length]
        stop[length] = total
    placed, num_rows = 0, 0
    while placed < len(order):
        room, length = capacity, capacity
        while length > 0:
            if length <= room and first[length] < stop[length]:
                row_of[order[first[length]]] = num_rows
                first[length] += 1
                placed += 1
                room -= length
                length = min(length, room)
            else:
                length -= 1
        num_rows += 1
    return num_rows


def pack(lengths: NDArray[np.int64], row_length: int, seed: int) -> list[NDArray[np.int64]]:
    """Which pieces share a row; pure. Masks keep documents apart, so only how full rows are matters.

    Args:
        lengths: of the pieces, 1 to row_length.
    """
    assert len(lengths) == 0 or (lengths.min() >= 1 and lengths.max() <= row_length)
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    row_of = np.zeros(len(lengths), np.int64)
    num_rows = _best_fit(order, lengths, row_length, row_of)
    by_row = np.argsort(row_of, kind="stable")
    return np.split(by_row, np.searchsorted(row_of[by_row], np.arange(1, num_rows)))


def save_documents(documents: Documents, path: Path) -> None:
    """Write tokenised documents as one .npz file.

    Raises:
        DataError: the file cannot be written.
    """
    partial = path.with_suffix(".partial.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            partial, tokens=documents.tokens, offsets=documents.offsets, prompt_lengths=documents.prompt_lengths
        )  # fmt: skip
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error}") from error


def load_documents(path: Path) -> Documents:
    """Tokenised documents from `save_documents`.

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    try:
        with np.load(path) as saved:
            tokens = saved["tokens"].astype(np.int32, copy=False)
            return Documents(tokens=tokens, offsets=saved["offsets"], prompt_lengths=saved["prompt_lengths"])
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; prepare the data again") from error
    except (ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path}: no .npz of tokenised documents; prepare the data again") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPlan:
    """A recipe's data out of files of tokenised documents.

    Args:
        train, validation: files of `save_documents`; None validates on nothing.
        pack: how they become batches.
        num_validation: validation batches, the same at every look.
    """

    train: Path
    validation: Path | None = None
    pack: PackConfig = field(default_factory=PackConfig)
    num_validation: int = 8

    def open(self, model: Transformer) -> PackedBatches:
        """The training batches."""
        return PackedBatches(load_documents(self.train), self.pack, model.config)

    def validate_on(self, model: Transformer) -> list[Batch]:
        """The validation batches."""
        if self.validation is None:
            return []
        batches = PackedBatches(load_documents(self.validation), self.pack, model.config)
        return [batches(i) for i in range(self.num_validation)]
