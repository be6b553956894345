"""DeepLab-LargeFOV: VGG-16 with holes, scored at an eighth of the image, and trained there.

    python train.py --config configs/deeplab_largefov.py              embedded shapes
    python train.py --config configs/deeplab_largefov.py:camvid       street scenes
    python train.py --config configs/deeplab_largefov.py:voc2012      the released solver, 6,000 steps of 30 crops of
                                                                      321×321 of 10,582 images; 62.25 mean IU on val,
                                                                      without CRF (paper)
    python train.py --config configs/deeplab_largefov.py:voc2012-msc  branches at five scales, which alone learn, added
                                                                      to the net of voc2012 (paper: 64.21)
    python train.py --config configs/deeplab_largefov.py:folder       one's own images
    python train.py --config configs/deeplab_largefov.py:camvid-benchmark
                                                                      SegNet's comparison: 140,000 steps of 5 whole
                                                                      images; 53.9 mean IU on test (its paper, on 3,433
                                                                      training images, of a net with batch norm and a
                                                                      pool3 of stride 1, which this one is not)

The release starts from a VGG-16 whose fc6 was thinned out to 3×3×1024 (vgg16_20M.caffemodel).
"""

from configs import recipes
from fcn_jax.config import set_input
from fcn_jax.inputs import DEEPLAB_INPUT


def voc2012(config):
    set_input(config, DEEPLAB_INPUT)
    config.init.update(weights="weights/vgg16_20M.caffemodel", skip=("fc8*",))
    config.data.update(name="voc2012", root="data/VOCdevkit", train_split="train_aug")
    config.data.update(val_split="val", batch_size=30)
    config.data.voc.sbd_root = "data/benchmark_RELEASE"
    config.data.augment.update(flip=True, crop=(321, 321))
    config.optim.update(lr=1e-3, momentum=0.9, weight_decay=5e-4, schedule="step", boundaries=(2000, 4000))
    config.optim.lr_multipliers = (("*/bias", 2.0), ("fc8_voc12", 10.0), ("fc8_voc12/bias", 20.0))
    config.train.update(steps=6000, eval_every=1000, checkpoint_every=500, log_every=20)


def msc(config):
    voc2012(config)
    config.model.name = "deeplab_msc"
    config.init.update(weights="", workdir="runs/deeplab_largefov-voc2012", skip=())
    config.optim.frozen = ("conv*", "fc*")
    config.optim.lr_multipliers = (("*/bias", 2.0), ("*_ms3", 10.0), ("*_ms3/bias", 20.0))


def camvid_benchmark(config):
    recipes.camvid_benchmark(config)
    config.init.skip = ("fc*",)


VARIANTS = {
    "shapes": recipes.shapes,
    "camvid": recipes.camvid,
    "camvid-benchmark": camvid_benchmark,
    "voc2012": voc2012,
    "voc2012-msc": msc,
    "folder": recipes.folder,
}


def get_config(variant="shapes"):
    config = recipes.start("deeplab_largefov", variant, VARIANTS)
    config.loss.at_scores = True
    if variant == "camvid":
        # The new layers learn faster than ImageNet's, as the release's last one does.
        config.init.skip = ("fc*",)
        config.optim.lr_multipliers = (("fc*", 4.0),)
        config.train.update(steps=1000, eval_every=500)
    return config
