"""The checkpoints and flags that export refuses, each by the row of docs/EXPORT.md that it proves.

Every maker gets an empty folder, and returns the checkpoint and the flags.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from exporting import HIDDEN, INPUTS, OUTPUTS, Net, patch_zip, save, save_script
from lstmserve_export.lstm.archive import FILE_BYTES_MAX, UNPACKED_BYTES_MAX

Case = tuple[Path, list[str]]
Maker = Callable[[Path], Case]
ROWS: dict[str, tuple[str, Maker]] = {}


def row(label: str, says: str) -> Callable[[Maker], Maker]:
    """Enters a maker as the row with this label; the refusal must contain `says`."""

    def enter(maker: Maker) -> Maker:
        assert label not in ROWS
        ROWS[label] = (says, maker)
        return maker

    return enter


def state() -> dict[str, torch.Tensor]:
    """A good state dict."""
    return dict(Net().state_dict())


def saved(folder: Path, content: object, *flags: str) -> Case:
    """The content in net.pt, with flags."""
    return save(content, folder / "net.pt"), list(flags)


def changed(folder: Path, name: str, tensor: torch.Tensor) -> Case:
    """A good state dict but for one tensor."""
    return saved(folder, {**state(), name: tensor})


class Trap:
    """Runs a command when it is unpickled: it makes the file `sprung` beside the checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder / "sprung"),)


@row("an empty file", "is empty")
def _empty(folder: Path) -> Case:
    (folder / "net.pt").touch()
    return folder / "net.pt", []


@row("a file that is no checkpoint (text)", "is not a torch checkpoint")
def _text(folder: Path) -> Case:
    (folder / "net.pt").write_text("once upon a time there was a cell\n" * 9)
    return folder / "net.pt", []


@row("a file larger than 8 GiB", "save weights only")
def _large(folder: Path) -> Case:
    with (folder / "net.pt").open("wb") as file:
        file.truncate(FILE_BYTES_MAX + 1)
    return folder / "net.pt", []


@row("a file cut short", "is damaged or was cut short")
def _truncated(folder: Path) -> Case:
    path, flags = saved(folder, state())
    path.write_bytes(path.read_bytes()[:-100])
    return path, flags


@row("a flipped bit", "(checksum of")
def _flipped(folder: Path) -> Case:
    path, flags = saved(folder, state())
    weights = state()["lstm.weight_ih_l0"].numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.find(weights) + 3] ^= 0x40
    path.write_bytes(content)
    return path, flags


@row("a storage missing in the archive", "is not a torch checkpoint, or the file is damaged")
def _missing_storage(folder: Path) -> Case:
    path, flags = saved(folder, state())
    patch_zip(path, {"data/1": lambda content: None})
    return path, flags


@row("compressed entries (a deflate bomb)", "has compressed entries")
def _deflated(folder: Path) -> Case:
    path, flags = saved(folder, state())
    with zipfile.ZipFile(path) as source:
        contents = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in contents.items():
            target.writestr(name, content)
        target.writestr("net/data/9", bytes(1 << 20))
    return path, flags


@row("entries larger than the file (overlapping)", "entries are larger than the file")
def _overlapping(folder: Path) -> Case:
    path, flags = saved(folder, state())
    content = path.read_bytes()
    end = content.rfind(b"PK\x05\x06")
    count, _, size, start = struct.unpack("<HHII", content[end + 8 : end + 20])
    # The same entries again and again: the directory is small, but it names a lot.
    directory = content[start : start + size] * 20
    tail = struct.pack("<HHIIH", count * 20, count * 20, len(directory), start, 0)
    path.write_bytes(content[:start] + directory + content[end : end + 8] + tail)
    return path, flags


@row("an encrypted archive", "is encrypted")
def _encrypted(folder: Path) -> Case:
    path, flags = saved(folder, state())
    content = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(magic)
        while at >= 0:
            content[at + offset] |= 1
            at = content.find(magic, at + 1)
    path.write_bytes(content)
    return path, flags


@row("another zip archive", "is a zip archive but not a torch checkpoint")
def _zip(folder: Path) -> Case:
    with zipfile.ZipFile(folder / "net.pt", "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    return folder / "net.pt", []


@row("a pickled module (torch.save(model))", "holds Python objects")
def _module(folder: Path) -> Case:
    return saved(folder, Net())


@row("a pickle that runs a command", "holds Python objects (posix.mkdir)")
def _trap(folder: Path) -> Case:
    return saved(folder, {**state(), "trap": Trap(folder)})


@row("a pickle that runs a command, in the legacy format", "(posix.mkdir)")
def _legacy_trap(folder: Path) -> Case:
    content = {**state(), "trap": Trap(folder)}
    return save(content, folder / "net.pt", _use_new_zipfile_serialization=False), []


@row("a pickle that runs a command, behind harmless classes", "(posix.mkdir, argparse.Namespace")
def _trap_behind_others(folder: Path) -> Case:
    return saved(folder, {**state(), "args": argparse.Namespace(lr=1e-3), "trap": Trap(folder)})


@row("the same in the legacy format", "holds Python objects (posix.mkdir, argparse.Namespace)")
def _legacy_trap_behind_others(folder: Path) -> Case:
    content = {**state(), "args": argparse.Namespace(lr=1e-3), "trap": Trap(folder)}
    return save(content, folder / "net.pt", _use_new_zipfile_serialization=False), []


@row("a policy of stable-baselines3 that runs a command", "policy.pth holds Python objects (posix")
def _policy_trap(folder: Path) -> Case:
    inner, _ = _trap(folder)
    with zipfile.ZipFile(folder / "agent.zip", "w") as archive:
        archive.write(inner, "policy.pth")
    return folder / "agent.zip", []


@row("a policy of stable-baselines3 in a policy, and so on", "policy.pth is not a torch checkpoint")
def _policies(folder: Path) -> Case:
    path = folder / "agent.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", b"")
    content = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", content)
    return path, []


@row("a pickled dict that runs a command beside its arrays", "objects (posix.mkdir), which")
def _pickled_trap(folder: Path) -> Case:
    content = {"weights": np.zeros(3, np.float32), "trap": Trap(folder)}
    (folder / "net.pkl").write_bytes(pickle.dumps(content))
    return folder / "net.pkl", []


@row("a pickled dict of arrays cut short", "is no pickle, or the file is damaged")
def _pickle_cut(folder: Path) -> Case:
    (folder / "net.pkl").write_bytes(pickle.dumps({"weights": np.zeros(300)})[:-900])
    return folder / "net.pkl", []


@row("a compressed .npz that unpacks to more than 256 MiB", "unpacks to more than 268435456 bytes")
def _npz_bomb(folder: Path) -> Case:
    with zipfile.ZipFile(folder / "net.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for at in range(2):
            archive.writestr(f"{at}.npy", bytes(UNPACKED_BYTES_MAX // 2 + 1))
    return folder / "net.npz", []


@row("an .npz of objects, which would be unpickled", "is no .npz of plain arrays")
def _npz_objects(folder: Path) -> Case:
    np.savez(folder / "net.npz", trap=np.array([Trap(folder)], object))
    return folder / "net.npz", []


@row("a TorchScript program with compressed tensors", "compressed entries, which torch never")
def _script_bomb(folder: Path) -> Case:
    path = save_script(Net(), folder / "net.pt")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data/9", bytes(1 << 20))
    return path, []


@row("a TorchScript program whose pickle runs a command", "objects (posix.mkdir), which run code")
def _script_trap(folder: Path) -> Case:
    path = save_script(Net(), folder / "net.pt")
    patch_zip(path, {"data.pkl": lambda content: pickle.dumps({"trap": Trap(folder)}, 2)})
    return path, []


@row("a frozen TorchScript program (torch.jit.freeze)", "is a frozen TorchScript program")
def _frozen(folder: Path) -> Case:
    return save_script(Net(), folder / "net.pt", freeze=True), []


@row("two entries of one name in an archive", "entries of the name")
def _twice(folder: Path) -> Case:
    path, flags = saved(folder, state())
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the name is there twice
        archive.writestr(archive.namelist()[0], "")
    return path, flags


def content(folder: Path, name: str, data: bytes) -> Case:
    """A file of these bytes."""
    (folder / name).write_bytes(data)
    return folder / name, []


@row("ONNX", "of torch: run lstmserve import")
def _onnx(folder: Path) -> Case:
    import onnx

    graph = onnx.helper.make_graph([], "g", [], [])
    return content(folder, "net.pt", onnx.helper.make_model(graph).SerializeToString())


@row("HDF5 (Keras)", "is HDF5")
def _hdf5(folder: Path) -> Case:
    return content(folder, "net.h5", b"\x89HDF\r\n\x1a\n" + bytes(99))


@row("a .keras archive", "is Keras's .keras")
def _keras(folder: Path) -> Case:
    with zipfile.ZipFile(folder / "net.keras", "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, "{}")
    return folder / "net.keras", []


@row("JSON", "is JSON, which is no format of tensors")
def _json(folder: Path) -> Case:
    return content(folder, "net.json", b' {"weights": [[1, 2]]}')


@row("the JSON of a Neural Amp Modeler (.nam)", "is JSON of a Neural Amp Modeler")
def _nam(folder: Path) -> Case:
    return content(folder, "net.nam", json.dumps({"architecture": "LSTM", "weights": [1]}).encode())


@row("an index of safetensors files", "is an index, which only says in which file")
def _index(folder: Path) -> Case:
    return content(folder, "model.safetensors.index.json", b'{"weight_map": {"a": "b"}}')


@row("GGUF", "is GGUF")
def _gguf(folder: Path) -> Case:
    return content(folder, "net.gguf", b"GGUF" + bytes(99))


@row("TensorFlow Lite", "is TensorFlow Lite")
def _tflite(folder: Path) -> Case:
    return content(folder, "net.tflite", b"\x1c\0\0\0TFL3" + bytes(99))


@row("a checkpoint of TensorFlow", "is a checkpoint of TensorFlow, or a part of one")
def _tensorflow(folder: Path) -> Case:
    return content(folder, "net.ckpt", bytes(99) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb")


@row("a file of joblib", "is of joblib")
def _joblib(folder: Path) -> Case:
    data = b"\x80\x04\x95\x99\0\0\0\0\0\0\0}\x8c\x01w\x8c\x12joblib.numpy_pickle\x94"
    return content(folder, "net.joblib", data + bytes(99))


@row("a pointer of Git LFS", "is a pointer of Git LFS")
def _lfs(folder: Path) -> Case:
    return content(folder, "net.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


@row("a web page", "is a web page")
def _web(folder: Path) -> Case:
    return content(folder, "net.pt", b"\n<!DOCTYPE html><html><body>Sign in</body></html>")


@row("an .npy file", "is one array without a name")
def _npy(folder: Path) -> Case:
    np.save(folder / "net.npy", np.zeros(3))
    return folder / "net.npy", []


@row("a file packed by gzip, or another packer", "compressed by gzip")
def _gzip(folder: Path) -> Case:
    return content(folder, "net.pt.gz", gzip.compress(b"weights"))


@row("a tar archive", "is a tar archive")
def _tar(folder: Path) -> Case:
    return content(folder, "net.nemo", bytes(257) + b"ustar" + bytes(99))


@row("a .pt2 program (torch.export)", "is a .pt2 program")
def _pt2(folder: Path) -> Case:
    with zipfile.ZipFile(folder / "net.pt2", "w") as archive:
        for name in ("archive_format", "models/model.json", "data.pkl"):
            archive.writestr(f"net/{name}", "pt2")
    return folder / "net.pt2", []


@row("safetensors cut short or with a false header", "not safetensors, or the file is damaged")
def _safetensors(folder: Path) -> Case:
    path = folder / "net.safetensors"
    safetensors.torch.save_file(state(), path)
    path.write_bytes(path.read_bytes()[:-8])
    return path, []


@row("a list, a tensor, or anything but a dict", "holds a list, not a state dict")
def _list(folder: Path) -> Case:
    return saved(folder, list(state().values()))


@row("a dict without tensors", "holds no named tensors")
def _no_tensors(folder: Path) -> Case:
    return saved(folder, {"epoch": 3})


@row("dicts in dicts without end", "nests deeper than")
def _deep(folder: Path) -> Case:
    content: dict[str, object] = {"x": torch.zeros(2)}
    for _ in range(20):
        content = {"model": content}
    return saved(folder, content)


@row("two tensors of one name once prefixes are off", "have one name")
def _same_name(folder: Path) -> Case:
    return saved(folder, {**state(), "lstm._orig_mod.weight_ih_l0": torch.zeros(2)})


@row("an expanded tensor (a stride bomb)", "is larger than its storage")
def _expanded(folder: Path) -> Case:
    shape = state()["lstm.weight_ih_l0"].shape
    return changed(folder, "lstm.weight_ih_l0", torch.zeros(1).expand(shape))


@row("a sparse tensor", "is sparse")
def _sparse(folder: Path) -> Case:
    return changed(folder, "fc.weight", state()["fc.weight"].to_sparse())


@row("a tensor without data (meta)", "has no data")
def _meta(folder: Path) -> Case:
    return changed(folder, "fc.weight", torch.empty(OUTPUTS, HIDDEN, device="meta"))


@row("integer or quantised weights", "is int8, not floating point")
def _int8(folder: Path) -> Case:
    return changed(folder, "fc.weight", torch.ones(OUTPUTS, HIDDEN, dtype=torch.int8))


def quantised(layers: set[type[nn.Module]]) -> nn.Module:
    """The network after torch's own quantization of these layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning that quantization will move to torchao
        return torch.ao.quantization.quantize_dynamic(Net(), layers, dtype=torch.qint8)


@row("a quantised network's state_dict()", "the file is of a quantised network")
def _quantised(folder: Path) -> Case:
    return saved(folder, quantised({nn.LSTM, nn.Linear}).state_dict())


@row("a network of which only the head is quantised", "only the network from before quantisation")
def _quantised_head(folder: Path) -> Case:
    return saved(folder, quantised({nn.Linear}).state_dict())


@row("a quantised network, pickled in the legacy format", "in place of the weights, and only")
def _quantised_module(folder: Path) -> Case:
    path = folder / "net.pt"
    return save(quantised({nn.LSTM}), path, _use_new_zipfile_serialization=False), []


@row("NaN or infinite weights", "lstm.weight_hh_l0 has NaN or infinite values")
def _nan(folder: Path) -> Case:
    tensor = state()["lstm.weight_hh_l0"].clone()
    tensor[3, 1] = float("nan")
    return changed(folder, "lstm.weight_hh_l0", tensor)


@row("a weight beyond 1e8", "which no training gives")
def _huge_value(folder: Path) -> Case:
    tensor = state()["fc.bias"].clone()
    tensor[0] = 6e35
    return changed(folder, "fc.bias", tensor)


@row("no LSTM in the file", "the file has no LSTM")
def _no_lstm(folder: Path) -> Case:
    return saved(folder, nn.Linear(2, 3).state_dict())


@row("an nn.GRU or nn.RNN", "gru is an nn.GRU")
def _gru(folder: Path) -> Case:
    return saved(folder, nn.GRU(INPUTS, HIDDEN).state_dict(prefix="gru."))


@row("weight norm, spectral norm, other parametrizations", "remove weight norm")
def _weight_norm(folder: Path) -> Case:
    net = Net()
    nn.utils.parametrizations.weight_norm(net.lstm, "weight_hh_l0")
    return saved(folder, net.state_dict())


@row("two nn.GRUs or nn.RNNs", "has no LSTM, but enc (GRU 5 -> 8), dec (RNN 8 -> 8): export the")
def _two_grus(folder: Path) -> Case:
    enc, dec = nn.GRU(INPUTS, HIDDEN), nn.RNN(HIDDEN, HIDDEN)
    return saved(folder, {**enc.state_dict(prefix="enc."), **dec.state_dict(prefix="dec.")})


@row("weight norm of the head, in torch's older way", "of the weight (fc.weight_g, fc.weight_v)")
def _old_weight_norm(folder: Path) -> Case:
    weight = state().pop("fc.weight")
    tensors = {k: v for k, v in state().items() if k != "fc.weight"}
    return saved(folder, {**tensors, "fc.weight_g": weight[:, :1], "fc.weight_v": weight})


@row("an initial state beside the LSTM", "be its initial state: --initial-state start.h0,start.c0")
def _initial_state(folder: Path) -> Case:
    start = {f"start.{name}0": torch.ones(1, 1, HIDDEN) for name in "hc"}
    return saved(folder, {**state(), **start})


@row("means and scales beside the LSTM", "x_mean, x_std may scale x or y: see --input-scale")
def _scales_beside(folder: Path) -> Case:
    return saved(folder, {**state(), "x_mean": torch.ones(INPUTS), "x_std": torch.ones(INPUTS)})


@row("half of an initial state", "left out: initial_h; export the whole")
def _half_state(folder: Path) -> Case:
    lstm = nn.LSTM(INPUTS, HIDDEN).state_dict()
    return saved(folder, {**lstm, "initial_h": torch.ones(1, 1, HIDDEN)})


@row("a list of tensors beside the LSTM", "left out: extra.0; export the whole module")
def _list_beside(folder: Path) -> Case:
    losses, epochs = [torch.tensor(0.5)], (torch.arange(3),)
    extra = [torch.ones(HIDDEN), 3]
    return saved(folder, {**state(), "extra": extra, "losses": losses, "epochs": epochs})


@row("a normalisation that no flag names", "--head can name norm (LayerNorm [8]) where")
def _norm(folder: Path) -> Case:
    norm = nn.LayerNorm(HIDDEN).state_dict(prefix="norm.")
    return saved(folder, {**norm, **state()}, "--lstm", "lstm", "--head", "fc")


@row("an attention that no flag names", "or leave them out with --drop attention")
def _attention(folder: Path) -> Case:
    attention = nn.MultiheadAttention(HIDDEN, 2).state_dict(prefix="attention.")
    return saved(folder, {**state(), **attention}, "--lstm", "lstm", "--head", "fc")


@row("--drop that the file does not have", "--drop norm: the file has no tensor and no module")
def _no_such_drop(folder: Path) -> Case:
    return saved(folder, state(), "--drop", "norm")


@row("--drop of what is exported", "--drop names tensors that are exported: fc.bias")
def _drop_taken(folder: Path) -> Case:
    return saved(folder, state(), "--drop", "fc.bias")


@row("a name that may be several", "--lstm lstm may be model.lstm, ema.lstm: give one of these")
def _two_ends(folder: Path) -> Case:
    return saved(folder, {"model": state(), "ema": state()}, "--lstm", "lstm")


@row(
    "several faults at once", "(2) --embedding words: the file has no such table; candidates: none"
)
def _several_faults(folder: Path) -> Case:
    flags = ("--lstm", "rnn", "--embedding", "words", "--head", "decoder,fc")
    return saved(folder, state(), *flags, "--drop", "norm")


@row("tensors under the LSTM's name that nn.LSTM does not have", "--drop lstm.h0")
def _extra(folder: Path) -> Case:
    return saved(folder, {**state(), "lstm.h0": torch.zeros(1, 1, HIDDEN)})


@row("a layer missing or of another size", "but must be")
def _mismatch(folder: Path) -> Case:
    return changed(folder, "lstm.weight_hh_l0", torch.zeros(4 * HIDDEN, HIDDEN).repeat(1, 1)[:, :7])


@row("a layer's tensor missing", "lstm lacks bias_hh_l0")
def _missing(folder: Path) -> Case:
    return saved(folder, {k: v for k, v in state().items() if k != "lstm.bias_hh_l0"})


@row("several LSTMs and no --lstm", "choose one with --lstm")
def _two_lstms(folder: Path) -> Case:
    return saved(folder, {**state(), **nn.LSTM(2, 3).state_dict(prefix="other.")})


@row("--lstm that the file does not have", "it has lstm (LSTM 5 -> 8)")
def _no_such_lstm(folder: Path) -> Case:
    return saved(folder, state(), "--lstm", "rnn")


@row("several Linears and no --head", "fc (8 -> 3) can follow lstm; fc2 (3 -> 2) can come later")
def _two_linears(folder: Path) -> Case:
    return saved(folder, {**state(), **nn.Linear(OUTPUTS, 2).state_dict(prefix="fc2.")})


@row("one matrix that may be head or embedding", "embed (9 tokens -> 8) can be its embedding")
def _embedding_or_head(folder: Path) -> Case:
    lstm, table = nn.LSTM(HIDDEN, HIDDEN), nn.Embedding(9, HIDDEN)
    return saved(folder, {**lstm.state_dict(prefix="lstm."), **table.state_dict(prefix="embed.")})


@row("Linears of which some cannot follow the LSTM", "front (2 -> 5) cannot follow lstm at all")
def _front(folder: Path) -> Case:
    return saved(folder, {**state(), **nn.Linear(2, INPUTS).state_dict(prefix="front.")})


@row("a convolution over the input", "scan (5 -> 4) cannot follow lstm at all; --head NAME")
def _convolution(folder: Path) -> Case:
    scan = nn.Conv1d(INPUTS, 4, 1, bias=False).state_dict(prefix="scan.")
    return saved(folder, {**state(), **scan})


@row("--embedding that is a convolution", "--embedding scan: the file has no such table")
def _convolution_table(folder: Path) -> Case:
    scan = nn.Conv1d(INPUTS, 4, 1, bias=False).state_dict(prefix="scan.")
    return saved(folder, {**state(), **scan}, "--embedding", "scan", "--head", "fc")


@row("a layer with the name of an activation", "relu.weight for the layer and relu() for the act")
def _named_relu(folder: Path) -> Case:
    tensors = {**state(), **nn.Linear(OUTPUTS, OUTPUTS).state_dict(prefix="net.relu.")}
    return saved(folder, tensors, "--head", "fc,relu")


@row("a layer with the name none", "none.weight for the layer and none() for no head")
def _named_none(folder: Path) -> Case:
    lstm, none = nn.LSTM(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
    tensors = {**lstm.state_dict(prefix="lstm."), **none.state_dict(prefix="none.")}
    return saved(folder, tensors, "--head", "none")


@row("an activation that is not served", "the activation mish is not one of relu,")
def _mish(folder: Path) -> Case:
    return saved(folder, state(), "--head", "fc,mish")


@row("a number where none belongs", "tanh takes no number")
def _number(folder: Path) -> Case:
    return saved(folder, state(), "--head", "fc,tanh=2")


@row("--head that is no layer of the file", "'decoder' is no layer of the file and no activation")
def _no_such_head(folder: Path) -> Case:
    return saved(folder, state(), "--head", "decoder")


@row("--head of another width", "other (4 -> 2) reads 4 values, but 8 come to it: what fits")
def _wide_head(folder: Path) -> Case:
    other = nn.Linear(4, 2).state_dict(prefix="other.")
    return saved(folder, {**state(), **other}, "--lstm", "lstm", "--head", "other")


@row("--embedding that the file does not have", "the file has no such table")
def _no_such_embedding(folder: Path) -> Case:
    return saved(folder, state(), "--embedding", "fc")


@row("--embedding of another width", "the embedding is 4 wide, the LSTM reads 5")
def _wide_embedding(folder: Path) -> Case:
    table = nn.Embedding(9, 4).state_dict(prefix="embed.")
    return saved(folder, {**state(), **table}, "--embedding", "embed")


@row("tensors that would be left out (normalisation, attention)", "would be left out")
def _unused(folder: Path) -> Case:
    return saved(folder, {**state(), **nn.LayerNorm(HIDDEN).state_dict(prefix="norm.")})


@row("means or scales of another width", "has 2 columns, must have 5")
def _short_mean(folder: Path) -> Case:
    (folder / "mean.txt").write_text("1\n2\n")
    return saved(folder, state(), "--input-mean", str(folder / "mean.txt"))


@row("means or scales that are no numbers", "give .npy or one number a line")
def _no_numbers(folder: Path) -> Case:
    np.save(folder / "mean.npy", np.array([{"a": 1}]), allow_pickle=True)
    return saved(folder, state(), "--output-mean", str(folder / "mean.npy"))


@row("a scale of zero", "has a zero")
def _zero_scale(folder: Path) -> Case:
    np.save(folder / "scale.npy", np.zeros(INPUTS))
    return saved(folder, state(), "--input-scale", str(folder / "scale.npy"))


@row("a name that cannot be a model's", "give --name")
def _name(folder: Path) -> Case:
    return saved(folder, state(), "--name", "my model")
