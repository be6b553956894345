"""The 1,000 classes of ImageNet's challenge (ILSVRC 2012 to 2017), in the order of the published nets' outputs.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015. A class is a synset of WordNet: its names
mean the same, "tabby, tabby cat". First names alone are not unique: 134 and 517 are both cranes.
"""

from pathlib import Path

from fcn_jax.labels import DatasetInfo, voc_palette

CLASS_NAMES = tuple(Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines())
INFO = DatasetInfo(name="imagenet", class_names=CLASS_NAMES, palette=voc_palette(len(CLASS_NAMES)))
