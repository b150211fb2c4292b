"""Import finds the states of a file by names and nodes, and asks where neither tells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, parser

from lstmserve_export.onnx_file.load.source import Source, Value
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.onnx_file.roles.roles import Roles, find_roles
from lstmserve_export.onnx_file.roles.state_flow import find_restarts
from lstmserve_export.refusal import Refused

NODES: list[onnx.NodeProto] = []


def value(text: str) -> Value:
    """Of a text such as "h0 1,B,64 int64"; without a shape [1, 8], without a dtype float32."""
    name, axes, dtype = [*text.split(), "", ""][:3] if " " in text else (text, "1,8", "")
    sizes = [each for each in axes.split(",") if each]
    return Value(
        name,
        dtype or "float32",
        tuple(int(each) if each.isdigit() else None for each in sizes),
        tuple("" if each.isdigit() or each == "?" else each for each in sizes),
    )


def source(inputs: str, outputs: str, nodes: list[onnx.NodeProto] = NODES) -> Source:
    """Of values that commas with a blank separate."""
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    before, after = ({v.name: v for v in map(value, e.split("; "))} for e in (inputs, outputs))
    return Source(model, model, "", before, after)


def roles(first: str, second: str, nodes: list[onnx.NodeProto] = NODES, /, **flags: Any) -> Roles:
    """What these inputs and outputs are with the flags."""
    return find_roles(source(first, second, nodes), Request(Path("m.onnx"), "m", **flags))


def pairs(found: Roles) -> list[str]:
    """The states as --state has them."""
    return [str(each) for each in found.states]


WILD: dict[str, tuple[str, str, str]] = {
    "torch": ("x; h0; c0", "y; hn; cn", "h0:hn c0:cn"),
    "torch with another order": ("x; c0; h0", "hn; cn; y", "c0:cn h0:hn"),
    "underscores": ("x; h_0; c_0", "y; h_n; c_n", "h_0:h_n c_0:c_n"),
    "one has no word": ("x; h; c", "y; h_out; c_out", "h:h_out c:c_out"),
    "hidden": ("x; hidden_in; cell_in", "y; cell_out; hidden_out", "hidden_in:hidden_out"),
    "layers": ("x; h0; c0; h1; c1", "y; hn0; cn0; hn1; cn1", "h0:hn0 c0:cn0 h1:hn1 c1:cn1"),
    "silero": ("input; state 2,?,128", "output; stateN ?,?,?", "state:stateN"),
    "inside a name": ("x; lstm_h_in; lstm_c_in", "y; lstm_h_out; lstm_c_out", "lstm_h_in:"),
    "direction ahead": ("x; in_state", "y; out_state", "in_state:out_state"),
    "moments": ("x; prev_h; prev_c", "y; next_c; next_h", "prev_h:next_h prev_c:next_c"),
    "moments of any word": ("x; prev_gain", "y; next_gain", "prev_gain:next_gain"),
    "numbers of time": ("x; s0", "y; s1", "s0:s1"),
    "paths": ("x; states.0; states.1", "y; new_states.0; new_states.1", "states.0:new_states.0"),
    "rllib": ("obs; state_in_0; state_in_1", "y; state_out_0; state_out_1", "state_in_0:"),
    "tensorflow": ("x:0; state_in:0", "Identity:0; state_out:0", "state_in:0:state_out:0"),
    "gtcrn": ("mix; conv_cache; tra_cache", "enh; conv_cache_out; tra_cache_out", "conv_cache:"),
    "nemo": (
        "x; cache_last_channel; cache_last_time; cache_last_channel_len 1 int64",
        "y; cache_last_channel_next; cache_last_time_next; cache_last_channel_next_len 1 int64",
        "cache_last_channel:cache_last_channel_next cache_last_time:cache_last_time_next "
        "cache_last_channel_len:cache_last_channel_next_len",
    ),
    "sherpa": (
        "x; cached_len_0 2,N int64; cached_len_1 2,N int64; cached_key_0",
        "y; new_cached_len_0 2,N int64; new_cached_len_1 2,N int64; new_cached_key_0",
        "cached_len_0:new_cached_len_0 cached_len_1:new_cached_len_1 cached_key_0:new_cached_key_0",
    ),
    "wenet": ("chunk; att_cache; cnn_cache", "y; r_att_cache; r_cnn_cache", "att_cache:r_att"),
    "keys of fixed size": (
        "x; past_key_values.0.key 1,4,9,8; past_key_values.0.value 1,4,9,8",
        "y; present.0.key 1,4,9,8; present.0.value 1,4,9,8",
        "past_key_values.0.key:present.0.key past_key_values.0.value:present.0.value",
    ),
    "glued": ("x; hin; statein", "y; hout; stateout", "hin:hout statein:stateout"),
    "camel case": ("x; hiddenIn; cellIn", "y; hiddenOut; cellOut", "hiddenIn:hiddenOut cellIn:"),
    "bool and half": ("x; h_in 4 float16; seen_state 1 bool", "y; h_out 4 float16; seen_state_out "
                      "1 bool", "h_in:h_out seen_state:seen_state_out"),
    "another number of axes": ("x 1,8; h 1,8; c 4,1,2", "y 1,8; h_out 1,1,8; c_out 4,2",
                               "h:h_out c:c_out"),
    "as long as x": ("x 1,8; h 1,8", "y 1,8; h_out 1,8", "h:h_out"),
}  # fmt: skip


@pytest.mark.parametrize("name", WILD)
def test_names_in_the_wild_pair(name: str) -> None:
    """All states are found, x and y stay, and a note says the pairs."""
    inputs, outputs, expected = WILD[name]
    found = roles(inputs, outputs)
    said = " ".join(pairs(found))
    assert said.startswith(expected)
    assert len(found.inputs) == len(found.outputs) == 1
    assert found.notes == (f"states found by their names: {', '.join(pairs(found))}",)


ALONE: dict[str, tuple[str, str]] = {
    "x and y": ("x", "y"),
    "equal names": ("audio_in", "audio_out"),
    "two inputs": ("x; mask", "y"),
    "two outputs": ("x", "y; z"),
    "other shapes": ("x 1,8; z 1,3", "y 1,7; w 1,5"),
    "other dtypes": ("x; z 4 int64", "y 1,7; w 4 int32"),
    "no number of axes": ("x; z 4", "y 1,7; w 1,4"),
    "an observation": ("state", "next_state"),
    "open sizes": ("x 1,samples; z 3", "y 1,frames; w 1,frames"),
    "sizes of 1": ("x 1,5; z 1", "y 1,6; w 1"),
    "an output that is the input": ("x 1,4; z 1,3", "y 1,9; x 1,4"),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_model_without_states_is_none_to_ask_about(name: str) -> None:
    """Every input and output is served, and the note says how a state would be named."""
    inputs, outputs = ALONE[name]
    found = roles(inputs, outputs)
    assert found.states == ()
    assert [each.name for each in found.inputs] == [e.split()[0] for e in inputs.split("; ")]
    assert [each.name for each in found.outputs] == [e.split()[0] for e in outputs.split("; ")]
    assert "give --state IN:OUT" in found.notes[0]


UNCLEAR: dict[str, tuple[str, str, str]] = {
    "nothing but shapes": ("x 1,1,257; input_3 1,2", "y 1,1,257; stack 1,2", "--state input_3:"),
    "one input is x": ("a; b", "p; q", "--state b:q"),
    "equal names that may be x": ("audio_in; z", "audio_out; w 9", "--state audio_in:audio_out"),
    "equal states without names": (
        "x 1,3; a; b",
        "y 1,7; p; q",
        "--state a:p --state b:q",
    ),
    "numbers alone": ("input_1 9; input_2; input_3", "output_1 8; output_3; output_2",
                      "--state input_2:output_2 --state input_3:output_3"),
    "a memory and one output": ("x; h 1,4", "y 1,4", "--state h:y"),
    "open sizes of equal names": ("x 3; r1i ?,?; r2i ?,?", "y; r1o ?,?; r2o ?,?",
                                  "--state r1i:r1o --state r2i:r2o"),
    "one name of two": ("x; h0; h1", "y 1,9; hn", "--state h1:hn"),
    "names that begin alike": ("x; ema; n 1", "y; ema2; n2 1",
                               "--state ema:ema2 --state n:n2 --input x"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCLEAR)
def test_unclear_states_are_asked_for(name: str) -> None:
    """With candidates and flags, which settle it when they are copied."""
    inputs, outputs, flags = UNCLEAR[name]
    with pytest.raises(Refused, match="which outputs are states is not clear") as caught:
        roles(inputs, outputs)
    line = str(caught.value)
    assert flags in line
    copied, steps = (re.findall(rf"--{flag} ([^\s;]+)", line) for flag in ("state", "input"))
    answered = tuple(each.split(":")[1] for each in copied)
    found = roles(inputs, outputs, states=tuple(copied), inputs=tuple(steps), outputs=answered)
    assert pairs(found) == copied


def test_candidates_are_named_for_each_output() -> None:
    """With shapes, so that one sees why."""
    with pytest.raises(Refused) as caught:
        roles("x 1,3; a; b", "y 1,7; p; q")
    assert "p float32[1, 8] may be the next a or b, q float32[1, 8] may be" in str(caught.value)


def test_inputs_that_are_given_are_no_states() -> None:
    """The rest is found from what remains: the only one of its shape, or none."""
    found = roles("x 1,257; input_3 1,2", "y 1,257; stack 1,2", inputs=("x",))
    assert pairs(found) == ["input_3:stack"]
    assert found.notes == (
        "states found as the only ones of their shape beside --input: input_3:stack",
    )
    found = roles("audio_in; z", "audio_out; w 9", inputs=("z", "audio_in"))
    assert [each.name for each in found.inputs] == ["z", "audio_in"]
    assert found.states == ()
    with pytest.raises(Refused, match="nothing gives the inputs z float32"):
        roles("x; z 3", "y", inputs=("x",))


def test_outputs_are_chosen_and_ordered() -> None:
    """Others are dropped; a state may be an output too, and must be where there is no other."""
    found = roles("x; h", "a; b; h_out", outputs=("b", "a"))
    assert [each.name for each in found.outputs] == ["b", "a"]
    with pytest.raises(Refused, match=r"every output is a state \(h_out\): give --output"):
        roles("x; h", "h_out")
    found = roles("x; h", "h_out", outputs=("h_out",))
    assert pairs(found) == ["h:h_out"]
    assert [each.name for each in found.outputs] == ["h_out"]


def test_an_input_without_axes_may_be_a_constant() -> None:
    """A note says so, unless the operator named it or there is no other input."""
    says = "each step gives low, high; if that never changes, give --constant low=VALUE"
    sides = "x 1,samples; low , ; high ,", "y 1,frames"
    assert says in roles(*sides).notes[-1]
    assert len(roles(*sides, inputs=("x", "low", "high")).notes) == 1
    assert len(roles(*sides, constants={"low": "1", "high": "2"}).notes) == 1
    assert len(roles("low ,", "y").notes) == 1


def test_a_pair_that_is_given_leaves_the_rest_to_be_found() -> None:
    """Also one whose names have colons."""
    found = roles("x:0; a:0; h0", "y:1; b:1; hn", states=("a:0:b:1",))
    assert pairs(found) == ["a:0:b:1", "h0:hn"]
    assert found.notes == ("states found by their names: h0:hn",)


RESTARTS = {
    "no state": ("", "", "", True),
    "zeros of the size of the batch": ("size = Shape (x) start = Expand (zero, size)", "start", "",
                                       True),
    "an input": ("start = Unsqueeze (z, axis)", "start", "", False),
    "what an If gives": ("start = If (yes) <then_branch = a () => (float[1, B, 3] s) "
                         "{ s = Identity (z) }, else_branch = b () => (float[1, B, 3] t) "
                         "{ t = Identity (z) }>", "start", "", False),
    "both directions": ("", "", '<direction = "bidirectional", hidden_size = 3>', False),
}  # fmt: skip


@pytest.mark.parametrize("name", RESTARTS)
def test_layers_that_begin_each_run_from_one_state_are_named(name: str) -> None:
    """Layers that read backwards, too, and those that begin from an input, are none of them."""
    before, start, attributes, is_one = RESTARTS[name]
    graph = parser.parse_graph(
        f"g (float[T, B, 3] x, float[B, 3] z) => (float[T, 1, B, 3] y) {{ {before} "
        f"y = GRU {attributes or '<hidden_size = 3>'} (x, w, r, , , {start}) }}"
    )
    assert find_restarts(graph) == (["GRU of y"] if is_one else [])


FAULTS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "unknown pair": ("x; h", "y; h_out", {"states": ("h:z",)}, "--state h:z: give IN:OUT, one of"),
    "no pair": ("x; h", "y; h_out", {"states": ("h",)}, "its outputs y, h_out"),
    "other axes": ("x; h 4,2", "y; g 8", {"states": ("h:g",)}, r"\[4, 2\] and g float32\[8\] di"),
    "open axes": ("x; h 4,?", "y; g 4,?,1", {"states": ("h:g",)}, "differ in shape"),
    "other shape": ("x; h 4", "y; g 5", {"states": ("h:g",)}, r"h float32\[4\] and g float32\[5\]"),
    "twice": ("x; h; g", "y; z", {"states": ("h:z", "g:z")}, "another flag names z"),
    "state and input": ("x; h", "y; z", {"states": ("h:z",), "inputs": ("h",)}, "flag names h"),
    "input": ("x", "y", {"inputs": ("z",)}, "--input z: the graph has no such input; it has x"),
    "input twice": ("x", "y", {"inputs": ("x", "x")}, "--input x is given twice"),
    "output": ("x", "y", {"outputs": ("z",)}, "--output z: the graph has no such output; it has y"),
    "constant": (
        "x",
        "y",
        {"constants": {"z": "1"}},
        "--constant z: the graph has no such input; it has x",
    ),
    "constant and input": (
        "x; z 1",
        "y",
        {"constants": {"z": "1"}, "inputs": ("x", "z")},
        "--input z: it is a constant",
    ),
    "no input": ("x 1", "y", {"constants": {"x": "1"}}, "every input of the graph is a state or"),
    "rate": ("x; sr ,,int64", "y", {}, "give --constant sr=16000"),
    "growing cache": (
        "x; past_key_values.0.key 1,4,past,8",
        "y; present.0.key 1,4,past+1,8",
        {},
        "grows with each step: axis 2 is past\\+1",
    ),
    "growing to a total": ("x; past_k 1,past_len", "y; present_k 1,total_len", {}, "axis 1 is tot"),
    "other length": ("x; cache 1,4", "y; cache_out 1,5", {}, "a state, which keeps its shape"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_flags_that_cannot_be_are_refused(name: str) -> None:
    """In one line that says what there is, or what to give."""
    inputs, outputs, flags, says = FAULTS[name]
    with pytest.raises(Refused, match=says):
        roles(inputs.replace("sr ,,", "sr , "), outputs, **flags)


CONSTANTS: dict[str, tuple[str, str, Any]] = {
    "scalar": ("sr , int64", "16000", np.array(16000)),
    "float": ("g 1", "1.5", np.array([1.5], np.float32)),
    "whole float": ("n 1 int64", "2.0", np.array([2])),
    "flag": ("on 1,1 bool", "True", np.array([[True]])),
    "open axis": ("n ? int32", "3", np.array([3], np.int32)),
    "fixed axis": ("g 1,3", "2", np.full((1, 3), 2, np.float32)),
    "list": ("g B,2", "[1, 2]", np.array([[1, 2]], np.float32)),
    "half": ("g 1 float16", "0.1", np.array([0.1], np.float16)),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_have_the_dtype_and_axes_of_their_input(name: str) -> None:
    """The input is no longer given with a step."""
    declared, text, expected = CONSTANTS[name]
    found = roles(f"x; {declared}", "y", constants={declared.split()[0]: text})
    (array,) = found.constants.values()
    assert array.dtype == expected.dtype
    assert array.shape == expected.shape
    assert (array == expected).all()
    assert [each.name for each in found.inputs] == ["x"]


def test_a_constant_may_lie_in_a_file(tmp_path: Path) -> None:
    """Of numpy's format, without pickles."""
    np.save(tmp_path / "w.npy", np.arange(3))
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    found = roles("x; w 1,3", "y", constants={"w": str(tmp_path / "w.npy")})
    assert found.constants["w"].tolist() == [[0, 1, 2]]
    for file in ("o.npy", "none.npy"):
        with pytest.raises(Refused, match=rf"--constant w .*{file} is no .npy of a plain array"):
            roles("x; w 1,3", "y", constants={"w": str(tmp_path / file)})


@pytest.mark.parametrize(
    ("declared", "text", "says"),
    [
        ("n 1 int64", "1.5", r"n int64\[1\] cannot hold it"),
        ("n 1 uint8", "300", "cannot hold it"),
        ("n 1 int64", "1e300", "cannot hold it"),
        ("g 1", "1e300", "cannot hold it"),
        ("g 1", "NaN", "cannot hold it"),
        ("n 1 int64", "true", "cannot hold it"),
        ("on 1 bool", "2", "cannot hold it"),
        ("g 1", "sixteen", "give a number, true, false, a list"),
        ("g 1", '"a"', "it must have numbers"),
        ("g 1", "{}", "it must have numbers"),
        ("g 1", "[[1], [1, 2]]", "give a number"),
        ("g 2", "[1, 2, 3]", r"its shape \[3\] does not fit g float32\[2\]"),
        ("g 1", "[[1]]", "does not fit"),
    ],
)
def test_constants_that_do_not_fit_are_refused(declared: str, text: str, says: str) -> None:
    """With the flag, so that one sees which."""
    name = declared.split()[0]
    with pytest.raises(Refused, match=says) as caught:
        roles(f"x; {declared}", "y", constants={name: text})
    assert str(caught.value).startswith(f"--constant {name}={text}")


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; "-" is an input that is not given."""
    names = ["" if each == "-" else each for each in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attributes)


LSTM = node("LSTM", "X W R B - h c", "Y Yh Yc", hidden_size=8)
APART = [
    node("Unsqueeze", "a axes", "h"),
    node("Unsqueeze", "b axes", "c"),
    LSTM,
    node("Squeeze", "Yh axes", "q"),
    node("Squeeze", "Yc axes", "p"),
]
STACKED = [
    node("Split", "s", "s0 s1", axis=-1),
    node("Squeeze", "s0 axes", "h"),
    node("Squeeze", "s1 axes", "c"),
    LSTM,
    node("Unsqueeze", "Yh axes", "u0"),
    node("Unsqueeze", "Yc axes", "u1"),
    node("Concat", "u0 u1", "t", axis=-1),
    node("Sigmoid", "Y", "y"),
]
CACHE = [
    node("Conv", "x w", "f"),
    node("Concat", "k f", "joined", axis=2),
    node("Conv", "joined v", "y"),
    node("Slice", "joined from to", "m"),
]
CELL = [
    node("Squeeze", "s axes", "c"),
    node("Sigmoid", "zi", "i"),
    node("Sigmoid", "zf", "f"),
    node("Tanh", "zg", "g"),
    node("Mul", "f c", "kept"),
    node("Mul", "g i", "fresh"),
    node("Add", "fresh kept", "next"),
    node("Unsqueeze", "next axes", "t"),
]
GATED = [
    node("Sub", "one z", "rest"),
    node("Mul", "rest s", "kept"),
    node("Sigmoid", "zz", "z"),
    node("Tanh", "zn", "n"),
    node("Mul", "z n", "fresh"),
    node("Add", "kept fresh", "t"),
]


def in_if(nodes: list[onnx.NodeProto], *ends: str) -> list[onnx.NodeProto]:
    """An If with the nodes in one branch; its outputs have an N ahead of the names."""
    values = [helper.make_tensor_value_info(each, 1, None) for each in ends]
    branch = helper.make_graph(nodes, "then", [], values)
    other = helper.make_graph([], "else", [], values)
    outputs = " ".join(f"N{each}" for each in ends)
    return [node("If", "condition", outputs, then_branch=branch, else_branch=other)]


CONNECTED: dict[str, tuple[str, str, list[onnx.NodeProto], list[str]]] = {
    "lstm": ("x; a; b", "y; p; q", APART, ["a:q", "b:p"]),
    "x and y as long": ("x; s", "y; t", STACKED, ["s:t"]),
    "in a branch": ("x; s", "Ny; Nt", in_if(STACKED, "y", "t"), ["s:Nt"]),
    "cache": ("x; k", "y; m", CACHE, ["k:m"]),
    "written out lstm": ("x; s", "y; t", CELL, ["s:t"]),
    "written out gru": ("x; s", "y; t", GATED, ["s:t"]),
}


@pytest.mark.parametrize("name", CONNECTED)
def test_nodes_show_the_states(name: str) -> None:
    """Where no name does, whatever the order in the file; a note says so."""
    inputs, outputs, nodes, expected = CONNECTED[name]
    found = roles(inputs, outputs, nodes)
    assert pairs(found) == expected
    assert [each.name for each in found.inputs] == ["x"]
    assert "states found " in found.notes[0]


def test_names_that_the_nodes_contradict_are_asked_about() -> None:
    """No rule decides between them: a swap gives answers that look right."""
    swapped = [
        node("Identity", "h_in", "h"),
        node("Identity", "c_in", "c"),
        LSTM,
        node("Identity", "Yh", "c_out"),
        node("Identity", "Yc", "h_out"),
    ]
    with pytest.raises(Refused, match="may be the next h_in or c_in") as caught:
        roles("x 9; h_in; c_in", "y 9; h_out; c_out", swapped)
    assert "--state h_in:c_out --state c_in:h_out" in str(caught.value)


def caches(first: str, second: str) -> list[onnx.NodeProto]:
    """Two caches, of cache_0 and cache_1, that become these outputs."""
    return [
        node("Concat", "cache_0 x", "j0", axis=2),
        node("Slice", "j0 from to", first),
        node("Concat", "cache_1 x", "j1", axis=2),
        node("Slice", "j1 from to", second),
    ]


def test_caches_that_the_names_swap_are_asked_about() -> None:
    """The graph joins each with new values, and gives it by the other's name."""
    nodes = caches("cache_1_out", "cache_0_out")
    with pytest.raises(Refused, match="states is not clear"):
        roles("x 9; cache_0; cache_1", "y 8; cache_0_out; cache_1_out", nodes)


def test_shifted_numbers_tell_nothing() -> None:
    """cache_1 is beside cache_1_out, and what is left is no pair: the nodes tell, or the operator
    is asked."""
    ends = ("x 9; cache_0; cache_1", "y 8; cache_1_out; cache_2_out")
    found = roles(*ends, caches("cache_1_out", "cache_2_out"))
    assert pairs(found) == ["cache_0:cache_1_out", "cache_1:cache_2_out"]
    with pytest.raises(Refused, match="states is not clear"):
        roles(*ends)


def test_a_pair_that_the_nodes_contradict_is_taken_with_a_note() -> None:
    """The operator decides, and hears of it."""
    found = roles("x; a; b", "y; p; q", APART, states=("a:p", "b:q"))
    assert pairs(found) == ["a:p", "b:q"]
    assert len(found.notes) == 2
    assert found.notes[0].startswith("--state a:p pairs different states")


def test_a_layer_that_runs_twice_contradicts_nothing() -> None:
    """Its second run begins where its first one ended."""
    again = node("LSTM", "X2 W R B - Yh Yc", "Y2 hn cn", hidden_size=8)
    nodes = [node("Identity", "h0", "h"), node("Identity", "c0", "c"), LSTM, again]
    assert pairs(roles("x; h0; c0", "y; hn; cn", nodes)) == ["h0:hn", "c0:cn"]


def test_where_every_input_may_be_a_state_none_is_sure() -> None:
    """A delay has x and y of one shape, and y is a part of what x was joined with."""
    delay = [
        node("Concat", "k x", "joined", axis=1),
        node("Slice", "joined from to", "y"),
        node("Slice", "joined from2 to2", "m"),
    ]
    sides = "x 1,1,8; k 1,3,8", "y 1,1,8; m 1,3,8"
    with pytest.raises(Refused, match=r"--state k:m.*--input x"):
        roles(*sides, delay)
    assert pairs(roles(*sides, delay, inputs=("x",))) == ["k:m"]
