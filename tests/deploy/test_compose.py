"""The compose file is hardened and its commands run; the image's recipe gives a server without torch."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import urllib3
import yaml

from support.ports import reserve_port
from support.processes import run_python

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_hardened(name):
    service = SERVICES[name]
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), "pinned to a version"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")
    if "build" in service:
        stage = re.search(
            rf"^FROM \S+ AS {service['build']['target']}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.DOTALL | re.MULTILINE
        )
        assert stage is not None
        assert "\nUSER 10001\n" in stage[1]
    elif name == "collector-storage":  # it is there to change an owner, and ends
        assert service["network_mode"] == "none"
        assert service["cap_add"] == ["CHOWN"]
    else:
        assert not service["user"].startswith("0")


def test_long_running_services_have_a_health_check():
    long_lived = {name for name, service in SERVICES.items() if service.get("restart")}
    assert long_lived == {"server", "collector", "collector-ready", "prometheus", "grafana"}
    # The Collector's image has no program that could ask; `collector-ready` asks it over the network.
    assert all("healthcheck" in SERVICES[name] for name in long_lived - {"collector"})
    assert "http://collector:13133/" in SERVICES["collector-ready"]["healthcheck"]["test"]
    for service in SERVICES.values():
        for needed, how in service.get("depends_on", {}).items() if isinstance(service.get("depends_on"), dict) else ():
            assert needed in SERVICES
            assert how["condition"] != "service_healthy" or "healthcheck" in SERVICES[needed]


def test_volumes_are_named_and_files_exist():
    named = set(COMPOSE["volumes"])
    used = set()
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
                assert volume.endswith(":ro")
            else:
                used.add(source)
    assert used == named


def test_secrets_come_from_the_environment():
    for service in SERVICES.values():
        for variable, value in service.get("environment", {}).items():
            if "TOKEN" in variable or "PASSWORD" in variable:
                assert re.fullmatch(r"\$\{\w+:\?.+\}", value), f"{variable} has no default"


def test_docker_compose_accepts_the_file():
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("docker compose is not installed")
    done = subprocess.run(
        ["docker", "compose", "--profile", "demo", "config", "--quiet"],
        cwd=ROOT,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "TENSORMETER_TOKEN": "t", "GRAFANA_PASSWORD": "p"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_servers_command_serves_and_is_healthy(tmp_path, start, answers, clean_environment):
    """As in the file, with a folder and a port of the test's own; and the health check of the file finds it well."""
    port = str(reserve_port())
    command = [
        {"4320": port, "/data": str(tmp_path / "data")}.get(word, word) for word in SERVICES["server"]["command"]
    ]
    environment = clean_environment | {"TENSORMETER_TOKEN": "secret", "TENSORMETER_DIR": str(tmp_path / "runs")}
    process = start([sys.executable, "-m", "tensormeter", *command], environment)
    answers(process, f"http://127.0.0.1:{port}/api/v1/projects", {"Authorization": "Bearer secret"})
    assert urllib3.request("GET", f"http://127.0.0.1:{port}/api/v1/projects", retries=False).status == 401
    _, _, option, code = SERVICES["server"]["healthcheck"]["test"]
    assert option == "-c"
    for at, healthy in ((port, True), (str(reserve_port()), False)):
        done = run_python("-c", code.replace("4320", at), environment=clean_environment)
        assert (done.returncode == 0) == healthy, "it needs no token"
    # The Collector calls it by this name.
    answers(
        process,
        f"http://127.0.0.1:{port}/api/v1/projects",
        {"Authorization": "Bearer secret", "Host": f"server:{port}"},
    )


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's package `prometheus` is not installed")
def test_the_command_of_prometheus_accepts_remote_write(tmp_path, start, answers, clean_environment):
    port = reserve_port()
    places = {
        "/etc/prometheus/prometheus.yml": str(ROOT / "deploy/prometheus/prometheus.yml"),
        "=/prometheus": f"={tmp_path / 'data'}",
    }
    command = list(SERVICES["prometheus"]["command"])
    for inside, here in places.items():
        command = [word.replace(inside, here) for word in command]
    process = start(["prometheus", *command, f"--web.listen-address=127.0.0.1:{port}"], clean_environment)
    answers(process, f"http://127.0.0.1:{port}/-/ready")
    assert urllib3.request("POST", f"http://127.0.0.1:{port}/api/v1/write", body=b"", retries=False).status != 404


def test_the_dashboard_uses_only_defined_variables_and_sources():
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/training.json").read_text())
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ][0]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert source["url"] == "http://prometheus:9090"
    assert dashboard["panels"]
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == source["uid"]
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    providers = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/dashboards.yml").read_text())[
        "providers"
    ]
    assert providers[0]["options"]["path"] in [
        volume.split(":")[1]
        for volume in SERVICES["grafana"]["volumes"]
        if volume.startswith("./deploy/grafana/dashboards")
    ]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's package `prometheus` is not installed")
def test_the_dashboards_queries_parse(tmp_path):
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/training.json").read_text())
    rules = [
        {"record": f"query:{panel['id']}", "expr": re.sub(r"\$\w+", "x", target["expr"])}
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_recipe_of_the_servers_image_builds_a_working_server(tmp_path, start, answers, clean_environment):
    """Only what the recipe copies, made into a wheel and installed; dependencies come from this environment."""
    stage = re.search(r"^FROM base AS build\n(.*?)(?=^FROM)", DOCKERFILE, re.DOTALL | re.MULTILINE)
    assert stage is not None
    source = tmp_path / "src"
    for line in re.findall(r"^COPY (.+)$", stage[1], re.MULTILINE):
        *copied, _ = line.split()
        for name in copied:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                source.mkdir(exist_ok=True)
                shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip"]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "wheel", *quiet, "--no-build-isolation", "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("tensormeter-*.whl")
    installed = tmp_path / "installed"
    subprocess.run([*pip, "install", *quiet, "--no-index", "--target", installed, wheel], check=True)

    metadata = next(installed.glob("tensormeter-*.dist-info/METADATA")).read_text()
    extras = re.search(r"^FROM build AS build-server\n.* '\.\[(.+)\]'$", DOCKERFILE, re.MULTILINE)[1].split(",")
    wanted = [
        line for line in re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
        if "extra ==" not in line or any(f"extra == '{extra}'" in line for extra in extras)
    ]  # fmt: skip
    assert {"starlette", "clickhouse-connect"} <= {re.match(r"[\w-]+", line)[0] for line in wanted}
    assert not any(re.match(r"(torch|mlflow|wandb|tensorboard|pandas)\b", line) for line in wanted)

    final = DOCKERFILE[DOCKERFILE.index("FROM base AS server") :]
    entry = json.loads(re.search(r"^ENTRYPOINT (.+)$", final, re.MULTILINE)[1])
    command = json.loads(re.search(r"^CMD (.+)$", final, re.MULTILINE)[1])
    assert entry == ["tensormeter"]
    port = reserve_port()
    environment = clean_environment | {
        "PYTHONPATH": str(installed),
        "TENSORMETER_TOKEN": "secret",
        "TENSORMETER_DIR": str(tmp_path / "runs"),
    }
    words = [str(tmp_path / "data") if word == "/data" else word for word in command]
    program = (
        "import sys, tensormeter; assert tensormeter.__file__.startswith(sys.argv[1]); "
        "from tensormeter.cli import main; main(sys.argv[2:])"
    )
    process = start([sys.executable, "-c", program, str(installed), *words, "--port", str(port)], environment)
    answers(process, f"http://127.0.0.1:{port}/api/v1/projects", {"Authorization": "Bearer secret"})
    mapped = Path(f"/proc/{process.pid}/maps")
    if mapped.exists():
        assert "libtorch" not in mapped.read_text()
