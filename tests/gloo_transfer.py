"""vLLM's NCCL transfer over gloo: the same classes, handshake, buckets and messages, on CPUs.

Replaced is what needs CUDA and nothing else: the communicator, and the streams in which buckets are packed.
"""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from typing import Any, ClassVar

_PATCHED = "vllm.distributed.weight_transfer.nccl_engine"
TAMPER = "GVM_RAY_TEST_TAMPER"  # in the environment of the sender: it sends other bits than it was given


class GlooCommunicator:
    """The part of vLLM's `PyNcclCommunicator` that a transfer uses."""

    made: ClassVar[list[Any]] = []  # in this process

    def __init__(self, *, address: str, port: int, rank: int, world_size: int) -> None:
        import torch.distributed as dist

        store = dist.TCPStore(address, port, world_size, is_master=rank == 0)
        self.rank, self.world_size = rank, world_size
        self.sizes: list[int] = []  # bytes of each broadcast
        self._group: Any = dist.ProcessGroupGloo(store, rank, world_size)
        GlooCommunicator.made.append(self)

    def broadcast(self, tensor: Any, src: int) -> None:
        """As the CUDA streams do it, but at once."""
        import torch.distributed as dist

        self.sizes.append(tensor.nbytes)
        if self.rank == src and os.environ.get(TAMPER):
            tensor[0] ^= 1
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        self._group.broadcast([tensor], options).wait()

    def destroy(self) -> None:
        """A later broadcast fails."""
        self._group = None


class _Stream:
    def synchronize(self) -> None: ...


def _patch(nccl_engine: Any) -> None:
    import torch
    from vllm.distributed.weight_transfer import packed_tensor

    def join(init_info: Any, parallel_config: Any) -> GlooCommunicator:
        return _communicator(init_info, rank=init_info.rank_offset + parallel_config.rank)

    nccl_engine.worker_init_process_group = join
    nccl_engine.open_trainer_endpoint = lambda init_info: _communicator(init_info, rank=0)
    # vLLM's CUDA streams, which it makes by a private function of its own.
    packed_tensor._get_streams = lambda _, num_buffers: tuple(_Stream() for _ in range(num_buffers))
    packed_tensor.torch.cuda.stream = lambda _: contextlib.nullcontext()
    torch.accelerator.current_device_index = lambda: 0
    torch.accelerator.synchronize = lambda *_: None


def _communicator(init_info: Any, *, rank: int) -> GlooCommunicator:
    return GlooCommunicator(
        address=init_info.master_address, port=init_info.master_port, rank=rank, world_size=init_info.world_size
    )


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Changes vLLM's module when something imports it, which takes seconds and most processes never do."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != _PATCHED:
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert found is not None
        assert found.loader is not None
        self._loader = found.loader
        return importlib.util.spec_from_loader(fullname, self, origin=found.origin)

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self._loader.exec_module(module)
        _patch(module)


def install() -> None:
    """From here on, this process's NCCL transfers go over gloo."""
    sys.meta_path.insert(0, _Finder())
