"""Everything that is to be known of a GPU, in one command: `python3 benchmarks/accelerator.py [--smoke]`.

Made for a bare machine that is at hand for minutes: nothing is installed, nothing but JAX, torch, Triton and
transformers has to be there. What else is needed are the wheels in build/wheels (`make wheels`), of which
those that are missing are unpacked. The most important part comes first. Each part is a process of its own
that is killed when its time is up, so that none of them costs another one its figures; what a part leaves of
its time the later ones may use. The results are in $OUT, or else in runs/accelerator: a JSON file for each
part, and summary.txt, written again after every part.

`--smoke`: tiny shapes on the CPU, to see that nothing is missing.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[1]
# Seconds, 480 in all; what each part measures is written in accelerator_parts.py.
LIMITS = {
    "numerics": 85,
    "kernels": 55,
    "filter_1b": 60,
    "filter_8b": 50,
    "engine": 130,
    "train_1b": 50,
    "train_8b": 50,
}
SMOKE_TIMES = 6  # on CPUs everything takes longer
LINES_OF_LOG = 40  # kept of a part that failed


def unpacked_wheels(folder: Path) -> None:
    """Unpacks those wheels whose packages are not installed; they hold nothing that has to be built."""
    for wheel in sorted((ROOT / "build/wheels").glob("*.whl")):
        try:
            metadata.version(wheel.name.split("-")[0])
        except metadata.PackageNotFoundError:
            ZipFile(wheel).extractall(folder)


def environment(packages: Path, smoke: bool) -> dict[str, str]:
    """What the parts find. Programs that one of them has compiled the others load."""
    path = [str(ROOT), str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "JAX_PLATFORMS": "cpu" if smoke else "cuda,cpu",
        "JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "accelerator-programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        # torch needs memory in the same process: JAX takes what it needs when it needs it.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
    }
    if smoke:
        found |= {"TRITON_INTERPRET": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    triton = find_spec("triton")
    if triton and triton.origin:  # the assembler that JAX looks for, where CUDA brings none
        bundled = Path(triton.origin).parent / "backends/nvidia/bin"
        found["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(bundled)])
    return os.environ | found


def run_part(part: str, out: Path, limit: float, env: dict[str, str], smoke: bool) -> dict[str, Any]:
    """Runs a part until its end or its limit, and gives what it found with how it ended."""
    file = out / f"{part}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "benchmarks/accelerator_parts.py"), part, str(file)]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        options = ["--smoke"] * smoke
        process = subprocess.Popen(
            [*command, *options], cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            status = process.wait(limit)
            state = "done" if status == 0 else f"failed ({status})"
        except subprocess.TimeoutExpired:
            state = "stopped at its limit"
        finally:  # and whatever it has started
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        log.seek(0)
        lines = log.read().splitlines()
    found = {"rows": [], "notes": []}
    if file.is_file():
        found = json.loads(file.read_text())
    found |= {"part": part, "state": state, "seconds": time.monotonic() - start, "limit": limit}
    if state != "done":
        found["log"] = lines[-LINES_OF_LOG:]
    file.write_text(json.dumps(found, indent=1))
    return found


# ---- What is told ----


def number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def told(found: dict[str, Any]) -> list[str]:
    """The lines of one part."""
    took = f"after {found['seconds']:.0f} of {found['limit']:.0f} s"
    lines = [f"{found['part']}: {found['state']} {took}, on {found.get('device', 'no device')}"]
    for row in found["rows"]:
        figures = {name: value for name, value in row.items() if not isinstance(value, str)}
        lines.append(f"  {row['what']:<44} " + "  ".join(f"{k} {number(v)}" for k, v in figures.items()))
    lines += [f"  {note}" for note in found["notes"]]
    lines += [f"  | {line}" for line in found.get("log", ())]
    return lines


def justified(found: dict[str, dict[str, Any]]) -> str:
    """Which implementations of attention the figures justify on GPUs, as `CHOICE` has them.

    Those that have tests, passed all of them, and ran on all trees; the fastest forward and backward first,
    up to that which never refuses. Nothing is justified where the tests were stopped: nobody knows which are
    missing.
    """
    numerics = found.get("numerics", {})
    if numerics.get("state") != "done":
        return "CHOICE: nothing is justified: the tests on a GPU did not run to their end"

    def sound(by: str) -> bool:
        of_it = {said for name, said in numerics["outcomes"].items() if re.search(rf"\[{by}[-\]]", name)}
        return of_it == {"passed"}

    rows = [
        row
        for row in found.get("kernels", {"rows": []})["rows"]
        if row.get("input") == "trees" and row["direction"] != "forward"
    ]
    heads = {row["heads"] for row in rows}
    times: dict[str, list[float]] = {}
    for row in rows:
        times.setdefault(row["by"], []).append(row["milliseconds"])
    works = [by for by, of_heads in times.items() if len(of_heads) == len(heads) and sound(by)]
    works.sort(key=lambda by: sum(times[by]))
    if "xla" in works:
        works = works[: works.index("xla") + 1]
    if not works:
        return "CHOICE: nothing is justified: no attention has passed its tests and been timed on trees"
    measured = ", ".join(f"{by} {sum(times[by]):.1f} ms" for by in works)
    entry = ", ".join(f'"{by}"' for by in works)
    return (
        f'lm/attention: CHOICE["gpu"] = ({entry}{"," * (len(works) == 1)}) ({measured} with gradients); '
        "lm/engine/attention has the XLA form alone on GPUs"
    )


def main() -> None:
    options = sys.argv[1:]
    smoke = options[:1] == ["--smoke"]
    parts = options[smoke:] or list(LIMITS)
    if unknown := set(parts) - LIMITS.keys():
        raise SystemExit(f"no part {', '.join(sorted(unknown))}, only {', '.join(LIMITS)}")
    out = Path(os.environ.get("OUT") or ROOT / "runs/accelerator")
    out.mkdir(parents=True, exist_ok=True)
    packages = Path(tempfile.mkdtemp(prefix="accelerator-packages-"))
    found: dict[str, dict[str, Any]] = {}
    slack = 0.0
    try:
        unpacked_wheels(packages)
        if not (smoke or find_spec("jax_triton") or (packages / "jax_triton").is_dir()):
            raise SystemExit("jax-triton is neither installed nor in build/wheels (make wheels)")
        env = environment(packages, smoke)
        for part in (name for name in LIMITS if name in parts):
            limit = LIMITS[part] * (SMOKE_TIMES if smoke else 1) + slack
            found[part] = run_part(part, out, limit, env, smoke)
            slack = max(0.0, limit - found[part]["seconds"])
            print("\n".join(told(found[part])), flush=True)
            lines = [line for one in found.values() for line in [*told(one), ""]]
            (out / "summary.txt").write_text("\n".join([*lines, justified(found), ""]))
    finally:
        shutil.rmtree(packages, ignore_errors=True)
    print(justified(found))
    if any(one["state"] != "done" for one in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
