"""However many devices, and in whichever way: one and the same step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fcn_jax import config as experiment
from fcn_jax import models, optim, parallel, state, steps
from fcn_jax.errors import ConfigError

CLASSES = 5
RECIPE = experiment.default().optim
RECIPE.update(
    name="sgd", lr=0.05, momentum=0.9, schedule="poly", warmup_steps=3, clip_norm=1.0, frozen=("conv1_1/*",)
)  # fmt: skip
# A batch norm over two channels and a few cells multiplies rounding at every step, the more the higher the rate: by
# six for FCN-ResNet at 1e-2, by 1.2 at 3e-5.
RATES = {"segnet": 1e-4, "deconvnet": 1e-4, "fcn_resnet50": 1e-5}


def _zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


def _keep(updates, state, params=None):
    return _zeros(updates), updates


KEPT = optax.GradientTransformation(_zeros, _keep)  # learns nothing, and keeps the gradients as its state

pytestmark = pytest.mark.usefixtures("fast_compilation")


def layouts(*rows, quick=((8, "pmap", 1),)):
    """Rows of devices, mode and accumulated parts; all but the quick ones are left to the full tier."""
    return [row if row in quick else pytest.param(row, marks=pytest.mark.slow) for row in rows]


def make_batch(step: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Eight images, of which one is all void and others nearly, so that the devices' shares are unequal."""
    rng = np.random.default_rng(step)
    label = rng.integers(0, CLASSES, (8, 32, 32)).astype(np.uint8)
    for image, share in enumerate((0.0, 1.0, 0.9, 0.1, 0.5, 0.99, 0.0, 0.7)):
        label[image][rng.random((32, 32)) < share] = 255
    image = rng.standard_normal((8, 32, 32, 3)).astype(dtype)
    return {"image": image, "label": label, "index": np.arange(8, dtype=np.int32)}


def make_net(name="fcn8s", dtype: type = np.float32):
    """A narrow net, and parameters with which every layer learns: its score layers do not start at zero."""
    model = models.create(name, CLASSES, width=1 / 32, fc_width=8, dropout=0.5, dtype=dtype)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: np.asarray(rng.normal(0, np.sqrt(2 / max(np.prod(x.shape[:-1]), 8)), x.shape), dtype),
        state.abstract_params(model),
    )
    return model, params


def this_hosts(rows: np.ndarray) -> np.ndarray:
    return np.split(rows, jax.process_count())[jax.process_index()]


def run(train_step, begun, layout, num_steps, dtype: type = np.float32):
    """The state after some steps, on the layout's devices; `test_hosts.py` runs it in two processes."""
    devices, mode, _ = layout
    shard_state = mode == "shards"
    mode = "mesh" if shard_state else mode
    mesh = parallel.make_mesh(jax.devices()[:devices])
    compiled = parallel.wrap_train_step(train_step, mesh, mode, shard_state=shard_state)
    current, report = parallel.put_state(jax.tree.map(jnp.array, begun), mesh, shard_state), None
    for step in range(num_steps):
        batch = jax.tree.map(this_hosts, make_batch(step, dtype))
        current, report = compiled(current, parallel.put_batch(batch, mesh, mode))
        # As in a training loop, which reads the reports: CPUs of several processes wait for each other for ever where
        # one of their devices has its full number of programs, 32, still to run.
        jax.block_until_ready(report)
    return current, report


def assert_close(found, wanted, tolerance, least=0.0):
    """Leaf by leaf, relative to each leaf's largest value, or to the least that counts."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        difference = np.max(np.abs(a - b))
        assert difference <= tolerance * max(np.max(np.abs(b)), least), (
            f"{jax.tree_util.keystr(path)}: {difference:.1e}"
        )


class TestTwentySteps:
    """In float64, with dropout, decay, momentum, clipping and a frozen layer."""

    @staticmethod
    def run(layout):
        with jax.enable_x64(True):
            model, params = make_net("fcn32s", np.float64)
            optimizer = optim.make_optimizer(RECIPE, 20, params)
            train_step = steps.make_train_step(
                model, optimizer, normalization="valid_mean", accumulate=layout[2], frozen=RECIPE.frozen, seed=3
            )
            if layout[1] == "plain":
                current, train_step = state.create(params, optimizer), jax.jit(train_step)
                for step in range(20):
                    current, report = train_step(current, make_batch(step, np.float64))
            else:
                current, report = run(train_step, state.create(params, optimizer), layout, 20, np.float64)
            return jax.device_get((current, report)), params

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls):
        return cls.run((1, "plain", 1))

    def test_the_reference_learns(self, reference):
        (current, _), params = reference
        assert int(current.step) == 20
        moved = {layer: np.max(np.abs(current.params[layer]["kernel"] - params[layer]["kernel"])) for layer in params}
        assert moved.pop("conv1_1") == 0
        assert min(moved.values()) > 1e-4
        assert current.params["fc6"]["kernel"].dtype == np.float64

    @pytest.mark.parametrize(
        "layout",
        layouts(
            *((devices, "pmap", 1) for devices in (1, 2, 4, 8)),
            *((devices, "mesh", 1) for devices in (2, 4, 8)),
            *((2, "mesh", 2), (1, "mesh", 4), (2, "pmap", 2)),
            *((8, "shards", 1), (2, "shards", 2)),
        ),
        ids=str,
    )
    def test_is_the_same_on_any_devices(self, reference, layout, monkeypatch):
        monkeypatch.setattr(parallel, "_WORTH_SHARDING", 1)
        (wanted, wanted_report), _ = reference
        (found, found_report), _ = self.run(layout)
        assert_close(found.params, wanted.params, 1e-10)
        assert_close(found.opt_state, wanted.opt_state, 1e-10)
        assert_close(found_report, wanted_report, 1e-6)  # norms are reported in float32


@pytest.mark.slow
class TestBatchNorm:
    """In float64, a net whose statistics are of the whole batch wherever its images lie."""

    @staticmethod
    def run(layout, remat="none", normalization="valid_mean"):
        with jax.enable_x64(True):
            model = models.create("segnet_basic", CLASSES, width=1 / 16, dtype=np.float64)
            variables = jax.tree.map(lambda x: x.astype(np.float64), jax.device_get(state.init_variables(model, 0)))
            optimizer = optax.sgd(0.1, momentum=0.9)
            train_step = steps.make_train_step(
                model, optimizer, normalization=normalization, remat=remat, accumulate=layout[2]
            )
            begun = state.create(variables["params"], optimizer, variables["batch_stats"])
            return jax.device_get(run(train_step, begun, layout, 5, np.float64)[0])

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls):
        return cls.run((1, "mesh", 1))

    @pytest.mark.parametrize("layout", layouts((2, "pmap", 1), (8, "pmap", 1), (8, "mesh", 1)), ids=str)
    def test_is_the_same_on_any_devices(self, reference, layout):
        self.check(reference, self.run(layout))

    @pytest.mark.parametrize("layout", layouts((2, "pmap", 1), (8, "mesh", 1)), ids=str)
    @pytest.mark.parametrize("remat", ["convolutions", "blocks"])
    def test_is_the_same_where_it_is_computed_again(self, reference, layout, remat):
        self.check(reference, self.run(layout, remat))

    def test_parts_are_the_same_on_any_devices(self):
        """Each normalises by its own images, and divides by its own pixels."""
        wanted = self.run((1, "mesh", 2), normalization="part_mean")
        for layout in ((2, "pmap", 2), (4, "pmap", 2), (4, "mesh", 2)):
            self.check(wanted, self.run(layout, normalization="part_mean"))

    @staticmethod
    def check(reference, found):
        # A bias in front of a batch norm has no gradient but rounding's.
        sure = {
            layer: leaves if layer.endswith("bn") or layer == "conv_classifier" else {"kernel": leaves["kernel"]}
            for layer, leaves in reference.params.items()
        }
        assert_close(
            {layer: {leaf: found.params[layer][leaf] for leaf in leaves} for layer, leaves in sure.items()}, sure, 1e-10
        )
        assert_close(found.batch_stats, reference.batch_stats, 1e-10)
        assert np.max(np.abs(reference.batch_stats["conv1_bn"]["mean"])) > 0.001


@pytest.mark.slow
class TestEveryFamily:
    """In float64, fifty steps with dropout, and where a net has it with batch norm, whose statistics are global."""

    @staticmethod
    def run(name, layout):
        with jax.enable_x64(True):
            model = models.create(name, CLASSES, width=1 / 32, dtype=np.float64)
            variables = jax.tree.map(lambda x: x.astype(np.float64), jax.device_get(state.init_variables(model, 0)))
            optimizer = optax.sgd(RATES.get(name, 0.01), momentum=0.9)
            train_step = steps.make_train_step(model, optimizer, normalization="valid_mean", seed=3)
            begun = state.create(variables["params"], optimizer, variables.get("batch_stats"))
            current, _ = run(train_step, begun, layout, 50, np.float64)
            current = parallel.whole(current, parallel.make_mesh(jax.devices()[: layout[0]]))
            return variables, jax.device_get({"params": current.params, "batch_stats": current.batch_stats})

    @pytest.mark.parametrize(
        "name", ["fcn8s", "segnet", "segnet_basic", "deconvnet", "deeplab_largefov", "fcn_resnet50"]
    )
    def test_is_the_same_on_any_devices(self, name, monkeypatch):
        monkeypatch.setattr(parallel, "_WORTH_SHARDING", 1)
        begun, wanted = self.run(name, (1, "mesh", 1))
        kernels = [
            (np.max(np.abs(a - b)), jax.tree_util.keystr(path))
            for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(begun), strict=True)
            if "kernel" in jax.tree_util.keystr(path)
        ]
        assert min(kernels)[0] > 1e-8, min(kernels)
        # A sharded state is stepped by what steps a whole one on a mesh, and by more.
        whole = [(8, "mesh", 1)] if name in ("fcn8s", "segnet_basic") else []
        for layout in ((8, "pmap", 1), (8, "shards", 1), *whole):
            _, found = self.run(name, layout)
            # A bias in front of a batch norm has no gradient but rounding's, and stays at zero but for that.
            assert_close(found, wanted, 1e-10, least=1e-3)


class TestFirstGradient:
    """In float32."""

    @staticmethod
    def train_step(normalization="valid_mean"):
        model, params = make_net()
        return steps.make_train_step(model, KEPT, normalization=normalization, seed=3), state.create(params, KEPT)

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls):
        return run(*cls.train_step(), (1, "pmap", 1), 1)

    @pytest.mark.parametrize(
        "layout",
        layouts((8, "pmap", 1), (8, "mesh", 1), (2, "pmap", 1), (1, "mesh", 1), quick=((8, "pmap", 1), (8, "mesh", 1))),
        ids=str,
    )
    def test_is_the_same_on_any_devices(self, reference, layout):
        current, report = run(*self.train_step(), layout, 1)
        assert_close(current.opt_state, reference[0].opt_state, 1e-5)
        assert_close(report, reference[1], 1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["segnet_basic", "segnet", "deconvnet", "deeplab_largefov", "fcn_resnet50"])
    def test_of_every_family_is_the_same_on_any_devices(self, name, monkeypatch):
        """With batch norm as a whole: rounding that reaches a ReLU or a pooling window chooses another way back.

        On one device float32 is as far from float64 there (FCN-ResNet50: 7e-2 of a layer's largest).
        """
        model = models.create(name, CLASSES, width=1 / 8)
        variables = jax.device_get(state.init_variables(model, 0))
        normed = "batch_stats" in variables
        train_step = steps.make_train_step(model, KEPT, normalization="valid_mean", seed=3)
        begun = state.create(variables["params"], KEPT, variables.get("batch_stats"))
        wanted, wanted_report = run(train_step, begun, (1, "mesh", 1), 1)
        monkeypatch.setattr(parallel, "_WORTH_SHARDING", 1)
        found, report = run(train_step, begun, (8, "shards", 1), 1)
        assert report is not None and wanted_report is not None
        assert_close(report["loss_sum"], wanted_report["loss_sum"], 1e-5)
        assert_close(found.batch_stats, wanted.batch_stats, 1e-5)
        if normed:
            gradients, others = jax.device_get((wanted.opt_state, found.opt_state))
            difference = jax.tree.map(jnp.subtract, gradients, others)
            assert optax.tree.norm(difference) <= 1e-2 * optax.tree.norm(gradients)
        else:
            assert_close(found.opt_state, wanted.opt_state, 1e-5)

    def test_replicas_stay_equal_and_unstacked(self):
        model, params = make_net()
        optimizer = optax.sgd(0.01, momentum=0.9)
        begun = state.create(params, optimizer)
        train_step = steps.make_train_step(model, optimizer, normalization="valid_mean", seed=3)
        current, report = run(train_step, begun, (8, "pmap", 1), 3)
        for leaf, original in zip(jax.tree.leaves(current), jax.tree.leaves(begun), strict=True):
            assert leaf.shape == original.shape
            assert leaf.sharding.is_fully_replicated
            shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            assert len(shards) == 8
            for shard in shards:
                assert shard.tobytes() == shards[0].tobytes()
        assert report is not None
        assert report["loss_sum"].shape == ()

    @pytest.mark.parametrize("mode", [*parallel.MODES, "shards"])
    def test_the_state_is_donated_and_nothing_is_transferred_unasked(self, mode, monkeypatch):
        monkeypatch.setattr(parallel, "_WORTH_SHARDING", 64)
        shard_state, mode = mode == "shards", "mesh" if mode == "shards" else mode
        train_step, begun = self.train_step()
        mesh = parallel.make_mesh()
        compiled = parallel.wrap_train_step(train_step, mesh, mode, shard_state)
        current = parallel.put_state(jax.tree.map(jnp.array, begun), mesh, shard_state)
        current, _ = compiled(current, parallel.put_batch(make_batch(0), mesh, mode))
        batch = parallel.put_batch(make_batch(1), mesh, mode)
        with jax.transfer_guard("disallow"):
            after, _ = compiled(current, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(current.params))
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, batch)))


class TestShardedState:
    """Each device keeps its share of what is large and even, through steps, and gives it back whole."""

    @pytest.fixture(scope="class")
    @classmethod
    def begun(cls):
        model, params = make_net()
        optimizer = optax.sgd(0.01, momentum=0.9)
        train_step = steps.make_train_step(model, optimizer, normalization="valid_mean", seed=3)
        return train_step, state.create(params, optimizer)

    def test_shares_stay_where_they_are(self, begun, monkeypatch):
        monkeypatch.setattr(parallel, "_WORTH_SHARDING", 64)
        train_step, first = begun
        current, report = run(train_step, first, (8, "shards", 1), 2)
        assert report is not None
        assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(report))
        for tree in (current.params, current.opt_state[0].trace):
            kernel, bias = tree["fc6"]["kernel"], tree["fc6"]["bias"]  # [7 7 16 8], [8]
            assert {shard.data.shape for shard in kernel.addressable_shards} == {(7, 7, 2, 8)}
            assert bias.sharding.is_fully_replicated
        wanted, _ = run(train_step, first, (8, "mesh", 1), 2)
        mesh = parallel.make_mesh()
        whole = parallel.whole(current, mesh)
        assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(whole))
        assert_close(whole.params, wanted.params, 1e-4)
        assert_close(parallel.on_one_device(whole).params, wanted.params, 1e-4)

    def test_the_plan_of_a_state_lies_as_the_state_does(self, begun, monkeypatch):
        monkeypatch.setattr(parallel, "_WORTH_SHARDING", 64)
        mesh = parallel.make_mesh()
        for shard_state in (False, True):
            real = parallel.put_state(begun[1], mesh, shard_state)
            for planned, leaf in zip(
                jax.tree.leaves(parallel.placed(real, mesh, shard_state)), jax.tree.leaves(real), strict=True
            ):
                assert planned.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


@pytest.mark.parametrize("shard_state", [False, True])
def test_nothing_is_sent_for_the_gradients_of_what_is_frozen(shard_state, monkeypatch):
    monkeypatch.setattr(parallel, "_WORTH_SHARDING", 64)
    model, params = make_net()
    optimizer = optax.sgd(0.01)
    mesh = parallel.make_mesh()
    sent = []
    for frozen in ((), ("conv*",)):
        train_step = steps.make_train_step(model, optimizer, normalization="sum", frozen=frozen)
        compiled = parallel.wrap_train_step(train_step, mesh, "mesh", shard_state)
        begun = parallel.put_state(state.create(params, optimizer), mesh, shard_state)
        text = compiled.lower(begun, parallel.put_batch(make_batch(0), mesh, "mesh")).as_text()
        sent.append(text.count("stablehlo.all_reduce") + text.count("stablehlo.reduce_scatter"))
    held = jax.tree.leaves(optim.frozen_mask(params, ("conv*",))).count(True)
    assert sent[0] - sent[1] == held > 10


def test_a_batch_goes_to_the_devices_in_order():
    mesh = parallel.make_mesh(jax.local_devices()[:4])
    batch = make_batch(0)
    stacked, whole = (parallel.put_batch(batch, mesh, mode) for mode in parallel.MODES)
    assert stacked["image"].shape == (4, 2, 32, 32, 3)
    assert whole["image"].shape == (8, 32, 32, 3)
    for placed in (stacked, whole):
        assert {name: x.dtype for name, x in placed.items()} == {name: x.dtype for name, x in batch.items()}
        for device, shard in enumerate(placed["index"].addressable_shards):
            assert shard.device == jax.local_devices()[device]
            np.testing.assert_array_equal(np.ravel(shard.data), [2 * device, 2 * device + 1])


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "message"),
    [
        (12, 1, r"^data\.batch_size=12 cannot be split over 8 devices; 8 or 16 can$"),
        (3, 1, r"^data\.batch_size=3 cannot be split over 8 devices; 8 can$"),
        (8, 2, r"^data\.batch_size=8 cannot be split over 8 devices times optim\.accumulate=2; 16 can$"),
    ],
)
def test_a_batch_that_cannot_be_split_is_refused(batch_size, accumulate, message):
    with pytest.raises(ConfigError, match=message):
        parallel.check_batch_size(batch_size, accumulate, parallel.make_mesh())


def test_images_on_each_device_at_a_time():
    assert parallel.check_batch_size(32, 2, parallel.make_mesh()) == 2
