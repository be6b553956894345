"""FCN-16s: pool4's scores added, up-sampled by 16.

    python train.py --config configs/fcn16s.py             embedded shapes
    python train.py --config configs/fcn16s.py:camvid      street scenes, data/camvid
    python train.py --config configs/fcn16s.py:voc2012     the paper's second stage; 65.0 mean IU on seg11valid (paper)
    python train.py --config configs/fcn16s.py:folder      one's own images

VOC goes on from the run of configs/fcn32s.py:voc2012, with a rate a hundred times lower.
"""

from configs import recipes


def get_config(variant="shapes"):
    config = recipes.start("fcn16s", variant)
    if variant == "voc2012":
        config.init.update(workdir="runs/fcn32s-voc2012", weights="", skip=())
        config.optim.lr = 1e-12
    return config
