"""Bayesian SegNet: dropout behind the deeper blocks, in testing too; the mean of samples, and how far they disagree.

python train.py --config configs/bayesian_segnet.py                  embedded shapes
python train.py --config configs/bayesian_segnet.py:camvid           street scenes
python train.py --config configs/bayesian_segnet.py:camvid-release   60,000 steps, as released
python train.py --config configs/bayesian_segnet.py:camvid-benchmark the solver of SegNet's comparison of nets
python train.py --config configs/bayesian_segnet.py:folder           one's own images

Dropout in every block, as in the authors' net for PASCAL VOC: --config.model.name=bayesian_segnet_pascal

python -m fcn_jax.predict --workdir runs/bayesian_segnet --samples 8 photo.jpg       labels and uncertainty
python evaluate.py --workdir runs/bayesian_segnet --samples 8 --calibration          scores, and calibration
"""

from configs import recipes, segnet


def get_config(variant="shapes"):
    config = segnet.get_config(variant)
    config.name = config.name.replace("segnet", "bayesian_segnet")
    config.model.name = "bayesian_segnet"
    recipes.set_model(config, dropout=0.5)
    if variant == "camvid-release":
        config.train.steps = 60_000
    return config
