"""Verify the zip files of torch.save: their CRC-32 checksums, which torch writes and does not look at.

A record is used only if it lies inside the file and has its checksum. The header fields of a zip file that no reader
uses (dates, versions, padding) are not covered; a change there changes nothing that is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from sam4ir.errors import UserError

# Layouts of APPNOTE.TXT of PKWARE, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to 4.3.16 (its end).
_LOCAL = struct.Struct("<4s22xHH")
_ENTRY = struct.Struct("<4s6xH4xLLLHHH4xLL")
_END = struct.Struct("<10xHLLH")
_END_64 = struct.Struct("<32xQQQ")
_LOCATOR = struct.Struct("<8xQ4x")
_ZIP64 = 0xFFFFFFFF  # a field of 32 bits whose value stands in the extra field 1
_MANY = 0xFFFF
_LONGEST_COMMENT = 0xFFFF
_FOLDER = 0x10  # attribute of a record that torch's reader then takes for a folder, and returns memory at random

LARGE = 1 << 16  # bytes of a record that a thread takes; zlib holds the interpreter's lock for the small ones
THREADS = 4
WORTH_THREADS = 32 << 20  # bytes of a file; a smaller one is verified sooner than threads begin


class ArchiveError(UserError):
    """A zip file that is damaged; the message says where, and the caller adds the file's name."""


class Record(NamedTuple):
    """A file inside a zip file.

    name: without the folder that all records of torch.save lie in. crc: CRC-32 of the content. size: its bytes.
    stored: bytes in the zip file. plain: whether they are the content itself, not compressed. offset: of its header.
    """

    name: str
    crc: int
    size: int
    stored: int
    plain: bool
    offset: int


@contextlib.contextmanager
def verifying(path: Path) -> Iterator[list[Record]]:
    """Yield the records of a zip file and verify their checksums; raise ArchiveError where one differs.

    The structure and all small records are verified before the block, and so are the tensors of a small file. Threads
    verify those of a large one while the block runs, so what it does with them counts only once it has ended.
    """
    with _mapped(path) as view:
        records = directory(view)
        protected = any(record.crc for record in records)  # torch can be set to write 0 for all of them
        large = []
        for record in records:
            if len(view) >= WORTH_THREADS and record.size >= LARGE and record.name.startswith("data/"):
                large.append(record)
            else:
                _verify(view, record, path, protected)
        if not large:
            yield records
            return
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            checks = [pool.submit(_verify, view, record, path, protected) for record in large]
            yield records
            for check in checks:
                check.result()


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    """Yield the bytes of a file without a copy."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages,
        memoryview(pages) as view,
    ):
        yield view


def directory(view: memoryview) -> list[Record]:
    """Return the records that the directory of a zip file lists. Raises ArchiveError for a broken directory."""
    count, start, end = _extent(view)
    listing, records, place, total = bytes(view[start:end]), [], 0, 0
    for _ in range(count):
        if place + _ENTRY.size > len(listing):
            raise ArchiveError("is damaged: the directory of its zip file is broken")
        fields = _ENTRY.unpack_from(listing, place)
        magic, method, crc, stored, size, name_length, extra_length, comment_length, attributes, offset = fields
        extra_start = place + _ENTRY.size + name_length
        name = listing[place + _ENTRY.size : extra_start].decode("utf-8", "replace")
        if magic != b"PK\x01\x02":
            raise ArchiveError("is damaged: the directory of its zip file is broken")
        if attributes & _FOLDER:
            raise ArchiveError(f"is damaged: its record {name} is marked as a folder")
        if _ZIP64 in (size, stored, offset):
            extra = listing[extra_start : extra_start + extra_length]
            size, stored, offset = _long_fields(extra, size, stored, offset)
        records.append(Record(name.partition("/")[2] or name, crc, size, stored, method == zipfile.ZIP_STORED, offset))
        place = extra_start + extra_length + comment_length
        total += stored
    if place != len(listing):
        raise ArchiveError("is damaged: the directory of its zip file has another length")
    if total > start:
        raise ArchiveError("is damaged: its zip file lists more bytes than it holds")
    return records


def contents_digest(path: Path) -> str:
    """Return the SHA-256 of the tensors' sizes and checksums, which is that of a copy too, and of no other weights.

    Raises ArchiveError for a broken directory and OSError for a file that cannot be read.
    """
    with _mapped(path) as view:
        records = directory(view)
    lines = []
    for name, crc, size, *_ in records:
        if name.startswith("data/"):
            lines.append(f"{name} {size} {crc}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _extent(view: memoryview) -> tuple[int, int, int]:
    """Return the number of records, and where their directory begins and ends."""
    tail = bytes(view[-(_LONGEST_COMMENT + 22) :])
    position = tail.rfind(b"PK\x05\x06")
    if position < 0 or len(tail) - position < 22:
        raise ArchiveError("is truncated or no weights file: the end of its zip archive is missing")
    end = len(view) - len(tail) + position
    count, size, start, comment = _END.unpack_from(view, end)
    if end + 22 + comment != len(view):
        raise ArchiveError("is damaged: the end of its zip file is broken")
    if count == _MANY or _ZIP64 in (size, start):
        locator = end - 20
        if locator < 0 or view[locator : locator + 4] != b"PK\x06\x07":
            raise ArchiveError("is damaged: the end of its zip file is broken")
        (place,) = _LOCATOR.unpack_from(view, locator)
        if place + 56 > locator or view[place : place + 4] != b"PK\x06\x06":
            raise ArchiveError("is damaged: the end of its zip file is broken")
        count, size, start = _END_64.unpack_from(view, place)
    if start + size > end:
        raise ArchiveError("is damaged: the directory of its zip file lies outside of it")
    return count, start, start + size


def _long_fields(extra: bytes, *fields: int) -> list[int]:
    """Return size, stored bytes and offset with those of 64 bits from the extra field 1."""
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{length // 8}Q", extra, place + 4))
            long = []
            for field in fields:
                if field == _ZIP64:
                    field = next(values, field)
                long.append(field)
            return long
        place += 4 + length
    return list(fields)


def _verify(view: memoryview, record: Record, path: Path, protected: bool) -> None:
    """Raise ArchiveError where a record lies outside of the file or has another checksum."""
    magic, name_length, extra_length = b"", 0, 0
    if record.offset + _LOCAL.size <= len(view):
        magic, name_length, extra_length = _LOCAL.unpack_from(view, record.offset)
    if magic != b"PK\x03\x04":
        raise ArchiveError(f"is damaged: its record {record.name} is not where the directory says")
    start = record.offset + 30 + name_length + extra_length
    if start + record.stored > len(view):
        raise ArchiveError(f"is truncated: its record {record.name} ends behind the file")
    crc = 0
    if not record.plain:
        crc = _crc_of_compressed(path, record)
    elif record.size != record.stored:
        raise ArchiveError(f"is damaged: its record {record.name} has two sizes")
    elif protected:
        crc = zlib.crc32(view[start : start + record.size])
    if crc != record.crc:
        raise ArchiveError(f"is damaged: its record {record.name} does not have its checksum (CRC-32)")


def _crc_of_compressed(path: Path, record: Record) -> int:
    """Return the checksum of a record that another program has compressed; torch itself compresses none."""
    crc, length = 0, 0
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.header_offset == record.offset:
                    with archive.open(entry) as file:
                        while chunk := file.read(LARGE):
                            crc = zlib.crc32(chunk, crc)
                            length += len(chunk)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ArchiveError(f"is damaged: its record {record.name} cannot be unpacked ({error})") from None
    if length != record.size:
        raise ArchiveError(f"is damaged: its record {record.name} has another size")
    return crc
