"""Writers of all ranks of an epoch in one process, with I/O processes that are threads or forks of it."""

import os
import signal
import threading

from atoll.checkpoint.fs_writer_process import serve
from atoll.checkpoint.torch_flat import replicated
from atoll.checkpoint.writer import Writer

PREFIX = "atoll-checkpoint"


class IoThread:
    """In the place of an I/O process: it cannot be ended from outside."""

    def __init__(self, end):
        self._thread = threading.Thread(target=serve, args=(end,), name=f"{PREFIX}-io", daemon=True)
        self._thread.start()

    def wait(self, timeout):
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError
        return 0

    def kill(self):
        pass


class IoFork:
    """A fork of this process: it inherits what is armed, and can be killed."""

    def __init__(self, end):
        self.pid = os.fork()
        if self.pid == 0:
            try:
                serve(end)
            finally:
                os._exit(0)
        end.close()
        self._pidfd = os.pidfd_open(self.pid)
        self._status = None

    def wait(self, timeout):
        import select

        if self._status is None:
            if not select.select([self._pidfd], [], [], timeout)[0]:
                raise TimeoutError
            os.close(self._pidfd)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)


def leaked():
    """Threads of writers that are still there."""
    return [t.name for t in threading.enumerate() if t.name.startswith(PREFIX)]


class Crew:
    """The writers of `size` ranks that hold the same state."""

    def __init__(self, size, *, directory, keep=3, run="run", epoch=1, start=IoThread, clock=None, to=None):
        self.told, self.size, self.epoch, self.directory = [], size, epoch, directory
        self.writers = [
            Writer(
                directory, run=run, trainer=f"t{r}", tell=self.told.append, keep=keep, start=start, clock=clock, to=to
            )
            for r in range(size)
        ]

    def save(self, flat, step, ranks=None, **options):
        ranks = range(self.size) if ranks is None else ranks
        handles = []
        for rank in ranks:
            state, layouts = replicated(flat, rank, [f"n{r}" for r in range(self.size)])
            handles.append(self.writers[rank].save(state, layouts, step=step, epoch=self.epoch, rank=rank, **options))
        for rank in ranks:
            self.writers[rank].before_update()
        return handles

    def save_and_wait(self, flat, *steps, **options):
        for step in steps:
            for handle in self.save(flat, step, **options):
                assert handle.ended.wait(20), step

    def finish(self, timeout_s=10.0):
        for writer in reversed(self.writers):
            writer.finish(timeout_s)
