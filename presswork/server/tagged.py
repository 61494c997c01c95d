"""Messages that hold several texts, as editors send them: the next edit, and a change to work in."""

from dataclasses import dataclass

from presswork.errors import RequestError

_CURSOR = "<|cursor|>"
# What stands before the code and between it and the update, in Continue's prompts for applying a change.
_CONTINUE = (
    ("ORIGINAL CODE:\n```\n", "\n\nSUGGESTED EDIT:\n```\n"),
    ("", "\n\nThe following code was suggested as an edit:\n```\n"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NextEdit:
    """What a client knows when it asks for the next edit.

    Args:
        before, region, after: the current file around the part that may change, cursor mark taken out.
        cursor: characters of the region before the cursor, None where it is not in there.
        context: snippets looked at and changes made lately, as they were sent.
    """

    before: str
    region: str
    after: str
    cursor: int | None
    context: str


@dataclass(frozen=True, slots=True)
class Sketch:
    """A text, and a sketch of what it should become."""

    original: str
    update: str


def read_next_edit(content: str) -> NextEdit:
    """Take a message apart. Raises RequestError where it has no part to edit."""
    file = _block(content, "current_file_content")
    if file is None:
        raise RequestError("the message has no <|current_file_content|> block; send one, with <|code_to_edit|> in it")
    head, line_end, rest = file.lstrip().partition("\n")
    file = rest if line_end and head.startswith("current_file_path:") else file
    parts = _parts(file, "code_to_edit")
    if parts is None:
        raise RequestError("the current file has no <|code_to_edit|> block; mark what may change")
    before, region, after = parts
    region = _without_breaks(region)
    place = region.find(_CURSOR)
    context = [block for name in ("recently_viewed_code_snippets", "edit_diff_history")
               if (block := _block(content, name))]  # fmt: skip
    return NextEdit(
        before=before.replace(_CURSOR, ""),
        region=region.replace(_CURSOR, ""),
        after=after.replace(_CURSOR, ""),
        cursor=None if place < 0 else place,
        context="\n".join(context).strip(),
    )


def read_sketch(content: str) -> Sketch:
    """Take a message apart: Inception's tags, or what Continue writes. Raises RequestError for anything else."""
    parts = _parts(content, "original_code")
    # Behind the code, which may hold such tags itself.
    update = None if parts is None else _block(parts[2], "update_snippet")
    if parts is not None and update is not None:
        return Sketch(_without_breaks(parts[1]), _without_breaks(update))
    for opening, between in _CONTINUE:
        rest = content[content.find(opening) + len(opening) :] if opening in content else ""
        original, found, rest = rest.rpartition(between)
        update, closed, _ = rest.rpartition("\n```")
        if found and closed:
            return Sketch(original.removesuffix("\n```"), update)
    missing = "original_code" if parts is None else "update_snippet"
    raise RequestError(f"the message lacks a <|{missing}|> block; send one with the code, then one with the update")


def _without_breaks(text: str) -> str:
    """A block's text; the line breaks behind its opening tag and before its closing one belong to the tags."""
    return text.removeprefix("\n").removesuffix("\n")


def _block(content: str, name: str) -> str | None:
    parts = _parts(content, name)
    return None if parts is None else parts[1]


def _parts(content: str, name: str) -> tuple[str, str, str] | None:
    """A text before, inside and behind its first block of a name; None where there is none."""
    before, opening, rest = content.partition(f"<|{name}|>")
    inside, closing, after = rest.partition(f"<|/{name}|>")
    return (before, inside, after) if opening and closing else None
