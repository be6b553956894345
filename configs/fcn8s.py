"""FCN-8s: pool4's and pool3's scores added, up-sampled by 8.

    python train.py --config configs/fcn8s.py                  embedded shapes; minutes on two cores, 89.6 mean IU
    python train.py --config configs/fcn8s.py:camvid           street scenes; 44 minutes on two cores, 69.9 mean IU
    python train.py --config configs/fcn8s.py:folder           one's own images

The release's third stages, each from the run of configs/fcn16s.py of the same name at a rate a hundred times lower
(SIFT Flow: at the same rate):

    python train.py --config configs/fcn8s.py:voc2012          65.5 mean IU on seg11valid (release)
    python train.py --config configs/fcn8s.py:siftflow         two heads: semantic and geometric classes
    python train.py --config configs/fcn8s.py:pascal-context   35.1 mean IU over 59 classes (paper)

The CVPR paper's third stage, 7,000 steps of 20 images, with its net (`fcn8s_2015`), which learns its up-sampling:

    python train.py --config configs/fcn8s.py:cvpr2015         62.7 mean IU on seg11valid (CVPR paper)
"""

from configs import recipes


def get_config(variant="shapes"):
    config = recipes.start("fcn8s", variant, recipes.STAGES)
    if variant == "shapes":
        # With 50 steps of warm-up and a rate of 5e-3 much is left to chance: seeds end between 79 and 90 mean IU.
        config.optim.update(lr=4e-3, warmup_steps=200)
        config.train.update(steps=1350, checkpoint_every=200)
    if variant in ("voc2012", "siftflow", "pascal-context"):
        recipes.stage(config, f"runs/fcn16s-{variant}", lr=1e-12 if variant == "siftflow" else 1e-14)
    if variant == "cvpr2015":
        recipes.cvpr2015_stage(config, "fcn8s_2015", before="fcn16s", lr=1e-8)
    return config
