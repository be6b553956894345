"""Bayesian SegNet: dropout behind the deeper blocks, in testing too; the mean of samples, and how far they disagree.

python train.py --config configs/bayesian_segnet.py                  embedded shapes
python train.py --config configs/bayesian_segnet.py:camvid           street scenes
python train.py --config configs/bayesian_segnet.py:camvid-release   60,000 steps, as released
python train.py --config configs/bayesian_segnet.py:camvid-benchmark the solver of SegNet's comparison of nets
python train.py --config configs/bayesian_segnet.py:voc2012          dropout in every block, as in the authors' net for
                                                                     PASCAL VOC, and crops of its 224×224; 60.5 mean IU
                                                                     on test (paper); its solver was not published, and
                                                                     is that of camvid-release
python train.py --config configs/bayesian_segnet.py:folder           one's own images

python -m fcn_jax.predict --workdir runs/bayesian_segnet --samples 8 photo.jpg       labels and uncertainty
python evaluate.py --workdir runs/bayesian_segnet --samples 8 --calibration          scores, and calibration
"""

from configs import recipes, segnet
from fcn_jax.config import choose


def voc2012(config):
    config.model.name = "bayesian_segnet_pascal"
    config.data.update(name="voc2012", root="data/VOCdevkit", train_split="train_aug", val_split="val")
    config.data.voc.sbd_root = "data/benchmark_RELEASE"
    config.data.augment.crop = (224, 224)
    config.loss.class_weights = ""
    config.train.update(steps=60_000, statistics_batches=10_582 // config.data.batch_size)


def get_config(variant="shapes"):
    choose(variant, (*segnet.VARIANTS, "voc2012"))
    config = segnet.get_config("camvid-release" if variant == "voc2012" else variant)
    config.name = f"bayesian_segnet-{variant}" if variant != "shapes" else "bayesian_segnet"
    config.model.name = "bayesian_segnet"
    recipes.set_model(config, dropout=0.5)
    if variant == "camvid-release":
        config.train.steps = 60_000
    if variant == "voc2012":
        voc2012(config)
    return config
