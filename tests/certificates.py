"""A certificate authority of the test's own, and the PEM files that it issues."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Files:
    """A certificate and its private key on disk."""

    cert: Path
    key: Path


class Authority:
    """Issues certificates into a folder.

    Args:
        folder: where the files go; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca))

    def server(self, name: str = "server") -> Files:
        """A server's, for this machine."""
        return self._write(name, self._ca.issue_cert("localhost", "127.0.0.1", "::1"))

    def client(self, name: str, *dns: str) -> Files:
        """A client's, with its common name and, where given, DNS names."""
        return self._write(name, self._ca.issue_cert(*dns, common_name=name))

    def _write(self, name: str, issued: trustme.LeafCert) -> Files:
        files = Files(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        issued.private_key_pem.write_to_path(str(files.key))
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(str(files.cert), append=number > 0)
        return files

    def trusted(self, own: Files | None = None) -> ssl.SSLContext:
        """A client's context that trusts this authority, and shows a certificate if it has one."""
        context = ssl.create_default_context(cafile=self.ca)
        if own is not None:
            context.load_cert_chain(own.cert, own.key)
        return context
