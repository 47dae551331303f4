"""How long a merge takes, and how much memory: Spunge beside mergekit, a naive merge and the disk, on generated models.

First a small model is merged by all of them in float32, and every bit of the outputs is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

WIDTH, FEED, VOCABULARY = 1024, 2816, 32000
SHARD = 300e6
RMU = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (5, 6, 7)]

MERGEKIT = "mergekit.scripts.run_yaml"
STABLE = f"""
import torch
unstable = torch.argsort
torch.argsort = lambda values, descending=False: unstable(values, descending=descending, stable=True)
from {MERGEKIT} import main
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=670, help="parameters of the base model, in millions")
    parser.add_argument("--base", type=Path, help="a real model's directory, in place of a generated one")
    parser.add_argument("--variants", type=int, default=5)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--directory", type=Path, default=Path("/tmp/spunge-merge-benchmark"))
    parser.add_argument("--mergekit", metavar="PYTHON", help="the python of another environment that has mergekit")
    parser.add_argument("--naive", action="store_true", help="also time a merge that holds all models in memory")
    parser.add_argument("--cases", nargs="+", default=["all", "few"], choices=["all", "few"])
    parser.add_argument("--keep", action="store_true", help="keep the generated models")
    options = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    options.directory.mkdir(parents=True, exist_ok=True)
    if options.mergekit and subprocess.run([options.mergekit, "-c", "import mergekit"], capture_output=True).returncode:
        raise SystemExit(f"--mergekit {options.mergekit}: this python cannot import mergekit")
    check(options.directory / "check", options.mergekit)
    if not options.repeats:
        return
    base = options.base or options.directory / "base"
    if not base.exists():
        child("generate", base, options.millions, options.dtype, WIDTH, FEED, VOCABULARY, SHARD)
    out = options.directory / "out"
    spunge = [sys.executable, __file__, "_merge", str(base), str(out), options.device]
    runs: dict[str, list[str]] = {"start": [sys.executable, "-c", "import spunge.merging"]}
    runs["cp -r base"] = ["cp", "-r", str(base), str(out)]
    inputs: dict[str, list[Path]] = {}
    for case in options.cases:
        checkpoints = [options.directory / f"{case}-{index}" for index in range(options.variants)]
        vectors = [options.directory / f"{case}-{index}-vector" for index in range(options.variants)]
        for index, (checkpoint, vector) in enumerate(zip(checkpoints, vectors, strict=True)):
            if not checkpoint.exists():
                child("vary", base, checkpoint, vector, index, case)
        if options.mergekit:
            recipe = options.directory / f"{case}.yaml"
            recipe.write_text(mergekit_recipe(base, checkpoints, options.dtype))
            runs[f"mergekit, {case}, checkpoints"] = [options.mergekit, "-m", MERGEKIT, str(recipe), str(out)]
        if options.naive:
            naive = [sys.executable, __file__, "_naive", str(base), str(out)]
            runs[f"naive, {case}, checkpoints"] = [*naive, *map(str, checkpoints)]
        limit = [sys.executable, __file__, "_limit", str(base), str(out)]
        runs[f"read and cp, {case}, checkpoints"] = [*limit, *map(str, checkpoints)]
        runs[f"read and cp, {case}, task vectors"] = [*limit, *map(str, vectors)]
        runs[f"spunge, {case}, checkpoints"] = [*spunge, *map(str, checkpoints)]
        runs[f"spunge, {case}, task vectors"] = [*spunge, *map(str, vectors)]
        inputs |= {name: vectors if "vectors" in name else checkpoints for name in runs if f", {case}, " in name}

    measured: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for repeat in range(options.repeats):
        for name, command in runs.items():  # alternating, so that a slow spell of the machine meets all alike
            shutil.rmtree(out, ignore_errors=True)
            read([base, *inputs.get(name, [])])  # what fits into the page cache is there for all alike
            measured[name].append(measure(command))
            shown = "  ".join(f"{what} {value:9.2f}" for what, value in measured[name][-1].items())
            print(f"{repeat + 1}/{options.repeats}  {name:32} {shown}", flush=True)
    model = options.base or f"{options.millions:g} M parameters"
    print(f"\nmedians of {options.repeats}, {model}, {options.variants} variants")
    print(f"memory is copied at {max(memory_speed() for _ in range(5)):.1f} GB a CPU second")
    for name, rows in measured.items():
        middle = {what: statistics.median(row[what] for row in rows) for what in rows[0]}
        print(f"{name:32} " + "  ".join(f"{what} {value:9.2f}" for what, value in middle.items()))
    shutil.rmtree(out, ignore_errors=True)
    if not options.keep:
        shutil.rmtree(options.directory)


def check(directory: Path, mergekit: str | None) -> None:
    """Merges three variants of a small sharded float32 model in every way, and ends the program unless all agree."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    base = directory / "base"
    child("generate", base, 0, "float32", 64, 96, 512, 2e5)
    variants = [directory / f"all-{index}" for index in range(3)]
    for index, variant in enumerate(variants):
        child("vary", base, variant, directory / f"vector-{index}", index, "all")
    child("merge", base, directory / "spunge", "cpu", *variants)
    child("naive", base, directory / "naive", *variants)
    child("compare", directory / "spunge", directory / "naive", base)
    if mergekit:
        recipe = directory / "recipe.yaml"
        recipe.write_text(mergekit_recipe(base, variants, "float32"))
        command = [mergekit, "-c", STABLE, str(recipe), str(directory / "mergekit")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"mergekit failed:\n{done.stderr[-2000:]}")
        child("compare", directory / "spunge", directory / "mergekit", base, *variants)
    else:
        print("mergekit: not compared; give --mergekit the python of an environment that has it", flush=True)
    shutil.rmtree(directory)


def compare(one: Path, other: Path, base: Path, variants: list[str]) -> None:
    """Prints how many weights of two checkpoints differ; fails if any does, or if both are just the base.

    Apart from those where a variant's delta ties at its threshold with more entries than the density allows: Spunge
    keeps all of these, mergekit the first by position. They are counted.
    """
    import torch

    from spunge.weights.checkpoint import Checkpoint

    first, second, original, *others = (Checkpoint.open(path) for path in (one, other, base, *variants))
    if not first.tensors.keys() == second.tensors.keys() == original.tensors.keys():
        raise SystemExit(f"{one.name} and {other.name} hold different tensors")
    total = differing = tied = changed = 0
    for name in first.tensors:
        ours, theirs, before = (checkpoint.read(name) for checkpoint in (first, second, original))
        split = torch.zeros(ours.shape, dtype=torch.bool)
        for variant in others:
            magnitudes = (variant.read(name) - before).abs()
            count = max(1, int(0.2 * ours.numel()))
            threshold = magnitudes.reshape(-1).kthvalue(ours.numel() - count + 1).values
            if int((magnitudes >= threshold).sum()) > count:
                split |= magnitudes == threshold
        unequal = ours.view(torch.int32) != theirs.view(torch.int32)
        total += ours.numel()
        differing += int((unequal & ~split).sum())
        tied += int(split.sum())
        changed += int((ours != before).sum())
    print(
        f"{one.name} and {other.name}: {differing} of {total} weights differ, {changed} are changed"
        + (f" ({tied} tie at a threshold and are left out)" if variants else ""),
        flush=True,
    )
    if differing or not changed:
        raise SystemExit(1)


def measure(command: list[str]) -> dict[str, float]:
    """Runs a command and returns its wall time, processor time, peak memory, and bytes read and written."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    io = Path(f"/proc/{process.pid}/io")
    read = written = 0
    while True:
        # The zombie's counters are still there until it is waited for.
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        try:
            counters = dict(line.split(": ") for line in io.read_text().splitlines())
            read, written = int(counters["rchar"]), int(counters["wchar"])
        except OSError:
            pass
        if ended:
            break
        time.sleep(0.05)
    wall = time.perf_counter() - started
    error = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed:\n{error.decode(errors='replace')[-2000:]}")
    return {
        "wall s": wall,
        "cpu s": usage.ru_utime + usage.ru_stime,
        "peak MB": usage.ru_maxrss / 1024,
        "read MB": read / 1e6,
        "written MB": written / 1e6,
    }


def child(*arguments: object) -> None:
    subprocess.run(
        [sys.executable, __file__, *(f"_{a}" if i == 0 else str(a) for i, a in enumerate(arguments))], check=True
    )


def generate(
    base: Path, millions: float, dtype: str, width: int, feed: int, vocabulary: int, shard_size: float
) -> None:
    """Writes a Llama-shaped checkpoint of random weights in shards of about `shard_size` bytes."""
    import torch
    from safetensors.torch import save_file

    per_layer = 4 * width * width + 3 * width * feed + 2 * width
    layers = max(8, round((millions * 1e6 - vocabulary * width * 2) / per_layer))
    shapes = {
        "model.embed_tokens.weight": (vocabulary, width),
        "lm_head.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{side}_proj.weight": (width, width) for side in "qkvo"}
        shapes |= {f"{prefix}.mlp.{side}_proj.weight": (feed, width) for side in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": (width, feed)}
        shapes |= {f"{prefix}.{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
    base.mkdir()
    generator = torch.Generator().manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, shape in shapes.items():
        tensor = (torch.randn(shape, generator=generator) * 0.02).to(getattr(torch, dtype))
        if size > shard_size:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, base / name, metadata={"format": "pt"})
    weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": feed,
        "num_hidden_layers": layers, "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64, "vocab_size": vocabulary,
        "torch_dtype": dtype, "tie_word_embeddings": False,
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))


def vary(base: Path, checkpoint: Path, vector: Path, index: int, case: str) -> None:
    """Writes a variant of the base, as a task vector and as a checkpoint: all weights differ, or three matrices."""
    import torch

    from spunge.weights.checkpoint import Checkpoint, export
    from spunge.weights.task_vector import TaskVector

    source = Checkpoint.open(base)
    generator = torch.Generator().manual_seed(1 + index)
    names = sorted(source.tensors) if case == "all" else RMU
    entries = {name: torch.randn(source.tensors[name].shape, generator=generator) * 1e-3 for name in names}
    task_vector = TaskVector(entries)
    task_vector.save(vector)
    export(base, task_vector, checkpoint)


def merge(base: Path, out: Path, device: str, variants: list[str]) -> None:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from spunge import merging
    from spunge.mergers import Ties
    from spunge.weights.checkpoint import Checkpoint

    opened = Checkpoint.open(base)
    merging.write(Ties(), merging.open_variants(variants, opened), out, base=opened, options=merging.Options(device))


def limit(base: Path, out: Path, variants: list[str]) -> None:
    """What no merge can do without: reads the base and every variant once, and writes a copy of the base."""
    read([base, *map(Path, variants)])
    shutil.copytree(base, out)


def read(directories: list[Path]) -> None:
    """Reads the weights in some directories, and forgets them."""
    buffer = bytearray(1 << 20)
    for directory in directories:
        for file in sorted(directory.glob("*.safetensors")):
            descriptor = os.open(file, os.O_RDONLY)
            while os.readv(descriptor, [buffer]):
                pass
            os.close(descriptor)


def memory_speed() -> float:
    """Returns how many GB a second are copied from memory to memory, on one thread."""
    source, target = bytearray(1 << 28), bytearray(1 << 28)
    started = time.process_time()
    memoryview(target)[:] = source
    return len(source) / (time.process_time() - started) / 1e9


def naive_merge(base: Path, out: Path, variants: list[str]) -> None:
    """The same merge with everything in memory: load all, stack, find the k-th value, sum, save."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    def load(directory: Path) -> dict[str, torch.Tensor]:
        return {n: t for file in directory.glob("*.safetensors") for n, t in load_file(file).items()}

    weights, changed = load(base), [load(Path(variant)) for variant in variants]
    merged = {}
    for name, weight in weights.items():
        deltas = torch.stack([other[name].float() - weight.float() for other in changed])
        for delta in deltas:
            flat = delta.abs().reshape(-1)
            count = max(1, int(0.2 * flat.numel()))
            delta *= delta.abs() >= flat.kthvalue(flat.numel() - count + 1).values
        elected = sum(deltas, torch.zeros_like(deltas[0])).sign()
        agreeing = deltas.sign() == elected
        delta = sum(deltas * agreeing) / (agreeing & (elected != 0)).sum(0).clamp(min=1)
        merged[name] = (weight.float() + delta).to(weight.dtype)
    out.mkdir()
    save_file(merged, out / "model.safetensors", metadata={"format": "pt"})


def mergekit_recipe(base: Path, variants: list[Path], dtype: str) -> str:
    recipe = {
        "merge_method": "ties",
        "base_model": str(base),
        "models": [{"model": str(variant), "parameters": {"weight": 1.0, "density": 0.2}} for variant in variants],
        "parameters": {"normalize": True, "int8_mask": False},
        "dtype": dtype,
    }
    return json.dumps(recipe)  # JSON is YAML


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or [""]
    if what == "_generate":
        width, feed, vocabulary = map(int, rest[3:6])
        generate(Path(rest[0]), float(rest[1]), rest[2], width, feed, vocabulary, float(rest[6]))
    elif what == "_vary":
        vary(Path(rest[0]), Path(rest[1]), Path(rest[2]), int(rest[3]), rest[4])
    elif what == "_naive":
        naive_merge(Path(rest[0]), Path(rest[1]), rest[2:])
    elif what == "_compare":
        compare(Path(rest[0]), Path(rest[1]), Path(rest[2]), rest[3:])
    elif what == "_limit":
        limit(Path(rest[0]), Path(rest[1]), rest[2:])
    elif what == "_merge":
        merge(Path(rest[0]), Path(rest[1]), rest[2], rest[3:])
    else:
        main()
