"""FCN-16s: pool4's scores added, up-sampled by 16.

    python train.py --config configs/fcn16s.py                 embedded shapes
    python train.py --config configs/fcn16s.py:camvid          street scenes, data/camvid
    python train.py --config configs/fcn16s.py:folder          one's own images

The release's second stages, each from the run of configs/fcn32s.py of the same name at a rate a hundred times lower:

    python train.py --config configs/fcn16s.py:voc2012         65.0 mean IU on seg11valid (release)
    python train.py --config configs/fcn16s.py:siftflow        39.5 mean IU over 30 classes, geometry 94.3 right (paper)
    python train.py --config configs/fcn16s.py:pascal-context  34.8 mean IU over 59 classes (paper)

The CVPR paper's second stage, 7,000 steps of 20 images, with its net (`fcn16s_2015`), which learns its up-sampling:

    python train.py --config configs/fcn16s.py:cvpr2015        62.4 mean IU on seg11valid (CVPR paper)
"""

from configs import recipes


def get_config(variant="shapes"):
    config = recipes.start("fcn16s", variant, recipes.STAGES)
    if variant in ("voc2012", "siftflow", "pascal-context"):
        recipes.stage(config, f"runs/fcn32s-{variant}", lr=1e-12)
    if variant == "cvpr2015":
        recipes.cvpr2015_stage(config, "fcn16s_2015", before="fcn32s", lr=1e-6)
    return config
