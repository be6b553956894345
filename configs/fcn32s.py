"""FCN-32s: fc7's scores alone, up-sampled by 32.

    python train.py --config configs/fcn32s.py                 embedded shapes
    python train.py --config configs/fcn32s.py:fixed           the same with all but the scores frozen (32s-fixed)
    python train.py --config configs/fcn32s.py:camvid          street scenes, data/camvid
    python train.py --config configs/fcn32s.py:folder          one's own images

The release's first stages; 100,000 steps each (PASCAL-Context 400,000), scores of the papers and the release:

    python train.py --config configs/fcn32s.py:voc2012         63.6 mean IU on seg11valid
    python train.py --config configs/fcn32s.py:nyud-color      29.2 mean IU on test
    python train.py --config configs/fcn32s.py:nyud-hha        24.2
    python train.py --config configs/fcn32s.py:nyud-color-d    30.5; depth as a fourth channel
    python train.py --config configs/fcn32s.py:nyud-color-hha  32.8; after nyud-color and nyud-hha, whose nets it joins
    python train.py --config configs/fcn32s.py:siftflow        two heads: semantic and geometric classes
    python train.py --config configs/fcn32s.py:pascal-context  31.8 mean IU over 59 classes

The CVPR paper's first stage, 20,000 steps of 20 images:

    python train.py --config configs/fcn32s.py:cvpr2015        59.4 mean IU on seg11valid (CVPR paper)

They start from VGG_ILSVRC_16_layers.caffemodel, the authors' 16-layer net.
"""

from configs import recipes


def fixed(config):
    recipes.shapes(config)
    config.optim.frozen = ("conv*", "fc*")


def get_config(variant="shapes"):
    config = recipes.start("fcn32s", variant, {**recipes.STAGES, **recipes.NYUD, "fixed": fixed})
    if variant == "nyud-color-d":
        config.init.extra_channels = "mean"
    if variant == "nyud-color-hha":
        config.model.streams = ("color", "hha")
        recipes.stage(config, "", lr=1e-12)
        config.init.stream_workdirs = ("runs/fcn32s-nyud-color", "runs/fcn32s-nyud-hha")
    return config
