"""The page docs/from-wandb.md: its examples run, and its tables are complete."""

import inspect
import re
from pathlib import Path

import pytest

import tensormeter.wandb
from support.documents import examples
from support.processes import ROOT
from tensormeter.wandb import environment

PAGE = Path(ROOT, "docs", "from-wandb.md").read_text()


def test_examples_run(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    namespace: dict[str, object] = {}
    try:
        for example in examples("from-wandb.md"):
            exec(compile(example, "from-wandb.md", "exec"), namespace)
    finally:
        tensormeter.wandb.uninstall()
    assert "is not recorded" not in caplog.text
    assert tensormeter.wandb.run is None


def test_the_table_has_all_arguments_of_init() -> None:
    table = PAGE.partition("<!-- init -->")[2].partition("<!-- end -->")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    own = [
        name
        for name, each in inspect.signature(tensormeter.wandb.init).parameters.items()
        if each.kind is not each.VAR_KEYWORD
    ]
    assert listed == own


def test_init_takes_the_arguments_of_the_real_one() -> None:
    real = pytest.importorskip("wandb")
    theirs = list(inspect.signature(real.init).parameters)
    assert list(inspect.signature(tensormeter.wandb.init).parameters)[: len(theirs)] == theirs


@pytest.mark.parametrize(
    "name",
    ["log", "define_metric", "watch", "alert", "save", "log_artifact", "log_model", "finish", "use_artifact"],
)
def test_methods_take_the_arguments_of_the_real_ones(name: str) -> None:
    real = pytest.importorskip("wandb")
    theirs = list(inspect.signature(getattr(real.Run, name)).parameters)
    ours = inspect.signature(getattr(tensormeter.wandb.Run, name)).parameters
    assert any(each.kind is each.VAR_KEYWORD for each in ours.values()) or set(theirs) <= set(ours)


@pytest.mark.parametrize("name", ["Table", "Image", "Video", "Audio", "Html", "Histogram", "Plotly"])
def test_types_take_the_arguments_of_the_real_ones_in_their_order(name: str) -> None:
    real = pytest.importorskip("wandb")
    theirs = list(inspect.signature(getattr(real, name).__init__).parameters)
    ours = list(inspect.signature(getattr(tensormeter.wandb, name).__init__).parameters)
    assert ours[: len(theirs)] == theirs


def test_charts_take_the_arguments_of_the_real_ones_in_their_order() -> None:
    real = pytest.importorskip("wandb.plot")
    for name in set(real.__all__) - {"visualize"}:
        theirs = list(inspect.signature(getattr(real, name)).parameters)
        assert list(inspect.signature(getattr(tensormeter.wandb.plot, name)).parameters) == theirs, name


def test_the_page_has_all_variables() -> None:
    assert set(environment._VARIABLES) <= set(re.findall(r"`(WANDB_\w+)`", PAGE))


def test_all_public_names_of_the_real_module_exist_or_have_a_remedy() -> None:
    real = pytest.importorskip("wandb")
    for name in real.__all__:
        if not hasattr(tensormeter.wandb, name):
            with pytest.raises(AttributeError, match=r"tensormeter\.wandb has no attribute"):
                getattr(tensormeter.wandb, name)
    missing = {name for name in real.__all__ if not hasattr(tensormeter.wandb, name)}
    assert missing <= set(tensormeter.wandb._REPLACEMENTS), missing
