"""Fixtures that many tests use."""

import gc
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before anything imports jax: tests run on the CPU unless the caller names another platform.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # for what is divided among devices

# A small program is compiled faster in one part, and three times as fast with the emitters before the newest,
# which later versions of XLA don't have.
flags = ["--xla_cpu_parallel_codegen_split_count=1"]
if version("jaxlib").startswith("0.10."):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])

# Where triton is installed its kernels are interpreted on the CPU; it reads this when it is first imported.
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine or a first compilation must not fail a property.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few tests have the long ones: they come first, lest one worker be left with one at the end."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (tests[item.path], item.path))


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Every compiled program takes memory maps, of which Linux gives a process 65,530: then XLA crashes."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def on_a_gpu(request: pytest.FixtureRequest) -> None:
    """Skips what is marked `gpu` where JAX has none."""
    if request.node.get_closest_marker("gpu"):
        import jax

        if jax.default_backend() != "gpu":
            pytest.skip("needs an NVIDIA GPU, and JAX_PLATFORMS=cuda,cpu")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real rows, tokenizer and weights beside the project; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("real rows are not ours to ship: they are looked for in ../shared/data")
    return SHARED


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad inputs of every command."""
    from cli_files import write_files  # imports jax, after the platform is chosen

    root = tmp_path_factory.mktemp("cli")
    write_files(root)
    return root


@pytest.fixture
def small_disk(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Mounts a file system of some bytes ("64k") at a folder, for one test.

    Only root may mount, and not in every container: elsewhere the test is skipped, with what mount said.
    """

    def mount(folder: Path, size: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("a full disk needs a small file system: there is no mount command here")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"a full disk needs a small file system: {error.stderr.strip()}")
        # Lazily: after a full disk Orbax may hold a file open.
        request.addfinalizer(lambda: subprocess.run(["umount", "--lazy", str(folder)], check=True))

    return mount


@pytest.fixture(scope="session")
def tpu_topology():
    """Devices of a TPU that is not there, by the name of its topology: programs can be compiled for them."""
    pytest.importorskip("libtpu", reason="make aot installs it")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost"}
    from jax.experimental import topologies

    return lambda name: topologies.get_topology_desc(platform="tpu", topology_name=name).devices


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The run directory of a made-up run with its page, and what its summary.json holds."""
    from finished_run import write_run

    from rationalyst_jax.pipeline.report import report_run

    run = tmp_path_factory.mktemp("finished")
    summary = write_run(run)
    report_run(run, run / "report.html")
    return run, summary


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright; skips where either is absent."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pages in a browser: pip install playwright"
    )
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    path = next(filter(None, found), None)
    if path is None:
        pytest.skip("no Chromium on the path")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=flags)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, finished: tuple[Path, dict]) -> Iterator[Callable[..., Any]]:
    """Opens the page of `finished`, or another, at a link; afterwards nothing may have been asked for but its
    file, or gone wrong."""
    addresses = set()
    contexts = []
    errors: list[str] = []
    requests: list[str] = []

    def open(link: str = "", file: Path = finished[0] / "report.html", **how: Any) -> Any:
        addresses.add(file.as_uri())
        contexts.append(browser.new_context(offline=True, **how))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None
        )
        page.on("request", lambda request: requests.append(request.url.partition("#")[0]))
        page.goto(file.as_uri() + link)
        page.wait_for_selector("body[data-ready]")
        return page

    yield open
    for context in contexts:
        context.close()
    assert not errors
    assert set(requests) == addresses
