"""FCN-AlexNet: CaffeNet's scores, up-sampled by 32 with a kernel of 63.

    python train.py --config configs/fcn_alexnet.py            embedded shapes
    python train.py --config configs/fcn_alexnet.py:camvid     street scenes, data/camvid, from CaffeNet's weights
    python train.py --config configs/fcn_alexnet.py:voc2012    100,000 steps; 48.0 mean IU on seg11valid (release)
    python train.py --config configs/fcn_alexnet.py:folder     one's own images

VOC starts from bvlc_reference_caffenet.caffemodel. Unlike the release's other nets it learns from 20 images a step,
run one after another, and from the mean of their means.
"""

from configs import recipes

WEIGHTS = "weights/bvlc_reference_caffenet.caffemodel"


def get_config(variant="shapes"):
    variants = {name: recipes.VARIANTS[name] for name in ("shapes", "camvid", "voc2012", "folder")}
    config = recipes.start("fcn_alexnet", variant, variants)
    if config.init.weights:
        config.init.weights = WEIGHTS
    if variant == "camvid":
        config.optim.frozen = ("conv1", "conv2")
    if variant == "voc2012":
        recipes.twenty_images(config, lr=1e-4, normalization="part_mean")
        # The prototxt sets multipliers for the new layer only.
        config.optim.update(lr_multipliers=(("score_fr/bias", 2.0),), decay_multipliers=(("score_fr/bias", 0.0),))
    return config
