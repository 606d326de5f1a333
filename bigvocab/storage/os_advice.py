"""Advice to the system on the pages of mapped files: which are needed soon, and which no more."""

from __future__ import annotations

import ctypes
import mmap

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_MADV_POPULATE_READ = 22  # Linux 5.14 on; the module mmap has no name for it
_madvise = ctypes.CDLL(None).madvise if hasattr(mmap, "MADV_DONTNEED") else None  # mmap.madvise would hold the GIL
if _madvise is not None:
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class OsAdvice:
    """What the system is told of the pages of maps; where it takes no advice, nothing is said."""

    def release(self, address: int, size: int) -> None:
        """Say that the pages of a map are not needed now; the first one must begin at `address`."""
        if _madvise is not None:
            _madvise(address, size, mmap.MADV_DONTNEED)

    def release_whole(self, start: int, stop: int) -> None:
        """As `release`, of the pages that lie in a range of addresses as a whole."""
        start += -start % mmap.PAGESIZE
        stop -= stop % mmap.PAGESIZE
        if start < stop:
            self.release(start, stop - start)

    def expect_streaming(self, address: int, size: int) -> None:
        """Say that a map of a file is read from end to end: what is not in the page cache comes in huge pages.

        Linux (6.16 on, with ext4) then keeps the file so, and reads of it from the cache cost next to no page fault.
        """
        if _madvise is not None and hasattr(mmap, "MADV_HUGEPAGE"):
            _madvise(address, size, mmap.MADV_HUGEPAGE)

    def bring(self, address: int) -> bool:
        """Have the page of a map there; whether it had to be read. An address past the end of its file is no error."""
        if _madvise is None:
            return False
        before = _pages_read()
        _madvise(address, mmap.PAGESIZE, _MADV_POPULATE_READ)
        return _pages_read() > before


advice = OsAdvice()  # asked for at each use, so that another may stand in for it


def _pages_read() -> int:
    """Page faults of this thread so far that had to read their page."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt if hasattr(resource, "RUSAGE_THREAD") else 0
