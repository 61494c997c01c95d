"""Makes the corpus and the tokenizer of the `code` model.

    pip download --no-deps --only-binary :all: --dest data/wheels --requirement recipes/data/code_packages.txt
    apt-get download python3.11-doc postgresql-doc-15 sqlite3-doc python-django-doc  # on Debian 12
    for package in *-doc*.deb; do dpkg-deb --extract "$package" data/pages; done
    python recipes/data/code.py --wheels data/wheels --pages data/pages --out data/code

Losses a token compare between models of one tokenizer only: `--tokenizer presswork/assets/code/tokenizer.json` takes
that of the embedded model, where wheels of other versions would give another.

Of the wheels only permissive ones are read. Pages are HTML below a folder, such as unpacked documentation packages.
Reading 367 wheels took three minutes on one core. The held-out packages below, and every fiftieth page text, are for
validation.
"""

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.progress import track
from tokenizers import Tokenizer

from presswork.tasks.code.corpus import fingerprint, paragraphs_of, python_functions, read_wheel
from presswork.tasks.code.tokenizer import BOS_ID, EOS_ID, TEMPLATE, train_tokenizer
from presswork.tasks.text_files import write_text_files
from presswork.training.packing import ANYWHERE, Documents, save_documents

HELD_OUT = frozenset((
    "arrow", "boltons", "emcee", "humanize", "mido", "networkx", "nltk", "pyparsing", "sortedcontainers", "structlog",
    "tabulate", "tomlkit",
))  # fmt: skip
MAX_PER_PACKAGE = 6000
PAGE_CHARS = 700
PAGE_EPOCHS = 2
TOKENIZER_SAMPLE = 60_000
SEED = 0


def functions(wheels: Path) -> tuple[list[str], list[str], list[dict[str, object]]]:
    """(training functions, held-out functions, what came from each package), every function once."""
    train: list[str] = []
    held_out: list[str] = []
    sources: list[dict[str, object]] = []
    seen: set[bytes] = set()
    rng = np.random.default_rng(SEED)
    for path in track(sorted(wheels.glob("*.whl")), description="functions"):
        wheel = read_wheel(path)
        if not wheel.is_permissive:
            print(f"left out: {wheel.name} {wheel.version}, licence {wheel.licence or 'unknown'}")
            continue
        found = []
        for text in python_functions(wheel):
            mark = fingerprint(text)
            if mark not in seen:
                seen.add(mark)
                found.append(text)
        if len(found) > MAX_PER_PACKAGE:
            found = [found[i] for i in sorted(rng.choice(len(found), MAX_PER_PACKAGE, replace=False))]
        is_held_out = wheel.name.lower() in HELD_OUT
        (held_out if is_held_out else train).extend(found)
        sources.append({
            "package": wheel.name, "version": wheel.version, "licence": wheel.licence, "functions": len(found),
            "held_out": is_held_out,
        })  # fmt: skip
    return train, held_out, sources


def pages(folder: Path) -> Iterator[str]:
    """Paragraphs of pages, joined to texts of about PAGE_CHARS; every paragraph once."""
    seen: set[bytes] = set()
    for path in sorted(folder.rglob("*.htm*")):
        if path.is_symlink() or not path.is_file():
            continue
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        held: list[str] = []
        for paragraph in paragraphs_of(data.decode("utf-8", "replace")):
            mark = fingerprint(paragraph)
            if mark in seen or len(paragraph) > 2 * PAGE_CHARS:
                continue
            seen.add(mark)
            held.append(paragraph)
            if sum(map(len, held)) > PAGE_CHARS:
                yield "\n\n".join(held) + "\n"
                held = []
        if held:
            yield "\n\n".join(held) + "\n"


def as_documents(texts: list[str], library: Tokenizer) -> Documents:
    """Texts as plain documents between begin and end."""
    encoded = library.encode_batch(texts, add_special_tokens=False)
    parts = [np.array([BOS_ID, *text.ids, EOS_ID], np.int32) for text in encoded]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return Documents(
        tokens=np.concatenate(parts), offsets=offsets, prompt_lengths=np.full(len(parts), ANYWHERE, np.int32)
    )


def main() -> None:
    """Read, hold out, learn the tokenizer, tokenise, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True, help="folder of wheels")
    parser.add_argument("--pages", type=Path, help="folder of HTML pages")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json to take instead of learning one")
    arguments = parser.parse_args()
    train, held_out, sources = functions(arguments.wheels)
    if not train or not held_out:
        parser.error(f"no functions for training or none held out in {arguments.wheels}; download the wheels first")
    texts = [] if arguments.pages is None else list(pages(arguments.pages))
    page_train = [text for i, text in enumerate(texts) if i % 50]
    if arguments.tokenizer is not None:
        library = Tokenizer.from_file(str(arguments.tokenizer))
    else:
        rng = np.random.default_rng(SEED)
        library = train_tokenizer([train[i] for i in rng.permutation(len(train))[:TOKENIZER_SAMPLE]] + page_train)
    write_text_files(library, TEMPLATE, arguments.out)
    save_documents(as_documents(train + PAGE_EPOCHS * page_train, library), arguments.out / "train.npz")
    save_documents(as_documents(held_out + texts[::50], library), arguments.out / "validation.npz")
    (arguments.out / "sources.json").write_text(json.dumps(sources, indent=2) + "\n", encoding="utf-8")
    print(f"{len(train)} functions and {len(page_train)} page texts; {len(held_out)} functions held out")


if __name__ == "__main__":
    main()
