"""Vocabulary head: from hidden rows to readings of the token distribution, without a matrix over the vocabulary."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from presswork.errors import ConfigError, RequestError
from presswork.ops.vocab_head.classes import ClassReading, ClassWeights, TokenClasses
from presswork.ops.vocab_head.narrow import read_narrow
from presswork.ops.vocab_head.portable import read_portable
from presswork.ops.vocab_head.portable_classes import read_classes_portable
from presswork.ops.vocab_head.reading import MAX_LISTED, EditGroup, LogitEdits, Query, Reading
from presswork.ops.vocab_head.reference import read_classes_reference, read_reference
from presswork.ops.vocab_head.tiled import can_tile, read_tiled
from presswork.ops.vocab_head.tiled_classes import read_classes_tiled

__all__ = [
    "MAX_LISTED",
    "ClassReading",
    "ClassWeights",
    "EditGroup",
    "LogitEdits",
    "Reading",
    "TokenClasses",
    "read_classes",
    "read_vocab",
]

Impl = Literal["auto", "reference", "tiled", "portable"]


@torch.no_grad()
def read_vocab(
    hidden: Float[Tensor, "N D"],
    embedding: Float[Tensor, "V D"],
    *,
    softcap: float | None,
    temperature: Float[Tensor, "N"],
    uniform: Float64[Tensor, "N"] | None = None,
    token_ids: Int[Tensor, "N M"] | None = None,
    top_logprobs: int = 0,
    soft_embedding: bool | Bool[Tensor, "N"] = False,
    soft_source: Float[Tensor, "V E"] | None = None,
    edits: LogitEdits | None = None,
    top_k: Int[Tensor, "N"] | None = None,
    top_p: Float[Tensor, "N"] | None = None,
    class_weights: ClassWeights | None = None,
    impl: Impl = "auto",
) -> Reading:
    """Read every row's token distribution: arg-max, a sample, entropy, log-probabilities, the soft embedding; pure.

    The distribution is softmax(z): the product hidden @ embedding.T in the weight dtype, then in float32 the softcap
    c tanh(x / c), the edits, the division by the row's temperature, then the class weights, or top_k and then top_p
    over what top_k left.

    A row's readings do not depend on the other rows of the call, nor on the number of threads, as far as the matmul
    library gives the same product for a row whatever the height of the matrix: measured so for bfloat16 on AMX;
    float32 products move in the last bits with the number of rows, and so does each tile's rounded part of the soft
    embedding. Compiled in a width of 2048 ids a tile, at most 256 rows at a time.

    Args:
        hidden: last hidden states, already normed; cast to the embedding's dtype.
        embedding: output embedding. Contiguous bfloat16 or float32 on a CPU takes the compiled path.
        softcap: logit bound c above 0, or None for none.
        temperature: per row, above 0.
        uniform: per row in [0, 1): draws the sample, or NaN: the sample is the arg-max. None: NaN everywhere.
        token_ids: ids whose log-probabilities are wanted.
        top_logprobs: how many of the most likely tokens to list, 0 to MAX_LISTED.
        soft_embedding: whether, or in which rows, to compute softmax(z) @ soft_source (no sqrt(D) factor).
        soft_source: the input embedding where it is not `embedding` itself.
        edits: repetition penalties, biases and bans.
        top_k: per row, keep the k most likely tokens; 0 keeps all.
        top_p: per row in [0, 1], keep the fewest most likely tokens whose mass reaches p, at least one; 1 keeps all.
        class_weights: weights of classes of tokens, and the class that each sample is drawn from; tokens of no class
            have no mass. Not together with top_k or top_p.
        impl: "auto" takes the compiled sweep where it can and the portable one (plain torch, any device) elsewhere;
            "reference" builds the whole [N, V] matrix.

    Returns:
        A Reading on the device of `hidden`. Rows with NaN or infinity are marked in `finite`, nothing is raised.

    Raises:
        RequestError: shapes or ids that do not fit.
        ConfigError: an unknown impl, or "tiled" for tensors it cannot take.

    Source: sampling.md 3.3 to 3.5 for the readings; online softmax, Milakov and Gimelshein 2018 (arXiv:1805.02867).
    """
    rows, vocab = hidden.shape[0], embedding.shape[0]
    if isinstance(soft_embedding, bool):
        soft_rows = torch.ones(rows, dtype=torch.bool, device=hidden.device) if soft_embedding else None
    else:
        soft_rows = soft_embedding
    query = Query(
        hidden=hidden,
        embedding=embedding,
        soft_source=embedding if soft_source is None else soft_source,
        temperature=temperature,
        softcap=softcap,
        uniform=uniform,
        token_ids=token_ids,
        top_logprobs=top_logprobs,
        soft_rows=soft_rows,
        edits=edits,
        top_k=top_k,
        top_p=top_p,
        class_weights=class_weights,
    )
    _check_shapes(query)
    _check_ids(query, vocab)
    if class_weights is not None:
        _check_weights(query, class_weights)
    chosen = _chosen(impl, query)
    if chosen == "reference":
        return read_reference(query)
    return read_narrow(query, read_tiled if chosen == "tiled" else read_portable)


@torch.no_grad()
def read_classes(
    hidden: Float[Tensor, "N D"],
    embedding: Float[Tensor, "V D"],
    *,
    softcap: float | None,
    temperature: Float[Tensor, "N"],
    classes: TokenClasses,
    edits: LogitEdits | None = None,
    impl: Impl = "auto",
) -> ClassReading:
    """Sum every row's logits over classes of tokens, each class relative to its own largest; pure.

    The logits z are those of read_vocab. A class far below the row's best keeps its mass and mean exactly. Tokens in
    no class cost nothing where few tokens of a tile are in classes; what they would say of a row stays unknown.

    A row's readings do not depend on the number of threads, nor on the other rows as far as read_vocab promises.

    Args:
        hidden: last hidden states, already normed; cast to the embedding's dtype.
        embedding: output embedding. Contiguous bfloat16 or float32 on a CPU takes the compiled path.
        softcap: logit bound c above 0, or None for none.
        temperature: per row, above 0.
        classes: the classes, prepared once.
        edits: repetition penalties, biases and bans.
        impl: as in read_vocab.

    Returns:
        A ClassReading on the device of `hidden`. Rows with NaN or infinity are marked in `finite`, nothing is raised.

    Raises:
        RequestError: shapes or ids that do not fit.
        ConfigError: an unknown impl, or "tiled" for tensors it cannot take.

    Source: class masses of a token automaton, constraints.md; online softmax (arXiv:1805.02867).
    """
    query = Query(
        hidden=hidden,
        embedding=embedding,
        soft_source=embedding,
        temperature=temperature,
        softcap=softcap,
        edits=edits,
    )
    _check_shapes(query)
    _check_ids(query, embedding.shape[0])
    _check_classes(classes, embedding.shape[0])
    implementations = {
        "reference": read_classes_reference,
        "tiled": read_classes_tiled,
        "portable": read_classes_portable,
    }
    return implementations[_chosen(impl, query)](query, classes)


def _chosen(impl: str, query: Query) -> str:
    if impl == "auto":
        return "tiled" if can_tile(query) else "portable"
    if impl == "tiled" and not can_tile(query):
        given = f"{query.embedding.dtype} on {query.embedding.device}"
        raise ConfigError(
            f"impl 'tiled' cannot read this embedding: got {given}; it takes contiguous bfloat16 or float32 on a CPU; "
            "use 'auto'"
        )
    if impl not in get_args(Impl):
        raise ConfigError(f"unknown impl {impl!r}; choose one of {', '.join(get_args(Impl))}")
    return impl


def _check_shapes(query: Query) -> None:
    if query.hidden.ndim != 2 or query.embedding.ndim != 2 or query.hidden.shape[1] != query.embedding.shape[1]:
        shapes = f"{list(query.hidden.shape)} and {list(query.embedding.shape)}"
        raise RequestError(f"hidden and embedding do not fit: got {shapes}; give [N, D] and [V, D]")
    (rows, _), (vocab, _) = query.hidden.shape, query.embedding.shape
    if vocab == 0 or query.soft_source.ndim != 2 or query.soft_source.shape[0] != vocab:
        raise RequestError(f"soft_source must be [V, E] with V = {vocab} above 0; got {list(query.soft_source.shape)}")
    per_row = {name: getattr(query, name) for name in ("temperature", "uniform", "soft_rows", "top_k", "top_p")}
    per_row["edits.row_group"] = None if query.edits is None else query.edits.row_group
    for name, value in per_row.items():
        if value is not None and tuple(value.shape) != (rows,):
            raise RequestError(f"{name} needs one value a row: got shape {list(value.shape)}; give [{rows}]")
    if query.token_ids is not None and (query.token_ids.ndim != 2 or query.token_ids.shape[0] != rows):
        raise RequestError(f"token_ids has shape {list(query.token_ids.shape)}; give [{rows}, M]")
    if not 0 <= query.top_logprobs <= MAX_LISTED:
        raise RequestError(f"top_logprobs is {query.top_logprobs}; give 0 to {MAX_LISTED}")


def _check_ids(query: Query, vocab: int) -> None:
    """Ids on another device go unchecked: looking would wait for it."""
    groups = () if query.edits is None else query.edits.groups
    named = [("token_ids", query.token_ids)]
    named += [(name, getattr(group, name)) for group in groups for name in ("seen_ids", "bias_ids", "banned_ids")]
    for name, ids in named:
        if ids is not None and ids.device.type == "cpu" and ids.numel():
            low, high = (int(bound) for bound in ids.aminmax())
            if low < 0 or high >= vocab:
                raise RequestError(f"{name} reaches from {low} to {high}; ids must be 0 to {vocab - 1}")


def _check_classes(classes: TokenClasses, vocab: int) -> None:
    if len(classes.class_of) != vocab:
        raise RequestError(f"the classes are of {len(classes.class_of)} tokens; the embedding has {vocab} rows")


def _check_weights(query: Query, weights: ClassWeights) -> None:
    _check_classes(weights.classes, query.embedding.shape[0])
    if query.top_k is not None or query.top_p is not None:
        raise RequestError("class_weights came together with top_k or top_p; give one or the other")
    shape = (query.hidden.shape[0], weights.classes.num_classes)
    if tuple(weights.log_weight.shape) != shape:
        raise RequestError(f"log_weight has shape {list(weights.log_weight.shape)}; give [N, C], here {list(shape)}")
    wanted = weights.sample_class
    if tuple(wanted.shape) != shape[:1]:
        raise RequestError(f"sample_class needs one class a row: got shape {list(wanted.shape)}; give [{shape[0]}]")
    if wanted.device.type == "cpu" and wanted.numel():
        low, high = (int(bound) for bound in wanted.aminmax())
        if low < -1 or high >= shape[1]:
            raise RequestError(f"sample_class reaches from {low} to {high}; classes must be -1 to {shape[1] - 1}")
