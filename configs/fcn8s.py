from fcn_jax import config as experiment


def get_config(argument="shapes"):
    experiment.choose(argument,("shapes","camvid"))
    config = experiment.default()
    config.name = "fcn8s"
    c = config
    if argument=="camvid":
        c.name="fcn8s-camvid"
        c.model.fc_width=512
        c.init.weights="weights/VGG_ILSVRC_16_conv_layers.caffemodel"
        c.init.skip=("fc*","score_*")
        c.data.name="camvid"; c.data.root="data/camvid"; c.data.batch_size=2
        c.data.augment.update(dict(flip=True,scale=(0.6,1.2),crop=(224,320),color=0.1))
        c.optim.update(dict(name="adamw",lr=1e-4,weight_decay=1e-4,clip_norm=1.0,warmup_steps=50,schedule="poly",lr_multipliers=()))
        c.train.steps=1000
        return c
    c.model.width=0.125; c.model.fc_width=128; c.model.dropout=0.0
    c.input.scale=(1/64,)*3
    c.data.batch_size=8
    c.optim.update(dict(name="adamw",lr=1e-3,weight_decay=1e-4,clip_norm=1.0,warmup_steps=50,schedule="cosine"))
    c.train.steps=400; c.train.eval_every=200
    return config
