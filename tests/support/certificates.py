"""Certificates made at the moment of the test, with the `openssl` command."""

import ssl
import subprocess
from pathlib import Path

_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


class Authority:
    """A certificate authority of one test's own; `file` is what to trust."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.file = folder / "ca.pem"
        self._openssl(
            f"req -x509 {_KEY} -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca"
        )

    def issue(self, name: str, *, days: int = 2) -> ssl.SSLContext:
        """A server's context with a certificate for `name`, as in `IP:127.0.0.1`.

        With `days` below zero it has already expired.
        """
        (self._folder / "names").write_text(f"subjectAltName={name}\n")
        self._openssl(f"req {_KEY} -keyout leaf.key -out leaf.csr -subj /CN=leaf")
        self._openssl(
            "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial"
            f" -days {days} -extfile names -out leaf.pem"
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._folder / "leaf.pem", self._folder / "leaf.key")
        return context

    def _openssl(self, arguments: str) -> None:
        command = ["openssl", *arguments.split()]
        subprocess.run(command, cwd=self._folder, check=True, capture_output=True)
