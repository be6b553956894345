"""How sure a net is, and how far its word can be taken: entropy, mutual information, calibration.

Of several Monte Carlo samples of a net with dropout, the mean is the prediction. Its entropy is all of the uncertainty;
the mutual information is the part that comes from not knowing the weights, on which the samples disagree. Sources:
Kendall, Badrinarayanan and Cipolla, "Bayesian SegNet", BMVC 2017; Gal, "Uncertainty in Deep Learning", 2016, section
3.3; Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

import jax
import jax.numpy as jnp
import numpy as np

BINS = 15


def entropy(probabilities: jax.Array) -> jax.Array:
    """`−Σ p ln p` of probabilities `[… c]`, divided by ln c: 0 where one class is certain, 1 where all are alike."""
    terms = jnp.where(probabilities > 0, probabilities * jnp.log(jnp.maximum(probabilities, 1e-30)), 0)
    return -jnp.sum(terms, axis=-1) / np.log(max(probabilities.shape[-1], 2))


def mutual_information(samples: jax.Array) -> jax.Array:
    """Of samples `[s … c]` of probabilities: the entropy of their mean less the mean of their entropies, `[…]`."""
    # Rounding may leave it a little below 0 where all samples agree.
    return jnp.maximum(entropy(jnp.mean(samples, axis=0)) - jnp.mean(entropy(samples), axis=0), 0)


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts for the calibration error, f64 `[bins 3]`: pixels, right ones, and the sum of their confidences.

    Probabilities `[h w c]`, labels `[h w]`. A pixel's bin is that of its largest probability; one whose label is no
    class is left out. Tables of several images add.
    """
    confidence, predicted = probabilities.max(axis=-1), probabilities.argmax(axis=-1)
    counted = labels < probabilities.shape[-1]
    confidence, right = confidence[counted].astype(np.float64), (predicted == labels)[counted]
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    columns = (None, right.astype(np.float64), confidence)
    return np.stack([np.bincount(bins, weights, minlength=BINS) for weights in columns], axis=-1).astype(np.float64)


def calibration_error(table: np.ndarray) -> float:
    """The expected calibration error of a table of `reliability`: how far confidence and accuracy are apart."""
    pixels, right, confidence = table.T
    return float(np.sum(np.abs(right - confidence)) / max(pixels.sum(), 1))
