"""A million inputs for the decoders, led by what they cover: `PYTHONPATH=tests python -m support.fuzz [--runs 1000000] [CHECK ...]`.

Atheris instruments our modules and mutates what reaches new code. An input that breaks a check is left in the current folder, as
`crash-...`; `--input FILE` runs it again.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

CHECKS = ("elements", "metrics", "logs", "json", "json_of", "body")


def run(name: str, runs: int, seed: int) -> int:
    """Run one check in a child, because Atheris ends the process, and return its status. The instrumented modules are the parent's."""
    import atheris

    with atheris.instrument_imports(include=["tensormeter"]):
        from support import fuzzing
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with tempfile.TemporaryDirectory() as folder:
        for index, content in enumerate(fuzzing.seeds(name)):
            (Path(folder) / str(index)).write_bytes(content)
        options = [
            f"-runs={runs}",
            f"-seed={seed}",
            "-timeout=60",
            "-max_len=4096",
            "-rss_limit_mb=4096",
            "-verbosity=0",
        ]
        atheris.Setup([sys.argv[0], *options, folder], fuzzing.CHECKS[name])
        atheris.Fuzz()
    raise AssertionError("Atheris ends the process")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", help=f"of {', '.join(CHECKS)}; by default all")
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs, over all checks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--input", type=Path, help="run one check on a file")
    given = parser.parse_args()
    checks = given.checks or CHECKS
    if given.input:
        from support import fuzzing

        for name in checks:
            fuzzing.CHECKS[name](given.input.read_bytes())
    else:
        for name in checks:
            share = -(-given.runs // len(checks))
            print(f"{name}: {share:,} inputs", flush=True)
            if status := run(name, share, given.seed):
                sys.exit(f"{name}: status {status}; the input is in the file named above")


if __name__ == "__main__":
    main()
