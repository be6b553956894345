"""What holds in every test: eight virtual CPU devices, and JAX at its strictest, which users do not pay for."""

import functools
import json
import os
from pathlib import Path

# The backend reads these once, when it starts; what the caller has set in XLA_FLAGS stays.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# In this process only, not in the environment: programs that tests start run as users run them.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def _promote_as_written_for(new):
    """Optax's own updates mix dtypes (Adam's step count, accumulation) and run as for users; others stay strict."""

    def create(cls, init, update):
        mode = "standard" if update.__module__.startswith("optax.") else "strict"

        @functools.wraps(update)
        def scoped(*args, **kwargs):
            with jax.numpy_dtype_promotion(mode):
                return update(*args, **kwargs)

        return new(cls, init, scoped)

    return create


optax.GradientTransformation.__new__ = _promote_as_written_for(optax.GradientTransformation.__new__)

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser):
    parser.addoption("--accept", action="store_true", help="write golden files anew; review the diff as text")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "shared" in item.fixturenames:
            item.add_marker("parity")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.skipped and item.get_closest_marker("parity") and os.environ.get("FCN_JAX_REQUIRE_SHARED") == "1":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and FCN_JAX_REQUIRE_SHARED=1 forbids it: {report.longrepr[2]}"
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data: FCN_JAX_SHARED, or `shared` beside the repository."""
    folder = Path(os.environ.get("FCN_JAX_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "parity").is_dir():
        pytest.skip("shared data not found")
    return folder


@pytest.fixture(scope="module")
def fast_compilation(tmp_path_factory):
    """Programs are compiled with little optimisation, and once: runs that follow find them on disk."""
    options = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def golden(request):
    """`golden(name, value)`: value equals tests/golden/<name>.json, which `pytest --accept` writes."""

    def check(name: str, value) -> None:
        path = GOLDEN / f"{name}.json"
        if request.config.getoption("--accept"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
        assert path.is_file(), f"no {path.name}: run pytest --accept and review it"
        assert json.loads(path.read_text()) == value, f"{path.name} differs: if meant, run pytest --accept"

    return check
