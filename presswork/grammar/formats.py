"""The `format`s of JSON schema that can be generated, as regexes; each is a subset of its RFC's language."""

_YEAR = r"[1-9]\d{3}"
_LEAP_YEAR = r"(?:[1-9]\d(?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_HOUR, _SIXTY = r"(?:[01]\d|2[0-3])", r"[0-5]\d"
_TIME = rf"{_HOUR}:{_SIXTY}:{_SIXTY}(?:\.\d{{1,6}})?(?:Z|[+-]{_HOUR}:{_SIXTY})"

_N = r"\d{1,4}"
_CLOCK = rf"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_DURATION = rf"P(?:{_N}W|(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)(?:{_CLOCK})?|{_CLOCK})"

_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
# No two hyphens in a row (that is how encoded names start), at most 39 characters; five labels stay far below 253.
_LABEL = r"(?:[A-Za-z0-9]-?){0,19}[A-Za-z0-9]"
_HOST = rf"(?:{_LABEL}\.){{0,4}}[A-Za-z]{{2,24}}"
_ATOM = r"[A-Za-z0-9_+-]{1,31}"
_WEB = r"(?:[A-Za-z0-9._~-]|%[0-9A-F]{2})"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"{_DATE}T{_TIME}",
    "duration": _DURATION,
    "uuid": "-".join(rf"[0-9a-fA-F]{{{length}}}" for length in (8, 4, 4, 4, 12)),
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",
    "ipv6": r"(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}",
    "hostname": _HOST,
    "email": rf"{_ATOM}(?:\.{_ATOM})?@(?:{_LABEL}\.){{1,4}}[A-Za-z]{{2,24}}",
    "uri": rf"https?://{_HOST}(?::[1-9]\d{{0,3}})?(?:/{_WEB}*)*(?:\?(?:{_WEB}|[&=+])*)?(?:#{_WEB}*)?",
}
