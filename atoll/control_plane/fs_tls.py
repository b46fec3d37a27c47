"""TLS of the web server: the folder `tls` under ATOLL_HOME, and what it says about where and how to listen.

Without the folder the web server speaks plain HTTP on the loopback interface. `atoll up --tls` makes one: a certificate
authority of this cluster's own, and a certificate of it for the names that the server goes by; or it takes a certificate
that was given. Clients of this home trust `tls/ca.pem` and nothing else (`atoll.config.trusted`), so that no other
authority can stand between. A certificate of our own is made anew a month before it ends; the authority stays, and so
does what was handed to people. Beyond the loopback interface the server listens with TLS only.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.config import TLS_CA, TLS_DIR
from atoll.control_plane.fs_cluster import private_dir, write_private
from atoll.errors import SchemaError, UserError
from atoll.schema.codec import decode_as, to_plain

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

LOOPBACK = "127.0.0.1"
_LOCAL = ("localhost", LOOPBACK, "::1")
_ANY = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound
_CA_DAYS = 3650
# What browsers accept at most, and how long before the end the next one is made.
_CERTIFICATE_DAYS, _RENEW_DAYS = 397, 30
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where the web server listens, and by which names it may be called beside those of this host itself."""

    tls: bool = False
    host: str = LOOPBACK
    names: tuple[str, ...] = ()
    given: bool = False

    def url(self, port: int) -> str:
        """The address for programs on this host."""
        host = LOOPBACK if self.host in _ANY else self.host
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls else 'http'}://{shown}:{port}"

    def hosts(self) -> frozenset[str]:
        """The names that a Host header may have."""
        return frozenset(name.lower() for name in (*_LOCAL, *self.names, self.host) if name not in _ANY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A certificate that somebody else made: its chain, its key, and whom clients trust for it (itself unless named)."""

    certificate: Path
    key: Path
    authority: Path | None = None


def door(home: Path) -> Door:
    """How the web server of this home listens."""
    try:
        return decode_as(Door, (home / TLS_DIR / "door.json").read_bytes())
    except (OSError, SchemaError):
        return Door()


def files(home: Path) -> tuple[Path, Path]:
    """Certificate and key."""
    return home / TLS_DIR / "cert.pem", home / TLS_DIR / "key.pem"


def close(home: Path) -> None:
    """Back to plain HTTP on the loopback interface. The authority is kept for the next time."""
    (home / TLS_DIR / "door.json").unlink(missing_ok=True)


def open_door(home: Path, host: str, names: tuple[str, ...], given: Given | None, *, now: float) -> Door:
    """Have the web server speak TLS from its next start on. Raises `UserError` for files that are no certificate."""
    folder = private_dir(home / TLS_DIR)
    opened = Door(tls=True, host=host, names=names, given=given is not None)
    if given is None:
        _make(folder, opened, now)
    else:
        _take(folder, given)
    write_private(folder / "door.json", json.dumps(to_plain(opened)) + "\n")
    return opened


def renew(home: Path, *, now: float) -> None:
    """Make a certificate of our own anew where it is about to end."""
    opened = door(home)
    if opened.tls and not opened.given and _ends_at(files(home)[0]) - now < _RENEW_DAYS * _DAY_S:
        _make(home / TLS_DIR, opened, now)


def _take(folder: Path, given: Given) -> None:
    import ssl  # noqa: PLC0415 - only where certificates are looked at

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(given.certificate, given.key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"{given.certificate} and {given.key} are no certificate and its key ({error}); name both in PEM"
        ) from None
    for source, name in (
        (given.certificate, "cert.pem"),
        (given.key, "key.pem"),
        (given.authority or given.certificate, TLS_CA),
    ):
        write_private(folder / name, source.read_text())


def _make(folder: Path, opened: Door, now: float) -> None:
    from cryptography import x509  # noqa: PLC0415 - 60 ms, only where certificates are made
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - likewise
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: PLC0415 - likewise

    authority, authority_key = _authority(folder, now)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _begun(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Atoll")]), authority.subject, now, _CERTIFICATE_DAYS)
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName(_alternatives(opened)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    _write(folder, "cert.pem", certificate.sign(authority_key, _sha256()), "key.pem", key)


def _authority(folder: Path, now: float) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The one of this home, made at the first call."""
    from cryptography import x509  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - as above
    from cryptography.x509.oid import NameOID  # noqa: PLC0415 - as above

    kept = folder / "ca.key"
    if kept.exists() and _ends_at(folder / "own-ca.pem") - now > _CERTIFICATE_DAYS * _DAY_S:
        key = load_pem_private_key(kept.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise UserError(f"{kept} is no key of ours; remove the folder {folder} and run `atoll up --tls` again")
        shutil.copyfile(folder / "own-ca.pem", folder / TLS_CA)
        return x509.load_pem_x509_certificate((folder / "own-ca.pem").read_bytes()), key
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Atoll cluster {os.urandom(4).hex()}")])
    made = (
        _begun(name, name, now, _CA_DAYS)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_signs_only(), critical=True)
        .sign(key, _sha256())
    )
    _write(folder, "own-ca.pem", made, "ca.key", key)
    shutil.copyfile(folder / "own-ca.pem", folder / TLS_CA)
    return made, key


def _begun(subject: x509.Name, issuer: x509.Name, now: float, days: int) -> x509.CertificateBuilder:
    from cryptography import x509  # noqa: PLC0415 - as above

    # An hour back: the clocks of those who look may be behind.
    began = dt.datetime.fromtimestamp(now, dt.UTC) - dt.timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(began)
        .not_valid_after(began + dt.timedelta(days=days))
    )


def _signs_only() -> x509.KeyUsage:
    from cryptography import x509  # noqa: PLC0415 - as above

    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(opened: Door) -> list[x509.GeneralName]:
    from cryptography import x509  # noqa: PLC0415 - as above

    found: list[x509.GeneralName] = []
    for name in sorted(opened.hosts()):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _write(
    folder: Path, name: str, certificate: x509.Certificate, key_name: str, key: ec.EllipticCurvePrivateKey
) -> None:
    from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 - as above

    plain = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    write_private(folder / key_name, plain.decode())
    write_private(folder / name, certificate.public_bytes(form.Encoding.PEM).decode())


def _ends_at(certificate: Path) -> float:
    from cryptography import x509  # noqa: PLC0415 - as above

    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError):
        return 0.0


def _sha256() -> hashes.SHA256:
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - as above

    return hashes.SHA256()
