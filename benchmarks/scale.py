"""What many processes cost and gain: a step over 21,841 classes, encoding, sweeps, and kills of random processes.

    python benchmarks/scale.py                        # all rows
    python benchmarks/scale.py step --names 1000      # one row, smaller
    python benchmarks/scale.py kills --kills 20

Prints a Markdown row for each. All runs are on one machine, by gloo on the loopback interface; pairs that are compared run
one after the other, each process on a core of its own (taskset) and with one thread. Model sizes are real, weights random.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
COOP = [sys.executable, "-m", "coopcli"]
B, M = 32, 16  # images of a step, context vectors
# Of ImageNet-21k's first lemmas around 16 vectors at the end: 74,274 tree nodes for 21,841 classes, 1,773 of them repeated.
NAMES, NODES, REPEATED = 21_841, 74_274, 1_773


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **more}


def prompts_like_imagenet_21k(n: int) -> list[tuple[int, ...]]:
    """Prompts of random tokens, as many rows and repetitions a class as ImageNet-21k's names have."""
    choose = random.Random(1)
    start, stop, full_stop = 49406, 49407, 269
    words = [choose.randrange(1000, 48000) for _ in range(20000)]
    names: list[tuple[int, ...]] = []
    while len(names) < n:
        if names and choose.random() < 0.05:
            names.append(choose.choice(names))
            continue
        length = choose.choices([1, 2, 3, 4, 5], [18, 54, 19, 6, 3])[0]
        first = words[int(len(words) * choose.random() ** 1.7)]
        names.append((first, *(choose.choice(words) for _ in range(length - 1))))
    context = tuple(-1 - m for m in range(M))
    return [(start, *context, *name, full_stop, stop) for name in names]


def encoder_of_vit_b16() -> object:
    from transformers import CLIPConfig, CLIPModel

    from coopcli.clip.text_encoder import TextEncoder

    torch.manual_seed(0)
    text = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8, vocab_size=49408,
                bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)  # fmt: skip
    vision = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)
    return TextEncoder(CLIPModel(config).eval().requires_grad_(False))


def sent() -> int:
    """Bytes that this machine has sent on its loopback interface."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[8])
    return 0


def one_step(n: int, output: Path, plain: bool) -> None:
    """A forward and backward pass over n classes: the shared one, or a plain one over chunks in the given order."""
    import torch.nn.functional as F

    from coopcli import parallel
    from coopcli.clip.prompts import ContextSettings, random_context
    from coopcli.learning.shards import ClassShards

    torch.set_num_threads(1)
    parallel.join("cpu")
    encoder, prompts = encoder_of_vit_b16(), prompts_like_imagenet_21k(n)
    context = random_context(ContextSettings(M), n, 512, 1)
    generator = torch.Generator().manual_seed(2)
    images = 100 * F.normalize(torch.randn(B, 512, generator=generator), dim=-1)
    labels = torch.randint(n, (B,), generator=generator)
    size = encoder.fixed_chunk(prompts)  # type: ignore[attr-defined]
    learned = torch.nn.Parameter(context.clone())
    about: dict[str, object] = {}
    if plain:
        chunks = encoder.lay_out(prompts, size)  # type: ignore[attr-defined]
        began = time.perf_counter()
        loss = F.cross_entropy(images @ encoder.encode_layouts(chunks, learned, "chunks").T, labels)  # type: ignore[attr-defined]
        loss.backward()
    else:
        shards = ClassShards(encoder, prompts, size, context)  # type: ignore[arg-type]
        rows = sum(chunk.tree.n_nodes for chunk in shards.layouts)
        payload = 0
        true = parallel.gather_small

        def counted(tensor: torch.Tensor, counts: list[int]) -> torch.Tensor:
            nonlocal payload
            payload += max(counts) * tensor[:1].numel() * 4 if len(tensor) else 0
            return true(tensor, counts)

        sys.modules[ClassShards.__module__].gather_small = counted  # type: ignore[attr-defined]
        parallel.share(None)
        before, began = sent(), time.perf_counter()
        loss, _ = shards.backward(learned, images, labels, "chunks")
        parallel.share(None)
        about |= {"chunks": shards.n_chunks, "rows": rows, "payload": payload, "loopback": sent() - before}
    about |= {
        "seconds": time.perf_counter() - began,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "loss": float(loss.detach()),
        "gradient": learned.grad.tolist(),  # type: ignore[union-attr]
    }
    rank = parallel.launched().rank
    output.with_name(f"{output.name}-{rank}").write_text(json.dumps(about))


def step(options: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as folder:
        this = [str(Path(__file__)), "one-step", "--names", str(options.names), "--output"]
        subprocess.run([*TORCHRUN, "2", *this, f"{folder}/two"], env=environment(), check=True)
        two = [json.loads(Path(f"{folder}/two-{rank}").read_text()) for rank in range(2)]
        most, payload = max(part["peak"] for part in two), max(part["payload"] for part in two)
        text = (
            f"{options.names} classes, {sum(part['rows'] for part in two)} rows in {two[0]['chunks']} chunks, 2 processes: "
            f"{two[0]['seconds']:.0f} s a step, peak {most / 1e9:.2f} GB a process, {payload / 1e3:.0f} kB sent a process "
            f"and step (all of the loopback interface: {two[0]['loopback'] / 2e3:.0f} kB a process)"
        )
        print(text, flush=True)
        if options.no_plain:
            return text
        subprocess.run([sys.executable, *this, f"{folder}/one", "--plain"], env=environment(), check=True)
        one = json.loads(Path(f"{folder}/one-0").read_text())
    gradients = [torch.tensor(part["gradient"], dtype=torch.float64) for part in (one, *two)]
    away = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    same = torch.equal(gradients[1], gradients[2])
    return (
        f"{text}; gradient away from plain cross-entropy in one process {away:.1e}, "
        f"loss {abs(two[0]['loss'] / one['loss'] - 1):.1e}; {'the same' if same else 'NOT the same'} in both processes; "
        f"one process {one['seconds']:.0f} s, {one['peak'] / 1e9:.2f} GB"
    )


def timed(commands: list[list[str]], **variables: str) -> tuple[float, float]:
    """Seconds that commands take, all at once, each on a core of its own; and the most seconds that one of them computed."""
    began = time.perf_counter()
    processes = [
        subprocess.Popen(["taskset", "-c", str(core), *command], env=environment(**variables), stdout=subprocess.DEVNULL)
        for core, command in enumerate(commands)
    ]
    computed = []
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit("a command failed")
        computed.append(usage.ru_utime + usage.ru_stime)
    return time.perf_counter() - began, max(computed)


def limit() -> float:
    """How much more two processes of plain small products compute than one: the most that this machine has to give to two."""
    code = """
import time, torch
x, n, end = torch.randn(128, 128), 0, time.time() + 4
while time.time() < end:
    x @ x
    n += 1
print(n)
"""

    def products(cores: int) -> int:
        commands = [["taskset", "-c", str(core), sys.executable, "-c", code] for core in range(cores)]
        processes = [subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) for command in commands]
        return sum(int(process.communicate()[0]) for process in processes)

    one = products(1)
    return products(2) / one


def paced(shards: Path, began: float) -> tuple[float, float]:
    """Seconds until the first shard was there, and from then until the last; `began` by the clock of files."""
    times = sorted(path.stat().st_mtime for path in shards.glob("*.npy"))
    return times[0] - began, times[-1] - times[0]


def gain(one: tuple[float, float], two: tuple[float, float]) -> str:
    """How much faster two processes are than one: by the clock, and by what the busier of them computed."""
    return (
        f"1 process {one[0]:.1f} s, 2 processes {two[0]:.1f} s: {one[0] / two[0]:.2f}x; computed, in the busier process: "
        f"{one[1]:.1f} s, {two[1]:.1f} s: {one[1] / two[1]:.2f}x, which is what counts where other work shares the cores"
    )


def encode(options: argparse.Namespace) -> str:
    from coopcli.demo.tasks import write_task

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_task(folder / "photos", "shapes", options.images // 8, seed=(9,))
        words = [*COOP, "encode", str(folder / "photos"), "--model", "mini", "--quiet", "-o"]
        began = time.time()
        one = timed([[*words, str(folder / "one")]])
        between = time.time()
        two = timed([[*words, str(folder / "two")]] * 2)
        (first, rest), (first_of_two, rest_of_two) = (
            paced(folder / name / "img_emb", when) for name, when in (("one", began), ("two", between))
        )
        pairs = [(path, folder / "two" / "img_emb" / path.name) for path in (folder / "one" / "img_emb").iterdir()]
        same = all(a.read_bytes() == b.read_bytes() for a, b in pairs)
    n = len(pairs)  # of two processes the first shard comes with the second
    faster = (rest / max(1, n - 1)) / (rest_of_two / max(1, n - 2))
    return (
        f"{options.images} images in {n} shards: {gain(one, two)}; until the first shard {first:.1f} s and "
        f"{first_of_two:.1f} s, from then on {rest:.1f} s and {rest_of_two:.1f} s: {faster:.2f}x a shard; same files: {same}"
    )


def sweep(options: argparse.Namespace) -> str:
    from coopcli.demo.tasks import write_task

    tables, seconds = [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_task(folder / "photos" / "train", "shapes", 20, seed=(9,))
        write_task(folder / "photos" / "test", "shapes", 20, seed=(8,))
        for name, shells in (("one", 1), ("two", 2)):
            words = [*COOP, "sweep", str(folder / "photos"), "--model", "mini", "--methods", "coop", "--shots", options.shots]
            words += ["--seeds", "1,2,3,4", "--context-length", "4,8,16", "--jobs", "1", "--no-plot", "--quiet"]
            words += ["-o", str(folder / name)]
            seconds.append(timed([words] * shells, COOP_CACHE=str(folder / f"cache-{name}")))
            rows = json.loads((folder / name / "results.json").read_text())["results"]
            tables.append([{key: row[key] for key in row if key not in ("seconds", "peak_memory")} for row in rows])
            tables[-1].append([path.read_bytes() for path in sorted((folder / name / "cells").glob("*/*.safetensors"))])
    same = tables[0] == tables[1]
    most = f"two processes of plain products of 128 x 128 do {limit():.2f}x of what one does here"
    return f"12 experiments, a process a shell: {gain(*seconds)}; {most}; same results: {same}"


def ranks_of(process: int) -> list[int]:
    children = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == process:
                children.append(int(entry.name))
        except OSError:
            continue
    return children


def kills(options: argparse.Namespace) -> str:
    """Kill random processes of a job at random moments; torchrun begins them again, from the last epoch."""
    from coopcli.demo.tasks import write_task

    choose, different, killed, jobs = random.Random(options.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_task(folder / "photos", "shapes", 6, seed=(9,))
        words = ["fit", str(folder / "photos"), "--model", "mini", "--shots", "4", "--views", "2", "--epochs", "300"]
        words += ["--class-chunk", "2", "--quiet", "-o"]
        variables = environment(COOP_CACHE=str(folder / "cache"))
        subprocess.run([*COOP, *words, str(folder / "alone")], env=variables, check=True, stdout=subprocess.DEVNULL)
        expected = (folder / "alone" / "prompt.safetensors").read_bytes()
        while killed < options.kills:
            run = folder / "run"
            shutil.rmtree(run, ignore_errors=True)
            command = [*TORCHRUN, "2", "--max-restarts", "100", "-m", "coopcli", *words, str(run)]
            with (folder / "said").open("w") as said:
                process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=said)
            victims: set[int] = set()
            checkpoint, seen = run / "checkpoint.safetensors", 0
            while process.poll() is None and killed < options.kills:
                time.sleep(choose.uniform(0, 0.4))
                ranks = [number for number in ranks_of(process.pid) if number not in victims]
                written = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
                # Half of the kills fall at any moment, half after an epoch that came since the last one.
                if len(ranks) == 2 and (written > seen or choose.random() < 0.02):
                    try:
                        os.kill(choose.choice(ranks), signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    victims |= set(ranks)
                    killed, seen = killed + 1, written
            if process.wait():
                raise SystemExit((folder / "said").read_text())
            jobs += 1
            different += (run / "prompt.safetensors").read_bytes() != expected
    return f"{killed} kills of random processes in {jobs} job(s) of 2: {different} differing files"


ROWS = {"step": step, "encode": encode, "sweep": sweep, "kills": kills}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--names", type=int, default=NAMES, help="classes of the row step")
    parser.add_argument("--no-plain", action="store_true", help="without the plain step to compare with")
    parser.add_argument("--images", type=int, default=20_000, help="of the row encode")
    parser.add_argument("--shots", default="16", help="of the row sweep")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows == ["one-step"]:
        one_step(options.names, options.output, options.plain)
        return
    for name in options.rows or ROWS:
        print(f"| {name} | {ROWS[name](options)} |", flush=True)


if __name__ == "__main__":
    main()
