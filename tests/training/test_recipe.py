"""Recipes: read from files, overridden by path, printed, kept with their runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from presswork.engine.loader import load
from presswork.errors import ConfigError
from presswork.models.adapters import LoraConfig
from presswork.testing import tiny_model
from presswork.training.metrics import MetricsLog, read_metrics
from presswork.training.packing import PackConfig
from presswork.training.recipe import FromCheckpoint, as_json, describe, load_recipe, override
from presswork.training.run import averaged_model, export, open_run
from presswork.training.text_files import TextPlan
from presswork.weights.config_files import read_generation_config, read_layout, write_generation_config
from presswork.weights.convert import convert
from presswork.weights.hub import ASSETS
from presswork.weights.load import load_model
from presswork.weights.save import save_model

FILE = Path(__file__).with_name("recipe_for_tests.py")
RECIPES = Path(__file__).parents[2] / "recipes"


def test_fields_are_set_by_their_path_and_read_as_their_type() -> None:
    found = override(
        load_recipe(FILE),
        ["train.num_steps=7", "train.optimizer.peak_rate=1e-2", "train.compile=true", "train.optimizer.algorithm=muon",
         "train.optimizer.betas=0.8,0.9", "data.first=3", "start.seed = 5"],
    )  # fmt: skip
    assert (found.train.num_steps, found.train.compile, found.data.first, found.start.seed) == (7, True, 3, 5)
    assert found.train.optimizer.peak_rate == 0.01 and found.train.optimizer.betas == (0.8, 0.9)
    assert found.train.optimizer.algorithm == "muon" and found.train.log_every == 1


def test_fields_that_only_fit_together_are_set_in_any_order() -> None:
    settings = ["train.log_every=3", "evaluate_every=9", "train.patience=2", "train.validate_every=3"]
    for order in (settings, settings[::-1]):
        found = override(load_recipe(FILE), order)
        assert (found.train.log_every, found.evaluate_every, found.train.patience) == (3, 9, 2)
    assert override(load_recipe(FILE), ["data.first=3", "data.first=4"]).data.first == 4


def test_generation_defaults_can_be_set_too() -> None:
    found = override(load_recipe(FILE), ["generation.entropy_bound=0.3", "generation.stability_threshold=none"])
    assert found.generation == {
        "max_denoising_steps": 4, "eos_token_id": [1], "entropy_bound": 0.3, "stability_threshold": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.num_step=7", "train.num_step: train has no field 'num_step'; it has num_steps,"),
        ("nothing=7", "nothing: the recipe has no field 'nothing'; it has start, data, train"),
        ("train.num_steps", "cannot read 'train.num_steps'; set a field as path=value"),
        ("train.num_steps=many", "train.num_steps: 'many' cannot be read as int"),
        ("train.compile=yes", "train.compile: 'yes' cannot be read as bool"),
        ("train.optimizer.algorithm=sgd", "'sgd' cannot be read as adamw or muon"),
        ("train.optimizer.betas=0.9", "'0.9' cannot be read as"),
        ("train.num_steps.x=1", "train.num_steps.x: train.num_steps has no fields; it is 4"),
        ("generation.a.b=1", "generation.a.b: generation has no such field; it is {"),
        ("train.num_steps=0", "num_steps must be positive, got 0"),
        ("evaluate=none", "evaluate_every is 2, but nothing is evaluated; set 0"),
        ("train.log_every=3", "evaluate_every must be 0 or a multiple of train.log_every (3), got 2"),
    ],
)
def test_what_cannot_be_set_is_one_clear_line(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        override(load_recipe(FILE), [setting])
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no recipe at .*; give a Python file that defines"),
        ("x = 1", "defines no recipe"),
        ("def recipe(): return 3", "must return a presswork.training.recipe.Recipe, got int"),
        ("def recipe(:", "cannot be read: "),
        ("import no_such_module_at_all", "cannot be read: No module named"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "r.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_recipe(file)


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.py")), ids=lambda file: file.stem)
def test_shipped_recipes_are_read_and_printed(file: Path) -> None:
    assert json.loads(as_json(load_recipe(file)))["train"]["num_steps"] > 0


def test_a_recipe_is_printed_in_full() -> None:
    shown = json.loads(as_json(load_recipe(FILE)))
    assert shown["train"]["optimizer"]["peak_rate"] == 0.003 and shown["start"]["model"]["layers"][0]["head_dim"] > 0
    assert shown["write_text_files"].endswith("recipe_for_tests.write_text_files")


def test_a_run_keeps_its_recipe_and_refuses_another(tmp_path: Path) -> None:
    recipe = load_recipe(FILE)
    list(open_run(recipe, tmp_path).run(until=2))
    assert json.loads((tmp_path / "recipe.json").read_text()) == describe(recipe)
    assert open_run(recipe, tmp_path).next_step == 2
    with pytest.raises(ConfigError, match=r"holds a run of another recipe: train.num_steps was 4, is 9; go on with"):
        open_run(override(recipe, ["train.num_steps=9"]), tmp_path)


def test_a_run_refuses_other_data_and_other_weights_beside_its_adapter(tmp_path: Path) -> None:
    recipe = load_recipe(FILE)
    base = export(open_run(recipe, tmp_path / "base"), recipe)
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "CCO"}\n{"text": "CNC"}\n')
    pack = PackConfig(num_rows=2, row_length=24, canvases_per_row=2, canvas_length=8)
    adapted = replace(
        recipe, start=FromCheckpoint(model=str(base)), lora=LoraConfig(rank=2), write_text_files=None,
        data=TextPlan(train=(lines,), validation=(lines,), tokenizer=str(base), pack=pack),
    )  # fmt: skip
    run = tmp_path / "run"
    list(open_run(adapted, run).run(until=2))
    assert open_run(adapted, run).next_step == 2
    lines.write_text('{"text": "CCO"}\n{"text": "COC"}\n')
    with pytest.raises(ConfigError, match=r"holds a run that read other contents of .*lines\.jsonl; put them back, or"):
        open_run(adapted, run)
    lines.write_text('{"text": "CCO"}\n{"text": "CNC"}\n')
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ConfigError, match=r"read other contents of .*base/model/model\.safetensors"):
        open_run(adapted, run)


def test_a_causal_run_of_an_untied_model_is_refused_before_it_begins(tmp_path: Path) -> None:
    made = tiny_model(tie_word_embeddings=False)
    save_model(made, tmp_path / "untied")
    recipe = replace(load_recipe(FILE), start=FromCheckpoint(model=str(tmp_path / "untied")))
    with pytest.raises(ConfigError, match=r"diffusion_weight is 0, and the model's two modes do not share"):
        open_run(override(recipe, ["train.diffusion_weight=0"]), tmp_path / "run")
    adapted = replace(recipe, lora=LoraConfig(rank=2))
    assert open_run(override(adapted, ["train.diffusion_weight=0"]), tmp_path / "adapted").next_step == 0


def test_what_a_model_is_saved_with_may_change_and_is_checked_before_the_first_step(tmp_path: Path) -> None:
    recipe = load_recipe(FILE)
    list(open_run(recipe, tmp_path).run(until=2))
    assert open_run(override(recipe, ["generation.t_max=0.7"]), tmp_path).next_step == 2
    for setting, message in (
        ("generation.t_maximum=0.7", "unknown generation setting t_maximum; accepted: .*t_max"),
        ("generation.entropy_bound=abc", "generation setting entropy_bound must be a number, got 'abc'"),
        ("generation.max_denoising_steps=1.5", "max_denoising_steps must be a whole number, got 1.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_run(override(recipe, [setting]), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_model_trained_further_keeps_its_settings_and_end_tokens(tmp_path: Path) -> None:
    recipe = load_recipe(FILE)
    first = open_run(recipe, tmp_path / "first")
    folder = export(first, recipe)
    write_generation_config(folder, {"eos_token_id": [1, 9], "t_max": 0.7, "entropy_bound": 0.3})
    second = replace(recipe, start=FromCheckpoint(model=str(folder)), generation={"t_min": 0.2}, write_text_files=None)
    made = export(open_run(second, tmp_path / "second"), second)
    assert read_generation_config(made) == {"eos_token_id": [1, 9], "t_max": 0.7, "entropy_bound": 0.3, "t_min": 0.2}


def test_a_run_that_never_began_leaves_its_folder_to_any_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(FILE)
    open_run(recipe, tmp_path)
    assert open_run(override(recipe, ["train.num_steps=9"]), tmp_path).config.num_steps == 9
    list(open_run(recipe, tmp_path).run(until=2))
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(ConfigError, match=r"cannot read .*recipe.json.*remove it to go on"):
        open_run(recipe, tmp_path)


def test_the_exported_model_has_the_averaged_weights(tmp_path: Path) -> None:
    recipe = load_recipe(FILE)
    trainer = open_run(recipe, tmp_path)
    list(trainer.run())
    assert trainer.is_done
    folder = export(trainer, recipe)
    assert {"tokenizer.json", "config.json", "generation_config.json"} <= {file.name for file in folder.iterdir()}
    found = load_model(folder).state_dict()
    for name, tensor in averaged_model(trainer).state_dict().items():
        assert torch.equal(found[name], tensor), name
    average = trainer.averaged_weights()["decoder.embedding"]
    assert torch.equal(found["decoder.embedding"], average.bfloat16())


def test_a_run_can_start_from_what_another_made(tmp_path: Path) -> None:
    recipe = load_recipe(FILE)
    first = open_run(recipe, tmp_path / "first")
    list(first.run())
    folder = export(first, recipe)
    second = replace(recipe, start=FromCheckpoint(model=str(folder)), write_text_files=None)
    trainer = open_run(second, tmp_path / "second")
    for name, tensor in averaged_model(first).state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], tensor.float()), name
    list(trainer.run())
    assert (export(trainer, second) / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_part_and_what_is_in_it_are_not_set_both() -> None:
    for settings in (["train.optimizer=x", "train.optimizer.peak_rate=1"], ["lora=none", "lora.rank=2"]):
        for given in (settings, settings[::-1]):
            with pytest.raises(
                ConfigError, match=r"(train\.optimizer|lora).* set too|is set to .* too; set one of them"
            ):
                override(load_recipe(FILE), given)


def test_what_a_run_wrote_behind_the_step_it_went_on_from_does_not_count(tmp_path: Path) -> None:
    for step in (0, 10, 20, 30, 10, 15):
        MetricsLog(tmp_path).write(step, {"step": step, "loss": 1.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 10, 15]


def test_figures_of_a_run_are_read_back_once_a_step(tmp_path: Path) -> None:
    reports = list(open_run(load_recipe(FILE), tmp_path).run())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    MetricsLog(tmp_path).write(3, {"step": 3, "loss": 0.5})
    figures = read_metrics(tmp_path)
    assert [line["step"] for line in figures] == [0, 1, 2, 3] and figures[3] == {"step": 3, "loss": 0.5}
    assert figures[1]["loss"] == reports[1].loss and read_metrics(tmp_path / "nowhere") == []


def test_tensorboard_reads_the_same_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reports = list(open_run(load_recipe(FILE), tmp_path).run())
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    curve = events.Scalars("diffusion")
    assert [event.step for event in curve] == [0, 1, 2, 3]
    assert [event.value for event in curve] == pytest.approx([report.diffusion for report in reports])
    assert len(events.Scalars("validation_diffusion")) == 3


def test_a_causal_run_leaves_an_autoregressive_model_that_converts(tmp_path: Path) -> None:
    """Only the causal mode is trained; the result starts a diffusion model whose belief is silent."""
    wanted = override(load_recipe(FILE), ["train.diffusion_weight=0"])
    trainer = open_run(wanted, tmp_path / "run")
    reports = list(trainer.run())
    assert all(report.diffusion == 0 and report.validation_diffusion in (0, None) for report in reports)
    assert not any(name.startswith("self_conditioning") for name in trainer.optimizer.masters)
    folder = export(trainer, wanted)
    assert read_layout(folder) == "autoregressive" and load(folder).defaults.mode == "ar"
    convert(folder, tmp_path / "start", canvas_length=8)
    start = FromCheckpoint(model=str(tmp_path / "start")).build()
    assert not start.self_conditioning.mlp.down.any()
    assert torch.equal(start.decoder.norm, averaged_model(trainer).decoder.norm)  # type: ignore[union-attr]


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Settings that point a recipe for texts at two small files, for three steps."""
    lines = [{"prompt": "", "completion": "CCO"}, {"prompt": "c1", "completion": "ccccc1"}] * 4
    for name in ("train", "held_out"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = ["pack.row_length=96", "pack.num_rows=2", "pack.canvases_per_row=2", "num_validation=1"]
    return [
        *[f"data.{setting}" for setting in settings], "train.num_steps=3", "train.log_every=1",
        "train.validate_every=2", f"data.train={tmp_path / 'train.jsonl'}",
        f"data.validation={tmp_path / 'held_out.jsonl'}",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_recipe_for_texts_trains_a_model_further(tmp_path: Path, texts: list[str]) -> None:
    settings = [*texts, "start.model=molecules", "data.tokenizer=molecules"]
    recipe = override(load_recipe(RECIPES / "adapt.py"), settings)
    trainer = open_run(recipe, tmp_path / "run")
    assert [report.step for report in trainer.run()] == [0, 1, 2]
    made, before = load(export(trainer, recipe)), load("molecules")
    assert made.defaults == before.defaults and made.end_ids == before.end_ids
    assert made.generate("", max_tokens=8, max_denoising_steps=2).usage.completion_tokens


@pytest.mark.slow
def test_the_recipe_for_texts_goes_on_from_a_converted_model(tmp_path: Path, texts: list[str]) -> None:
    source, start = ASSETS / "molecules", tmp_path / "start"
    causal = tmp_path / "causal"
    files = [source / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")]
    ends = {"eos_token_id": [1, 2]}
    save_model(load_model(source), causal, layout="autoregressive", generation_config=ends, extra=files)
    convert(causal, start, canvas_length=32, extra=files)
    recipe = override(load_recipe(RECIPES / "adapt.py"), [*texts, f"start.model={start}", f"data.tokenizer={start}"])
    trainer = open_run(recipe, tmp_path / "run")
    list(trainer.run())
    engine = load(export(trainer, recipe))
    assert engine.end_ids == load(start).end_ids and engine.model.config.canvas_length == 32
    assert engine.generate("", max_tokens=8, max_denoising_steps=2).usage.completion_tokens


@pytest.mark.slow
def test_the_recipe_for_adapters_trains_one_beside_the_model(tmp_path: Path, texts: list[str]) -> None:
    settings = [*texts, "start.model=molecules", "data.tokenizer=molecules", "train.optimizer.peak_rate=0.05"]
    recipe = override(load_recipe(RECIPES / "lora.py"), settings)
    trainer = open_run(recipe, tmp_path / "run")
    list(trainer.run())
    engine = load("molecules")
    engine.load_adapter("own", export(trainer, recipe))
    prompt, draft = [2, 9], [5] * engine.model.config.canvas_length
    plain, adapted = (engine.canvas_logits(prompt, draft, adapter=name) for name in (None, "own"))
    assert not torch.equal(plain, adapted)
