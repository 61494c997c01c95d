"""What it takes to train the molecules model: MOSES' sets out of its wheel, as packed documents."""

import gzip
import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from presswork.config import require
from presswork.errors import DataError
from presswork.models.transformer import Transformer
from presswork.tasks.molecules.smiles import encode_molecules
from presswork.training.loss import Batch
from presswork.training.packing import ANYWHERE, Documents, PackConfig, PackedBatches

MOSES_WHEEL = "molsets-0.3.1-py3-none-any.whl"

Split = Literal["train", "test", "test_scaffolds"]


def read_moses(wheel: Path, split: Split) -> list[str]:
    """The SMILES of one of MOSES' sets.

    Raises:
        DataError: the wheel is not there or does not hold the set.
    """
    member = f"moses/dataset/data/{split}.csv.gz"
    try:
        with zipfile.ZipFile(wheel) as archive, gzip.open(io.BytesIO(archive.read(member)), "rt") as lines:
            next(lines)
            return [line.partition(",")[0].strip() for line in lines]
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"cannot read {member} from {wheel}: {error}; fetch it with "
            f"'pip download --no-deps molsets==0.3.1 -d {wheel.parent}'"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class MosesPlan:
    """MOSES' training set, validated on its test set.

    Args:
        wheel: the molsets wheel.
        free_share: share of molecules whose canvases may begin anywhere, which teaches completing a given beginning;
            the others are written whole.
        limit: molecules to use of the training set; None uses all.
    """

    wheel: Path = Path("data") / MOSES_WHEEL
    pack: PackConfig = field(default_factory=PackConfig)
    free_share: float = 0.2
    limit: int | None = None
    num_validation: int = 8

    def __post_init__(self) -> None:
        require(0 <= self.free_share <= 1, f"free_share must lie in [0, 1], got {self.free_share}")
        require(self.limit is None or self.limit > 0, f"limit must be positive or none, got {self.limit}")

    def open(self, model: Transformer) -> PackedBatches:
        """The training batches."""
        return PackedBatches(self._documents("train", self.limit), self.pack, model.config)

    def validate_on(self, model: Transformer) -> list[Batch]:
        """Batches of the test set."""
        batches = PackedBatches(self._documents("test", 20_000), self.pack, model.config)
        return [batches(i) for i in range(self.num_validation)]

    def _documents(self, split: Split, limit: int | None) -> Documents:
        tokens, offsets = encode_molecules(read_moses(self.wheel, split)[:limit])
        is_free = np.random.default_rng(self.pack.seed).random(len(offsets) - 1) < self.free_share
        return Documents(tokens=tokens, offsets=offsets, prompt_lengths=np.where(is_free, ANYWHERE, 1).astype(np.int32))
