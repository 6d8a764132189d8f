"""Any bytes: see `support.fuzzing` for what must hold, `support.fuzz` for a million of them, led by coverage."""

import gzip
import os
import re
import subprocess

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.metrics.v1.metrics_pb2 import ExponentialHistogramDataPoint, HistogramDataPoint
from starlette.exceptions import HTTPException

from support import fuzzing
from support.processes import module_command
from tensormeter.server.query.points.histograms import decode_distribution
from tensormeter.server.receivers.request_body import decompress
from tensormeter.server.store import Kind

RUNS = int(os.environ.get("TENSORMETER_TEST_FUZZ", "1000"))  # `make chaos` asks for a million


@st.composite
def changed(draw, name):
    """A request with bytes changed, cut out, put in, repeated; or any bytes."""
    body = bytearray(draw(st.sampled_from([*fuzzing.seeds(name), b""])))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(body)))
        end = min(at + draw(st.integers(0, 40)), len(body))
        put = draw(st.binary(max_size=12) | st.just(bytes(body[at:end]) * 2))
        body[at:end] = put
    return bytes(body)


@pytest.mark.parametrize("name", fuzzing.CHECKS)
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_changed_requests(name, data):
    fuzzing.check_input(name, data.draw(changed(name)))


@pytest.mark.parametrize("name", fuzzing.CHECKS)
def test_what_the_fuzzer_begins_with_holds(name):
    for seed in fuzzing.seeds(name):
        fuzzing.check_input(name, seed)


def test_the_fuzzer(tmp_path):
    """Led by coverage, always the same inputs. A failure names the file that has the input."""
    pytest.importorskip("atheris", reason="Atheris has no wheel for this machine")
    command = module_command("fuzz", "--runs", str(RUNS))
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-4000:] + str([*tmp_path.glob("crash-*")])
    assert re.findall(r"^(\w+): ", done.stdout, re.MULTILINE) == [*fuzzing.CHECKS]


@pytest.mark.parametrize(
    ("encoding", "empty"), [("gzip", gzip.compress(b"")), ("zstd", zstandard.compress(b""))], ids=["gzip", "zstd"]
)
def test_a_body_of_nothing_but_empty_members(encoding, empty):
    """Time must not grow with the square of their number: this would take hours."""
    assert decompress(empty * 1000, encoding, 100) == b""
    with pytest.raises(HTTPException, match="more than 10000") as caught:
        decompress(empty * ((48 << 20) // len(empty)), encoding, 100)
    assert caught.value.status_code == 400


@pytest.mark.parametrize("scale", [-(1 << 31), -1100, -11, 20, 1100, (1 << 31) - 1])
def test_an_exponential_histogram_of_any_scale_can_be_shown(scale):
    point = ExponentialHistogramDataPoint(count=6, scale=scale, zero_count=1)
    point.positive.offset = -1
    point.positive.bucket_counts.extend([2, 3])
    distribution = decode_distribution(Kind("exponential_histogram"), point.SerializeToString())
    assert sum(distribution.counts) == 6
    assert len(distribution.counts) == len(distribution.bounds) + 1
    assert [*distribution.bounds] == sorted(set(distribution.bounds))


@pytest.mark.parametrize(
    ("bounds", "counts", "shown"),
    [
        ([1.0, 2.0], [1, 2, 3], ([1.0, 2.0], [1, 2, 3])),
        ([2.0, 1.0], [1, 2, 3], ([2.0], [1, 5])),
        ([1.0, float("nan")], [1, 2, 3], ([1.0], [1, 5])),
        ([1.0, 2.0], [1, 2], ([], [])),
        ([], [4], ([], [4])),
        ([], [], ([], [])),
    ],
)
def test_bounds_that_do_not_fit_are_not_shown(bounds, counts, shown):
    point = HistogramDataPoint(count=sum(counts), explicit_bounds=bounds, bucket_counts=counts)
    distribution = decode_distribution(Kind("histogram"), point.SerializeToString())
    assert (distribution.bounds, distribution.counts) == shown
