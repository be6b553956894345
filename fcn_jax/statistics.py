"""Batch norm's statistics over a training set, as SegNet's and DeconvNet's authors compute them after training.

The released nets keep no running statistics: in training they normalise by the batch. Before they are used, the means
and variances of every layer are averaged over batches of the training set, run by the final parameters. Source:
SegNet-Tutorial, Scripts/compute_bn_statistics.py; DeconvNet, training/003_make_bn_layer_testable.
"""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from fcn_jax import hosts, parallel


def over_batches(
    model: nn.Module, variables: Any, images: Iterable[Any], stop: Callable[[], bool] = lambda: False
) -> Any:
    """The `batch_stats` of a net: the mean over batches `[b h w c]` of their means and unbiased variances.

    Dropout among the layers is off. Sums are float64. None where `stop`, asked before each batch, breaks it off.
    Raises ValueError without a batch.
    """
    # What is kept of the past is nothing, so that the running statistics are those of the batch.
    net: Any = model.clone(momentum=0.0)
    calm = {"stochastic": False} if hasattr(model, "dropout_after") else {}

    def statistics(variables: Any, image: jax.Array) -> Any:
        rngs = {"dropout": jax.random.key(0)}
        return net.apply(variables, image, train=True, mutable=["batch_stats"], rngs=rngs, **calm)[1]["batch_stats"]

    # Wherever the images lie, statistics lie where those of the net do.
    places = jax.tree.map(lambda x: x.sharding, variables["batch_stats"])
    devices = jax.tree.leaves(variables)[0].sharding.device_set
    apply = jax.jit(statistics, out_shardings=places, compiler_options=parallel.in_order(devices))
    total, count = None, 0
    for image in images:
        if stop():
            return None
        applied = apply(variables, image)
        with hosts.waiting():
            one = jax.tree.map(lambda x: np.asarray(x, np.float64), applied)
        total = one if total is None else jax.tree.map(np.add, total, one)
        count += 1
    if total is None:
        raise ValueError("no batch to compute statistics over")
    return jax.tree.map(lambda x: (x / count).astype(np.float32), total)
