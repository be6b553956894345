"""SegNet-Basic: four 7×7 layers down and four up, and the decoders that SegNet's paper compares (table 1).

    python train.py --config configs/segnet_basic.py                  embedded shapes
    python train.py --config configs/segnet_basic.py:camvid           street scenes
    python train.py --config configs/segnet_basic.py:camvid-release   as released: 10,000 steps of 4 at a rate of 0.1
    python train.py --config configs/segnet_basic.py:camvid-study     the paper's study of decoders (table 1): 12 images
                                                                      a step; 47.7 mean IU on test (paper)
    python train.py --config configs/segnet_basic.py:folder           one's own images

Another decoder: --config.model.name=segnet_basic_fcn, …_bilinear, …_encoder_addition, …_single_channel,
…_fcn_no_addition, …_fcn_no_dim_reduction, …_fcn_no_addition_no_dim_reduction; with dropout in testing:
bayesian_segnet_basic. Nothing of it starts from other weights.
"""

from configs import recipes


def get_config(variant="shapes"):
    config = recipes.start("segnet_basic", variant, {**recipes.DECODERS, "camvid-study": recipes.camvid_release})
    config.init.update(weights="", skip=())
    if variant == "shapes":
        recipes.set_model(config, width=1.0, dropout=-1.0)
    if variant == "camvid":
        config.data.augment.update(scale=(0.5, 1.0), crop=(176, 240))
        config.optim.update(lr=1e-3, frozen=())
    if variant in ("camvid-release", "camvid-study"):
        # Other than in the large net's file, the shift of a batch norm decays.
        config.optim.update(lr=0.1, decay_multipliers=(("*/bias", 0.0), ("*_bn/bias", 1.0)))
        config.train.steps = 10_000
    if variant == "camvid-study":
        config.data.batch_size = 12
        config.train.statistics_batches = recipes.statistics_batches(12)
    return config
