"""The page at /: plain files, nothing from elsewhere."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from presswork.server.errors import HttpError

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).resolve().parents[1] / "web"
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_FILES = {file.name: file for file in sorted(_FOLDER.iterdir()) if file.suffix in _KINDS}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@router.get("/")
async def page() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/favicon.ico")
async def icon() -> Response:
    """What browsers ask for unasked."""
    return _file("icon.svg")


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """A file that the page is made of; only those there are, by name."""
    return _file(name)


def _file(name: str) -> Response:
    found = _FILES.get(name)
    if found is None:
        raise HttpError(404, f"there is no file {name[:60]!r} here")
    return FileResponse(found, media_type=_KINDS[found.suffix], headers=_HEADERS)
