"""Every error that Atoll raises on purpose.

    AtollError
    ├── UserError            the program or request is at fault; the message says what to change
    │   ├── SpecError            invalid-spec          a job spec that cannot run as written
    │   ├── ScriptNotFound       script-not-found      the path or function does not exist
    │   ├── DataError            bad-data              a data set that cannot be split or read
    │   ├── BatchError           bad-batch             a global batch that the workers cannot share
    │   ├── DeviceError          wrong-device          model or batch on an unexpected device
    │   ├── StateError           unsupported-state     managed state that cannot be saved without pickle
    │   ├── NonFiniteError       non-finite            NaN or Inf in loss or gradients; the step was not committed
    │   ├── ProgramFailed        program-failed        the training function raised
    │   ├── CallsDiffer          different-calls       the workers call different collective operations
    │   ├── AuthError            unauthorized          a missing, wrong, expired or revoked token
    │   ├── ForbiddenError       forbidden             a token whose role or team may not do this
    │   ├── ThrottledError       too-many-tries        too many wrong tokens from one address
    │   ├── AlreadyThere         already-there         there is one of this name
    │   ├── KeyReused            key-reused            one idempotency key on two different requests
    │   └── NotFoundError        not-found             no such run, checkpoint or node
    ├── ClusterError         the cluster cannot do what was asked
    │   ├── CapacityError        does-not-fit          more resources than the cluster can ever hold
    │   ├── ConnectError         cannot-connect        nothing answers at the address
    │   ├── PortInUse            port-in-use           the port belongs to another process
    │   ├── VersionMismatch      version-mismatch      agent and control plane of different builds
    │   ├── LabError             no-lab                this machine cannot raise a lab, or a lab is not as asked
    │   ├── OutOfMemory          out-of-memory         a worker had no memory left
    │   └── CheckpointError      bad-checkpoint        a damaged, incomplete or missing checkpoint
    ├── PeerError            another process of the run is at fault
    │   ├── PeerLost             peer-lost             a peer's connection ended or it does not answer
    │   └── HandshakeError       bad-handshake         a peer without the run's secret or of another epoch
    └── InternalError        a bug in Atoll
        ├── TransitionError      bad-transition        an event that the state has no row for
        └── SchemaError          bad-message           a message that does not fit its schema

`code` is stable: programs match on it, messages may change.
"""

from __future__ import annotations

from typing import ClassVar


class AtollError(Exception):
    """Root of the tree. `code` is stable, the message says what happened, the values and what to do next."""

    code: ClassVar[str] = "atoll-error"
    exit_code: ClassVar[int] = 1


class UserError(AtollError):
    """The program or request is at fault."""

    code = "user-error"
    exit_code = 2


class SpecError(UserError):
    """A job spec that cannot run as written."""

    code = "invalid-spec"


class ScriptNotFound(UserError):
    """The path or function does not exist."""

    code = "script-not-found"


class DataError(UserError):
    """A data set that cannot be split or read."""

    code = "bad-data"


class BatchError(UserError):
    """A global batch that the workers cannot share."""

    code = "bad-batch"


class DeviceError(UserError):
    """A model or batch on an unexpected device."""

    code = "wrong-device"


class StateError(UserError):
    """Managed state that cannot be saved without pickle."""

    code = "unsupported-state"


class NonFiniteError(UserError):
    """NaN or Inf in loss or gradients; the step was not committed."""

    code = "non-finite"


class ProgramFailed(UserError):
    """The training function raised."""

    code = "program-failed"


class CallsDiffer(UserError):
    """The workers call different collective operations."""

    code = "different-calls"


class AuthError(UserError):
    """A missing, wrong, expired or revoked token."""

    code = "unauthorized"


class ForbiddenError(UserError):
    """A token that is good, of somebody who may not do this."""

    code = "forbidden"


class ThrottledError(UserError):
    """Too many wrong tokens from one address."""

    code = "too-many-tries"


class AlreadyThere(UserError):
    """Something of this name is there already."""

    code = "already-there"


class KeyReused(UserError):
    """One idempotency key came with two different requests."""

    code = "key-reused"


class NotFoundError(UserError):
    """No such run, checkpoint or node."""

    code = "not-found"


class ClusterError(AtollError):
    """The cluster cannot do what was asked."""

    code = "cluster-error"
    exit_code = 3


class CapacityError(ClusterError):
    """More resources than the cluster can ever hold."""

    code = "does-not-fit"


class ConnectError(ClusterError):
    """Nothing answers at the address."""

    code = "cannot-connect"


class PortInUse(ClusterError):
    """The port belongs to another process."""

    code = "port-in-use"


class VersionMismatch(ClusterError):
    """Agent and control plane of different builds."""

    code = "version-mismatch"


class LabError(ClusterError):
    """This machine cannot raise a lab, or a lab is not as asked."""

    code = "no-lab"


class OutOfMemory(ClusterError):
    """A worker had no memory left, of its host or its device."""

    code = "out-of-memory"


class CheckpointError(ClusterError):
    """A damaged, incomplete or missing checkpoint."""

    code = "bad-checkpoint"


class PeerError(AtollError):
    """Another process of the run is at fault: `culprit`, where it is known which."""

    code = "peer-error"
    exit_code = 4
    culprit: str | None = None


class PeerLost(PeerError):
    """A peer's connection ended or it does not answer."""

    code = "peer-lost"


class HandshakeError(PeerError):
    """A peer without the run's secret or of another epoch."""

    code = "bad-handshake"


class InternalError(AtollError):
    """A bug in Atoll."""

    code = "internal"
    exit_code = 70


class TransitionError(InternalError):
    """An event that the state has no row for."""

    code = "bad-transition"


class SchemaError(InternalError):
    """A message that does not fit its schema."""

    code = "bad-message"


def by_code(code: str, root: type[AtollError] = AtollError) -> type[AtollError]:
    """The class with this code, or `AtollError` itself for a code of a newer build."""
    found = next((c for c in _tree(root) if c.code == code), None)
    return found or AtollError


def _tree(root: type[AtollError]) -> list[type[AtollError]]:
    return [root, *(c for child in root.__subclasses__() for c in _tree(child))]
