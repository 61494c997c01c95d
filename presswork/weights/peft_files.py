"""Adapters on disk, in the format of the peft library.

r rank, K inner width, M output columns, E experts.

Upstream the two modes are two modules that share weights, and peft gives each its own factors; one set that serves both
is written twice. Factors of all experts of a layer are one pair of tables: A [E r, K], B [M, r E] with the expert's
number counting fastest. Where both weights of the experts are adapted, peft nests the second around the first.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from presswork.config import ModelConfig
from presswork.errors import CheckpointError
from presswork.models.adapters import Adapter, LoraConfig, LowRank
from presswork.weights.files import one_line, write_json
from presswork.weights.load import is_finite
from presswork.weights.lora import Factors, Sites, adapter_sites, assemble, is_canvas_only
from presswork.weights.names import MODE_PREFIXES, Place, module_modes, product_places
from presswork.weights.section import Section

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<module>.+?)(?P<nested>(?:\.base_layer)*)\.lora_(?P<side>[AB])\.weight")
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_UNSUPPORTED = (
    "use_dora", "lora_bias", "fan_in_fan_out", "modules_to_save", "layer_replication", "trainable_token_indices",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "kasa_config", "arrow_config", "monteclora_config",
    "velora_config",
)  # fmt: skip
_EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


def save_adapter(
    adapter: Adapter, folder: str | Path, config: ModelConfig, lora: LoraConfig, base_model: str | None = None
) -> None:
    """Write the factors as peft does, in float32; the peft library loads the folder for transformers' model.

    Args:
        config: of the model the factors belong to.
        lora: what they were made with.
        base_model: the model's name, to be remembered.

    Raises:
        CheckpointError: a factor is NaN or infinite, or the folder cannot be written.
    """
    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    modules: list[str] = []
    parameters: list[str] = []
    sites = list(adapter_sites(config, adapter))
    names = {(mode, name) for mode, name, _ in sites}
    for mode, name, part in sites:
        is_both = adapter.is_shared and not is_canvas_only(name)
        for at in ("decoder", "encoder") if is_both else (mode,):
            module = MODE_PREFIXES[at] + name.removesuffix(".weight")
            is_expert = part.a.ndim == 3
            (parameters if is_expert else modules).append(module)
            stem = module
            if is_expert:
                layer = name.partition(".experts.")[0]
                is_nested = name.endswith(_EXPERTS[0]) and (mode, f"{layer}.{_EXPERTS[1]}") in names
                stem = module.rpartition(".")[0] + (".base_layer" if is_nested else "")
            a, b = _as_tables(part)
            tensors[f"{_PREFIX}{stem}.lora_A.weight"], tensors[f"{_PREFIX}{stem}.lora_B.weight"] = a, b
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise CheckpointError(f"not saved to {folder}: {name} holds NaN or infinity")
    # peft knows no dropout for experts, and refuses a file that asks for it.
    dropout = 0.0 if parameters else lora.dropout
    described = {
        "peft_type": "LORA", "base_model_name_or_path": base_model, "task_type": None, "inference_mode": True,
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": dropout, "bias": "none", "fan_in_fan_out": False,
        "init_lora_weights": True, "use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {},
        "target_modules": sorted(modules), "target_parameters": sorted(parameters) or None,
    }  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{WEIGHTS_FILE}.partial"
        save_file(tensors, partial, metadata={"format": "pt"})
        write_json(folder / CONFIG_FILE, described)
        partial.replace(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot save to {folder}: {one_line(error)}") from error


def _as_tables(part: LowRank) -> tuple[Tensor, Tensor]:
    a, b = part.a.detach().float().cpu(), part.b.detach().float().cpu()
    if a.ndim == 3:
        a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
    return a.contiguous().clone(), b.contiguous().clone()


def load_adapter(folder: str | Path, config: ModelConfig) -> Adapter:
    """The adapter in a folder, float32, frozen.

    Factors that peft holds for the two modes apart stay apart where they differ.

    Raises:
        CheckpointError: no adapter there, one of another kind or for another model, or a damaged file.
    """
    folder = Path(folder)
    settings = _read_settings(folder)
    tables = _read_tables(folder / WEIGHTS_FILE)
    places, sites = product_places(config), Sites()
    for (module, nested), sides in tables.items():
        modes, relative = module_modes(module)
        name = _weight_name(relative, sides, places)
        if not modes or name is None:
            raise CheckpointError(f"{folder / WEIGHTS_FILE} adapts {module}{nested}, which this model does not have")
        # peft knows a parameter that is no module's weight by the module's name and its own.
        key = module if name.endswith(".weight") else f"{module}.{name.rpartition('.')[2]}"
        factors = _factors(sides, places[name], settings, key, folder / WEIGHTS_FILE)
        sites |= {(mode, name): factors for mode in modes if mode == "decoder" or not is_canvas_only(name)}
    adapter = assemble(config, sites, is_shared=_is_shared(sites))
    return adapter.requires_grad_(False).eval()


def _is_shared(sites: Sites) -> bool:
    decoder = {name: f for (mode, name), f in sites.items() if mode == "decoder" and not is_canvas_only(name)}
    encoder = {name: f for (mode, name), f in sites.items() if mode == "encoder"}
    return decoder.keys() == encoder.keys() and all(
        f.scale == encoder[name].scale and torch.equal(f.a, encoder[name].a) and torch.equal(f.b, encoder[name].b)
        for name, f in decoder.items()
    )


def check_adapter(folder: str | Path) -> None:
    """Raises CheckpointError where a folder holds no adapter that can be used, as far as its settings say."""
    _read_settings(Path(folder))


def _read_settings(folder: Path) -> Section:
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"no adapter in {folder}: it has no {CONFIG_FILE}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {one_line(error)}") from error
    settings = Section(values=values if isinstance(values, dict) else {}, where=str(path))
    if settings.values.get("peft_type") != "LORA":
        raise settings.fail(f"peft_type must be LORA, got {settings.values.get('peft_type')!r}")
    for name in _UNSUPPORTED:
        if settings.values.get(name):
            raise settings.fail(f"{name} is not supported, got {settings.values[name]!r}")
    if settings.values.get("bias") not in (None, "none"):
        raise settings.fail(f"bias is not supported: it must be none, got {settings.values['bias']!r}")
    if settings.values.get("init_lora_weights") not in _PLAIN_STARTS:
        start = settings.values["init_lora_weights"]
        raise settings.fail(f"init_lora_weights {start!r} changes the model's own weights, which is not supported")
    return settings


def _read_tables(path: Path) -> dict[tuple[str, str], dict[str, Tensor]]:
    """{(module, nesting): {"A": table, "B": table}}."""
    if not path.is_file():
        raise CheckpointError(f"no {path.name} in {path.parent}; peft's older .bin files are not read, save it again")
    tables: dict[tuple[str, str], dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                found = _KEY.fullmatch(name.removeprefix(_PREFIX))
                if found is None:
                    raise CheckpointError(f"{path} holds {name}, which is no factor of a product's weight")
                tensor = file.get_tensor(name).float()
                if not is_finite(tensor):
                    raise CheckpointError(f"{name} in {path} holds NaN or infinity")
                tables.setdefault((found["module"], found["nested"]), {})[found["side"]] = tensor
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is cut short or not a safetensors file ({one_line(error)})") from error
    if not tables:
        raise CheckpointError(f"{path} holds no factors")
    return tables


def _weight_name(relative: str, sides: Mapping[str, Tensor], places: Mapping[str, Place]) -> str | None:
    """The weight a module's factors are for; of the experts' two the one whose widths they have."""
    if f"{relative}.weight" in places:
        return f"{relative}.weight"
    if not relative.endswith(".experts") or "A" not in sides:
        return None
    for ending in _EXPERTS:
        name = f"{relative.removesuffix('.experts')}.{ending}"
        if name in places and places[name].shape[-1] == sides["A"].shape[-1] and _has_rows(sides, places[name]):
            return name
    return None


def _has_rows(sides: Mapping[str, Tensor], place: Place) -> bool:
    return "B" not in sides or sides["B"].shape[0] == place.shape[-2]


def _factors(sides: Mapping[str, Tensor], place: Place, settings: Section, key: str, path: Path) -> Factors:
    if sides.keys() != {"A", "B"}:
        raise CheckpointError(f"{path} holds lora_{next(iter(sides))} of {key} without its other half")
    a, b = sides["A"], sides["B"]
    *experts, num_rows, inner = place.shape
    num_experts = experts[0] if experts else 1
    fits = a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] and a.shape[0] % num_experts == 0 and a.shape[0]
    if not fits or a.shape[1] != inner or b.shape[0] != num_rows:
        raise CheckpointError(
            f"the factors of {key} in {path} have shapes {list(a.shape)} and {list(b.shape)}, but the model's "
            f"weight is {list(place.shape)}; the adapter belongs to another model"
        )
    rank = a.shape[0] // num_experts
    if experts:
        a, b = a.view(num_experts, rank, inner), b.view(num_rows, rank, num_experts).permute(2, 0, 1).contiguous()
    alpha = settings.number("lora_alpha", 8)
    for pattern in settings.section("alpha_pattern", {}).values:
        if re.match(rf"(.*\.)?({pattern})$", key):
            alpha = settings.section("alpha_pattern").number(pattern)
            break
    return Factors(a, b, alpha / (math.sqrt(rank) if settings.flag("use_rslora", False) else rank))
