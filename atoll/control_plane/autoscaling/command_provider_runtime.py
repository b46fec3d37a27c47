"""A provider out of three commands of the user: lists of words, run without a shell, with a deadline each.

[settings.command]
launch = ["./rack", "start", "{kind}", "{instance}", "{labels}", "{resources}"]
terminate = ["./rack", "end", "{instance}"]
list = ["./rack", "list"]        # one machine a line: INSTANCE KIND
sold_out = 75                    # the status by which `launch` says that there is none
deadline_s = 120

`{labels}` is a=b,c=d as `ray start --labels` takes it, `{resources}` is JSON. The order is on standard input too, as JSON,
so that nothing of it needs to be on a command line.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.control_plane.autoscaling.facts import Machine
from atoll.control_plane.autoscaling.provider import Order, ProviderFailed, SoldOut
from atoll.errors import SpecError

_NAME = re.compile(r"\{(\w+)\}")
_SAID = 400
_COLUMNS = 2
# sysexits.h: "temporary failure, try again later".
_SOLD_OUT = 75


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """What to run."""

    launch: tuple[str, ...]
    terminate: tuple[str, ...]
    list: tuple[str, ...]
    sold_out: int = _SOLD_OUT
    deadline_s: float = 120.0


def commands_of(settings: Mapping[str, Any], where: str) -> Commands:
    """Out of `[settings.command]`. Raises `SpecError`."""
    lists = ("launch", "terminate", "list")
    for key in lists:
        value = settings.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(w, str) for w in value):
            raise SpecError(f"{where}: [settings.command] {key} = {value!r}: it is a list of words, the program first")
    unknown = set(settings) - {*lists, "sold_out", "deadline_s"}
    if unknown:
        raise SpecError(
            f"{where}: [settings.command] {min(unknown)}: unknown key; known are {', '.join(lists)}, sold_out, deadline_s"
        )
    sold_out, deadline_s = settings.get("sold_out", _SOLD_OUT), settings.get("deadline_s", 120.0)
    if not isinstance(sold_out, int) or not isinstance(deadline_s, int | float) or deadline_s <= 0:
        raise SpecError(f"{where}: [settings.command]: sold_out is a status, deadline_s are seconds, more than 0")
    return Commands(
        launch=tuple(settings["launch"]),
        terminate=tuple(settings["terminate"]),
        list=tuple(settings["list"]),
        sold_out=sold_out,
        deadline_s=float(deadline_s),
    )


class CommandProvider:
    """Runs the user's commands. `folder`: where they are run, that of the file."""

    def __init__(self, commands: Commands, folder: str) -> None:
        self._commands = commands
        self._folder = folder

    def machines(self) -> tuple[Machine, ...]:
        """What `list` prints, one machine a line."""
        found = []
        for line in self._run(self._commands.list, {}).splitlines():
            words = line.split()
            if not words:
                continue
            if len(words) < _COLUMNS:
                raise ProviderFailed(f"{self._commands.list[0]} prints {line!r}; a line is INSTANCE KIND")
            found.append(Machine(instance=words[0], kind=words[1]))
        return tuple(found)

    def launch(self, order: Order) -> None:
        """Run `launch` for an order."""
        self._run(self._commands.launch, order_words(order), json.dumps(plain_order(order)))

    def terminate(self, instance: str) -> None:
        """Run `terminate`."""
        self._run(self._commands.terminate, {"instance": instance}, json.dumps({"instance": instance}))

    def _run(self, words: Sequence[str], values: Mapping[str, str], said: str = "") -> str:
        argv = [filled(word, values) for word in words]
        deadline_s = self._commands.deadline_s
        try:
            done = subprocess.run(
                argv, input=said, capture_output=True, text=True, timeout=deadline_s, check=False, cwd=self._folder
            )
        except OSError as error:
            raise ProviderFailed(f"cannot run {argv[0]}: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise ProviderFailed(f"{' '.join(argv[:2])} took more than {deadline_s:g} s") from None
        if done.returncode == self._commands.sold_out and values.get("kind"):
            raise SoldOut(f"{values['kind']} is sold out: {done.stderr.strip()[-_SAID:] or argv[0]}")
        if done.returncode != 0:
            ends = done.stderr.strip()[-_SAID:]
            raise ProviderFailed(f"{' '.join(argv[:2])} ended with {done.returncode}: {ends}")
        return done.stdout


def order_words(order: Order) -> dict[str, str]:
    """What stands for the names in braces."""
    return {
        "instance": order.instance,
        "kind": order.kind,
        "labels": ",".join(f"{key}={value}" for key, value in order.labels.items()),
        "resources": json.dumps(dict(order.resources)),
    }


def plain_order(order: Order) -> dict[str, Any]:
    """The order as JSON."""
    return {
        "instance": order.instance,
        "kind": order.kind,
        "labels": dict(order.labels),
        "resources": dict(order.resources),
    }


def filled(word: str, values: Mapping[str, str]) -> str:
    """A word with its names replaced. Nothing else in braces is touched, and no value is looked at again."""
    return _NAME.sub(lambda found: values.get(found[1], found[0]), word)
