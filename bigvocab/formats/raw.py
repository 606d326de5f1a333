"""Raw binary: no header, so shape, dtype and offset come from the caller and are held against the files' sizes."""

from __future__ import annotations

from collections.abc import Sequence

from bigvocab.errors import FormatError
from bigvocab.formats.layout import Layout, Stored, check_shape
from bigvocab.storage.mapped import MappedFile


def raw_layouts(
    files: Sequence[MappedFile], shape: tuple[int, ...], stored: Stored, offset: int, vocab_shards: bool = False
) -> list[Layout]:
    """Layouts of raw files that together have `shape`; each file's share follows from its size, which must fit exactly.

    A first size of -1 means as many rows as there are. Bytes that are left over are an error: they mean a wrong shape.
    """
    sizes = [file.size - offset for file in files]
    for file, size in zip(files, sizes, strict=True):
        if size < 0:
            raise FormatError(f"{file.shown}: offset={offset} lies past its end ({file.size} bytes)")
    by_class = vocab_shards and len(shape) == 2
    width = shape[1] if len(shape) == 2 else 1
    unit = stored.raw.itemsize
    rows = sum(sizes) // (width * unit) if shape[0] < 0 else shape[0]
    what = f"shape ({', '.join(str(size) for size in shape)}) of {stored.dtype.name}"
    step = rows * unit if by_class else width * unit
    expected = width if by_class else rows
    if len(files) > 1 or shape[0] < 0:  # a lone file of a known shape gets the plainer message below
        _check_whole(files, sizes, step, what, "classes" if by_class else "rows")
    if sum(sizes) != expected * step:
        names = files[0].shown if len(files) == 1 else f"{files[0].shown} and {len(files) - 1} more"
        begun = offset * len(files)
        needed = rows * width * unit + begun
        raise FormatError(f"{names}: {what} at offset {offset} needs {needed} bytes, there are {sum(sizes) + begun}")
    shares = [size // step if step else 0 for size in sizes]
    owns: list[tuple[int, ...]]
    owns = [(share,) if len(shape) == 1 else (rows, share) if by_class else (share, width) for share in shares]
    owns = [check_shape(file.shown, own) if by_class else own for file, own in zip(files, owns, strict=True)]
    return [Layout(own, stored, ((offset, own[0]),)) for own in owns]


def _check_whole(files: Sequence[MappedFile], sizes: Sequence[int], step: int, what: str, unit: str) -> None:
    for file, size in zip(files, sizes, strict=True):
        rest = size % step if step else size
        if rest:
            raise FormatError(
                f"{file.shown}: {size} bytes of data are no whole number of {unit} for {what}: {rest} are left over"
            )
