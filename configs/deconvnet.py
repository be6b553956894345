"""DeconvNet: VGG-16 down to single cells, and a learned deconvolution net up again, on crops of 224×224.

    python train.py --config configs/deconvnet.py                    embedded shapes
    python train.py --config configs/deconvnet.py:camvid             street scenes, data/camvid
    python train.py --config configs/deconvnet.py:folder             one's own images

As released, in two stages on VOC 2012: crops around single objects, then windows that a file proposes for each image
(EdgeBox's, in the paper), from the first stage's net. The paper trains on val's images too, which is
--config.data.train_split=trainval_aug, and reaches 69.6 mean IU on the test set.

    python train.py --config configs/deconvnet.py:voc2012-objects    20,000 steps
    python train.py --config configs/deconvnet.py:voc2012-windows    40,000 steps
    python -m fcn_jax.predict --workdir runs/deconvnet-voc2012-windows --boxes data/boxes photo.jpg

In SegNet's comparison of nets, fc6 and fc7 of 1,024 channels; 59.8 mean IU on test (its paper, on 3,433 images, with
dropout behind the deeper layers, which this net has not):

    python train.py --config configs/deconvnet.py:camvid-benchmark   260,000 steps of 5 whole images
"""

from configs import recipes
from fcn_jax.config import set_input
from fcn_jax.inputs import DEEPLAB_INPUT

NEW = ("bn*", "*deconv*", "debn*", "seg-*")  # the layers that VGG-16 has not
RATES = (("*/bias", 2.0), ("*bn*/bias", 1.0))
DECAYS = (("*/bias", 0.0), ("*bn*/bias", 1.0))  # in the release the shift of a batch norm decays


def release(config):
    set_input(config, DEEPLAB_INPUT)
    config.data.update(name="voc2012", root="data/VOCdevkit", train_split="train_aug", batch_size=64)
    config.data.voc.sbd_root = "data/benchmark_RELEASE"
    config.data.augment.update(flip=True, crop=(224, 224))
    config.optim.update(lr=0.01, momentum=0.9, weight_decay=5e-4, accumulate=8, schedule="step")
    config.optim.update(lr_multipliers=RATES, decay_multipliers=DECAYS)
    # Each of the eight parts is divided by its own pixels.
    config.loss.normalization = "part_mean"
    # The release averages over 501 batches of 28; here they are of eight, as in training.
    config.train.update(eval_every=1000, checkpoint_every=500, log_every=20, statistics_batches=1754)


def objects(config):
    release(config)
    config.init.update(weights="weights/VGG_ILSVRC_16_layers.caffemodel", skip=(*NEW, "fc8"))
    config.data.voc.crops = "objects"
    config.optim.boundaries = (9000, 18_000)
    config.train.steps = 20_000


def windows(config):
    release(config)
    config.init.workdir = "runs/deconvnet-voc2012-objects"
    config.data.voc.update(crops="windows", boxes_root="data/boxes")
    config.optim.boundaries = (10_000, 20_000, 30_000)
    config.train.steps = 40_000


def camvid(config):
    recipes.camvid(config)
    config.init.skip = (*NEW, "fc*")
    # Of two images of 224×224 fc6 would have two cells, which tell a batch norm next to nothing.
    config.data.augment.crop = (320, 320)
    config.model.momentum = 0.97
    config.optim.lr = 1e-3


def camvid_benchmark(config):
    recipes.camvid_benchmark(config)
    config.model.fc_width = 1024
    config.init.skip = (*NEW, "fc*")
    config.optim.update(lr_multipliers=RATES, decay_multipliers=DECAYS)
    config.train.update(steps=260_000, statistics_batches=recipes.statistics_batches(5))


VARIANTS = {
    "shapes": recipes.shapes,
    "camvid": camvid,
    "camvid-benchmark": camvid_benchmark,
    "folder": recipes.folder,
    "voc2012-objects": objects,
    "voc2012-windows": windows,
}


def get_config(variant="shapes"):
    return recipes.start("deconvnet", variant, VARIANTS)
