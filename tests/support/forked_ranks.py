"""Ranks forked from one warm process: torch is imported once, so a set of ranks starts in a fraction of a second.

`Warm` starts that process (this file, run as a script) and has it fork sets of ranks. A rank runs a function of a module
that lies here, by name, and its JSON answer comes back.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
import time
import traceback
from pathlib import Path

ANSWER_S = 60.0


class Warm:
    """The warm process. `run` forks ranks and returns their answers, in rank order."""

    def __init__(self, *modules):
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # noqa: TID251 - the shell of a stranger's program
        )

    def run(self, function, size, limit_s=ANSWER_S, **arguments):
        """`function` is "module.name"; each rank calls it as (rank, size, **arguments). An error is {"error": text}."""
        asked = {"function": function, "size": size, "limit_s": limit_s, "arguments": arguments}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        readable, _, _ = select.select([self._process.stdout], [], [], limit_s + 60)
        assert readable, f"the warm process does not answer to {asked}"
        line = self._process.stdout.readline()
        assert line, f"the warm process ended with {self._process.poll()}"
        return json.loads(line)

    def close(self):
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process.stdout.close()


# -- the warm process ------------------------------------------------------------------------------------------------


def serve(names):
    modules = {name: importlib.import_module(name) for name in names}
    for line in sys.stdin:
        asked = json.loads(line)
        module, _, name = asked["function"].partition(".")
        answers = fork(getattr(modules[module], name), asked["size"], asked["limit_s"], asked["arguments"])
        sys.__stdout__.write(json.dumps(answers) + "\n")
        sys.__stdout__.flush()


def fork(function, size, limit_s, arguments):
    ranks = [start(function, rank, size, arguments) for rank in range(size)]
    deadline = time.monotonic() + limit_s
    answers = [read(pipe, deadline) for _, pipe in ranks]
    for pid, _ in ranks:
        finish(pid, deadline)
    return answers


def start(function, rank, size, arguments):
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write_end)
        return pid, read_end
    code = 1
    try:
        os.close(read_end)
        os.dup2(2, 1)  # the answers' channel is not for prints
        try:
            answer = function(rank, size, **arguments)
        except BaseException as error:  # noqa: BLE001 - the rank's outer edge
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(write_end, "w") as pipe:
            pipe.write(json.dumps(answer))
        code = 0
    finally:
        os._exit(code)


def read(pipe, deadline):
    said = b""
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        more = os.read(pipe, 1 << 16)
        if not more:
            os.close(pipe)
            return json.loads(said) if said else {"error": "the rank ended without a word"}
        said += more
    os.close(pipe)
    return {"error": "the rank did not answer in time"}


def finish(pid, deadline):
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return
        time.sleep(0.01)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    serve(sys.argv[1:])
