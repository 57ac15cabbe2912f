"""A device that is the CPU and counts: what would wait for a GPU, and what would be launched on it.

    counted = Counted()
    with counted.device() as device:
        model.to(device)
        with counted.counting():
            ...
    counted.waits, counted.launches

Its tensors hold CPU tensors, of which they have the bits. As tensors of CUDA they can't be mixed with tensors of the
CPU, except scalars, and their values come to the host only by a copy. What is counted:

    waits      the host would wait for the device: `item` and what is made of it (`bool`, `tolist`, `if`), copies to the
               host, copies to the device that are not asynchronous, and results whose size the device decides
               (`nonzero`, `unique`, boolean indices, `repeat_interleave` by a tensor, ...). They are what
               `torch.cuda.set_sync_debug_mode` names, and asynchronous copies to the host besides: whoever reads them
               must wait
    launches   operations that compute: about the kernels of CUDA. Views are none. An operation of several kernels, as a
               sort is, counts once
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
DEVICE = torch.device("privateuseone", 0)
CPU = torch.device("cpu")

# Their result's size, or the answer itself, is known when the device has done its work.
WAITING = {
    aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten._unique, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.unique_dim_consecutive, aten.bincount,
}  # fmt: skip
# Made of other operations, and yet taken whole, so that the bits are those of the CPU.
WHOLE = {
    aten.linear, aten.matmul, aten.conv2d, aten.conv3d, aten.scaled_dot_product_attention, aten.layer_norm,
    aten.upsample_bilinear2d,
}  # fmt: skip
UNCOUNTED = {
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten._unsafe_view,
    aten.lift_fresh, aten.detach, aten.alias, aten._reshape_alias, aten.resize_, aten.set_, aten.split_with_sizes,
    aten.is_same_size, aten._has_compatible_shallow_copy_type, aten.record_stream, aten.detach_,
}  # fmt: skip


def _leaves(value: Any) -> Iterator[Any]:
    """What an operation is given or gives, which are tuples, lists and dicts of it at most.

    `torch.utils._pytree`, which knows all that may hold tensors, would take as long as all else that is done here.
    """
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _leaves(part)
    else:
        yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same with each leaf changed."""
    if isinstance(value, (tuple, list)):
        return type(value)([_mapped(change, part) for part in value])
    if isinstance(value, dict):
        return {name: _mapped(change, part) for name, part in value.items()}
    return change(value)


def _is_device(leaf: Any) -> bool:
    return isinstance(leaf, torch.device) and leaf == DEVICE


_OF_PYTHON = torch._C.DispatchKeySet(torch._C.DispatchKey.Python)


class DeviceTensor(Tensor):
    """A tensor on the counted device."""

    held: Tensor
    on: "Counted"

    @staticmethod
    def __new__(cls, held: Tensor, on: "Counted") -> "DeviceTensor":
        """A tensor with the shape and the values of `held`."""
        with torch.inference_mode(False):  # else a view in inference mode of a tensor from outside would be refused
            tensor = Tensor._make_wrapper_subclass(
                cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
                layout=held.layout, device=DEVICE, requires_grad=False,
            )  # fmt: skip
        tensor.held, tensor.on = held, on
        return tensor

    def __init__(self, held: Tensor, on: "Counted") -> None:
        pass

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.held!r})"

    def tolist(self) -> Any:
        """The values, copied to the host."""
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        """As of a tensor of CUDA."""
        raise TypeError("a tensor on the device has no memory that numpy could read; copy it with .cpu() first")

    def data_ptr(self) -> int:
        """Where the values lie."""
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        first = next(leaf for leaf in _leaves((args, kwargs or {})) if isinstance(leaf, DeviceTensor))
        return first.on.run(func, args, dict(kwargs or {}))

    __torch_function__ = torch._C._disabled_torch_function_impl


class _Everywhere(TorchDispatchMode):
    """Brings operations to the device that begin on the CPU: uploads, and tensors that are made on the device."""

    def __init__(self, counted: "Counted") -> None:
        super().__init__()
        self._counted = counted

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not any(isinstance(leaf, DeviceTensor) or _is_device(leaf) for leaf in _leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func.overloadpacket in WHOLE:
            return self._counted.run(func, args, kwargs)
        with self:
            parts = func.decompose(*args, **kwargs)
        return self._counted.run(func, args, kwargs) if parts is NotImplemented else parts


class _Module:
    """What torch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def _lazy_init(self) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


class Counted:
    """The device and its counts."""

    def __init__(self) -> None:
        self._counts = False
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.waits: Counter[str] = Counter()
        self.launched: Counter[str] = Counter()
        self.uploads = self.uploaded_bytes = self.downloads = self.downloaded_bytes = 0

    @property
    def launches(self) -> int:
        """Operations that computed."""
        return self.launched.total()

    @contextmanager
    def device(self) -> Iterator[torch.device]:
        """Within: tensors can be moved to and made on the device that is given."""
        if not hasattr(torch, DEVICE.type):
            _setup_privateuseone_for_python_backend(backend_module=_Module())
        # `torch.tensor(values, device=...)` makes its tensor on the CPU, and only then moves it to where it is seen.
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with _Everywhere(self):
                yield DEVICE
        finally:
            torch._C._set_only_lift_cpu_tensors(before)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Within: what happens is counted, anew."""
        self.forget()
        self._counts = True
        try:
            yield
        finally:
            self._counts = False

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Do an operation, of which at least one tensor is on the device or is to come there."""
        packet = func.overloadpacket
        if packet in (aten._to_copy, aten.copy_, aten.copy):
            return self._copy(func, args, kwargs)
        to_device = any(_is_device(leaf) for leaf in _leaves(kwargs))
        tensors = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        strangers = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.dim()]
        if strangers and packet in (aten.index, aten.index_put, aten.index_put_):
            # CUDA takes them along, one after the other, and waits each time.
            for index in strangers:
                self._uploaded(index, waits=f"{packet.__name__} by a tensor of the CPU")
        elif strangers:
            raise RuntimeError(f"{func}: tensors of {len(on_device)} on the device and {len(strangers)} on the CPU")
        if self._counts:
            self._count(func, packet, args, kwargs)
        held = _mapped(lambda leaf: leaf.held if isinstance(leaf, DeviceTensor) else leaf, (list(args), kwargs))
        if to_device:
            held[1]["device"] = CPU
        result = func(*held[0], **held[1])
        if torch.Tag.inplace_view in func.tags:  # what is held has another shape now, and so must the tensor
            with torch._C._ExcludeDispatchKeyGuard(_OF_PYTHON):
                func(*args, **kwargs)
        back = {id(tensor.held): tensor for tensor in on_device}
        return _mapped(lambda leaf: self._wrapped(leaf, back), result)

    def _wrapped(self, value: Any, back: Mapping[int, DeviceTensor]) -> Any:
        """A result: what was worked on in place is the very tensor that was given."""
        if not isinstance(value, Tensor):
            return value
        return back[id(value)] if id(value) in back else DeviceTensor(value, self)

    def _count(self, func: Any, packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        waits = packet in WAITING
        if packet is aten.repeat_interleave:
            waits = kwargs.get("output_size") is None
        elif packet in (aten.index, aten.index_put, aten.index_put_):
            by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
            # Writing one value by a mask is a `masked_fill_`.
            waits = by_mask and not (packet is not aten.index and args[2].numel() == 1)
        if waits:
            self.waits[packet.__name__] += 1
        elif packet not in UNCOUNTED and not func.is_view:
            self.launched[packet.__name__] += 1

    def _copy(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        target, source = (args[0], args[1]) if func.overloadpacket is aten.copy_ else (None, args[0])
        to = kwargs.pop("device", None) if target is None else target.device
        to = source.device if to is None else torch.device(to)
        blocking = not (kwargs.get("non_blocking") or (target is not None and len(args) > 2 and args[2]))
        from_device, to_device = isinstance(source, DeviceTensor), to.type == DEVICE.type
        values = source.held if from_device else source
        if from_device and to_device:
            self._launched(func.overloadpacket.__name__)
        elif to_device and source.dim():
            self._uploaded(source, waits="upload that is not asynchronous" if blocking else None)
        elif from_device:
            self._downloaded(source)
        if target is not None:
            (target.held if isinstance(target, DeviceTensor) else target).copy_(values)
            return target
        copied = func(values, **kwargs)
        if copied is values:
            copied = values.clone()
        return DeviceTensor(copied, self) if to_device else copied

    def _launched(self, name: str) -> None:
        if self._counts:
            self.launched[name] += 1

    def _uploaded(self, source: Tensor, waits: str | None) -> None:
        if self._counts:
            self.uploads += 1
            self.uploaded_bytes += source.nbytes
            if waits:
                self.waits[waits] += 1

    def _downloaded(self, source: Tensor) -> None:
        if self._counts:
            self.downloads += 1
            self.downloaded_bytes += source.nbytes
            self.waits["copy to the host"] += 1


def counted_call(work: Callable[[], Any], counted: Counted) -> dict[str, Any]:
    """What one call of `work` did, which must have been called before to be warm."""
    with counted.counting():
        work()
    return {
        "waits": counted.waits.total(),
        "waits_by_cause": dict(counted.waits.most_common()),
        "launches": counted.launches,
        "uploads": counted.uploads,
        "uploaded_bytes": counted.uploaded_bytes,
        "downloads": counted.downloads,
        "downloaded_bytes": counted.downloaded_bytes,
    }
