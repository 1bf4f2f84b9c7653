"""CUDA graphs without a GPU: operations are remembered with the very tensors that they read and wrote, and run again.

So what a real graph freezes is frozen here too: numbers of Python, and which memory is read and written.
"""

from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class Graph:
    replays = 0

    def replay(self):
        Graph.replays += 1
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # views lie where they lay
                    old.copy_(new)


@contextmanager
def recording(graph):
    with Recorder() as recorder:
        yield
    graph.calls = recorder.calls


class Stream:
    def wait_stream(self, other):
        pass


def emulate(monkeypatch) -> type[Graph]:
    """Put the emulation in the place of CUDA's; return the class that counts its replays."""
    Graph.replays = 0
    for name, stand_in in {
        "CUDAGraph": Graph,
        "graph": recording,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return Graph
