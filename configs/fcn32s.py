"""FCN-32s: fc7's scores alone, up-sampled by 32.

    python train.py --config configs/fcn32s.py             embedded shapes
    python train.py --config configs/fcn32s.py:fixed       the same with everything but the scores frozen (32s-fixed)
    python train.py --config configs/fcn32s.py:camvid      street scenes, data/camvid
    python train.py --config configs/fcn32s.py:voc2012     the paper's first stage; 63.6 mean IU on seg11valid (paper)
    python train.py --config configs/fcn32s.py:folder      one's own images

VOC starts from VGG_ILSVRC_16_layers.caffemodel, the authors' 16-layer net.
"""

from configs import recipes
from fcn_jax import config as experiment


def get_config(variant="shapes"):
    experiment.choose(variant, (*recipes.VARIANTS, "fixed"))
    config = recipes.start("fcn32s", "shapes" if variant == "fixed" else variant)
    if variant == "fixed":
        config.name = "fcn32s-fixed"
        config.optim.frozen = ("conv*", "fc*")
    return config
