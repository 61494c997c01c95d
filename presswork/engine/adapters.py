"""The adapters an engine holds, by name."""

import itertools
from dataclasses import dataclass, field

from presswork.errors import RequestError
from presswork.models.adapters import Adapter

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedAdapter:
    """What a request's rows are under: an adapter that was named, or none.

    Args:
        number: unlike any other's in this process, so that nothing computed with one is taken for another's.
    """

    adapter: Adapter | None
    number: int = field(default_factory=lambda: next(_numbers))


NO_ADAPTER = LoadedAdapter(adapter=None, number=0)


class AdapterTable:
    """What may be named now. Changing it does not concern requests that already run."""

    def __init__(self) -> None:
        self._loaded: dict[str, LoadedAdapter] = {}

    @property
    def names(self) -> list[str]:
        return list(self._loaded)

    def add(self, name: str, adapter: Adapter) -> None:
        """Take an adapter in, replacing one of its name. Mutates self. Raises RequestError for a bad name."""
        if not name or ":" in name or name != name.strip():
            raise RequestError(f"an adapter's name must be a text without colons and outer spaces, got {name!r}")
        self._loaded[name] = LoadedAdapter(adapter=adapter)

    def remove(self, name: str) -> None:
        """Forget an adapter. Mutates self. Raises RequestError where there is none of the name."""
        self.find(name)
        del self._loaded[name]

    def find(self, name: str | None) -> LoadedAdapter:
        """The adapter of a name, none for None. Raises RequestError where there is none of the name."""
        if name is None:
            return NO_ADAPTER
        if name not in self._loaded:
            known = ", ".join(self._loaded) or "none"
            raise RequestError(f"no adapter {name!r} is loaded; loaded: {known}")
        return self._loaded[name]
