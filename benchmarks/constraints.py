"""What keeping to a constraint costs: preparing it, and a denoise step under it beside a free one.

    python benchmarks/constraints.py --runs 5

Random weights of the `vocabulary` size of benchmarks/peers/transformers_cpu.py (V = 262,144), bfloat16, one canvas of
256, 4 denoise steps after a prompt that is computed already. The vocabulary is the bytes and the most frequent words of
the Python packages installed here. Alternated in one run, medians. Writes benchmarks/results/constraints.json.
"""

import argparse
import json
import re
import site
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import tokenizers
import torch
from offline import RESULTS, alternate
from peers.transformers_cpu import CANVAS, commit, hardware, large
from tokenizers import decoders, models, pre_tokenizers

from presswork import Choices, EngineConfig, JsonSchema, Regex
from presswork.engine.constraints import ConstraintTable
from presswork.engine.engine import Engine
from presswork.grammar.languages import Language
from presswork.text.tokenizer import Tokenizer
from presswork.weights.initialise import random_model

VOCAB, STEPS = 262_144, 4
SPECIAL = ["<pad>", "<eos>", "<bos>"]
WORDS = re.compile(rb" ?[A-Za-z]+| ?[0-9]{1,3}| ?[^\sA-Za-z0-9]{1,4}|\s+")

FIELDS: dict[str, Any] = {
    "id": {"type": "string", "format": "uuid"},
    "name": {"type": "string"},
    "email": {"type": "string", "maxLength": 40},
    "age": {"type": "integer", "minimum": 0, "maximum": 150},
    "score": {"type": "number"},
    "active": {"type": "boolean"},
    "role": {"enum": ["admin", "editor", "viewer", "guest"]},
    "created": {"type": "string", "format": "date-time"},
    "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
    "address": {
        "type": "object",
        "properties": {"street": {"type": "string"}, "city": {"type": "string"}, "zip": {"pattern": "^[0-9]{5}$"}},
        "required": ["city"],
    },
    "phone": {"type": "string", "pattern": r"^\+?[0-9 ]{6,16}$"},
    "level": {"type": "integer", "minimum": 1, "maximum": 10},
    "notes": {"type": "string"},
    "parent": {"anyOf": [{"type": "null"}, {"type": "string", "format": "uuid"}]},
    "weights": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 4},
    "status": {"const": "ok"},
    "country": {"type": "string", "pattern": "^[A-Z]{2}$"},
    "verified": {"type": "boolean"},
    "title": {"type": "string"},
    "summary": {"type": "string"},
}
CASES: dict[str, Language | None] = {
    "free": None,
    "object of 20 fields": JsonSchema({"type": "object", "properties": FIELDS, "required": list(FIELDS)[:12]}),
    "words": Regex(r"[A-Za-z]+( [A-Za-z]+)*\."),
    "digits": Regex("[0-9 ]+"),
    "yes or no": Choices(["yes", "no"]),
}


def make_tokenizer() -> Tokenizer:
    """Byte-level tokens: special ones, all bytes, then words by how often the installed packages hold them."""
    counts: Counter[bytes] = Counter()
    for folder in site.getsitepackages():
        for file in sorted(Path(folder).rglob("*.py")):
            counts.update(word for word in WORDS.findall(file.read_bytes()) if 1 < len(word) <= 24)
    words = [word for word, _ in counts.most_common(VOCAB - 256 - len(SPECIAL))]
    # Beginnings of the longest words, where the packages have too few.
    for word in sorted(counts, key=len, reverse=True):
        if len(words) >= VOCAB - 256 - len(SPECIAL):
            break
        words += [word[:n] for n in range(2, len(word)) if word[:n] not in counts]
    letters = {byte: chr(point) for byte, point in byte_letters().items()}
    pieces = [bytes([value]) for value in range(256)] + list(dict.fromkeys(words))
    named = SPECIAL + ["".join(letters[byte] for byte in piece) for piece in pieces]
    library = tokenizers.Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(named[:VOCAB])}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(SPECIAL)
    return Tokenizer(library, named={"eos_token": "<eos>"})


def byte_letters() -> dict[int, int]:
    """The character that byte-level tokenizers write each byte as."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: byte for byte in kept} | {byte: 0x100 + n for n, byte in enumerate(others)}


def preparation(tokenizer: Tokenizer, folder: Path) -> dict[str, dict[str, float]]:
    """Seconds to prepare each constraint the first time, and from its file; the vocabulary's own preparation apart."""
    found: dict[str, dict[str, float]] = {}
    ends, kept = frozenset({1}), folder / "constraints"
    warm = ConstraintTable(tokenizer, VOCAB, "benchmark", kept)
    started = time.perf_counter()
    warm.find(Regex("a"), ends, 0)
    found["the vocabulary, once a process"] = {"first_s": time.perf_counter() - started}
    for name, language in CASES.items():
        if language is not None:
            times = []
            for table in (warm, ConstraintTable(tokenizer, VOCAB, "benchmark", kept)):
                table.find(Regex("b"), ends, 0)  # a table of its own reads the vocabulary again
                started = time.perf_counter()
                table.find(language, ends, 0)
                times.append(time.perf_counter() - started)
            found[name] = {"first_s": times[0], "from_file_s": times[1]}
    return found


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as scratch:
        prepared = preparation(tokenizer, Path(scratch))
        engine = Engine(
            random_model(large(VOCAB), dtype=torch.bfloat16), tokenizer=tokenizer,
            generation_config={"eos_token_id": [1], "pad_token_id": 0},
            config=EngineConfig(constraint_folder=Path(scratch) / "constraints"),
        )  # fmt: skip

        def seconds(language: Language | None) -> float:
            started = time.perf_counter()
            reply = engine.generate(
                prompt_token_ids=[2, 40, 41, 42], max_tokens=CANVAS, canvas_length=CANVAS, constraint=language,
                max_denoising_steps=STEPS, stability_threshold=None, ignore_eos=language is None,
            )  # fmt: skip
            assert reply.stats.num_denoise_steps == STEPS
            return (time.perf_counter() - started) / STEPS

        steps = alternate(
            {name: lambda held=language: seconds(held) for name, language in CASES.items()}, arguments.runs
        )
    free = steps["free"]["median"]
    report = {
        "hardware": hardware(), "commit": commit(), "preparation": prepared,
        "step_s": steps, "ratio": {name: case["median"] / free for name, case in steps.items()},
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "constraints.json").write_text(json.dumps(report, indent=2) + "\n")
    json.dump(report, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
