"""FCN-GoogLeNet: inception_5b's scores, up-sampled by 32. Described in the paper, never released.

    python train.py --config configs/fcn_googlenet.py          embedded shapes
    python train.py --config configs/fcn_googlenet.py:camvid   street scenes, data/camvid, from BVLC's GoogLeNet
    python train.py --config configs/fcn_googlenet.py:voc2012  42.5 mean IU on VOC 2011's val (paper)
    python train.py --config configs/fcn_googlenet.py:folder   one's own images

The paper trains it on 20 images a step at a rate of 5e-5 with momentum 0.9, without the auxiliary classifiers. What it
does not say (pad and crop, steps) follows the other nets.
"""

from configs import recipes
from fcn_jax.config import set_input
from fcn_jax.inputs import GOOGLENET_INPUT


def get_config(variant="shapes"):
    variants = {name: recipes.VARIANTS[name] for name in ("shapes", "camvid", "voc2012", "folder")}
    config = recipes.start("fcn_googlenet", variant, variants)
    if variant != "shapes":
        config.model.dropout = 0.4
    if config.init.weights:
        set_input(config, GOOGLENET_INPUT)
        config.init.weights = "weights/bvlc_googlenet.caffemodel"
        config.init.skip = ("loss*", "score_*")
    if variant == "camvid":
        config.optim.frozen = ("conv1_*", "conv2_*")
    if variant == "voc2012":
        recipes.twenty_images(config, lr=5e-5)
    return config
