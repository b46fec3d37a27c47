"""Progress bars for work on this machine: on a terminal, on stderr, and gone when it is done; elsewhere nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Gets the bytes that were done since it was last called, and those of all.
Told = Callable[[int, int], None]


@contextmanager
def bar(what: str) -> Iterator[Told]:
    """A bar of bytes called `what`; it is drawn from the first call on."""
    from rich.console import Console  # noqa: PLC0415 - rich only where there is a terminal to draw on
    from rich.progress import (  # noqa: PLC0415 - likewise
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _, __: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, advance=done, total=total)


@contextmanager
def counted(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar of `total` things called `unit`; told how many are done."""
    from rich.console import Console  # noqa: PLC0415 - rich only where there is a terminal to draw on
    from rich.progress import (  # noqa: PLC0415 - likewise
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
