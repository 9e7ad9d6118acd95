"""Runs `mammo demo` once per seed and prints its time and its pooled breast AUC.

python tests/benchmarks/bench_demo.py [--seeds 0 1 2]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs the demo once per seed.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for seed in parser.parse_args().seeds:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            command = [sys.executable, "-m", "pipeline", "demo", "--out", folder, "--seed", str(seed)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            pooled = json.loads((Path(folder) / "metrics.json").read_text())["pooled"]
        low, high = pooled["interval_95"]["auc"]
        print(f"seed {seed}: {seconds:.0f} s, breast AUC {pooled['auc']:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
