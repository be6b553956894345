"""Fully convolutional networks for semantic segmentation in JAX.

Importing the package is cheap: every heavy import lives in the module that needs it.
"""

__version__ = "0.1.0"
