"""How each published model is handed over. Data: it runs nothing.

A folder without an entry here has its model files tried as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MODEL_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx", ".nam")


@dataclass(frozen=True, slots=True)
class Recipe:
    """`file` is of the model's folder. It goes to `lstmserve export` with `flags`, and an ONNX file
    to `lstmserve import`. `states` are the pairs IN:OUT of that file, for its own runtime.

    In a flag, {folder} is that folder and {users} is users/. With `is_module`, the user's lines in
    users/ read the file instead, and make a module of it. With `is_dict`, lines in users/MODEL_dict
    make a dict of tensors of it, which torch.save writes, and which goes to the command.
    """

    file: str
    flags: tuple[str, ...] = ()
    is_module: bool = False
    is_dict: bool = False
    states: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """That takes the file."""
        return "import" if Path(self.file).suffix == ".onnx" else "export"

    @property
    def pairs(self) -> Mapping[str, str]:
        """The output of each state's input."""
        return dict(each.split(":") for each in self.states)

    @property
    def way(self) -> str:
        """In a word or two."""
        if self.is_module:
            return "module"
        if self.is_dict:
            return "dict"
        return f"flags ({len(self.flags)})" if self.flags else "no flags"


# What the files do not say, and what they hold besides the network.
CREEK = (
    "--input-mean={users}/sugar_creek_scaling/input_mean.txt",
    "--input-scale={users}/sugar_creek_scaling/input_scale.txt",
    "--output-mean={users}/sugar_creek_scaling/output_mean.txt",
    "--output-scale={users}/sugar_creek_scaling/output_scale.txt",
)
DRIVE = (
    *("--input-scale={folder}/isc.txt", "--output-scale={folder}/osc.txt"),
    "--drop=in_scale,out_scale",
)
RECIPES: Mapping[str, Sequence[Recipe]] = {
    "anydrive_actuator": (
        Recipe("anydrive_v3_lstm.pt", DRIVE),
        Recipe("anydrive_sd.pt", DRIVE),
        Recipe("anydrive_sd.pt", is_module=True),
    ),
    "dtln_model_1": (Recipe("dtln_model_1.onnx", states=("input_3:tf_op_layer_stack_2",)),),
    "dtln_model_2": (Recipe("dtln_model_2.onnx", states=("input_5:tf_op_layer_stack_5",)),),
    "gtcrn": (
        Recipe(
            "gtcrn_simple.onnx",
            states=tuple(f"{each}_cache:{each}_cache_out" for each in ("conv", "tra", "inter")),
        ),
    ),
    "nam_lstm": (
        Recipe("lstm.nam"),
        Recipe("lstm.nam", ("--initial-state=h0,c0",), is_dict=True),
        Recipe("lstm.nam", is_module=True),
    ),
    "neuralhydrology": (
        Recipe(
            "nh_model_epoch009.pt",
            (
                *("--input-mean={folder}/im.txt", "--input-scale={folder}/isc.txt"),
                *("--output-mean={folder}/om.txt", "--output-scale={folder}/osc.txt"),
            ),
        ),
    ),
    "sugar_creek": (
        Recipe("sugar_creek_trained.pt", CREEK),
        Recipe("sugar_sd.pt", CREEK),
        Recipe("sugar_sd.pt", is_module=True),
    ),
    "ten_vad": (
        Recipe("ten-vad.onnx", states=tuple(f"input_{n}:output_{n}" for n in (2, 3, 6, 7))),
    ),
    "unitree_g1_walk": (
        Recipe("unitree_g1_motion.pt", ("--head=actor.0,elu,actor.2",)),
        Recipe("unitree_sd.pt", ("--head=actor.0,elu,actor.2",)),
        Recipe("unitree_sd.pt", is_module=True),
    ),
}


def recipes_for(folder: Path) -> Sequence[Recipe]:
    """Of the folder's name; those whose file is not there are left out."""
    files = sorted(path.name for path in folder.iterdir())
    as_they_are = [Recipe(each) for each in files if Path(each).suffix in MODEL_FILES]
    recipes = RECIPES.get(folder.name, as_they_are)
    return [recipe for recipe in recipes if recipe.file in files]
