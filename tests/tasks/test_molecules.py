"""Molecules: encoding and its tokenizer agree, MOSES' sets are read from their wheel, metrics by hand."""

import gzip
import re
import zipfile
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch

from presswork.config import ModelConfig
from presswork.engine.engine import Engine, EngineConfig
from presswork.errors import DataError, RequestError
from presswork.models.transformer import Transformer
from presswork.tasks.molecules.evaluate import canonical, evaluate, score
from presswork.tasks.molecules.scaffold import contains, evaluate_scaffold, scaffold_pieces
from presswork.tasks.molecules.smiles import (
    BOS_ID,
    CHARACTERS,
    EOS_ID,
    VOCAB_SIZE,
    build_tokenizer,
    encode_molecules,
)
from presswork.tasks.molecules.syntax import smiles_syntax
from presswork.tasks.molecules.training import MosesPlan, read_moses
from presswork.testing import tiny_config
from presswork.text.chat import ChatTemplate
from presswork.text.tokenizer import Tokenizer
from presswork.training.packing import ANYWHERE, PackConfig
from presswork.weights.initialise import random_model

MOLECULES = ["CCO", "c1ccccc1", "CC(=O)Nc1ccc(O)cc1", "C[nH]", "FC(F)(F)Br"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("molecules")
    build_tokenizer(folder)
    return Tokenizer.from_folder(folder)


def config() -> ModelConfig:
    return tiny_config(vocab_size=VOCAB_SIZE)


def moses(folder: Path) -> Path:
    path = folder / "molsets.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for split in ("train", "test"):
            text = "\n".join(("SMILES,SPLIT", *(f"{m},{split}" for m in MOLECULES), ""))
            archive.writestr(f"moses/dataset/data/{split}.csv.gz", gzip.compress(text.encode()))
    return path


def test_molecules_are_encoded_as_the_tokenizer_does(tokenizer) -> None:
    tokens, offsets = encode_molecules(MOLECULES)
    for i, molecule in enumerate(MOLECULES):
        found = tokens[offsets[i] : offsets[i + 1]].tolist()
        assert found == [BOS_ID, *tokenizer.encode(molecule, add_special_tokens=False), EOS_ID]
        assert tokenizer.decode(found) == molecule
    assert len(set(CHARACTERS)) == len(CHARACTERS) and tokenizer.vocab_size == VOCAB_SIZE


def test_a_prompt_is_how_a_molecule_begins(tokenizer) -> None:
    template = ChatTemplate.from_folder(tokenizer._folder, tokenizer)
    assert template is not None
    assert template.render([{"role": "user", "content": "c1cc"}]) == "<bos>c1cc"


@pytest.mark.parametrize("molecule", ["C*C", "Cé", "C C"])
def test_other_characters_are_named(molecule: str) -> None:
    with pytest.raises(DataError, match=r"molecule 2, '.*', has a character outside"):
        encode_molecules(["CC", molecule])


def test_sets_come_out_of_the_wheel(tmp_path: Path) -> None:
    assert read_moses(moses(tmp_path), "train") == MOLECULES
    with pytest.raises(DataError, match="pip download --no-deps molsets"):
        read_moses(tmp_path / "none.whl", "train")
    with pytest.raises(DataError, match="test_scaffolds"):
        read_moses(moses(tmp_path), "test_scaffolds")


def test_a_plan_writes_most_molecules_whole(tmp_path: Path) -> None:
    pack = PackConfig(num_rows=2, row_length=64, canvases_per_row=2)
    plan = MosesPlan(wheel=moses(tmp_path), pack=pack, free_share=0.0, num_validation=2)
    model = Transformer(config())
    batch = plan.open(model)(0)
    assert batch.canvas_origins is not None
    # With no free molecules a canvas begins behind the begin token, or a canvas further on.
    assert ((batch.starts - batch.canvas_origins) % 8 == 1).all()
    assert len(plan.validate_on(model)) == 2
    free = MosesPlan(wheel=moses(tmp_path), pack=pack, free_share=1.0)
    assert (np.array(free._documents("train", None).prompt_lengths) == ANYWHERE).all()


class TestScore:
    @pytest.fixture(autouse=True)
    def needs_rdkit(self) -> None:
        pytest.importorskip("rdkit", reason="rdkit is an extra")

    @pytest.mark.parametrize("smiles", ["", "C(", "c1ccccc", "C=C=C=1", "F=F=F"])
    def test_what_is_no_molecule(self, smiles: str) -> None:
        assert canonical(smiles) is None

    def test_the_same_molecule_in_other_letters(self) -> None:
        assert canonical("OCC") == canonical("CCO") == canonical("C(O)C")

    def test_by_hand(self) -> None:
        found = score(["OCC", "CCO", "C", "C(", "N"], known=["CCO"])
        assert found == {
            "valid": 4 / 5, "unique@1k": 3 / 4, "unique@10k": 3 / 4, "novelty": pytest.approx(2 / 3),
        }  # fmt: skip
        assert score(["C("]) == {"valid": 0.0, "unique@1k": 0.0, "unique@10k": 0.0}

    @pytest.mark.parametrize("mode", ["diffusion", "ar"])
    def test_evaluation_repeats_and_counts(self, tokenizer, mode) -> None:
        model = random_model(config(), dtype=torch.float32, seed=1)
        engine = Engine(model, tokenizer=tokenizer, generation_config={"eos_token_id": [EOS_ID]})
        runs = [evaluate(engine, 5, 3, mode=mode, known=["C"], max_denoising_steps=2) for _ in range(2)]
        for run in runs:
            del run["wall_s"], run["tokens_per_s"]
        assert runs[0] == runs[1] and runs[0]["num"] == 5 and len(set(runs[0]["samples"])) > 1


def test_each_prompt_may_have_a_seed_of_its_own(tokenizer) -> None:
    model = random_model(config(), dtype=torch.float32, seed=1)
    engine = Engine(model, tokenizer=tokenizer, generation_config={"eos_token_id": [EOS_ID]})
    prompts = [[BOS_ID]] * 3
    together = engine.generate(prompt_token_ids=prompts, seed=[4, 5, 4], max_tokens=9, max_denoising_steps=2)
    alone = engine.generate(prompt_token_ids=[BOS_ID], seed=5, max_tokens=9, max_denoising_steps=2)
    texts = [reply.token_ids for reply in together]
    assert texts[0] == texts[2] != texts[1] == alone.token_ids
    with pytest.raises(RequestError, match="seed has 2 values for 3 prompts"):
        engine.generate(prompt_token_ids=prompts, seed=[1, 2])
    with pytest.raises(RequestError, match="seed"):
        engine.generate(prompt_token_ids=[BOS_ID], seed=[1])


class TestSyntax:
    GOOD = (
        "CCO", "c1ccccc1", "CC(=O)Nc1ccc(O)cc1", "FC(F)(F)Br", "N#Cc1c[nH]cn1", "O=S(=O)(Cl)c1ccc2c(c1)CCC2", "ClCCl",
        "CC(C(C(C(C))))C", "C=C1C2CC1C2", "CN1C(=O)CC-1",
    )  # fmt: skip
    BAD = (
        "", "C(", "C)", "C()C", "c1ccccc", "c1ccccc12", "CC=", "=C", "C(=)C", "C==C", "C#-C", "CFC", "C(FC)C", "CO(C)C",
        "1CC1", "C(1CC1)", "CC(C(C(C(C(C)))))C", "C[nH", "CX", "c1cc(1)",
    )  # fmt: skip

    def test_of_branches_rings_bonds_and_ends(self) -> None:
        automaton = smiles_syntax().automaton()
        assert [text for text in self.GOOD if not automaton.matches(text.encode())] == []
        assert [text for text in self.BAD if automaton.matches(text.encode())] == []

    def test_what_is_kept_to_it_has_closed_branches_and_rings(self, tokenizer, tmp_path) -> None:
        pytest.importorskip("rdkit", reason="rdkit is an extra")
        model = random_model(config(), dtype=torch.float32, seed=1)
        own = EngineConfig(constraint_folder=tmp_path)
        engine = Engine(model, tokenizer=tokenizer, generation_config={"eos_token_id": [EOS_ID]}, config=own)
        for mode in ("diffusion", "ar"):
            found = evaluate(engine, 5, 3, mode=mode, constraint=smiles_syntax(), max_denoising_steps=2)
            for text in found["samples"]:
                depths = list(accumulate((letter == "(") - (letter == ")") for letter in text))
                assert depths[-1] == 0 <= min(depths) and not any(text.count(label) % 2 for label in "123456")


class TestScaffold:
    @pytest.fixture(autouse=True)
    def needs_rdkit(self) -> None:
        pytest.importorskip("rdkit", reason="rdkit is an extra")

    def test_a_molecule_has_the_scaffold_as_a_part_or_not(self) -> None:
        assert contains("Cc1ccc(CC)cc1", "*c1ccc(*)cc1") and contains("CC(=O)NC", "O=C(*)N*")
        assert not contains("C1CCCCC1", "*c1ccc(*)cc1") and not contains("c1cc(", "c1ccc(*)cc1")

    @pytest.mark.parametrize(
        ("scaffold", "message"),
        [
            ("c1ccccc1", "must mark attachment points"),
            ("C**C", "must mark attachment points"),
            ("*", "must mark attachment points"),
            ("C(*)[Si]", "no character 'i'"),
            ("c1ccc(*", "is no SMILES"),
            ("C" * 62 + "*C", "is too long"),
        ],
    )
    def test_what_is_no_scaffold_is_named(self, scaffold: str, message: str) -> None:
        with pytest.raises(RequestError, match=message):
            scaffold_pieces(scaffold)

    def test_every_text_is_written_around_the_scaffold(self, tokenizer) -> None:
        model = random_model(config(), dtype=torch.float32, seed=1)
        engine = Engine(model, tokenizer=tokenizer, generation_config={"eos_token_id": [EOS_ID]})
        runs = [evaluate_scaffold(engine, "C(*)O", 5, 3, best_of=2, max_denoising_steps=2) for _ in range(2)]
        for text in runs[0]["samples"]:
            assert re.fullmatch(r"C\(.+\)O", text)
        assert runs[0]["mean_steps"] > 0 and runs[0]["with_scaffold"] <= runs[0]["valid"]
        assert runs[0]["samples"] == runs[1]["samples"] and len(set(runs[0]["samples"])) > 1
