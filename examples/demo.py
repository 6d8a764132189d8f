"""Start the experiment server, train a model, and show its run."""

import argparse
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--once", action="store_true", help="stop the server after training instead of leaving it running"
    )
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="folder for the demo's data")
    parser.add_argument("--port", type=int, default=4320, help="port of the server; 0 selects a free port")
    parser.add_argument("training", nargs="*", help="arguments for examples/digits.py; put them after --")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    environment = dict(os.environ, TENSORMETER_DIR=str(folder / "runs"))
    server = start_server(folder, arguments.port, environment)
    if server is None:
        return 1
    process, url = server
    try:
        environment["TENSORMETER_ENDPOINT"] = url
        run_id = environment["TENSORMETER_RUN_ID"] = f"digits-{secrets.token_hex(3)}"
        page = f"{url}/#/p/digits/runs/{run_id}"
        print(
            f"The experiment server is running at {url}. Training on handwritten digits; follow the run at", flush=True
        )
        print(f"  {page}\n", flush=True)
        if not train(environment, arguments.training):
            return 1
        print(flush=True)
        show = [sys.executable, "-m", "tensormeter", "show", run_id, "--endpoint", url]
        subprocess.run([*show, "--metric", "train/loss"], env=environment, check=True)
        print(f"\nWeb page of the run: {page}", flush=True)
        print(f"To show the run in a terminal: tensormeter show {run_id} --endpoint {url}", flush=True)
        if not arguments.once:
            print("The server keeps running; press Ctrl-C to stop it.", flush=True)
            process.wait()
    except KeyboardInterrupt:
        pass
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    return 0


def start_server(
    folder: Path,
    port: int,
    environment: dict[str, str],
) -> tuple[subprocess.Popen[str], str] | None:
    """Start the server, wait until it is ready, and return its process and URL.

    Return None if the server printed an error instead of starting.
    """
    command = [sys.executable, "-m", "tensormeter", "serve", "--port", str(port), "--data", str(folder / "server")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, process_group=0)
    assert process.stdout is not None
    line = process.stdout.readline()
    if " on http" not in line:
        process.wait()
        return None
    return process, line.partition(" on ")[2].split()[0]


def train(environment: dict[str, str], arguments: list[str]) -> bool:
    """Run the training script in this terminal, and return whether it succeeded."""
    command = [sys.executable, str(EXAMPLES / "digits.py"), *arguments]
    return subprocess.run(command, env=environment, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
