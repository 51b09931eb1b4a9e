"""Tar archives as streams of single files: nothing is unpacked, and no name in an archive becomes a path."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO, Self, cast

from fusionbench.errors import UserError

LARGEST = 64 * 2**20  # bytes of one file: far above any picture or report
_LARGEST_HEADER = 2**20  # bytes of a long name or of pax records, which tarfile reads at once
_READ_AT_ONCE = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")


def stream_archive(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Go once through a tar archive, gzipped or plain, and yield each wanted file's last name and content.

    Links, folders, devices and hidden files are passed over.

    Args:
        path: The archive.
        wanted: Says of a file's last name, such as ``1.xml``, whether to read it.

    Raises:
        UserError: The archive is not there, damaged or cut off, or one of its files is too large to be what it should.
    """
    if not path.exists() or path.is_dir():
        raise UserError(f"there is no archive '{path}': give the path of the file that was fetched")
    try:
        with path.open("rb") as raw, _plain(raw) as plain, _open(plain) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isreg() and not name.startswith(".") and wanted(name):
                    yield name, _content(archive, member, path)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"the archive '{path}' is damaged or cut off ({error}): fetch it again") from error


class _Member(tarfile.TarInfo):
    """Refuses a header that would fill the memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return what a block of 512 bytes says of the bytes behind it.

        Raises:
            tarfile.ReadError: They are a header of its own and too many.
        """
        made = super().frombuf(buf, encoding, errors)
        if made.type in _READ_AT_ONCE and made.size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"it has a header of {made.size} bytes")
        return made


def _open(plain: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=plain, mode="r|", tarinfo=_Member)


def _plain(raw: BufferedReader) -> IO[bytes]:
    """Return the stream that a gzipped one holds; some browsers take the gzip off a file that they fetch."""
    return cast(IO[bytes], gzip.open(raw)) if raw.peek(2).startswith(b"\x1f\x8b") else raw


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    if member.size > LARGEST:
        raise UserError(f"'{member.name}' in '{path}' has {member.size} bytes, too many for a picture or a report")
    file = archive.extractfile(member)
    content = file.read() if file is not None else b""
    if len(content) != member.size:
        raise EOFError(f"'{member.name}' ends early")
    return content
