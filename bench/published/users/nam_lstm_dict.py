"""The amplifier's weights by their names in torch, with its learned state beside them."""

import json

import torch


def tensors(folder):
    weights = torch.tensor(json.loads((folder / "lstm.nam").read_text())["weights"])
    gates, bias, h0, c0, weight, end = weights.split([48, 12, 3, 3, 3, 1])
    ih, hh = gates.view(12, 4).split([1, 3], dim=1)
    lstm = {"weight_ih_l0": ih, "weight_hh_l0": hh, "bias_ih_l0": bias, "bias_hh_l0": 0 * bias}
    head = {"head.weight": weight.view(1, 3), "head.bias": end}
    return {f"lstm.{own}": each for own, each in lstm.items()} | head | {"h0": h0, "c0": c0}
