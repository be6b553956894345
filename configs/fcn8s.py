"""FCN-8s: pool4's and pool3's scores added, up-sampled by 8.

    python train.py --config configs/fcn8s.py              embedded shapes; 3½ minutes on two cores, 90.4 mean IU
    python train.py --config configs/fcn8s.py:camvid       street scenes; 44 minutes on two cores, 69.9 mean IU on val
    python train.py --config configs/fcn8s.py:voc2012      the paper's third stage; 65.5 mean IU on seg11valid (paper)
    python train.py --config configs/fcn8s.py:folder       one's own images

VOC goes on from the run of configs/fcn16s.py:voc2012, with a rate a hundred times lower.
"""

from configs import recipes


def get_config(variant="shapes"):
    config = recipes.start("fcn8s", variant)
    if variant == "voc2012":
        config.init.update(workdir="runs/fcn16s-voc2012", weights="", skip=())
        config.optim.lr = 1e-14
    return config
