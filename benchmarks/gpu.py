"""Everything that one short visit to a GPU must show: is it right, and how fast.

    python benchmarks/gpu.py                          # all rows, under 6 minutes on an H100
    python benchmarks/gpu.py steps images             # single rows
    python benchmarks/gpu.py --device cpu --quick     # a rehearsal: small sizes, and what needs CUDA says so

Prints a Markdown table and writes the same as JSON (--output), after every row. Each row stands for itself: one that
fails says why, and the others go on. Needs torch, transformers and what coop computes with; not datasets, not typer.
Weights are random, prompts are random tokens of the lengths of Caltech101's and ImageNet's names.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product: sums in a fixed order

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from gpu_rows import correctness, speed_rows
from gpu_rows.setting import Line, NotHere, Setting

ROWS = correctness.ROWS | speed_rows.ROWS
LIMIT = 330  # seconds; a row that would begin later is left out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a rehearsal")
    parser.add_argument("--memory-fraction", type=float, default=0.6, help="of what a step takes, for the row memory")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="where results go as JSON")
    options = parser.parse_args()
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f'unknown row "{unknown[0]}"; choose from {", ".join(ROWS)}')
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device; --device cpu --quick rehearses")
    setting = Setting(torch.device(options.device), options.quick, options.memory_fraction)
    results = {"machine": machine(setting.device), "quick": options.quick, "rows": {}}
    print(", ".join(filter(None, results["machine"].values())) + "\n\n| row | what | result |\n|---|---|---|", flush=True)
    begun = time.perf_counter()
    for name in options.rows or ROWS:
        results["rows"][name] = run(name, setting, begun)
        options.output.write_text(json.dumps(results, indent=1))
    print(f"\n{time.perf_counter() - begun:.0f} s in all; {options.output}", file=sys.stderr)
    sys.exit(any("failed" in row for row in results["rows"].values()))


def run(name: str, setting: Setting, begun: float) -> dict[str, object]:
    """Run a row and print its lines; what became of it, for the JSON file."""
    started, lines = time.perf_counter(), []
    try:
        if started - begun > LIMIT:
            raise NotHere(f"left out: {LIMIT} s are over")
        for line in ROWS[name](setting):
            lines.append(line)
            tell(name, line)
        outcome: dict[str, object] = {}
    except NotHere as reason:
        outcome = {"did_not_run": str(reason)}
        tell(name, Line("did not run", text=str(reason)))
    except Exception as error:
        outcome = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        tell(name, Line("failed", text=str(outcome["failed"])))
        if os.environ.get("COOP_DEBUG"):
            raise
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    return outcome | {"seconds": time.perf_counter() - started, "lines": [vars(line) for line in lines]}


def tell(name: str, line: Line) -> None:
    print(f"| {name} | {line.what} | {line.text} |", flush=True)


def machine(device: torch.device) -> dict[str, str]:
    """Card and versions."""
    card = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.processor() or platform.machine()} (CPU)"
    return {
        "card": card,
        "memory": f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB" if device.type == "cuda" else "",
        "cores": f"{os.cpu_count()} CPU cores",
        "torch": f"torch {torch.__version__}",
        "cuda": f"CUDA {torch.version.cuda}" if torch.version.cuda else "",
        "transformers": f"transformers {transformers.__version__}",
        "python": f"Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
