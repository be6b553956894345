"""The peers' side of a comparison, a process in their own environment: commands in, results out, a JSON line each.

    {"do": "build", "runtime": "torch" or "onnxruntime", "net", "size", "images", "work", …}   builds and warms up
    {"do": "run"}        one forward, step or prediction: {"seconds", and of a step its "loss"}
    {"do": "output", "path"}   writes the logits `[b h w c]` of the weights as they are now
    {"do": "memory"}     this process's resident memory now and at its peak, bytes; "forget_peak" lets that begin anew
    {"do": "versions"}

`benchmarks.peers` starts it and speaks to it. It imports neither jax nor fcn_jax.
"""

import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import draws, machine, peer_nets


class TorchNet:
    """A net in PyTorch, and what is done with it."""

    def __init__(self, command: dict[str, Any]):
        import torch  # pyright: ignore[reportMissingImports]

        from benchmarks.torch_operations import Operations

        torch.set_num_threads(machine.cores())
        torch.manual_seed(0)
        self._torch, self._command = torch, command
        self._operations = Operations(command.get("channels_last", False), learn=command["work"] == "step")
        self._picture = draws.picture(*command["size"])
        images = command.get("images", 1)
        self._image = self._operations.image(draws.blob(images, *command["size"]))
        self._labels = torch.from_numpy(draws.labels(images, *command["size"]).astype(np.int64))
        with torch.no_grad():
            self._logits(self._image)
        self._optimizer: Any = self._make_optimizer() if command["work"] == "step" else None

    def run(self) -> dict[str, Any]:
        """One unit of the work."""
        return getattr(self, f"_{self._command['work']}")()

    def output(self) -> np.ndarray:
        """The logits `[b h w c]`."""
        with self._torch.no_grad():
            return self._logits(self._image).permute(0, 2, 3, 1).contiguous().numpy()

    def _logits(self, image: Any) -> Any:
        options = self._command.get("options", {})
        return peer_nets.NETS[self._command["net"]](self._operations, image, draws.CLASSES, **options)

    def _forward(self) -> dict[str, Any]:
        with self._torch.inference_mode():
            self._logits(self._image)
        return {}

    def _predict(self) -> dict[str, Any]:
        with self._torch.inference_mode():
            self._logits(self._operations.image(draws.as_blob(self._picture[None]))).argmax(dim=1).to(
                self._torch.uint8
            ).numpy()
        return {}

    def _step(self) -> dict[str, Any]:
        functional = self._torch.nn.functional
        self._optimizer.zero_grad()
        loss = functional.cross_entropy(self._logits(self._image), self._labels, ignore_index=255, reduction="sum")
        loss.backward()
        self._optimizer.step()
        return {"loss": float(loss.detach())}

    def _make_optimizer(self) -> Any:
        """SGD with momentum; with `biases` they learn twice as fast and do not decay, as the FCN release has it."""
        fields = self._command["optimizer"]
        groups: dict[bool, list[Any]] = {False: [], True: []}
        for kind, tensor in self._operations.parameters():
            groups[kind == "bias" and fields["biases"]].append(tensor)
        rate, decay = fields["rate"], fields["decay"]
        return self._torch.optim.SGD(
            [
                {"params": groups[False], "lr": rate, "weight_decay": decay},
                {"params": groups[True], "lr": 2 * rate, "weight_decay": 0.0},
            ],
            momentum=fields["momentum"],
        )


class OnnxNet:
    """A net in ONNX Runtime; it does not learn."""

    def __init__(self, command: dict[str, Any]):
        from benchmarks.onnx_operations import Operations

        self._predicts = command["work"] == "predict"
        self._picture = draws.picture(*command["size"])
        blob = draws.blob(command.get("images", 1), *command["size"])
        self._image = np.ascontiguousarray(blob.transpose(0, 3, 1, 2))
        net, options = peer_nets.NETS[command["net"]], command.get("options", {})
        self._session = Operations().session(net, self._image.shape, machine.cores(), **options)

    def run(self) -> dict[str, Any]:
        """One unit of the work."""
        if self._predicts:
            self._scores(np.ascontiguousarray(draws.as_blob(self._picture[None]).transpose(0, 3, 1, 2))).argmax(axis=1)
        else:
            self._scores(self._image)
        return {}

    def output(self) -> np.ndarray:
        """The logits `[b h w c]`."""
        return np.ascontiguousarray(self._scores(self._image).transpose(0, 2, 3, 1))

    def _scores(self, image: np.ndarray) -> np.ndarray:
        return self._session.run(None, {"image": image})[0]


RUNTIMES = {"torch": TorchNet, "onnxruntime": OnnxNet}


def answer(command: dict[str, Any], net: Any) -> tuple[dict[str, Any], Any]:
    """The reply to a command, and the net as it stands then."""
    begun = time.perf_counter()
    if command["do"] == "build":
        net = RUNTIMES[command["runtime"]](command)
        return {"seconds": time.perf_counter() - begun}, net
    if command["do"] == "run":
        result = net.run()
        return {"seconds": time.perf_counter() - begun} | result, net
    if command["do"] == "output":
        np.save(Path(command["path"]), net.output())
        return {}, net
    if command["do"] == "memory":
        return machine.memory(), net
    if command["do"] == "forget_peak":
        return {"done": machine.forget_peak()}, net
    return {name: metadata.version(name) for name in ("torch", "onnxruntime", "numpy")}, net


def main() -> None:
    """Answers commands until there are no more."""
    net = None
    for line in sys.stdin:
        try:
            reply, net = answer(json.loads(line), net)
        except Exception as error:  # told to the other side, which knows what to make of it
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
