"""FCN on ResNet-50, dilated to a stride of 8, with an auxiliary head: what torchvision trains as `fcn_resnet50`.

    python train.py --config configs/fcn_resnet.py                embedded shapes
    python train.py --config configs/fcn_resnet.py:camvid         street scenes, from torchvision's net for COCO
    python train.py --config configs/fcn_resnet.py:voc2012        from torchvision's net for COCO, 30 epochs at a rate
                                                                  of 1e-4, WZMIAOMIAO's recipe; 71.9 mean IU on val
                                                                  after its best epoch (theirs)
    python train.py --config configs/fcn_resnet.py:voc2012-coco   torchvision's recipe for COCO, on VOC's images: rate
                                                                  0.02, from torchvision's ResNet-50 for ImageNet
    python train.py --config configs/fcn_resnet.py:folder         one's own images

ResNet-101: --config.model.name=fcn_resnet101, and --config.init.weights with its file.
"""

from configs import recipes
from fcn_jax.config import set_input
from fcn_jax.inputs import IMAGENET_INPUT

WEIGHTS = "weights/fcn_resnet50_coco-1167a1af.pth"
EPOCH = 1464 // 4  # VOC's train, four images a step


def voc2012(config):
    set_input(config, IMAGENET_INPUT)
    config.init.weights = WEIGHTS
    config.data.update(name="voc2012", root="data/VOCdevkit", train_split="train", val_split="val", batch_size=4)
    # The shorter side from half of 520 to twice that. (They score images at 520; here they keep their own size. Theirs
    # fills what a crop lacks with black, on the right and below; here it is the mean colour, on all sides.)
    config.data.augment.update(flip=True, short_side=(260, 1040), crop=(480, 480))
    config.optim.update(name="torch_sgd", lr=1e-4, momentum=0.9, weight_decay=1e-4, schedule="poly", power=0.9)
    config.optim.update(warmup_steps=EPOCH, warmup_from=1e-3)
    config.optim.update(lr_multipliers=(("aux_classifier.*", 10.0),), decay_multipliers=())
    config.train.update(steps=30 * EPOCH, eval_every=EPOCH, checkpoint_every=EPOCH, log_every=20)


def coco(config):
    voc2012(config)
    config.init.update(weights="weights/resnet50.pth", skip=("backbone.fc", "classifier.*", "aux_classifier.*"))
    config.data.batch_size = 32
    config.optim.update(lr=0.02, warmup_steps=0, warmup_from=0.0)
    config.train.steps = 30 * 1464 // 32


def camvid(config):
    recipes.camvid(config)
    set_input(config, IMAGENET_INPUT)
    config.init.update(weights=WEIGHTS, skip=("classifier.4", "aux_classifier.4"))
    config.optim.frozen = ("backbone.conv1", "backbone.bn1", "backbone.layer1.*")
    config.model.momentum = 0.97


VARIANTS = {
    "shapes": recipes.shapes,
    "camvid": camvid,
    "voc2012": voc2012,
    "voc2012-coco": coco,
    "folder": recipes.folder,
}


def get_config(variant="shapes"):
    config = recipes.start("fcn_resnet50", variant, VARIANTS)
    if variant == "shapes":
        config.optim.lr_multipliers = ()
    return config
