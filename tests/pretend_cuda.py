"""Pretend GPUs: tensors that lie on the CPU, say that they are on cuda:0 or cuda:1, and refuse to meet others.

    with pretend_cuda() as gpu:
        backbone = load_backbone(folder, device="cuda")
        gpu.clear()
        gradient_step(…)
        assert gpu.waits == {}

What it finds: operations between tensors of two devices, which raise as they do on CUDA, every place where the host
would wait for the device (a number is read, a mask becomes indices) or for a copy from pageable memory, and what
several streams do to each other (`pretend_streams`). What it cannot find: what only kernels do wrong. C++ sees the
device `meta` or `meta:1`; Python sees cuda:0 or cuda:1; each operation runs on the CPU tensors inside.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import peft  # noqa: F401  # what it imports looks for a real GPU, and must not meet this one
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.pretend_streams import PretendStream, PretendStreams

CUDA = torch.device("cuda", 0)
# the result is in the host's memory
READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__")
# the size of the result is known to the device alone
COUNTS = ("nonzero", "masked_select", "_unique", "unique")
NO_KERNEL = ("empty", "_to_copy", "detach", "alias", "lift")


@dataclass
class PretendGpu:
    """What happened on the pretend GPU.

    Attributes:
        waits: how often the host waited, by what for and where.
        kernels: how often each operation that computes something was called.
        largest: the bytes of the largest tensor that fits; a larger one is out of memory. None: every tensor fits.
        free, total: of its memory, in bytes, as `torch.cuda.mem_get_info` tells it.
    """

    waits: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    largest: int | None = None
    free: int = 60 << 30
    total: int = 80 << 30
    capturing: PretendGraph | None = None
    streams: PretendStreams = field(init=False, repr=False)
    _pinned: dict[int, torch.UntypedStorage] = field(
        default_factory=dict, repr=False
    )  # alive, so that no address is used twice

    def __post_init__(self) -> None:
        self.streams = PretendStreams(self)

    def clear(self) -> None:
        """Forgets waits and kernels."""
        self.waits.clear()
        self.kernels.clear()

    def wait(self, what: str) -> None:
        """Notes that the host waits, which no graph can hold."""
        self.refuse_in_graph(what)
        self.waits[f"{what} at {_where()}"] += 1
        self.streams.host_waited()

    @staticmethod
    def where() -> str:
        """Returns the line that is being executed."""
        return _where()

    def refuse_in_graph(self, what: str) -> None:
        if self.capturing is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {what} at {_where()}")

    def compute(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Computes something in one kernel, and notes it in the graph that is being captured."""
        self.kernels[name] += 1
        self.streams.compute([_inner(one) for one in tree_leaves((args, kwargs)) if isinstance(one, OnGpu)])
        card = _card_of(name, args, kwargs)
        return self.kept(lambda: function(*tree_map(_inner, args), **tree_map(_inner, kwargs)), card)

    def kept(self, compute: Callable[[], Any], card: int = 0) -> Any:
        """Returns the result of a computation on the tensors inside as tensors on a card."""
        out = compute()
        if self.capturing is not None:
            self.capturing.tape.append((compute, out))
        return tree_map(lambda one: self.put(one, card) if isinstance(one, Tensor) else one, out)

    def pinned(self, tensor: Tensor) -> Tensor:
        """Returns a copy in pinned memory."""
        self.refuse_in_graph("pinning")
        tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return not isinstance(tensor, OnGpu) and tensor.untyped_storage().data_ptr() in self._pinned

    def put(self, tensor: Tensor, card: int = 0) -> Tensor:
        """Returns a tensor of the CPU as one on a card.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        size = tensor.numel() * tensor.element_size()
        if self.largest is not None and size > self.largest:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
        return OnGpu(tensor, card)

    def copied(self, source: Tensor, whole: bool, non_blocking: bool) -> None:
        """Notes a copy from the host, which waits unless all of it is pinned and nothing is to be gathered."""
        self.refuse_in_graph("a copy from the host")
        if not (non_blocking and self.is_pinned(source) and whole):
            how = "" if whole else ", strided"
            kind = "pinned" if self.is_pinned(source) else "pageable"
            self.wait(f"a copy from {kind} memory{'' if non_blocking else ', blocking'}{how}")
        else:
            self.streams.copied(source)


class PretendGraph:
    """A captured graph: what was computed on the same tensors is computed again, by one launch."""

    def __init__(self) -> None:
        self.tape: list[tuple[Callable[[], Any], Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # what is changed in place, and what was there

    def changes(self, leaves: list[Any]) -> None:
        """Notes what tensors hold before an operation that may change them."""
        for one in leaves:
            if isinstance(one, OnGpu) and id(one.inner) not in self.before:
                self.before[id(one.inner)] = (one.inner, one.inner.clone())

    def replay(self) -> None:
        _gpu().kernels["graph"] += 1
        with torch.no_grad():
            for compute, kept in self.tape:
                for old, new in zip(tree_leaves(kept), tree_leaves(compute()), strict=True):
                    if isinstance(old, Tensor) and old is not new and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


@contextlib.contextmanager
def captured(graph: PretendGraph, pool: object = None) -> Iterator[None]:
    """Records what is computed; as on CUDA, nothing of it has happened before the graph is replayed."""
    gpu, kernels = _gpu(), Counter(_gpu().kernels)
    gpu.capturing = graph
    try:
        yield
    finally:
        gpu.capturing = None
        gpu.kernels = kernels
        for tensor, old in reversed(graph.before.values()):
            tensor.copy_(old)


_current: PretendGpu | None = None


def _gpu() -> PretendGpu:
    assert _current is not None, "tensors of a pretend GPU are used outside of it"
    return _current


def _where() -> str:
    """Returns the line of the project that is being executed, and the library's where that is another."""
    frames = traceback.extract_stack()[:-3]
    own = [f for f in frames if "/attempt_cli/" in f.filename or "/registry/" in f.filename]
    found = own or [f for f in frames if "/tests/" in f.filename and "pretend_cuda" not in f.filename]
    library = [f for f in frames if "/transformers/" in f.filename]
    text = f"{'/'.join(found[-1].filename.split('/')[-2:])}:{found[-1].lineno} {found[-1].line}" if found else "?"
    if library:
        text += f" ({'/'.join(library[-1].filename.split('/')[-2:])}:{library[-1].lineno})"
    return text


class OnGpu(Tensor):
    """A tensor on a pretend GPU."""

    inner: Tensor
    card: int

    @staticmethod
    def __new__(cls, inner: Tensor, card: int = 0) -> OnGpu:
        made: OnGpu = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("meta", card) if card else "meta",
        )
        made.inner, made.card = inner.detach(), card
        return made

    device = property(lambda self: torch.device("cuda", self.card))  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: OnGpu) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner, self.card = value.inner, value.card

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.inner})"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = _gpu(), dict(kwargs or {})
        name = func.name().removeprefix("aten::").partition(".")[0]
        card = _check_devices(gpu, func.name().removeprefix("aten::"), args, kwargs)
        if name == "_fused_rms_norm_backward":  # torch has it for CUDA alone
            return gpu.compute("rms norm, back", _norm_back, args, kwargs)
        if not name.startswith(NO_KERNEL) and not _is_view(func):
            gpu.kernels[name] += 1
            gpu.streams.compute([one.inner for one in tree_leaves((args, kwargs)) if isinstance(one, OnGpu)])
        to_host = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        if to_host:
            gpu.wait("a copy to the host")
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")

        def compute() -> Any:
            return func(*tree_map(_inner, args), **tree_map(_inner, kwargs))

        if gpu.capturing is not None and func._schema.is_mutable:
            gpu.capturing.changes(_written(func, args, kwargs))
        out = compute()
        if to_host:
            return out
        if gpu.capturing is not None and not _is_view(func):
            gpu.capturing.tape.append((compute, out))
        if func._schema.is_mutable and isinstance(out, Tensor):  # in place, or out=: the same object comes back
            for one in tree_leaves((args, kwargs)):
                if isinstance(one, OnGpu) and one.inner is out:
                    return one
        return tree_map(lambda one: gpu.put(one, card) if isinstance(one, Tensor) else one, out)


def _inner(one: Any) -> Any:
    return one.inner if isinstance(one, OnGpu) else one


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """Returns what an operation writes to of what it is given."""
    given = {**dict(zip((one.name for one in func._schema.arguments), args, strict=False)), **kwargs}
    names = [one.name for one in func._schema.arguments if one.alias_info and one.alias_info.is_write]
    return tree_leaves([given.get(name) for name in names])


def _card_of(name: str, args: Any, kwargs: Any) -> int:
    """Returns the card that an operation's tensors are on; refuses tensors of two cards.

    Raises:
        RuntimeError: as on CUDA.
    """
    cards = {one.card for one in tree_leaves((args, kwargs)) if isinstance(one, OnGpu)}
    if len(cards) > 1:
        names = ", ".join(f"cuda:{card}" for card in sorted(cards))
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} on {names} at {_where()}")
    return cards.pop() if cards else 0


def _check_devices(gpu: PretendGpu, name: str, args: Any, kwargs: Any) -> int:
    """Notes waits of an operation, and refuses tensors of the CPU: only single numbers may be there.

    Returns:
        The card that it runs on.
    """
    if name.startswith(("copy_", "_copy_from")):
        to, source = args[0], args[1]
        if isinstance(to, OnGpu) and not isinstance(source, OnGpu):
            whole = to.inner.is_contiguous() and source.is_contiguous() and to.dtype == source.dtype
            gpu.copied(source, whole, bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False)))
        elif isinstance(source, OnGpu) and not isinstance(to, OnGpu):
            gpu.wait("a copy to the host")
        return to.card if isinstance(to, OnGpu) else 0
    card = _card_of(name, args, kwargs)
    foreign = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and not isinstance(t, OnGpu) and t.dim()]
    if foreign:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in foreign)
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {shapes} on cpu at {_where()}")
    if name.startswith(("_local_scalar_dense", "is_nonzero", "equal", *COUNTS)):
        gpu.wait(name)
    indexes = name.startswith(("index.Tensor", "index_put", "_index_put"))
    if indexes and any(index is not None and index.dtype == torch.bool for index in args[1]):
        gpu.wait("a mask as index")
    if name.startswith("repeat_interleave.Tensor") and kwargs.get("output_size") is None:
        gpu.wait("repeat_interleave without output_size")
    return card


def _norm(x: Tensor, shape: list[int], weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    exact = x.float()
    root = (exact.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (exact * root * weight.float()).to(x.dtype), root


def _norm_back(
    gradient: Tensor, x: Tensor, shape: list[int], root: Tensor, weight: Tensor, wanted: list[bool]
) -> tuple[Tensor, None]:
    exact, scaled = (gradient * weight).float(), x.float() * root
    share = (exact * scaled).mean(-1, keepdim=True)
    return ((exact - scaled * share) * root).to(x.dtype), None


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, **given)


def _attended_back(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any
) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        own = [one.detach().requires_grad_() for one in (query, key, value)]
        return torch.autograd.grad(_attended(*own, mask, **given), own, gradient)


class _Attention(torch.autograd.Function):
    """Attention in one kernel forth and one back."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any, given: Any) -> Any:
        ctx.save_for_backward(query, key, value)
        ctx.mask, ctx.given = mask, given
        return _gpu().compute("attention", _attended, (query, key, value, mask), given)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        inputs = (*gradients, *ctx.saved_tensors, ctx.mask)
        return *_gpu().compute("attention, back", _attended_back, inputs, ctx.given), None, None


def _in_one_kernel(name: str, args: Any, kwargs: Any) -> Any:
    """Computes what CUDA does in one kernel, and the device meta in several or not at all; else returns None."""
    if name == "_fused_rms_norm":
        return _gpu().compute("rms norm", _norm, args, kwargs)
    # layers that are computed again for their gradient are so without this mode: in several kernels both times
    again = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    if name == "scaled_dot_product_attention" and not again:
        query, key, value, mask = (*args, *[None] * (4 - len(args)))[:4]
        given = {"attn_mask": mask, **kwargs}
        mask = given.pop("attn_mask")
        # neither the flash kernel nor the memory-efficient one takes these
        grouped = given.get("enable_gqa", False) and (mask is not None or query.dtype == torch.float32)
        if not grouped and (mask is None or not mask.requires_grad):
            return _Attention.apply(query, key, value, mask, given)
    return None


class _Moved(torch.autograd.Function):
    """A copy on another card; its gradient comes back."""

    @staticmethod
    def forward(ctx: Any, tensor: Any, card: int) -> Any:
        gpu, ctx.card = _gpu(), tensor.card
        gpu.refuse_in_graph("a copy between cards")
        gpu.kernels["a copy between cards"] += 1
        return gpu.put(tensor.inner.clone(), card)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Moved.apply(gradients[0], ctx.card), None


def _is_cuda(device: Any) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def _card(device: Any) -> int:
    """Returns the number of a device's card; the current one is the first."""
    return torch.device(device).index or 0


class _Functions(TorchFunctionMode):
    """Sends what makes and moves tensors to the pretend GPU; all else goes down to the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = _gpu(), dict(kwargs or {})
        name = getattr(func, "__name__", str(func)).removeprefix("aten::").removesuffix(".default")
        first = args[0] if args else None
        if isinstance(first, OnGpu) and (found := _in_one_kernel(name, args, kwargs)) is not None:
            return found
        if isinstance(first, OnGpu) and name in READS:
            gpu.wait(name)
            found = first.inner.clone() if name == "cpu" else func(first.inner, *map(_inner, args[1:]), **kwargs)
            return found
        if name == "pin_memory" and isinstance(first, Tensor):
            return gpu.pinned(first)
        if name == "is_pinned" and isinstance(first, Tensor):
            return gpu.is_pinned(first)
        if name == "cuda" and isinstance(first, Tensor):
            return first.to("cuda", *args[1:], **kwargs)
        if name == "new_tensor" and isinstance(first, OnGpu):
            gpu.wait("new_tensor")
            return gpu.put(torch.tensor(args[1], dtype=kwargs.get("dtype", first.dtype)), first.card)
        if name in ("__getitem__", "__setitem__") and isinstance(first, OnGpu):
            return func(first, self._index(args[1], first.card), *args[2:])
        if name == "to" and isinstance(first, Tensor):
            return self._to(*args, **kwargs)
        if name == "tensor" and isinstance(first, OnGpu):
            return first.detach().clone()
        if kwargs.pop("pin_memory", False):
            return gpu.pinned(func(*args, **kwargs))
        if _is_cuda(kwargs.get("device")) and not any(isinstance(one, OnGpu) for one in tree_leaves((args, kwargs))):
            return self._made(func, name, args, kwargs)
        if _is_cuda(kwargs.get("device")):
            kwargs.pop("device")
        return func(*args, **kwargs)

    def _made(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        gpu, requires_grad = _gpu(), kwargs.pop("requires_grad", False)
        if name in ("tensor", "as_tensor", "asarray"):
            gpu.wait(f"torch.{name}(…, device='cuda')")
        made = gpu.kept(lambda: func(*args, **{**kwargs, "device": "cpu"}), _card(kwargs["device"]))
        return made.requires_grad_() if requires_grad else made

    def _index(self, index: Any, card: int) -> Any:
        """Returns an index with all its tensors on the device; lists and tensors of the host are copied there."""
        if isinstance(index, tuple):
            return tuple(self._index(one, card) for one in index)
        if isinstance(index, list) or (isinstance(index, Tensor) and not isinstance(index, OnGpu) and index.dim()):
            _gpu().wait("an index from the host")
            return OnGpu(torch.as_tensor(index), card)
        return index

    def _to(self, tensor: Tensor, *rest: Any, **given: Any) -> Any:
        gpu = _gpu()
        kind = next((one.dtype if isinstance(one, Tensor) else one for one in rest if _is_kind(one)), tensor.dtype)
        device = next((one.device if isinstance(one, Tensor) else one for one in rest if _is_place(one)), None)
        device, kind = given.get("device", device), given.get("dtype") or kind
        flags = [one for one in rest if isinstance(one, bool)]
        non_blocking = given.get("non_blocking", flags[0] if flags else False)
        if isinstance(tensor, OnGpu):
            if device is not None and torch.device(device).type == "cpu":
                gpu.wait("to(cpu)")
                return tensor.inner.to(kind)
            if device is not None and _card(device) != tensor.card:
                tensor = _Moved.apply(tensor, _card(device))  # type: ignore[no-untyped-call]
            return super(OnGpu, tensor).to(kind) if kind != tensor.dtype else tensor
        if not _is_cuda(device):
            return tensor.to(*rest, **given)
        if tensor.dim():
            gpu.copied(tensor, tensor.is_contiguous(), non_blocking)
        if gpu.streams.current is not gpu.streams.computing:
            return gpu.put(gpu.streams.copy_later(tensor.detach(), kind), _card(device))
        return gpu.put(tensor.detach().to(kind, copy=True), _card(device))


def _is_kind(one: Any) -> bool:
    return isinstance(one, Tensor | torch.dtype)


def _is_place(one: Any) -> bool:
    return isinstance(one, Tensor | torch.device | str)


class _Factories(TorchDispatchMode):
    """Makes for real what C++ makes `like` one of our tensors, for which it asks the device meta."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if _gpu().streams.read_by and func._schema.is_mutable:
            _gpu().streams.written([one for one in _written(func, args, kwargs) if not isinstance(one, OnGpu)])
        device = kwargs.get("device")
        ours = any(isinstance(one, OnGpu) for one in tree_leaves((args, kwargs)))
        if device is None or ours or torch.device(device).type not in ("meta", "cuda"):
            return func(*args, **kwargs)
        kwargs.pop("pin_memory", None)
        return _gpu().kept(lambda: func(*args, **{**kwargs, "device": torch.device("cpu")}), _card(device))


@contextlib.contextmanager
def pretend_cuda(count: int = 1) -> Iterator[PretendGpu]:
    """Puts `count` pretend GPUs into this machine."""
    global _current

    class Properties:
        name = "Pretend GPU"
        major, minor = 9, 0
        total_memory = 80 << 30
        multi_processor_count = 132

    gpu = PretendGpu()
    replaced: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: 0,
        "synchronize": lambda *_: gpu.wait("torch.cuda.synchronize"),
        "get_device_name": lambda *_: Properties.name,
        "get_device_properties": lambda *_: Properties,
        "get_device_capability": lambda *_: (9, 0),
        "max_memory_allocated": lambda *_: 1 << 30,
        "reset_peak_memory_stats": lambda *_: None,
        "mem_get_info": lambda *_: (gpu.free, gpu.total),
        "empty_cache": lambda: None,
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "device": lambda *_: contextlib.nullcontext(),
        "CUDAGraph": PretendGraph,
        "Stream": lambda *_, **__: PretendStream(gpu.streams),
        "stream": gpu.streams.on,
        "current_stream": lambda *_: gpu.streams.current,
        "graph": captured,
        "graph_pool_handle": lambda: (0, 0),
        "_lazy_init": lambda: None,
    }
    run = threading.Thread.run

    def run_in_it(thread: threading.Thread) -> None:  # modes are a thread's own
        with _Factories(), _Functions():
            run(thread)

    before, _current = _current, gpu
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(patch.object(threading.Thread, "run", run_in_it))
            for name, function in replaced.items():
                stack.enter_context(patch.object(torch.cuda, name, function))
            stack.enter_context(_Factories())
            stack.enter_context(_Functions())
            yield gpu
    finally:
        _current = before


def with_pretend_cuda(count: int = 1) -> None:
    """Puts pretend GPUs into this process for good; see `commands.Attempt.start`."""
    for_good = contextlib.ExitStack()
    for_good.enter_context(pretend_cuda(count))
    atexit.register(for_good.close)
