"""`sync_tensorboard=True` records what SummaryWriters write."""

from collections.abc import Callable
from pathlib import Path

import pytest

import tensormeter.wandb as wandb
from support.stored_points import points_of
from tensormeter.client.run import StoredRun

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("package", ["torch.utils.tensorboard", "tensorboardX"])
@pytest.mark.parametrize("argument", ["sync_tensorboard", "tensorboard"])
def test_values_of_writers_have_their_own_steps(
    online: Callable[[str], StoredRun], place: Path, package: str, argument: str
) -> None:
    module = pytest.importorskip(package)
    run_id = f"sync-{package}-{argument}".replace(".", "-")
    with wandb.init(id=run_id, **{argument: True}):
        writer = module.SummaryWriter(str(place / "runs"))
        for step in range(3):
            writer.add_scalar("charts/value", step / 2, 10 * step)
        wandb.log({"own": 1})
        writer.close()
    after = module.SummaryWriter(str(place / "later"))
    after.add_scalar("later", 1, 1)
    after.close()
    points = points_of(online(run_id))
    assert points["charts/value"] == [(0, 0.0), (10, 0.5), (20, 1.0)]
    assert [value for _, value in points["own"]] == [1]
    assert "later" not in points
