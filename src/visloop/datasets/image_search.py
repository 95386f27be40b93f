"""Pictures from outside by a search term: an Openverse-compatible image search over HTTP; folders on disk are ``folder_search``.

Nothing that comes back is trusted: only http(s) addresses of public hosts are fetched, each redirect is checked like the first
address, types, bytes and time are limited, every picture is decoded whole and stored under its content hash (never under a name
that a server or a model chose). What was taken has its address and licence; what was refused has its reason.
"""

import ipaddress
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from visloop.datasets.images import ImageLimits, Skip, import_image
from visloop.errors import ConfigError, DataError

PICTURE_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/tiff"})
_LONGEST_QUERY = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchHit:
    """One picture that a search names: its address, the page it is on, its licence and who made it. ``sensitive``: what the service says
    against it; empty where it says nothing."""

    url: str
    page: str = ""
    licence: str = ""
    creator: str = ""
    sensitive: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPicture:
    """A picture in the data folder: its name below the pictures' folder, the SHA-256 of its bytes, where it is from and its licence."""

    name: str
    sha256: str
    origin: str
    licence: str
    creator: str = ""


@dataclass(slots=True)
class SearchReport:
    """What a search met: hits seen, pictures stored, hits refused with their reasons."""

    seen: int = 0
    stored: int = 0
    refused: list[Skip] = field(default_factory=list)


class PictureSource(Protocol):
    """Anything that finds pictures for words. Pictures of one call differ in content; fewer than ``most`` is no error."""

    name: str

    def find_pictures(self, query: str, *, most: int, report: SearchReport) -> list[FoundPicture]: ...

    def list_siblings(self, query: str) -> tuple[str, ...]:
        """Other words that the source files under the same kind of thing; empty where it knows no kinds."""
        ...

    def find_group(self, query: str) -> str:
        """The kind of thing that the source files the words under; empty where it knows none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """Limits of one download: seconds to connect and between bytes, seconds in all, bytes, redirects; what a picture must be."""

    timeout: float = 10.0
    deadline: float = 30.0
    max_bytes: int = 10_000_000
    max_redirects: int = 3
    pictures: ImageLimits = field(default_factory=ImageLimits)


class _Hit(BaseModel):
    model_config = ConfigDict(extra="ignore")
    url: str | None = None
    foreign_landing_url: str | None = None
    license: str | None = None
    license_version: str | None = None
    creator: str | None = None
    mature: bool | None = None
    unstable__sensitivity: list[str] | None = None

    @property
    def sensitive(self) -> str:
        """What the service says against the picture."""
        return ", ".join(self.unstable__sensitivity or ()) or ("mature" if self.mature else "")


class _Page(BaseModel):
    model_config = ConfigDict(extra="ignore")
    results: list[_Hit]


class HttpImageSearch:
    """Image search by an endpoint that speaks Openverse's protocol (``GET <endpoint>?q=...``: openly licensed pictures).

    Args:
        endpoint: address of the search.
        out: folder of the stored pictures.
        licences: licence codes that are taken (``cc0``, ``by``, ...), also asked for in the query; empty takes what has any licence.
        page_size: hits that one request asks for at most; further ones are on further pages.
        allow_private: also fetch from addresses that are not public, for a search on the own network.
        safe: ask for no sensitive results, and refuse those that are marked as mature or sensitive all the same.

    Raises:
        ConfigError: the endpoint is no http(s) address.
    """

    name = "image_search"

    def __init__(
        self,
        endpoint: str,
        *,
        out: Path,
        licences: Sequence[str] = ("cc0", "pdm", "by", "by-sa"),
        limits: FetchLimits | None = None,
        page_size: int = 20,
        allow_private: bool = False,
        safe: bool = True,
    ) -> None:
        if urlsplit(endpoint).scheme not in ("http", "https"):
            raise ConfigError(f"image search: {endpoint!r} is no http or https address")
        if page_size < 1:
            raise ConfigError(f"image search: a page of {page_size} hits; at least 1 is needed")
        self._endpoint, self._out, self._licences = endpoint, out, tuple(licences)
        self._limits, self._page_size, self._allow_private, self._safe = limits or FetchLimits(), page_size, allow_private, safe
        self._client = httpx.Client(
            timeout=self._limits.timeout, follow_redirects=False, headers={"User-Agent": "visloop", "Accept-Encoding": "identity"}
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def list_siblings(self, query: str) -> tuple[str, ...]:
        """None: a search knows no kinds of things."""
        return ()

    def find_group(self, query: str) -> str:
        """Empty: a search knows no kinds of things."""
        return ""

    def find_pictures(self, query: str, *, most: int, report: SearchReport) -> list[FoundPicture]:
        """Up to ``most`` different pictures, in the order of the hits. Twice as many hits as pictures are asked for.

        Raises:
            DataError: the search itself cannot be reached or does not speak the protocol; a bad hit is only reported.
        """
        found: dict[str, FoundPicture] = {}
        for hit in self._search(query, most=2 * most, report=report):
            if len(found) == most:
                break
            report.seen += 1
            try:
                picture = self._fetch(hit)
            except DataError as error:
                report.refused.append(Skip(hit.url, str(error)))
                continue
            if picture.sha256 not in found:
                found[picture.sha256] = picture
                report.stored += 1
        return list(found.values())

    def _search(self, query: str, *, most: int, report: SearchReport) -> Iterator[SearchHit]:
        """Hits, page by page as they are used. A later page that does not come ends them: what the pages before it gave is not lost."""
        words = " ".join(re.sub(r"[^\w\s-]", " ", query).split())[:_LONGEST_QUERY]
        if not words:
            return
        size = min(most, self._page_size)
        for number in range(1, -(-most // size) + 1 if size else 1):
            try:
                entries = self._read_page(words, size=size, number=number)
            except DataError as error:
                if number == 1:
                    raise
                report.refused.append(Skip(f"{words}, page {number}", str(error)))
                return
            for entry in entries:
                licence = " ".join(part for part in (entry.license, entry.license_version) if part)
                yield SearchHit(
                    url=entry.url or "",
                    page=entry.foreign_landing_url or "",
                    licence=licence,
                    creator=entry.creator or "",
                    sensitive=entry.sensitive,
                )
            if len(entries) < size:
                return

    def _read_page(self, words: str, *, size: int, number: int) -> list[_Hit]:
        parameters: dict[str, str | int] = {"q": words, "page_size": size}
        if number > 1:
            parameters["page"] = number
        if self._licences:
            parameters["license"] = ",".join(self._licences)
        if self._safe:
            # never Openverse's older ``mature``: any text there, "false" as well, switches sensitive results on
            parameters["unstable__include_sensitive_results"] = "false"
        try:
            body, _ = self._read(str(httpx.URL(self._endpoint, params=parameters)), types=frozenset({"application/json"}))
            return _Page.model_validate_json(body).results
        except DataError as error:
            raise DataError(f"image search for {words!r}: {error}") from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise DataError(f"image search for {words!r}: {self._endpoint} does not answer as Openverse does: {first['msg']}") from error

    def _fetch(self, hit: SearchHit) -> FoundPicture:
        if self._safe and hit.sensitive:
            raise DataError(f"marked by the service: {hit.sensitive}")
        code = hit.licence.split(" ")[0].lower()
        if not code or (self._licences and code not in self._licences):
            raise DataError(f"licence {hit.licence or 'unknown'!r}; taken are {', '.join(self._licences) or 'those that are named'}")
        body, _ = self._read(hit.url, types=PICTURE_TYPES)
        stored = import_image(body, out=self._out, limits=self._limits.pictures)
        return FoundPicture(name=stored.name, sha256=stored.sha256, origin=hit.page or hit.url, licence=hit.licence, creator=hit.creator)

    def _read(self, url: str, *, types: frozenset[str]) -> tuple[bytes, str]:
        """The body of an address and its type; redirects are followed by hand so that each address is checked."""
        deadline = time.monotonic() + self._limits.deadline
        for _ in range(self._limits.max_redirects + 1):
            check_address(url, allow_private=self._allow_private)
            try:
                with self._client.stream("GET", url) as response:
                    if response.is_redirect:
                        url = str(response.url.join(response.headers.get("location", "")))
                        continue
                    if response.status_code != 200:
                        raise DataError(f"status {response.status_code}; 200 is needed")
                    kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
                    if kind not in types:
                        raise DataError(f"content type {kind or 'unknown'!r}; needed is {' or '.join(sorted(types))}")
                    return self._read_body(response, deadline=deadline), kind
            except httpx.TimeoutException as error:
                raise DataError(f"no answer within {self._limits.timeout:g} seconds") from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise DataError(f"cannot be fetched: {error}") from error
        raise DataError(f"more than {self._limits.max_redirects} redirects")

    def _read_body(self, response: httpx.Response, *, deadline: float) -> bytes:
        body = bytearray()
        if response.headers.get("content-encoding", "identity") != "identity":
            raise DataError("a packed body, which was not asked for")
        for part in response.iter_raw():
            body += part
            if len(body) > self._limits.max_bytes:
                raise DataError(f"more than {self._limits.max_bytes} bytes")
            # the client's time-out is between bytes: a server that drips must not hold the run
            if time.monotonic() > deadline:
                raise DataError(f"not whole after {self._limits.deadline:g} seconds")
        return bytes(body)


def check_address(url: str, *, allow_private: bool) -> None:
    """Refuse what is no http(s) address of a public host.

    Raises:
        DataError: another scheme, a name that does not resolve, or an address on a private or local network.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise DataError(f"{url!r} is no address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise DataError(f"{url!r} is no plain http or https address")
    if allow_private:
        return
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(parts.hostname, port, proto=socket.IPPROTO_TCP)}
    except OSError as error:
        raise DataError(f"{parts.hostname}: the name does not resolve ({error})") from error
    for address in addresses:
        if not ipaddress.ip_address(str(address).split("%")[0]).is_global:
            raise DataError(f"{parts.hostname} is {address}, which is not public")
