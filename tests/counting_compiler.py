"""Stands in for the compiler of TPU v5e in plans: it compiles nothing, says what is asked, and what it would take."""

import jax

from fcn_jax.plan import operations, planning, published, slices
from fcn_jax.plan.program import Memory, NotRemembered, Program, TooLarge

# One all-reduce of 1,000 values; a step moves nothing else that matters here.
ONE_SUM = """HloModule step
ENTRY %main (x: f32[1000]) -> f32[1000] {
  %x = f32[1000]{0:T(1024)} parameter(0)
  ROOT %sum = f32[1000]{0:T(1024)} all-reduce(%x), to_apply=%add
}
"""


class CountingCompiler:
    """Programs of a GiB and half a GiB an image, which takes 1.5 TFLOP; no net of `too_large` fits.

    `asked` holds (net, (height, width), images a device) of what was compiled; `text` is every program's.
    """

    def __init__(self, too_large=()):
        self.asked: list[tuple[str, tuple[int, int], int]] = []
        self.text = ONE_SUM
        self.limit = slices.CHIPS["v5e"].memory
        self.too_large = too_large

    @property
    def nets(self) -> list[str]:
        """Those that were compiled, in that order."""
        return [net for net, _, _ in self.asked]

    def install(self, monkeypatch):
        """Plans ask it, for slices whose devices are those of this machine."""
        monkeypatch.setattr(planning, "compile_step", self.compile_step)
        monkeypatch.setattr(operations, "count", self.count)
        monkeypatch.setattr(published, "forward", lambda model, size, train=False: 1e9)
        monkeypatch.setattr(slices, "devices", lambda part: jax.devices()[: part.chips])

    def compile_step(self, assembly, mesh, size, per_device, class_weights=None, remember=None, at_once=False):
        if at_once:
            raise NotRemembered
        net = assembly.config.model.name
        self.asked.append((net, size, per_device))
        memory = Memory(2**28, 0, 2**28, per_device, 2**29 + per_device, per_device * 2**29, 0, 2**29)
        if net in self.too_large or memory.total > self.limit:
            raise TooLarge("17.0 GiB needed")
        return Program(per_device, memory, self.text, 0.0)

    def count(self, function, *arguments, platform):
        images = arguments[1]["image"].shape[0]
        return operations.Operations(convolutions=1e12, products=5e11, rest=2e10, passes=1.5e12).times(images)
