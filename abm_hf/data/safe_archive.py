"""Archives from strangers: checked before anything in them is read.

A zip is read in place, never unpacked, so its names could do no harm here; they are refused all the same, because an
archive with such names is not what it says it is, and its reader may be followed by one that unpacks.
"""

import stat
import struct
import zipfile
from pathlib import Path, PurePosixPath

#: A file inside an archive may have this many bytes: a caption file of 200,000 lines has 20 MB.
MAX_FILE_BYTES = 256 * 2**20
#: All files together may have this many times the archive's bytes, or `FREE_BYTES`. CROHME's bitmaps have 18 times.
MAX_RATIO = 100
FREE_BYTES = 256 * 2**20
MAX_FILES = 2_000_000


class ArchiveError(ValueError):
    """The archive is damaged, or made to do harm; the message says which file of it, and why."""


def open_zip(path: str | Path) -> zipfile.ZipFile:
    """Opens a zip for reading, if it is safe to read.

    What it promises to unpack to is what its reader holds it to: `zipfile` stops at the size that the directory names.

    Raises:
        ArchiveError: It is no zip, names a file outside itself, holds a link, an encrypted file or one in a rare
            compression, or is a bomb: too many files, too large a file, or too much for its size.
        OSError: It cannot be read.
    """
    path = Path(path)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, struct.error, RuntimeError, ValueError, OverflowError, EOFError) as error:
        raise ArchiveError(f"{path} is no zip file that can be read: {error}") from error
    try:
        _check(archive, path)
    except ArchiveError:
        archive.close()
        raise
    return archive


def _check(archive: zipfile.ZipFile, path: Path) -> None:
    files = archive.infolist()
    if len(files) > MAX_FILES:
        raise ArchiveError(f"{path} lists {len(files)} files; {MAX_FILES} are allowed")
    for file in files:
        fault = _fault(file)
        if fault:
            raise ArchiveError(f"{path}: {file.filename!r} {fault}")
    total, size = sum(file.file_size for file in files), path.stat().st_size
    if total > max(FREE_BYTES, MAX_RATIO * size):
        raise ArchiveError(f"{path} has {size} bytes and would unpack to {total}: that is a zip bomb")


def _fault(file: zipfile.ZipInfo) -> str | None:
    """Why a file of an archive is refused, or `None`."""
    name = file.filename
    # `orig_filename` is the name before zipfile cut it at a NUL and turned the separators of the system round.
    if "\0" in file.orig_filename or "\\" in file.orig_filename or ":" in name.split("/")[0]:
        return "has a name that other systems read as another path"
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "points outside the archive"
    if stat.S_ISLNK(file.external_attr >> 16):
        return "is a link"
    if file.flag_bits & 1:
        return "is encrypted"
    if file.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is in a compression other than deflate: pack the archive again"
    if file.file_size > MAX_FILE_BYTES:
        return f"would unpack to {file.file_size} bytes; {MAX_FILE_BYTES} are allowed"
    return None
