"""SegNet-Basic: four 7×7 layers down and four up, and the decoders that SegNet's paper compares (table 1).

    python train.py --config configs/segnet_basic.py                  embedded shapes
    python train.py --config configs/segnet_basic.py:camvid           street scenes
    python train.py --config configs/segnet_basic.py:camvid-release   the paper's study: 10,000 steps of 12, rate 0.1;
                                                                      47.7 mean IU on test (paper)
    python train.py --config configs/segnet_basic.py:folder           one's own images

Another decoder: --config.model.name=segnet_basic_fcn, …_bilinear, …_encoder_addition, …_single_channel,
…_fcn_no_addition, …_fcn_no_dim_reduction, …_fcn_no_addition_no_dim_reduction; with dropout in testing:
bayesian_segnet_basic. Nothing of it starts from other weights.
"""

from configs import recipes


def get_config(variant="shapes"):
    config = recipes.start("segnet_basic", variant, recipes.DECODERS)
    config.init.update(weights="", skip=())
    if variant == "shapes":
        recipes.set_model(config, width=1.0, dropout=-1.0)
    if variant == "camvid":
        config.data.augment.update(scale=(0.5, 1.0), crop=(176, 240))
        config.optim.update(lr=1e-3, frozen=())
    if variant == "camvid-release":
        config.optim.lr = 0.1
        config.data.batch_size = 12
        config.train.update(steps=10_000, statistics_batches=recipes.statistics_batches(12))
    return config
