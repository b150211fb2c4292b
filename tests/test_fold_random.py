"""Random networks of recurrent nodes and row-wise layers, folded over time, against their single
time steps."""

from __future__ import annotations

import secrets

import numpy as np
import pytest

from foldgraphs import EQUAL, H, cell, hold, weights
from lstmserve.spec import ModelSpec, TensorSpec
from stepgraph import Step

UNARY = "Tanh", "Sigmoid", "Relu", "Gelu", "Neg", "Erf", "HardSwish"
# Each computes $w [B, H] from $v [B, H] and an earlier value $e [B, H].
LAYERS = (
    "$v $m -> MatMul $w",
    "$v $m $k -> Gemm $w",
    "$v $k -> Add $w",
    "$v $k -> Mul $w",
    "$v $k -> PRelu $w",
    "$v $e -> Add $w",
    "$v $e -> Max $w",
    "$v $k $k -> LayerNormalization+axis=-1 $w",
    "$v $k $k $k ones -> BatchNormalization $w",
    "$v -> Softmax+axis=-1 $w",
    "$v $e -> Concat+axis=1 $a; $a $n -> MatMul $w",
    "$v three big a1 -> Slice $a; $v zero three a1 -> Slice $b; $a $b -> Concat+axis=-1 $w",
    "$v edges -> Pad+mode=reflect $a; $a three nine a1 -> Slice $w",
    "$v edges2 . a1 -> Pad $a; $a three nine a1 -> Slice $w",
    "$v threes -> Split+axis=1 $a $b; $a $b -> Mul $c; $c $a -> Concat+axis=1 $w",
    "$v pairs -> Reshape $a; $a -> Transpose+perm=1,0,2 $b; $b -> Relu $c; "
    "$c -> Transpose+perm=1,0,2 $d; $d flat -> Reshape $w",
    "$v pairs -> Reshape $a; $a -> Softmax+axis=1 $b; $b -> Flatten $w",
    "$v a0 -> Unsqueeze $a; $a $m -> MatMul $b; $b a0 -> Squeeze $w",
    "$v $e -> Greater $a; $a $v $e -> Where $w",
    "$v -> Shape $a; $a -> ConstantOfShape $b; $v $b -> Add $w",
    "$v -> Shape+end=1 $a; $a six -> Concat+axis=0 $b; one $b -> Expand $c; $v $c -> Sub $w",
    *(f"$v -> {op} $w" for op in UNARY),
)
SHARP = "$v -> ArgMax+axis=1+keepdims=0 $a; $m $a -> Gather $w"  # it needs bits that do not change
# onnxruntime may round these in another way for a row alone than for one in a batch.
ROUNDED = (
    "$v a1 -> ReduceMean $a; $v $a -> Sub $w",
    "$v a1 -> Unsqueeze $a; $e a2 -> Unsqueeze $b; $b $a -> MatMul $c; $c a1 -> ReduceSum $d; "
    "$d a1 -> Squeeze $w",
    *(f"$v -> {op} $w" for op in ("Elu", "Selu", "Softplus", "Mish", "Sin")),
)
VECTORS = {"three": [3], "big": [1 << 40], "zero": [0], "threes": [3, 3], "pairs": [-1, 2, 3]}
VECTORS |= {"edges": [0, 1, 0, 2], "edges2": [3, 0], "nine": [9]}
VECTORS |= {"flat": [-1, H], "six": [H], "a2": [2]}


class Maker:
    """A random network: recurrent nodes of any kind, and layers before, between and after them."""

    def __init__(self, rng: np.random.Generator, is_exact: bool) -> None:
        self._rng = rng
        self._kinds = ["LSTM", "GRU"] if is_exact else ["LSTM", "GRU", "RNN"]
        self._layers = (*LAYERS, SHARP) if is_exact else (*LAYERS, *ROUNDED)
        self._count = 0
        self._lines: list[str] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._states: list[TensorSpec] = []
        self._values = ["x"]

    def make(self) -> Step:
        """One to three recurrent nodes."""
        rng, v = self._rng, "x"
        for _ in range(rng.integers(1, 4)):
            for _ in range(rng.integers(0, 4)):
                v = self._layer(v)
            v = self._recurrent(v)
        for _ in range(rng.integers(0, 4)):
            v = self._layer(v)
        self._lines += [f"{v} y_k -> Add y", f"{rng.choice(self._values[1:])} y_k -> Mul z"]
        self._shapes["y_k"] = (H,)
        outputs = TensorSpec("y", (H,)), TensorSpec("z", (H,))
        spec = ModelSpec((TensorSpec("x", (H,)),), outputs, tuple(self._states))
        constants = weights(int(rng.integers(1 << 30)), **self._shapes)
        constants |= {name: np.array(values) for name, values in VECTORS.items()}
        constants |= {"one": np.array(1, np.float32), "ones": np.ones(H, np.float32)}
        return Step(spec, "\n".join(self._lines), constants)

    def _layer(self, v: str) -> str:
        rng, at = self._rng, self._next()
        text = str(rng.choice(self._layers))
        self._shapes |= {f"{at}m": (H, H), f"{at}n": (2 * H, H), f"{at}k": (H,)}
        text = text.replace("$v", v).replace("$e", str(rng.choice(self._values)))
        self._lines += text.replace("$", at).split("; ")
        self._values.append(f"{at}w")
        return f"{at}w"

    def _recurrent(self, v: str) -> str:
        rng, at = self._rng, self._next()
        kind, layers = str(rng.choice(self._kinds)), rng.integers(1, 3)
        names = [f"{at}h", f"{at}c"][: 2 if kind == "LSTM" else 1]
        self._states += [TensorSpec(name, (int(layers), H)) for name in names]
        attributes = f"+hidden_size={H}" + "+linear_before_reset=1" * (kind == "GRU")
        ends = []
        for name in names:
            parts = [f"{name}{i}" for i in range(layers)]
            self._lines.append(f"{name} -> Transpose+perm=1,0,2 {name}t")
            self._lines.append(f"{name}t -> Split+axis=0+num_outputs={layers} {' '.join(parts)}")
            ends.append(f"{' '.join(f'{part}n' for part in parts)} -> Concat+axis=0 {name}n")
            ends.append(f"{name}n -> Transpose+perm=1,0,2 {name}.next")
        top = f"{at}x"
        self._lines.append(f"{v} a0 -> Unsqueeze {top}")
        for i in range(layers):
            self._shapes |= cell(kind, f"{at}{i}")
            starts, ns = (" ".join(f"{name}{i}{end}" for name in names) for end in ("", "n"))
            given = f"{top} W{at}{i} R{at}{i} B{at}{i} . {starts}"
            self._lines.append(f"{given} -> {kind}{attributes} {at}Y{i} {ns}")
            top = f"{at}y{i}"
            self._lines.append(f"{at}Y{i} a1 -> Squeeze {top}")
        self._lines += ends
        last = rng.choice([top, f"{names[0]}{layers - 1}n"])
        self._lines.append(f"{last} a0 -> Squeeze {at}w")
        self._values.append(f"{at}w")
        return f"{at}w"

    def _next(self) -> str:
        self._count += 1
        return f"n{self._count}"


@pytest.mark.parametrize("is_exact", [True, False], ids=["exact", "rounded"])
@pytest.mark.parametrize("seed", [0, 1, secrets.randbits(32)], ids=["0", "1", "random"])
def test_random_networks_equal_their_time_steps(seed: int, is_exact: bool) -> None:
    """Row-wise layers of every kind around recurrent nodes; each network is folded."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(15):
        step = Maker(rng, is_exact).make()
        print(step.nodes)
        network = step.network()
        assert network.scans_because == ""
        hold(step, network, int(rng.integers(1 << 30)), equal=EQUAL[is_exact])
