"""The C writer of a lane's rows, compiled into the package where that is possible; without it, rows are written in Python."""

from pathlib import Path
from typing import Any

from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

_MODULE = "tensormeter.record._writer"
_SOURCE = "src/tensormeter/record/_writer.c"


class Writer:
    """Compiles `_writer.c` beside its source."""

    def __init__(self, root: Path) -> None:
        """
        Args:
            root: The project's root, which is the working directory.
        """
        self._root = root

    def dependencies(self) -> list[str]:
        """Nothing beyond what the build itself requires."""
        return []

    def build(self, target_name: str, build_data: dict[str, Any]) -> None:
        """Compile, for wheels and editable installs, and say that the wheel is of this platform."""
        if target_name != "wheel":
            return
        library = self._compile()
        if library is None:
            print("no C compiler: log calls take three to four times as long, and do the same")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"][str(library)] = f"tensormeter/record/{library.name}"

    def _compile(self) -> Path | None:
        extension = Extension(_MODULE, [_SOURCE], extra_compile_args=["-std=gnu11", "-O2"], optional=True)
        command = build_ext(Distribution({"ext_modules": [extension], "package_dir": {"": "src"}}))
        command.inplace = True
        command.force = True
        command.ensure_finalized()
        library = self._root / command.get_ext_fullpath(_MODULE)
        library.unlink(missing_ok=True)
        command.run()
        return library if library.exists() else None
