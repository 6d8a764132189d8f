"""The build steps beyond packing files: each step is a module in build_hooks/."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))

from build_hooks.extensions import Extensions
from build_hooks.page import Page

PARTS = (Extensions, Page)


class BuildHook(BuildHookInterface):
    """Run the parts in order, for wheels, editable installs and source distributions."""

    def dependencies(self) -> list[str]:
        """Requirements that the parts install from the package index to build."""
        return [requirement for part in PARTS for requirement in part(Path(self.root)).dependencies()]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build every part before files are collected."""
        for part in PARTS:
            part(Path(self.root)).build(self.target_name, build_data)
