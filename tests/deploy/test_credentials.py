"""Certificates and keys, as TLS and Flower use them."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.hazmat.primitives.serialization.ssh import SSHPrivateKeyTypes

from fedsim.deploy.credentials import (
    AUTHORITY,
    CERTIFICATE,
    KEY,
    write_certificates,
    write_node_key,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates") / "made" / "here"
    write_certificates(folder, ["fl.example.org", "10.1.2.3", "fd00::7"])
    return folder


def handshake(folder: Path, authority: Path, name: str) -> str:
    """Connect to a server that has a folder's certificate; return what it says."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    client = ssl.create_default_context(cafile=str(authority))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)

        def serve() -> None:
            connection, _ = listening.accept()
            try:
                with server.wrap_socket(connection, server_side=True) as secure:
                    secure.sendall(b"hello")
            except (ssl.SSLError, OSError):  # the client has refused it
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listening.getsockname(), timeout=10) as plain,
                client.wrap_socket(plain, server_hostname=name) as secure,
            ):
                return secure.recv(5).decode()
        finally:
            thread.join()


@pytest.mark.parametrize(
    "name", ["fl.example.org", "10.1.2.3", "fd00::7", "localhost", "127.0.0.1", "::1"]
)
def test_a_device_trusts_the_superlink_under_each_of_its_names(folder: Path, name: str) -> None:
    assert handshake(folder, folder / AUTHORITY, name) == "hello"


@pytest.mark.parametrize("name", ["other.example.org", "example.org", "10.1.2.4", "fd00::8"])
def test_it_is_trusted_under_no_other(folder: Path, name: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
        handshake(folder, folder / AUTHORITY, name)


def test_another_authority_of_the_same_name_is_not_trusted(folder: Path, tmp_path: Path) -> None:
    write_certificates(tmp_path, ["fl.example.org"])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(folder, tmp_path / AUTHORITY, "fl.example.org")


def test_a_servers_certificate_signs_no_other(folder: Path) -> None:
    authority, server = (
        x509.load_pem_x509_certificate((folder / name).read_bytes())
        for name in (AUTHORITY, CERTIFICATE)
    )
    limits = [
        certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        for certificate in (authority, server)
    ]
    assert [(limit.ca, limit.path_length) for limit in limits] == [(True, 0), (False, None)]
    server.verify_directly_issued_by(authority)
    assert {path.name for path in folder.iterdir()} == {AUTHORITY, CERTIFICATE, KEY}
    private = (folder / KEY).read_bytes()  # the authority's own is nowhere
    assert load(private) == server.public_key()


def load(pem: bytes) -> ec.EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.public_key()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_for_their_owner_alone(folder: Path, tmp_path: Path) -> None:
    write_node_key(tmp_path / "node")
    assert mode(folder / KEY) == mode(tmp_path / "node") == 0o600
    assert not mode(folder / AUTHORITY) & 0o022


def test_a_key_written_over_a_readable_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "node"
    path.write_text("old")
    path.chmod(0o644)
    (tmp_path / "elsewhere").write_text("untouched")
    (tmp_path / "node.pub").symlink_to(tmp_path / "elsewhere")
    write_node_key(path)
    assert mode(path) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    assert (tmp_path / "elsewhere").read_text() == "untouched"
    first = path.read_bytes()
    write_node_key(path)
    assert path.read_bytes() != first, "every key is a new one"


def test_node_keys_are_what_flower_loads(tmp_path: Path) -> None:
    """`flower-supernode` reads an OpenSSH EC key; `flwr supernode register` its public half."""
    write_node_key(tmp_path / "device-0")
    key: SSHPrivateKeyTypes = load_ssh_private_key((tmp_path / "device-0").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    public = load_ssh_public_key((tmp_path / "device-0.pub").read_bytes())
    assert public == key.public_key()
