"""What a batch looks like, in letters: documents, canvases, what each canvas sees. For people who prepare data."""

from collections.abc import Callable, Iterator

from presswork.training.loss import IGNORED_TARGET, Batch

_WIDTH = 64

Decode = Callable[[list[int]], str]


def preview(batch: Batch, decode: Decode, num_rows: int = 1) -> Iterator[str]:
    """Lines that show the first rows of a batch.

    Args:
        decode: token ids to text.
    """
    num, length = batch.ids.shape
    canvases, canvas_length = batch.x0.shape
    counted = int((batch.targets != IGNORED_TARGET).sum())
    yield (
        f"{num} rows of {length} tokens, {canvases} canvases of {canvas_length}; the causal loss counts {counted} "
        f"tokens, {len(batch.self_conditioned)} canvases are fed a first pass's belief"
    )
    for row in range(min(num_rows, num)):
        yield from _row(batch, row, decode)


def _row(batch: Batch, row: int, decode: Decode) -> Iterator[str]:
    ids, targets = batch.ids[row].tolist(), batch.targets[row]
    origins = [0] * len(ids) if batch.origins is None else batch.origins[row].tolist()
    yield f"row {row}"
    firsts = sorted(set(origins))
    for first, stop in zip(firsts, [*firsts[1:], len(ids)], strict=True):
        counted = int((targets[first:stop] != IGNORED_TARGET).sum())
        if counted == 0 and first == firsts[-1] and first > 0:
            yield f"  {first:>5} .. {stop - 1:<5} padding"
        else:
            yield f"  {first:>5} .. {stop - 1:<5} {counted} counted: {_short(decode(ids[first:stop]))}"
    for i in (batch.examples == row).nonzero().flatten().tolist():
        yield from _canvas(batch, i, len(ids), decode)


def _canvas(batch: Batch, i: int, length: int, decode: Decode) -> Iterator[str]:
    start = int(batch.starts[i])
    origin = 0 if batch.canvas_origins is None else int(batch.canvas_origins[i])
    changed = int((batch.xt[i] != batch.x0[i]).sum())
    belief = "fed a first pass" if bool((batch.self_conditioned == i).any()) else "no belief"
    yield f"  canvas at {start}, sees {origin} .. {start - 1} and itself; {changed} tokens noised, {belief}"
    yield f"    sees   {_strip(origin, start, length)}"
    yield f"    clean  {_short(decode(batch.x0[i].tolist()))}"
    yield f"    noised {_short(decode(batch.xt[i].tolist()))}"


def _strip(origin: int, start: int, length: int) -> str:
    """The row as a strip of characters: x where the canvas sees it."""
    scale = max(1, -(-length // _WIDTH))
    pieces = range(0, length, scale)
    return "".join("x" if at < start and at + scale > origin else "." for at in pieces)


def _short(text: str) -> str:
    shown = repr(text)[1:-1]
    return shown if len(shown) <= 2 * _WIDTH else f"{shown[: 2 * _WIDTH - 3]}..."
