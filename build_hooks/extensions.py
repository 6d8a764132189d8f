"""Compiles the package's C extensions if a C compiler is available; otherwise Python code replaces them."""

import sys
from pathlib import Path
from typing import Any

from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

_MODULES = {
    "tensormeter.record.rows._row_writer": "log calls take about ten times as long",
    "tensormeter.record.rows._writer": "measurements of instruments take three to four times as long",
    "tensormeter.otlp._number_blocks": "the server needs ten times as long for requests with many series",
    "tensormeter.session.exit_hooks._sigterm": "a process that hangs in native code does not die of SIGTERM",
}
"""Names of the modules, and the disadvantage without each."""

_LINUX_ONLY = {"tensormeter.session.exit_hooks._sigterm"}


class Extensions:
    """Compiles each module into the folder of its source."""

    def __init__(self, root: Path) -> None:
        """
        Args:
            root: The project's root, which is the working directory.
        """
        self._root = root

    def dependencies(self) -> list[str]:
        """Return the requirements for compiling: only those of the build itself."""
        return []

    def build(self, target_name: str, build_data: dict[str, Any]) -> None:
        """Compile for wheels and editable installs, and mark the wheel as specific to this platform."""
        if target_name != "wheel":
            return
        for module, without in _MODULES.items():
            if module in _LINUX_ONLY and sys.platform != "linux":
                continue
            library = self._compile(module)
            if library is None:
                print(f"no C compiler: {without}")
                continue
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            folder = Path(*module.split(".")[:-1])
            build_data["force_include"][str(library)] = str(folder / library.name)

    def _compile(self, module: str) -> Path | None:
        source = f"src/{module.replace('.', '/')}.c"
        extension = Extension(module, [source], extra_compile_args=["-std=gnu11", "-O2"], optional=True)
        command = build_ext(Distribution({"ext_modules": [extension], "package_dir": {"": "src"}}))
        command.inplace = True
        command.force = True
        command.ensure_finalized()
        library = self._root / command.get_ext_fullpath(module)
        library.unlink(missing_ok=True)
        command.run()
        return library if library.exists() else None
