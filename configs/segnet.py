"""SegNet: VGG-16 and its mirror image, which unpools by the encoder's indices; batch norm throughout.

    python train.py --config configs/segnet.py                  embedded shapes
    python train.py --config configs/segnet.py:camvid           street scenes, 37 minutes on two cores
    python train.py --config configs/segnet.py:camvid-release   as released: 40,000 steps of 4 whole images, the
                                                                authors' class weights
    python train.py --config configs/segnet.py:camvid-benchmark the paper's comparison of nets: 140,000 steps of 5, no
                                                                class weights; 60.1 mean IU (paper, on 3,433 training
                                                                images, with the dropout that
                                                                configs/bayesian_segnet.py:camvid-benchmark has)
    python train.py --config configs/segnet.py:folder           one's own images

From ImageNet's VGG-16. The release sees bytes, without a mean subtracted, and normalises by the batch; the statistics
of its training set are computed at the end.
"""

from configs import recipes

VARIANTS = {**recipes.DECODERS, "camvid-benchmark": recipes.camvid_benchmark}


def get_config(variant="shapes"):
    config = recipes.start("segnet", variant, VARIANTS)
    if config.init.weights:
        config.init.skip = ("*_bn", "*_D")
    if variant in ("camvid-release", "camvid-benchmark"):
        config.init.skip += ("fc*",)
    if variant == "camvid-benchmark":
        recipes.segnet(config)
    if variant == "camvid":
        config.model.momentum = 0.97
        config.data.augment.update(scale=(0.5, 1.0), crop=(160, 224))
        config.optim.update(lr=1e-3, frozen=("conv1_1", "conv1_2", "conv2_1", "conv2_2"))
        config.train.update(steps=660, eval_every=0)
    return config
