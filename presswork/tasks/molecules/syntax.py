"""The syntax of SMILES as far as a regular expression can tell it.

Branches are closed, each ring label is opened and closed, bonds stand between atoms, and atoms with one bond end a
chain. It cannot tell whether any other atom has more bonds than it may, nor whether aromatic rings have bonds to share.
"""

from presswork.grammar.languages import Both, Regex

_DEPTH = 4  # branches in branches; deeper ones are fewer than one in a thousand in MOSES
_LABELS = "1234"
_RING = rf"[-=]?[{_LABELS}]"
_SINGLE = "(F|Cl|Br)"
_FIRST = rf"({_SINGLE}|[NCO]=|[NC]#)?"


def smiles_syntax() -> Both:
    """The SMILES of neutral molecules of MOSES' atoms without stereochemistry."""
    # A label occurs an even number of times.
    rings = [rf"([^{label}]*{label}[^{label}]*{label})*[^{label}]*" for label in _LABELS]
    return Both([Regex(rf"{_FIRST}{_chain(_DEPTH)}(-?{_SINGLE})?"), *map(Regex, rings)])


def _chain(depth: int) -> str:
    """Atoms in a row, which branches so deep may hang from."""
    branch = rf"|\([-=#]?({_chain(depth - 1)}{_SINGLE}?|{_SINGLE})\)" if depth else ""
    atom = rf"((C|S|N|n|c)({_RING}{branch})*|(O|o|s|\[nH\])({_RING})?)"
    return rf"{atom}([-=#]?{atom})*"
