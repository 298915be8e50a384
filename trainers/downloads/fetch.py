"""From the catalogue into ComfyUI's folders."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from ..errors import UserError
from ..files import atomic_folder
from .catalog import Published, Repository
from .http import content_length, download, read_json

HUB = "https://huggingface.co"
NEEDED = (".safetensors", ".json", ".txt", ".model")
LARGEST_ARCHIVE = 200 << 30  # bytes when unpacked
Report = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Remote:
    """A file of a repository on Hugging Face."""

    name: str
    size: int | None
    sha256: str | None


def place_of(item: Published | Repository, models: Path) -> Path:
    """Where it belongs below ComfyUI's folder `models`."""
    return models / item.folder / item.name


def is_there(item: Published | Repository, models: Path) -> bool:
    """Whether it is there, complete: what is still being downloaded has another name."""
    place = place_of(item, models)
    return place.is_file() if isinstance(item, Published) and not item.archive else place.is_dir()


def fetch(item: Published | Repository, models: Path, report: Report = lambda name, done, total: None) -> str:
    """Download it into its folder; returns what was checked. Raises UserError as `download`, or for a bad archive."""
    place = place_of(item, models)
    if isinstance(item, Repository):
        return _fetch_repository(item, place, report)
    target = place.with_name(f"{place.name}.tgz") if item.archive else place
    size, sha256, said = _published(item)
    url = _mirrored(item.url)
    found = download(url, target, size, sha256, lambda done, total: report(item.name, done, total))
    if item.archive:
        _unpack(target, place)
        target.unlink()
    return said if sha256 else f"the server gives no checksum; SHA-256 {found}"


def size_of(item: Published | Repository) -> int | None:
    """Its bytes, read from the server where they are not published; None when the server does not say.

    Raises UserError when the server does not answer.
    """
    if isinstance(item, Repository):
        return sum(file.size or 0 for file in _needed(item)) or None
    return _published(item)[0] or content_length(_mirrored(item.url))


def _published(item: Published) -> tuple[int | None, str | None, str]:
    """Size, SHA-256 and where they come from: the catalogue, or what Hugging Face lists."""
    if item.sha256 is not None or not item.url.startswith(f"{HUB}/"):
        return item.size, item.sha256, "checksum as published"
    owner, name, _, revision, *path = item.url.removeprefix(HUB).strip("/").split("/")
    remote = next((r for r in remote_files(f"{owner}/{name}", revision) if r.name == "/".join(path)), None)
    size, sha256 = (remote.size, remote.sha256) if remote else (None, None)
    return size, sha256, "checksum as the server gives it"


def _needed(item: Repository) -> list[Remote]:
    return [file for file in remote_files(item.repository) if file.name.endswith(NEEDED) and "/" not in file.name]


def _fetch_repository(item: Repository, place: Path, report: Report) -> str:
    files = _needed(item)
    if not files:
        raise UserError(f"{item.page} has none of the files that are expected; look at the page")
    aside = place.with_name(f"{place.name}.downloading")
    for file in files:
        if not (aside / file.name).is_file():
            url = f"{hub()}/{item.repository}/resolve/main/{quote(file.name)}"
            download(
                url,
                aside / file.name,
                file.size,
                file.sha256,
                lambda d, t, n=file.name: report(f"{item.name}/{n}", d, t),
            )
    aside.rename(place)
    return f"{len(files)} files, checksums of large ones as the server gives them"


def remote_files(repository: str, revision: str = "main") -> list[Remote]:
    """The files of a repository on Hugging Face, as its API lists them. Raises UserError when it does not answer."""
    answer = read_json(f"{hub()}/api/models/{repository}/revision/{quote(revision)}?blobs=true")
    try:
        return [
            Remote(file["rfilename"], file.get("size"), (file.get("lfs") or {}).get("sha256"))
            for file in answer["siblings"]
            if _is_plain(file["rfilename"])
        ]
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{hub()} does not list the files of {repository} as expected; try again later") from error


def hub() -> str:
    """Hugging Face, or the mirror that HF_ENDPOINT names, as huggingface_hub reads it."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def _mirrored(url: str) -> str:
    return hub() + url.removeprefix(HUB) if url.startswith(f"{HUB}/") else url


def _is_plain(name: str) -> bool:
    """Whether a name from the server stays within the folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name


def _unpack(archive: Path, place: Path) -> None:
    """The folder in the archive as `place`. Raises UserError for one that is damaged, or has members outside it."""
    if place.exists():
        raise UserError(f"there is a {place} already; move it away")
    try:
        with tarfile.open(archive) as tar:
            unpacked = sum(member.size for member in tar.getmembers())
            if unpacked > min(LARGEST_ARCHIVE, shutil.disk_usage(place.parent).free):
                raise UserError(f"{archive} unpacks to {unpacked / 1e9:.1f} GB, for which there is no room")
            with atomic_folder(place) as aside:
                tar.extractall(aside, filter="data")
                inner = list(aside.iterdir())
                # Most archives hold one folder with all in it.
                if len(inner) == 1 and inner[0].is_dir():
                    for entry in list(inner[0].iterdir()):
                        entry.rename(aside / f"{entry.name}.moved")
                    inner[0].rmdir()
                    for entry in list(aside.iterdir()):
                        entry.rename(aside / entry.name.removesuffix(".moved"))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} cannot be unpacked ({error}); remove it and run the command again") from error
