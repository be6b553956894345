"""The only place where names change on their way from a file into a net.

Nets name their layers as the Caffe releases do, so a caffemodel needs no table: blob 0 of a layer is its kernel and
blob 1 its bias. That form, "conv1_1.0", is also what errors show.
"""

_LEAVES = ("kernel", "bias")


def blob_name(layer: str, leaf: str) -> str:
    """`("conv1_1", "bias")` to `"conv1_1.1"`."""
    return f"{layer}.{_LEAVES.index(leaf)}"


def layer_of(blob: str) -> str:
    """`"conv1_1.1"` to `"conv1_1"`; layers' own names may hold dots."""
    return blob.rpartition(".")[0]


def matches(layer: str, pattern: str) -> bool:
    """Whether a pattern names a layer: exactly, or by its beginning before a closing `*`."""
    return layer == pattern or (pattern.endswith("*") and layer.startswith(pattern[:-1]))
