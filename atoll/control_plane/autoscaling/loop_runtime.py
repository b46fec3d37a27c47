"""Joins the autoscaler with a provider and a cluster: looks, hands over what it sees, carries out what is decided.

One thread decides. What a provider does runs on threads of its own, and comes back as a fact through a queue: a machine
that takes minutes to start holds nothing up, and a provider that hangs keeps only its own order waiting.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from atoll.clock import Clock
from atoll.control_plane.autoscaling import commands as cmd
from atoll.control_plane.autoscaling import facts
from atoll.control_plane.autoscaling.core import Autoscaler
from atoll.control_plane.autoscaling.provider import ClusterDoor, Order, Provider, ProviderFailed
from atoll.control_plane.autoscaling.spec import INSTANCE, labels_of, resources_of
from atoll.errors import AtollError

# Gangs wait seconds before they are served, machines take tens of seconds: oftener would only cost.
LOOK_S = 1.0
Say = Callable[[str], None]


class Loop:
    """One autoscaler at work. `say` gets a line for each decision and each trouble."""

    def __init__(self, core: Autoscaler, provider: Provider, cluster: ClusterDoor, clock: Clock, say: Say) -> None:
        self._core = core
        self._provider = provider
        self._cluster = cluster
        self._clock = clock
        self._say = say
        self._facts: queue.SimpleQueue[facts.Fact] = queue.SimpleQueue()
        self._trouble: dict[str, str] = {}

    def run(self, stop: threading.Event) -> None:
        """Look again and again until `stop`."""
        while not stop.is_set():
            self.turn()
            stop.wait(LOOK_S)

    def turn(self) -> None:
        """One look, and what follows from it and from what came back since the last."""
        self._take_answers()
        machines = self._listed()
        try:
            sight = self._cluster.look()
        except AtollError as error:
            self._problem("cluster", f"the cluster does not answer: {error}")
            return
        self._problem("cluster", "")
        self._take_answers()
        self._handle(facts.Looked(nodes=sight.nodes, machines=machines, asks=sight.asks))

    def _take_answers(self) -> None:
        while True:
            try:
                fact = self._facts.get_nowait()
            except queue.Empty:
                return
            self._handle(fact)

    def _listed(self) -> tuple[facts.Machine, ...] | None:
        try:
            machines = self._provider.machines()
        except ProviderFailed as error:
            self._problem("provider", f"the provider does not answer: {error}")
            return None
        self._problem("provider", "")
        return machines

    def _problem(self, whose: str, text: str) -> None:
        """Say a trouble once, not each second."""
        if text and self._trouble.get(whose) != text:
            self._say(text)
        self._trouble[whose] = text

    def _handle(self, fact: facts.Fact) -> None:
        for command in self._core.handle(fact, now=self._clock.monotonic()):
            self._carry_out(command)

    def _carry_out(self, command: cmd.Command) -> None:
        match command:
            case cmd.Launch():
                self._say(f"start {command.instance}: {command.reason}")
                self._aside(command.instance, lambda: self._launch(command))
            case cmd.End():
                self._say(f"end {command.instance}: {command.reason}")
                self._aside(command.instance, lambda: self._end(command))
            case cmd.Drain():
                self._say(f"drain {command.node} ({command.instance}): {command.reason}")
                self._drain(command)
            case cmd.Undrain():
                self._say(f"undrain {command.node} ({command.instance}): {command.reason}")
                try:
                    self._cluster.undrain(command.node)
                except AtollError as error:
                    self._say(f"undrain {command.node}: {error}")
            case cmd.Tell():
                self._say(str(command.reason))

    def _aside(self, name: str, work: Callable[[], facts.Fact]) -> None:
        thread = threading.Thread(target=lambda: self._facts.put(work()), daemon=True, name=f"atoll-machine-{name}")
        thread.start()

    def _launch(self, command: cmd.Launch) -> facts.Fact:
        kind = self._core.scaling.type_of(command.kind)
        labels = {**labels_of(kind), INSTANCE: command.instance} if kind is not None else {}
        order = Order(
            instance=command.instance,
            kind=command.kind,
            labels=labels,
            resources=resources_of(kind) if kind is not None else {},
        )
        try:
            self._provider.launch(order)
        except ProviderFailed as error:
            return facts.LaunchFailed(instance=command.instance, problem=str(error))
        return facts.Launched(instance=command.instance)

    def _end(self, command: cmd.End) -> facts.Fact:
        try:
            self._provider.terminate(command.instance)
        except ProviderFailed as error:
            return facts.EndFailed(instance=command.instance, problem=str(error))
        return facts.Ended(instance=command.instance)

    def _drain(self, command: cmd.Drain) -> None:
        try:
            self._cluster.drain(command.node, command.within_s, f"the autoscaler: {command.reason}")
        except AtollError as error:
            self._facts.put(facts.DrainFailed(node=command.node, problem=str(error)))
