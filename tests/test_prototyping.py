"""The code blocks of docs/prototyping.md, run one after another, do what the page says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[1] / "docs" / "prototyping.md"


@pytest.fixture(scope="module")
def page(fast_compilation):
    """What the page's blocks leave defined."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names: dict = {"__name__": "prototyping"}
    # The page is a user's program: JAX is no stricter in it than with a user.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
        yield names


def test_runs_side_by_side_are_those_run_alone(page):
    assert page["loss"].shape == (4, 3)
    alone = jax.jit(page["train"])
    for run in (1, 2):
        final, reports = alone(page["seeds"][run], page["rates"][run], page["several"])
        assert int(final.step) == 3
        np.testing.assert_allclose(page["loss"][run], reports["loss_sum"] / reports["pixels"], rtol=1e-4)
        for a, b in zip(jax.tree.leaves(page["finals"].params), jax.tree.leaves(final.params), strict=True):
            np.testing.assert_allclose(a[run], b, rtol=0, atol=1e-4 * float(jnp.max(jnp.abs(b))) + 1e-7)


def test_rates_and_seeds_differ(page):
    losses = np.asarray(page["loss"])
    np.testing.assert_allclose(losses[:, 0], np.log(8), rtol=1e-5)  # scores start at zero
    assert len(np.unique(losses[:, 2])) == 4


def test_gradients_of_examples_average_to_that_of_the_batch(page):
    def mean_loss(params):
        images, labels = page["batch"]["image"], page["batch"]["label"]
        terms = [page["loss_of_one"](params, image, label) for image, label in zip(images, labels, strict=True)]
        return sum(terms) / len(terms)

    assert page["norms"].shape == (4,)
    assert len(np.unique(page["norms"])) == 4
    for each, whole in zip(
        jax.tree.leaves(page["gradients"]), jax.tree.leaves(jax.jit(jax.grad(mean_loss))(page["params"])), strict=True
    ):
        np.testing.assert_allclose(each.mean(0), whole, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(whole))) + 1e-9)


def test_receptive_fields(page):
    assert page["size"] == 404
    assert page["seen"] == page["model"].grids()["fc6"].receptive_field(10)
    assert page["seen"][1] - page["seen"][0] + 1 == 404
