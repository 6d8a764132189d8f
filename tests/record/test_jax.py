"""JAX itself, on the CPU, in a separate process: its libraries stay loaded, and its threads do not go with forks.

`test_device_pending` uses doubles to test the moment at which an array is ready.
"""

import importlib.util
import os

import pytest

from support.processes import run_python

SCRIPT = """
import logging, sys

import jax, jax.numpy as jnp
import numpy as np
import tensormeter
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.agent.ingest.lane_reader import LaneReader, Layouts
from tensormeter.ring.file import RingFile

logging.basicConfig(format="%(message)s")
settings = {"directory": sys.argv[1], "buffer_directory": sys.argv[1], "agent": "off"}
run = tensormeter.init(settings=settings)
ring = RingFile.open(run._process.ring.path)

# About a second of work for another thread.
part = jnp.ones((64, 64)) / 64
work = jax.jit(lambda part: jax.lax.fori_loop(0, 100_000, lambda _, whole: whole @ part, jnp.ones((64, 64)))[0, 0])
work = work.lower(part).compile()

value = work(part)
run.log({"loss": value, "n": 0}, 0)
assert not value.is_ready(), "log() has waited for the value"
value.block_until_ready()

donated = work(part)
run.log({"donated": donated}, 1)
jax.jit(lambda array: array + 1, donate_argnums=0)(donated).block_until_ready()
assert donated.is_deleted()

for step, (name, array) in enumerate({
    "bfloat16": jnp.bfloat16(1.5),
    "float8": jnp.float8_e4m3fn(1.5),
    "int4": jnp.array(-3, jnp.int4),
    "int32": jnp.int32(7),
    "bool": jnp.bool_(True),
    "one": jnp.full((1, 1), 2.5),
    "on every device": jax.device_put(jnp.float32(4), jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.array(jax.devices()), "d"), jax.sharding.PartitionSpec())),
    "key": jax.random.key(0),
    "complex": jnp.complex64(1),
    "two": jnp.ones(2),
}.items(), 2):
    run.log({name: array}, step)

@jax.jit
def traced(x):
    run.log({"tracer": x})
    jax.debug.callback(lambda x: run.log({"inside": x}, 12), x)
    return x

traced(jnp.float32(8)).block_until_ready()
jax.effects_barrier()
run.finish()
for lane in range(len(ring.lanes)):
    for rows in LaneReader(Layouts(ring), lane, Cursor()).read(1000, abandon_pending=False):
        lost = [False if mask is None else bool(mask[0]) for mask in rows.lost]
        if rows.layout.names[0].startswith("cpython."):
            continue
        values = [None if gone else column.tolist()[0] for column, gone in zip(rows.columns, lost)]
        print(rows.steps.tolist(), dict(zip(rows.layout.names, values)))
assert "torch" not in sys.modules
"""

ROWS = """\
[0] {'n': 0.0, 'loss': 1.0}
[1] {'donated': None}
[2] {'bfloat16': 1.5}
[3] {'float8': 1.5}
[4] {'int4': -3.0}
[5] {'int32': 7.0}
[6] {'bool': 1.0}
[7] {'one': 2.5}
[8] {'on every device': 4.0}
[12] {'inside': 8.0}
"""


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs JAX")
def test_arrays_are_read_without_waiting(tmp_path):
    done = run_python(
        "-W",
        "error",
        "-c",
        SCRIPT,
        tmp_path,
        environment={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        check=True,
    )
    assert done.stdout == ROWS
    for refused in (
        "'key' is not recorded",
        "'complex' is not recorded",
        "'two' is not recorded",
        "jax.debug.callback",
    ):
        assert refused in done.stderr
    assert "Array has been deleted" in done.stderr
