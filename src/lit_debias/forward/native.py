"""The lean forward pass in C++, for sampling on CPUs with AVX512-BF16.

A decoding step of a few rows is some 40 small operations a layer; as separate calls they cost as much as the products
with the weights, see docs/performance.md. Here all of it is one function (``native.cpp``), and a product asks for
weights ahead of their use. It is compiled when it is first used, in about two seconds, and kept in the cache.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from lit_debias.forward.functions import GELU_TANH, known_activation
from lit_debias.forward.lean import LeanModel
from lit_debias.forward.linear import FusedLinear
from lit_debias.models.sources import alone_in_cache, cache_dir
from lit_debias.support.hashing import sha256

SOURCE, HEADER = (Path(__file__).with_name(name) for name in ("native.cpp", "team.hpp"))
FLAGS = (
    *("-std=c++20", "-O3", "-march=x86-64-v4", "-mavx512bf16", "-fno-math-errno", "-fno-strict-aliasing"),
    *("-fopenmp", "-fPIC", "-shared"),
)
TILE = 16
NO_WINDOW = 2**30
NORMS = (
    *("input_norm", "mlp_norm", "attention_outcome_norm", "mlp_outcome_norm"),
    *("query_norm", "key_norm"),
)


def why_not_native(model: LeanModel) -> str | None:
    """Return what keeps a lean model from its native form, or None."""
    layer, weight = model.layers[0], model.head.base_weight()
    if weight.device.type != "cpu" or not _has_instructions():
        return "it needs a CPU with AVX512-BF16"
    if model.dtype != torch.bfloat16:
        return "it computes in bfloat16"
    if known_activation(layer.activation) is None:
        return f"it does not know the activation {type(layer.activation).__name__}"
    if layer.heads // layer.kv_heads > TILE:
        return f"it has at most {TILE} heads of queries for one of keys"
    if any(size % TILE for size in (layer.head_dim, model.head.inputs, layer.down.inputs)):
        return f"it has sizes of heads, states and MLP that are multiples of {TILE}"
    library = _library()
    return library if isinstance(library, str) else None


def compiler() -> str | None:
    """Return the C++ compiler to call, what ``CXX`` says or g++; None where it is not there."""
    program = os.environ.get("CXX", "g++")
    return program if shutil.which(program) else None


class NativeModel:
    """A lean model's weights as the native pass reads them; see :func:`why_not_native` for which models.

    Args:
        model: Lean. Its embedding is shared; its products are merged and laid out anew, at the memory of the base.
    """

    def __init__(self, model: LeanModel) -> None:
        self.model = model
        self.stale = True
        self._laid_out = False
        library = _library()
        assert not isinstance(library, str), library
        self._library = library
        layer = model.layers[0]
        self.kv_heads, self.head_dim, self.vocabulary = layer.kv_heads, layer.head_dim, model.head.outputs
        self._tiles: dict[FusedLinear, Tensor] = {}
        self._kept: list[Tensor] = []  # what structs point at
        self._layers = (_Layer * len(model.layers))(*(self._layer(number) for number in range(len(model.layers))))
        self._embedding: Tensor = model.embedding.weight.data  # type: ignore[assignment]
        self._struct = _Model(
            layer=ctypes.addressof(self._layers),
            embedding=self._embedding.data_ptr(),
            norm=self._vector(model.norm.weight),
            head=self._room(model.head).data_ptr(),
            head_bias=self._vector(model.head.bias),
            epsilon=model.norm.epsilon,
            embedding_scale=model.embedding_scale,
            gelu=known_activation(layer.activation) is GELU_TANH,
            layers=len(model.layers),
            hidden=model.head.inputs,
            heads=layer.heads,
            kv_heads=layer.kv_heads,
            width=layer.head_dim,
            inner=layer.down.inputs,
            outputs=_filled_up(self.vocabulary),
        )

    def refreshed(self) -> NativeModel:
        """Return itself with the weights that sampling needs, merged anew where the adapter has changed."""
        if self.stale:
            for fused, tiles in self._tiles.items():
                if fused.is_adapted or not self._laid_out:
                    weight = fused.merged_weight()
                    arguments = (_pointer(weight), _pointer(tiles), fused.outputs, fused.inputs)
                    self._library.lit_debias_pack(*arguments, torch.get_num_threads())
            self._laid_out, self.stale = True, False
        return self

    def __call__(self, rows: Rows, prompts: NativeCache, owns: NativeCache) -> Tensor:
        """Append rows to the caches and return fp32 logits [wanted, V]."""
        logits = torch.empty(len(rows.wanted), self._struct.outputs)
        structs = (self._struct, prompts.struct, owns.struct, rows.struct())
        self._library.lit_debias_forward(*map(ctypes.byref, structs), _pointer(logits), torch.get_num_threads())
        return logits[:, : self.vocabulary]

    def rotation(self, positions: int) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines [ways, positions, D] fp32 of the ways to turn heads that layers have."""
        ways = self.model.rotations(torch.arange(positions), torch.float32).values()
        cos, sin = (torch.stack(factors)[:, :, 0].contiguous() for factors in zip(*ways, strict=True))
        return cos, sin

    def product(self, fused: FusedLinear, blocks: Tensor, count: int) -> Tensor:
        """Return one product alone, fp32 [N, outputs], without bias.

        Args:
            fused: One of the model's.
            blocks: N rows, bf16 in blocks [N / 16, inputs / 2, 16, 2].
            count: N.
        """
        found = torch.empty(count, _filled_up(fused.outputs))
        pointers = map(_pointer, (self._tiles[fused], blocks, found))
        sizes = (fused.inputs, found.shape[1], count, torch.get_num_threads())
        self._library.lit_debias_product(*pointers, *sizes)
        return found[:, : fused.outputs]

    def _layer(self, number: int) -> _Layer:
        layer = self.model.layers[number]
        products = {"qkv": layer.qkv, "output": layer.output, "gate_up": layer.gate_up, "down": layer.down}
        return _Layer(
            **{name: self._room(fused).data_ptr() for name, fused in products.items()},
            **{f"{name}_bias": self._vector(fused.bias) for name, fused in products.items()},
            **{name: self._vector(getattr(getattr(layer, name), "weight", None)) for name in NORMS},
            window=NO_WINDOW if layer.window is None else layer.window,
            turned=self.model.rotary_kinds.index(layer.rotary_kind),
        )

    def _room(self, fused: FusedLinear) -> Tensor:
        self._tiles[fused] = torch.empty(_filled_up(fused.outputs) * fused.inputs, dtype=torch.bfloat16)
        return self._tiles[fused]

    def _vector(self, values: Tensor | None) -> int | None:
        if values is None:
            return None
        self._kept.append(torch.nn.functional.pad(values.detach().float(), (0, -len(values) % TILE)))
        return self._kept[-1].data_ptr()


class NativeCache:
    """Keys and values of sequences, in tiles.

    Args:
        model: Whose cache it is.
        sequences: How many.
        columns: Tokens that each has room for.
    """

    def __init__(self, model: NativeModel, sequences: int, columns: int) -> None:
        columns = _filled_up(columns)
        shape = (len(model.model.layers), sequences, model.kv_heads, columns * model.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=torch.bfloat16) for _ in range(2))
        self.bytes = self.keys.nbytes + self.values.nbytes
        self.struct = _Cache(self.keys.data_ptr(), self.values.data_ptr(), sequences, columns)


class Rows:
    """Tokens to compute; those of one prompt stand side by side.

    Args:
        token: [N].
        position: [N], index into ``rotation``.
        prompt: [N], sequence among the prompts.
        seen: [N], columns of the prompt to attend to.
        rotation: What :meth:`NativeModel.rotation` says of all positions.
        wanted: Rows to return logits of.
        own: [N], sequence of its own that a row is appended to and attends to; None where rows are a prompt's own
            columns ``seen - 1``.
        column: Of the own sequences.
    """

    def __init__(
        self,
        token: Tensor,
        position: Tensor,
        prompt: Tensor,
        seen: Tensor,
        rotation: tuple[Tensor, Tensor],
        wanted: Tensor,
        own: Tensor | None = None,
        column: int = -1,
    ) -> None:
        own = torch.full_like(token, -1) if own is None else own
        numbers = {"token": token, "position": position, "prompt": prompt, "seen": seen, "own": own, "wanted": wanted}
        self.numbers = {name: values.to(torch.int32).contiguous() for name, values in numbers.items()}
        self.wanted, self.rotation, self.column = wanted, rotation, column

    def struct(self) -> _Rows:
        """Return what the native pass reads; it points into this object."""
        (cos, sin), pointers = self.rotation, {name: values.data_ptr() for name, values in self.numbers.items()}
        counts = {"count": len(self.numbers["token"]), "wanted_count": len(self.wanted), "positions": cos.shape[1]}
        return _Rows(**pointers, **counts, column=self.column, cos=cos.data_ptr(), sin=sin.data_ptr())


# ---------------------------------------------------------------- structs of native.cpp


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in NORMS),
        *((name, ctypes.c_void_p) for name in ("qkv", "output", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("qkv_bias", "output_bias", "gate_up_bias", "down_bias")),
        *((name, ctypes.c_int32) for name in ("window", "turned")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("layer", "embedding", "norm", "head", "head_bias")),
        *((name, ctypes.c_float) for name in ("epsilon", "embedding_scale")),
        *(
            (name, ctypes.c_int32)
            for name in ("gelu", "layers", "hidden", "heads", "kv_heads", "width", "inner", "outputs")
        ),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int32) for name in ("sequences", "columns")),
    ]


class _Rows(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("token", "position", "prompt", "seen", "own", "cos", "sin", "wanted")),
        *((name, ctypes.c_int32) for name in ("count", "wanted_count", "positions", "column")),
    ]


# ---------------------------------------------------------------- the compiled library


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | str:
    """Return the library, compiled now if none of this source is in the cache; or what is in the way."""
    key = sha256([SOURCE, HEADER, " ".join(FLAGS)])[:16]
    target = cache_dir() / f"native-{key}.so"
    try:
        obstacle = None if target.exists() else _compile_once(target)
        if obstacle is None and not _is_ones_own(target):
            obstacle = f"{target} is not yours alone to write; delete it"
        return obstacle or ctypes.CDLL(str(target))
    except OSError as error:
        return f"it cannot be kept in the cache: {error}"


def _compile_once(target: Path) -> str | None:
    with alone_in_cache():
        return None if target.exists() else _compile(target)


def _compile(target: Path) -> str | None:
    """Write the library, and return None; or return what is in the way."""
    program = compiler()
    if program is None:
        return "it needs a C++ compiler (g++, or what CXX says)"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [program, *FLAGS, str(SOURCE), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"{program} does not compile it: {(done.stderr.strip().splitlines() or ['no message'])[0]}"
        made.chmod(0o755)
        made.replace(target)
    return None


def _is_ones_own(file: Path) -> bool:
    found = file.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _has_instructions() -> bool:
    return platform.machine().lower() in {"x86_64", "amd64"} and torch.cpu._is_avx512_bf16_supported()


def _filled_up(size: int) -> int:
    return size + -size % TILE


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
