"""Build hook: compiles the C writer into the package, where that is possible; without it, writers are made in Python."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

WRITER = "tensormeter.record._writer"
SOURCE = "src/tensormeter/record/_writer.c"


class BuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Called by hatchling for every wheel, also for editable installs."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        library = compile_writer()
        if library is None:
            self.app.display_warning("no C compiler: log calls take three times as long, and do the same")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"][str(library)] = f"tensormeter/record/{library.name}"


def compile_writer() -> Path | None:
    """Compile the writer beside its source. None if it cannot be compiled here."""
    extension = Extension(WRITER, [SOURCE], extra_compile_args=["-std=gnu11", "-O2"], optional=True)
    command = build_ext(Distribution({"ext_modules": [extension], "package_dir": {"": "src"}}))
    command.inplace = True
    command.force = True
    command.ensure_finalized()
    library = Path(command.get_ext_fullpath(WRITER))
    library.unlink(missing_ok=True)
    command.run()
    return library if library.exists() else None
