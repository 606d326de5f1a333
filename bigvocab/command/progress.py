"""What a person at a terminal sees of work under way: one bar on stderr, and a note while kernels are compiled."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Any

_WIDE = 70  # columns, from which on there is room for rows and rates


class Display:
    """A bar with rows/s, GB/s and the time left, on a terminal only; it leaves no trace.

    Use it as a context manager; `update` is the `progress` of `evaluate`.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._wants_bar = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None
        self._lock = threading.Lock()
        self._silent = quiet

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._silent = True
        if self._bar is not None:
            self._bar.stop()

    def watch_compiler(self) -> None:
        """Say so, once, when a kernel has to be compiled; loads Numba."""
        from bigvocab.kernels.jit import on_compile

        on_compile(self._compiling)

    def _compiling(self, kernel: str, kept: bool) -> None:
        with self._lock:  # several threads may meet the same kernel
            if self._silent:
                return
            self._silent = True
        how = "once; kept in the cache" if kept else "each time: no folder to keep them in; set BIGVOCAB_CACHE_DIR"
        self._say(f"compiling kernels for this machine ({how}) ...")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(f"bigvocab: {text}", highlight=False, markup=False, soft_wrap=True)
        elif sys.stderr is not None:
            print(f"bigvocab: {text}", file=sys.stderr, flush=True)

    def update(self, done_rows: int, total_rows: int, done_bytes: int) -> None:
        """Show how far the work is."""
        if not self._wants_bar:
            return
        if self._bar is None:
            self._bar = _make_bar(total_rows)
            self._bar.start()
        row_bytes = done_bytes / done_rows if done_rows else 0.0
        self._bar.update(self._bar.task_ids[0], completed=done_rows, total=total_rows, row_bytes=row_bytes)


def _make_bar(total_rows: int) -> Any:
    from rich.console import Console, ConsoleDimensions
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Narrow(Console):
        """Leaves room at the end of the line for the ^C that a terminal shows, which else would break the line."""

        @property  # type: ignore[misc]
        def size(self) -> ConsoleDimensions:
            whole = super().size
            return ConsoleDimensions(max(20, whole.width - 4), whole.height)

    class Rates(ProgressColumn):
        """Rows and bytes per second of the last half minute."""

        def render(self, task: Task) -> Text:
            if not task.speed:
                return Text("")
            rates = f"{task.speed:,.0f} rows/s {task.speed * task.fields['row_bytes'] / 1e9:.2f} GB/s"
            return Text(rates, style="cyan", no_wrap=True)

    console = Narrow(stderr=True)
    wide = console.width >= _WIDE  # else what matters most: how far, and for how long still
    bar = Progress(
        TextColumn("{task.percentage:3.0f}%"),
        BarColumn(bar_width=None),
        *[TextColumn("{task.completed:,.0f}/{task.total:,.0f} rows"), Rates()] * wide,
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        expand=True,
    )
    bar.add_task("", total=total_rows, row_bytes=0.0)
    return bar
