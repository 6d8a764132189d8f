"""The methods of `SummaryWriter` whose values have no place in tensormeter."""

from typing import Any, Final

from tensormeter.record.warn_once import WarnOnce

__all__ = ["IgnoredMethods", "ignore"]

_notices: Final = WarnOnce()


def ignore(method: str, noun: str) -> None:
    """Warn once that a method is ignored.

    Args:
        method: Name of the method.
        noun: Noun for the values that are not kept.
    """
    _notices.once(method, "SummaryWriter.%s is ignored: tensormeter does not keep %s", method, noun)


class IgnoredMethods:
    """The methods of `SummaryWriter` that accept any values and do nothing, with one warning for each method."""

    def add_graph(
        self, model: Any, input_to_model: Any = None, verbose: bool = False, use_strict_trace: bool = True
    ) -> None:
        """Do nothing, with one warning: graphs of models are not recorded."""
        ignore("add_graph", "graphs of models")

    def add_onnx_graph(self, prototxt: Any) -> None:
        """Do nothing, with one warning: graphs of models are not recorded."""
        ignore("add_onnx_graph", "graphs of models")

    def add_embedding(
        self,
        mat: Any,
        metadata: Any = None,
        label_img: Any = None,
        global_step: Any = None,
        tag: Any = "default",
        metadata_header: Any = None,
    ) -> None:
        """Do nothing, with one warning: embeddings are not recorded."""
        ignore("add_embedding", "embeddings")

    def add_mesh(
        self,
        tag: Any,
        vertices: Any,
        colors: Any = None,
        faces: Any = None,
        config_dict: Any = None,
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Do nothing, with one warning: meshes are not recorded."""
        ignore("add_mesh", "3D meshes")

    def add_custom_scalars(self, layout: Any) -> None:
        """Do nothing, with one warning: charts are arranged on the page."""
        ignore("add_custom_scalars", "layouts of charts")

    def add_custom_scalars_multilinechart(self, tags: Any, category: Any = "default", title: Any = "untitled") -> None:
        """Do nothing, with one warning: charts are arranged on the page."""
        ignore("add_custom_scalars_multilinechart", "layouts of charts")

    def add_custom_scalars_marginchart(self, tags: Any, category: Any = "default", title: Any = "untitled") -> None:
        """Do nothing, with one warning: charts are arranged on the page."""
        ignore("add_custom_scalars_marginchart", "layouts of charts")

    def export_scalars_to_json(self, path: Any) -> None:
        """Do nothing, with one warning: tensorboardX writes this file; `tensormeter export` writes one after the run."""
        ignore("export_scalars_to_json", "copies of scalars in the script; use `tensormeter export` after the run")
