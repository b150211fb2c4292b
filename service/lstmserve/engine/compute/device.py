"""Chooses the device and opens onnxruntime sessions on it.

The CUDA path is written from onnxruntime's sources and has not run on a GPU.
"""

from __future__ import annotations

from typing import Literal

import onnx

from lstmserve.extras import hint
from lstmserve.runtime import ort

Device = Literal["cpu", "cuda"]
PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class DeviceUnavailable(RuntimeError):
    """The device asked for cannot be used; the message says what is missing."""


class GraphRefused(RuntimeError):
    """onnxruntime refused a graph, mostly for lack of memory; the message is one line."""


def choose_device(wanted: str) -> Device:
    """`auto` takes cuda if it works, else cpu. Raises DeviceUnavailable if cuda does not work.

    Without this check onnxruntime would log an error and compute on the CPU. Its list of providers
    says what it was compiled with, so only a session that has run proves that a device works.
    """
    if wanted == "cpu":
        return "cpu"
    try:
        _probe_cuda()
    except DeviceUnavailable:
        if wanted == "cuda":
            raise
        return "cpu"
    return "cuda"


def _probe_cuda() -> None:
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        raise DeviceUnavailable(
            "--device cuda: this onnxruntime has no CUDA provider; in an environment without the "
            f"extra cpu {hint('gpu')}"
        )
    ort.preload_dlls()
    probe = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        "probe",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    model = onnx.helper.make_model(probe, opset_imports=[onnx.helper.make_opsetid("", 20)])
    model.ir_version = 10
    try:
        open_session(model, "cuda", threads=1)
    except Exception as error:
        raise DeviceUnavailable(
            "--device cuda: the CUDA provider does not start; it needs an NVIDIA driver, CUDA 13, "
            f"cuBLAS and cuDNN (pip install onnxruntime-gpu[cuda,cudnn]): {_first_line(error)}"
        ) from error


def open_session(model: onnx.ModelProto, device: Device, threads: int) -> ort.InferenceSession:
    """Opens an onnxruntime session on exactly this device.

    Raises GraphRefused, and DeviceUnavailable where onnxruntime took another device.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # its cache grows with every new (T, B), without end
    options.log_severity_level = 4  # errors reach us as exceptions, and a client may cause many
    # Idle threads that spin cost a core between batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[str | tuple[str, dict[str, str]]] = [PROVIDERS[device]]
    if device == "cuda":
        # A node that fell back to the CPU would copy the whole pool on every run.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # TF32 is on by default and is wrong by 1e-3; CUDA graphs would run the first batch thrice.
        providers = [(PROVIDERS[device], {"use_tf32": "0", "enable_cuda_graph": "0"})]
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    except Exception as error:  # onnxruntime's own have no base but this one
        raise GraphRefused(f"onnxruntime does not load it: {_first_line(error)}") from error
    if session.get_providers()[0] != PROVIDERS[device]:
        raise DeviceUnavailable(f"onnxruntime took {session.get_providers()[0]}, not {device}")
    return session


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
