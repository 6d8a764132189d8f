"""Model watching, which logs norms and distributions of a model's gradients and parameters every few optimizer steps.

torch calls a global hook before each optimizer step, on the thread that performs the step. Nothing is attached to the model or
its parameters. The model can therefore still be pickled, compiled, wrapped and deleted, and the backward pass has no extra
cost. When the hook runs, the gradients are final: accumulated, reduced over ranks, clipped and unscaled.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from tensormeter.errors import UsageError, join_choices
from tensormeter.logger import get_logger
from tensormeter.record.device.gather import accumulator_dtype
from tensormeter.record.dynamo import break_graph, skip_own_files
from tensormeter.record.histogram.histogram import Histogram
from tensormeter.record.values.classify import Refused, check_plain

if TYPE_CHECKING:
    import torch

__all__ = ["Watch", "Watched"]

logger: Final = get_logger()

Watched = Literal["gradients", "parameters", "all"]

_WRAPPERS: Final = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Prefixes that torch.compile, FSDP and activation checkpointing add to parameter names."""


class Watch:
    """Watches a model from `start` to `stop`. Holds only a weak reference to the model.

    Any thread may call the methods. They never wait for a device. Errors in the model's code only cause a warning.
    """

    def __init__(
        self,
        model: "torch.nn.Module",
        record: Callable[[Mapping[str, Any]], None],
        *,
        log: Watched,
        every: int,
        norms: bool,
        histograms: bool,
    ) -> None:
        """
        Args:
            model: Model to watch.
            record: Function that records a row, like `run.log`.
            log: Tensors to log: "gradients", "parameters" or "all".
            every: Number of optimizer steps between rows, at least 1. The first row is recorded at the first step.
            norms: Whether to log Euclidean norms, both for the whole model and for each parameter.
            histograms: Whether to log a distribution for each parameter.

        Raises:
            UsageError: An argument has an invalid type or value.
        """
        if not callable(getattr(model, "named_parameters", None)):
            raise UsageError(f"watch: expected a torch.nn.Module, got a {type(model).__name__}")
        if log not in get_args(Watched):
            raise UsageError(f"watch: log: expected {join_choices(*get_args(Watched))}; got {log!r}")
        if type(every) is not int or every < 1:
            raise UsageError(f"watch: every: expected a positive integer, got {every!r}")
        self._model = weakref.ref(model)
        self._name = type(model).__name__
        self._record = record
        self._log = log
        self._every = every
        self._norms = norms
        self._histograms = histograms
        self._leader: weakref.ref[torch.optim.Optimizer] | None = None
        self._other_optimizers: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = weakref.WeakKeyDictionary()
        self._steps = 0
        self._rows = 0
        self._warned = False
        self._in_hook = False
        self._out_of_graphs = skip_own_files()
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def is_of(self, model: object) -> bool:
        """Return whether this object watches the given model. Also return True if the watched model has been deleted."""
        watched = self._model()
        return watched is model or watched is None

    def start(self) -> None:
        """Install the hook that torch calls before optimizer steps."""
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        self._handle = register_optimizer_step_pre_hook(self._before_step)

    def log(self) -> None:
        """Record a row of norms and distributions now.

        Call this method in training loops that do not use a `torch.optim.Optimizer`, or that run the optimizer step in a CUDA
        graph.
        """
        model = self._model()
        if model is None:
            return
        self._rows += 1
        try:
            self._record(dict(self._values(model)))
        except Exception as error:  # the model's own code must not stop the training
            self._warn("watch(%s) could not record a row: %s: %s", self._name, type(error).__name__, error)

    def stop(self) -> None:
        """Stop watching. Idempotent."""
        if self._handle is None:
            return
        if not self._in_hook:  # otherwise, torch is iterating over its hooks (other thread or signal handler)
            self._handle.remove()
        self._handle = None
        if not self._rows and self._model() is not None:
            self._warn(
                "watch(%s) recorded nothing: no torch optimizer with the model's parameters took a step; call log() "
                "on the object that watch() returned",
                self._name,
            )

    def _before_step(self, optimizer: "torch.optim.Optimizer", arguments: object, options: object) -> None:
        """Handle an optimizer step. Count only the steps of the first optimizer that has any of the model's parameters."""
        if self._handle is None:
            return
        if not self._out_of_graphs:
            self._out_of_graphs = skip_own_files()
        self._in_hook = True
        try:
            if (self._leader is not None and self._leader() is optimizer) or self._follows(optimizer):
                self._step()
        except Exception as error:  # the hook must not stop the training
            self._warn("watch(%s) could not record a row: %s: %s", self._name, type(error).__name__, error)
        finally:
            self._in_hook = False

    def _step(self) -> None:
        if _is_captured():
            self._warn(
                "watch(%s) cannot record while a CUDA graph is being captured; call log() on the watch object after "
                "replays",
                self._name,
            )
            return
        if self._steps % self._every == 0:
            self.log()
        self._steps += 1

    def _follows(self, optimizer: "torch.optim.Optimizer") -> bool:
        if self._leader is not None and self._leader() is not None:
            return False
        groups = optimizer.param_groups
        if self._other_optimizers.get(optimizer) == len(groups):
            return False
        model = self._model()
        parameters = set() if model is None else {id(parameter) for parameter in model.parameters()}
        if any(id(parameter) in parameters for group in groups for parameter in group["params"]):
            self._leader = weakref.ref(optimizer)
            return True
        self._other_optimizers[optimizer] = len(groups)
        return False

    def _values(self, model: "torch.nn.Module") -> Iterator[tuple[str, Any]]:
        parameters = {_plain_name(name): parameter for name, parameter in model.named_parameters()}
        if self._log in ("gradients", "all"):
            gradients = {name: _local(p.grad) for name, p in parameters.items() if p.grad is not None}
            yield from self._describe("gradient", gradients)
        if self._log in ("parameters", "all"):
            yield from self._describe("parameter", {name: _local(p) for name, p in parameters.items()})

    def _describe(self, what: str, tensors: Mapping[str, "torch.Tensor"]) -> Iterator[tuple[str, Any]]:
        if self._norms:
            refused = {name: reason for name, tensor in tensors.items() if (reason := _why_no_norm(tensor))}
            total, norms = _euclidean_norms({name: t for name, t in tensors.items() if name not in refused})
            if total is not None:
                yield f"{what}_norm", total
            for name, norm in norms.items():
                yield f"{what}_norm/{name}", norm
            for name, reason in refused.items():
                yield f"{what}_norm/{name}", _NoNorm(f"{reason} (`{what}_norm` also excludes this tensor)")
        if self._histograms:
            for name, tensor in tensors.items():
                yield f"{what}s/{name}", Histogram(tensor)

    def _warn(self, message: str, *arguments: object) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(message, *arguments)


break_graph(Watch._before_step)


class _NoNorm:
    """Placeholder for a norm that cannot be computed. The recorder counts it as lost, and warns once for each name."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __tensormeter_snapshot__(self) -> float:
        raise Refused(self._reason)


def _why_no_norm(tensor: "torch.Tensor") -> str:
    """Return why the norm of a tensor cannot be computed, or "" if it can be computed."""
    try:
        check_plain(tensor)
    except Refused as refusal:
        return str(refusal)
    if not tensor.is_floating_point():
        return f"cannot compute the norm of a tensor of dtype {tensor.dtype}; log the norm of its .float()"
    return ""


def _euclidean_norms(
    tensors: Mapping[str, "torch.Tensor"],
) -> tuple["torch.Tensor | None", dict[str, "torch.Tensor"]]:
    """Compute the norm of all tensors together and the norm of each tensor. Takes a few launches per device and dtype.

    All tensors must be plain and dense, and have a floating-point dtype (see `_why_no_norm`).

    Returns:
        Norm of all tensors together (None if there are no tensors), and norms by name. The norms stay on their devices.
    """
    import torch

    groups: dict[tuple[torch.device, torch.dtype], dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((tensor.device, tensor.dtype), {})[name] = tensor
    norms: dict[str, torch.Tensor] = {}
    squares = []
    grad = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)
    try:
        for (device, dtype), group in groups.items():
            stacked = torch.stack(_foreach_norm([tensor.detach() for tensor in group.values()], dtype))
            stacked = stacked.to(accumulator_dtype(device))
            squares.append(stacked.square().sum())
            norms.update(zip(group, stacked.unbind(), strict=True))
        if not squares:
            return None, norms
        first = squares[0]  # all sums move to one device and dtype, because both may differ
        return torch.stack([square.to(first, non_blocking=True) for square in squares]).sum().sqrt(), norms
    finally:
        torch._C._set_grad_enabled(grad)


def _foreach_norm(tensors: Sequence["torch.Tensor"], dtype: "torch.dtype") -> list["torch.Tensor"]:
    import torch

    if dtype.itemsize == 1:  # torch has no kernel for norms of 8-bit floats
        tensors, dtype = [tensor.float() for tensor in tensors], torch.float32
    if dtype.itemsize < 4:  # a 16-bit norm could overflow, and has only two or three significant digits
        return list(torch._foreach_norm(list(tensors), 2, dtype=torch.float32))
    return list(torch._foreach_norm(list(tensors), 2))


def _plain_name(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _local(tensor: "torch.Tensor") -> "torch.Tensor":
    """Return this rank's part of a tensor that is sharded over ranks. Gathering the whole tensor would require a collective.

    A tensor of partial sums is returned unchanged. Its norm and its histogram are refused.
    """
    placements = getattr(tensor, "placements", None)
    if placements is None or any(placement.is_partial() for placement in placements):
        return tensor
    local: torch.Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return local


def _is_captured() -> bool:
    import torch

    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return initialized and torch.cuda.is_current_stream_capturing()
