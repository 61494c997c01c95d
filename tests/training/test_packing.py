"""Packed documents: nothing lost, nothing shared, canvases where they belong, the same for any number of workers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from presswork.config import ModelConfig
from presswork.errors import ConfigError, DataError
from presswork.testing import tiny_config
from presswork.training.loss import IGNORED_TARGET, Batch
from presswork.training.packing import (
    ANYWHERE,
    Documents,
    PackConfig,
    PackedBatches,
    load_documents,
    pack,
    save_documents,
)

EOS, BOS = 1, 2


def documents(num: int = 40, longest: int = 30, prompt_length: int = ANYWHERE, seed: int = 0) -> Documents:
    rng = np.random.default_rng(seed)
    parts = [
        np.concatenate([[BOS], rng.integers(3, 64, rng.integers(max(1, prompt_length), longest)), [EOS]])
        for _ in range(num)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return Documents(
        tokens=np.concatenate(parts).astype(np.int32), offsets=offsets,
        prompt_lengths=np.full(num, prompt_length, np.int32),
    )  # fmt: skip


def model() -> ModelConfig:
    return tiny_config()


def batches(held: Documents, **changes: object) -> PackedBatches:
    config = replace(PackConfig(num_rows=4, row_length=40, canvases_per_row=3), **changes)  # type: ignore[arg-type]
    return PackedBatches(held, config, model())


def rows_of(batch: Batch) -> list[list[int]]:
    """The documents of every row, padding left out."""
    assert batch.origins is not None
    found = []
    for ids, origins in zip(batch.ids.tolist(), batch.origins.tolist(), strict=True):
        for first in sorted(set(origins)):
            found.append([token for token, origin in zip(ids, origins, strict=True) if origin == first])
    return [document for document in found if document[0] == BOS]


def test_an_epoch_holds_every_document_once() -> None:
    held = documents()
    source = batches(held)
    num = len(source._rows)
    whole = source.assemble(list(range(num)))
    expected = [held.tokens[a:b].tolist() for a, b in zip(held.offsets, held.offsets[1:], strict=False)]
    assert sorted(rows_of(whole)) == sorted(expected)
    second = source.assemble(list(range(num, 2 * num)))
    assert sorted(rows_of(second)) == sorted(expected) and not torch.equal(whole.ids, second.ids)


def test_rows_are_full() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 5000)
    rows = pack(lengths, 256, 0)
    assert sorted(np.concatenate(rows).tolist()) == list(range(5000))
    assert all(lengths[row].sum() <= 256 for row in rows)
    assert len(rows) <= 1.01 * lengths.sum() / 256 + 1


@pytest.mark.parametrize("prompt_length", [ANYWHERE, 1, 3])
def test_canvases_hold_what_follows_and_then_the_end(prompt_length: int) -> None:
    source = batches(documents(prompt_length=prompt_length))
    for step in range(6):
        batch = source(step)
        assert batch.origins is not None and batch.canvas_origins is not None
        for i, row in enumerate(batch.examples.tolist()):
            start, origin = int(batch.starts[i]), int(batch.canvas_origins[i])
            assert int(batch.origins[row, start - 1]) == origin < start
            document = [
                t for t, o in zip(batch.ids[row].tolist(), batch.origins[row].tolist(), strict=True) if o == origin
            ]
            rest = document[start - origin :][:8]
            assert batch.x0[i].tolist() == rest + [EOS] * (8 - len(rest))
            if prompt_length != ANYWHERE:
                assert (start - origin - prompt_length) % 8 == 0


def test_every_token_is_as_likely_to_begin_a_canvas() -> None:
    held = documents(num=1, longest=20, seed=3)
    counts = np.zeros(len(held.tokens))
    source = batches(held, canvases_per_row=3)
    for step in range(600):
        for start in source(step).starts.tolist():
            counts[start] += 1
    assert counts[0] == 0 and (np.abs(counts[1:] / counts[1:].mean() - 1) < 0.1).all()


def test_prompted_and_plain_documents_get_canvases_by_their_tokens() -> None:
    plain, prompted = documents(num=1, longest=18, seed=3), documents(num=1, longest=18, seed=3, prompt_length=1)
    both = Documents(
        tokens=np.concatenate([plain.tokens, prompted.tokens]),
        offsets=np.concatenate([plain.offsets, prompted.offsets[1:] + plain.offsets[-1]]),
        prompt_lengths=np.array([ANYWHERE, 1], np.int32),
    )
    source = batches(both, canvases_per_row=2)
    whole = 0
    for step in range(200):
        batch = source(step)
        assert batch.canvas_origins is not None
        origins = batch.canvas_origins.tolist()
        first = {int(o) for o in origins}
        assert first <= {0, len(plain.tokens)}
        whole += sum(int(s - o) % 8 == 1 for s, o in zip(batch.starts.tolist(), origins, strict=True))
    share = whole / (200 * len(batch.starts))
    # Half of the canvases are the prompted document's; of the plain one's every eighth happens to begin there too.
    assert 0.45 < share < 0.7


def test_targets_are_the_next_token_of_the_same_document() -> None:
    for causal_on_prompt in (True, False):
        batch = batches(documents(prompt_length=4), causal_on_prompt=causal_on_prompt)(0)
        assert batch.origins is not None
        for ids, targets, origins in zip(batch.ids, batch.targets, batch.origins, strict=True):
            for t in range(39):
                place = t - int(origins[t])
                is_last = int(origins[t + 1]) != int(origins[t])
                is_padding = int(ids[int(origins[t])]) != BOS
                if is_last or is_padding or (place < 3 and not causal_on_prompt):
                    assert int(targets[t]) == IGNORED_TARGET
                else:
                    assert int(targets[t]) == int(ids[t + 1])


def test_long_documents_are_cut_and_only_their_end_is_an_end() -> None:
    held = documents(num=1, longest=2)
    held = replace(held, tokens=np.arange(2, 60, dtype=np.int32), offsets=np.array([0, 58]))
    batch = batches(held, row_length=24).assemble(list(range(3)))
    assert sorted(ids[0] for ids in batch.ids.tolist()) == [2, 26, 50]
    for i, row in enumerate(batch.examples.tolist()):
        start = int(batch.starts[i])
        if int(batch.ids[row, 0]) != 50:
            assert batch.x0[i].tolist() == batch.ids[row, start : start + 8].tolist()


def test_a_batch_does_not_depend_on_those_before() -> None:
    held = documents()
    first = batches(held)
    for step in range(5):
        first(step)
    assert torch.equal(first(9).xt, batches(held)(9).xt)


def test_noise_is_spread_evenly_and_spans_leave_the_rest_clean() -> None:
    held = documents(num=60, longest=30)
    changed = torch.cat([(b.xt != b.x0).float().mean(1) for b in map(batches(held), range(60))])
    # A replacement is the token it replaces once in 64 times.
    assert float(changed.mean()) == pytest.approx(0.5 * 63 / 64, abs=0.03)
    spans = torch.cat([b.xt != b.x0 for b in map(batches(held, span_share=1.0), range(60))])
    places = [row.nonzero().flatten() for row in spans if row.any()]
    assert max(int(p[-1] - p[0]) + 1 for p in places) <= 4
    assert {len(p) for p in places} >= {1, 2, 3, 4}


@pytest.mark.parametrize(("canvases", "share"), [(4, 0.5), (1, 0.5), (3, 0.5), (5, 0.3), (2, 0.0), (2, 1.0)])
def test_the_share_of_self_conditioned_canvases_is_met(canvases: int, share: float) -> None:
    source = batches(documents(), canvases_per_row=canvases, self_conditioned_share=share)
    counts = [len(source(step).self_conditioned) for step in range(25)]
    assert sum(counts) == pytest.approx(25 * 4 * canvases * share, abs=1) and max(counts) - min(counts) <= 1


def test_drafts_are_among_the_self_conditioned_and_need_a_text_that_can_be_seen() -> None:
    held, total, late = documents(num=60), 0, 0
    for step in range(40):
        batch = batches(held, draft_share=1.0, canvases_per_row=4)(step)
        assert batch.drafts is not None
        canvases = batch.drafts.canvases
        assert set(canvases.tolist()) <= set(batch.self_conditioned.tolist())
        assert batch.drafts.uniform.shape == batch.drafts.noise.shape == (len(canvases), 8)
        assert ((batch.drafts.bounds >= 0.1) & (batch.drafts.bounds <= 4)).all()
        changed = (batch.xt != batch.x0).float().mean(1)
        late += int((changed[canvases] > 0.95).sum())
        total += len(canvases)
    # Three quarters of the half that is self-conditioned.
    assert total == pytest.approx(40 * 16 * 0.5 * 0.75, rel=0.1) and late < 0.15 * total
    plain = batches(held)(0)
    assert plain.drafts is not None and len(plain.drafts.canvases) == 0


def test_documents_come_back_from_disk(tmp_path: Path) -> None:
    held = documents(prompt_length=3)
    save_documents(held, tmp_path / "a" / "documents.npz")
    found = load_documents(tmp_path / "a" / "documents.npz")
    assert all(
        np.array_equal(getattr(found, name), getattr(held, name)) for name in ("tokens", "offsets", "prompt_lengths")
    )
    (tmp_path / "broken.npz").write_bytes(b"no")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("broken.npz", "empty.npz", "missing.npz", "array.npy"):
        with pytest.raises(DataError, match=f"cannot read .*{name}.*prepare the data again"):
            load_documents(tmp_path / name)


def test_a_prompt_that_leaves_no_room_is_left_out_and_told(caplog) -> None:
    held = replace(documents(num=1, longest=2), tokens=np.arange(2, 60, dtype=np.int32), offsets=np.array([0, 58]))
    with pytest.raises(DataError, match="no document has room for a canvas"):
        batches(replace(held, prompt_lengths=np.array([20], np.int32)), row_length=24)
    two = replace(held, offsets=np.array([0, 40, 58]), prompt_lengths=np.array([20, 3], np.int32))
    batch = batches(two, row_length=24)(0)
    assert "left out, no room for a canvas: 1 pieces" in caplog.text and (batch.ids[:, 0] == 42).all()


def test_a_cut_example_has_whole_canvases_only() -> None:
    held = replace(
        documents(num=1, longest=2), tokens=np.arange(2, 60, dtype=np.int32), offsets=np.array([0, 58]),
        prompt_lengths=np.array([3], np.int32),
    )  # fmt: skip
    source = batches(held, row_length=24)
    for step in range(5):
        assert set(source(step).starts.tolist()) <= {3, 11} and not (source(step).x0 == EOS).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": np.array([0, 3])}, "documents do not fit together"),
        ({"prompt_lengths": np.array([1, 1], np.int32)}, "documents do not fit together"),
        ({"prompt_lengths": np.array([-3], np.int32)}, "prompt lengths be 1 or more, or ANYWHERE"),
        ({"tokens": np.full(58, 64, np.int32)}, "hold token 64, the model knows 0 to 63; .* another tokenizer"),
    ],
)
def test_documents_that_cannot_be(changes: dict[str, object], message: str) -> None:
    held = Documents(
        tokens=np.arange(2, 60, dtype=np.int32), offsets=np.array([0, 58]), prompt_lengths=np.array([1], np.int32)
    )
    with pytest.raises(DataError, match=message):
        batches(replace(held, **changes))  # type: ignore[arg-type]


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        batches(Documents(tokens=np.array([2], np.int32), offsets=np.array([0, 1]), prompt_lengths=np.array([1])))
    with pytest.raises(ConfigError, match="row_length must be above the canvas's 8, got 8"):
        batches(documents(), row_length=8)
    for field, value in (("num_rows", 0), ("row_length", 1), ("span_share", 1.5), ("canvas_length", -1), ("seed", -1)):
        with pytest.raises(ConfigError, match=f"{field} must"):
            PackConfig(**{field: value})
