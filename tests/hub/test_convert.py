"""Published checkpoints, written here under their published names, become models that say the published numbers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import skim
from skim.errors import SkimError
from skim.hub import models
from skim.hub.__main__ import main
from skim.hub.convert import convert
from skim.published import tensorflow

GOLDEN = Path(__file__).parents[1] / "golden"
FUNNEL = json.loads((GOLDEN / "funnel.json").read_text())
ACT = json.loads((GOLDEN / "act.json").read_text())
CASE = "mean_sep1_q1_rel_shift_trunc1"
NET = {
    **{key: FUNNEL["config"][key] for key in ("vocab_size", "d_model", "n_head", "d_head", "d_inner")},
    **{"d_embed": 32, "dropout": 0.1, "dropatt": 0.1, "dropact": 0.0, "block_size": "2_2_2", "pooling_size": 2},
    **{"pooling_type": "mean", "separate_cls": True, "pool_q_only": True},
}
HEADS, SIZE = NET["n_head"], NET["d_head"]


def prefixed(file: str, prefix: str) -> dict[str, Tensor]:
    tensors = load_file(GOLDEN / f"{file}.safetensors")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def published(decoder: bool) -> dict[str, Tensor]:
    """The golden Funnel as the published PyTorch code would have saved it; the decoder, if any, as layers 6 and 7."""
    state = {}
    for name, tensor in prefixed("funnel", "weights.").items():
        part, *rest = name.split(".")
        if part == "embeddings":
            new = "input_layer.0.lookup_table" if rest[0] == "word_embeddings" else f"input_layer.1.{rest[1]}"
            state[new] = tensor
            continue
        if part == "decoder" and not decoder:
            continue
        number = 2 * int(rest[1]) + int(rest[2]) if part == "encoder" else 6 + int(rest[1])
        half, *end = rest[3:] if part == "encoder" else rest[2:]
        if half == "ffn":
            new = {"linear_1": "pffn.0", "linear_2": "pffn.3"}.get(end[0], end[0])
            state[f"pffn_layers.{number}.{new}.{end[1]}"] = tensor.T if tensor.dim() == 2 else tensor
            continue
        if end[0] == "post_proj" and end[1] == "weight":
            tensor = tensor.T.reshape(HEADS, SIZE, -1)
        elif end[0].endswith("_head"):
            tensor = tensor.T.reshape(-1, HEADS, SIZE) if end[1] == "weight" else tensor.reshape(HEADS, SIZE)
        state[f"attn_layers.{number}.{'.'.join(end)}"] = tensor
    return {name: tensor.contiguous() for name, tensor in state.items()}


def tensorflow_name(name: str) -> str:
    """The other published code's name of the same parameter."""
    part, number, *rest = name.split(".")
    if part == "input_layer":
        end = {"lookup_table": "word_embedding/lookup_table", "weight": "layer_norm/gamma", "bias": "layer_norm/beta"}
        return f"model/input/{end[rest[0]]}"
    stack = f"model/{'encoder' if int(number) < 6 else 'decoder'}/layer_{number}"
    if part == "pffn_layers" and rest[0] == "pffn":
        return f"{stack}/ff/layer_{'1' if rest[1] == '0' else '2'}/{'kernel' if rest[2] == 'weight' else 'bias'}"
    half = "ff" if part == "pffn_layers" else "rel_attn"
    if rest[0] == "layer_norm":
        return f"{stack}/{half}/layer_norm/{'gamma' if rest[1] == 'weight' else 'beta'}"
    if rest[0] == "r_kernel":
        return f"{stack}/rel_attn/r/kernel"
    if len(rest) == 1:
        return f"{stack}/rel_attn/{rest[0]}"
    letter = {"q_head": "q", "k_head": "k", "v_head": "v", "post_proj": "o"}[rest[0]]
    return f"{stack}/rel_attn/{letter}/{'kernel' if rest[1] == 'weight' else 'bias'}"


# --- a writer of TensorFlow's format, from its description ------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def message(*pairs: tuple[int, int | bytes]) -> bytes:
    out = b""
    for number, value in pairs:
        if isinstance(value, bytes):
            out += varint(number << 3 | 2) + varint(len(value)) + value
        else:
            out += varint(number << 3) + varint(value)
    return out


def block(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Keys share their beginnings, with a restart every 16."""
    out, restarts, before = b"", [], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % 16 == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return out + b"".join(struct.pack("<I", r) for r in restarts or [0]) + struct.pack("<I", len(restarts or [0]))


def write_tensorflow(prefix: Path, state: dict[str, Tensor]) -> None:
    """Two blocks of entries, and an integer that is no weight."""
    data, pairs = b"", [(b"", message((1, 1)))]
    for name, tensor in sorted({**state, "global_step": torch.tensor(7)}.items()):
        raw = tensor.numpy().tobytes()
        shape = message(*((2, message((1, size))) for size in tensor.shape))
        kind = 1 if tensor.is_floating_point() else 9
        entry = message((1, kind), (2, shape), (4, len(data)), (5, len(raw))) + varint(6 << 3 | 5) + bytes(4)
        pairs.append((name.encode(), entry))
        data += raw
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)
    table, handles = b"", []
    half = len(pairs) // 2
    for some in (pairs[:half], pairs[half:]):
        content = block(some)
        handles.append((some[-1][0], varint(len(table)) + varint(len(content))))
        table += content + bytes(5)
    places = []
    for content in (block([]), block(handles)):
        places.append(varint(len(table)) + varint(len(content)))
        table += content + bytes(5)
    footer = b"".join(places).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    Path(f"{prefix}.index").write_bytes(table + footer)


# --- Funnel -----------------------------------------------------------------------------------------------------------


def funnel_folder(folder: Path, kind: str, **net: Any) -> Path:
    """What one unpacks: weights, config and vocabulary."""
    folder.mkdir()
    (folder / "vocab.uncased.txt").write_text(
        "".join(f"{word}\n" for word in ["<pad>", "<unk>", "<cls>", "<sep>", "a"])
    )
    if kind == "pytorch":
        (folder / "net_config.pytorch.json").write_text(json.dumps(NET | net))
        torch.save(published(decoder=False), folder / "model.pt")
    else:
        (folder / "net_config.json").write_text(json.dumps(NET | net | {"decoder_size": "2", "rel_attn_type": "x"}))
        state = {tensorflow_name(name): tensor for name, tensor in published(decoder=True).items()}
        adam = {f"{name}/adam_m": tensor * 0 for name, tensor in state.items()}
        generator = {"generator/encoder/layer_0/ff/layer_1/bias": torch.ones(3)}
        write_tensorflow(folder / "model.ckpt", state | adam | generator)
    return folder


@pytest.mark.parametrize(("kind", "name"), [("pytorch", "base"), ("tensorflow", "full")])
def test_funnel(kind: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Through the command line, into a folder that transformers loads; under skim it says the published numbers."""
    source = funnel_folder(tmp_path / "in", kind)
    main(["convert", str(source), str(tmp_path / "out")])
    assert "tokenizer" in capsys.readouterr().out
    model = transformers.AutoModel.from_pretrained(tmp_path / "out")
    if name == "base":
        model = transformers.FunnelBaseModel.from_pretrained(tmp_path / "out")
    inputs = prefixed("funnel", f"inputs.{FUNNEL['cases'][CASE]['inputs']}.")
    with torch.no_grad():
        found = skim.compress(model, "dense")(**inputs).last_hidden_state
    torch.testing.assert_close(found, prefixed("funnel", f"outputs.{CASE}.")[name], atol=1e-5, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("a a")["input_ids"] == [2, 4, 4, 3]


def test_funnel_with_a_head_and_repeated_layers(tmp_path: Path) -> None:
    source = funnel_folder(tmp_path / "in", "pytorch", block_size="2_2x2_2")
    state = published(decoder=False)
    head = {
        "cls_head.0.weight": torch.rand(32, 32),
        "cls_head.0.bias": torch.rand(32),
        "cls_head.3.weight": torch.rand(32, 5),
        "cls_head.3.bias": torch.rand(5),
    }
    torch.save(state | head, source / "model.pt")
    convert(source, tmp_path / "out")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.block_repeats == [1, 2, 1]
    with torch.no_grad():
        hidden = torch.rand(3, 32)
        wanted = torch.tanh(hidden @ head["cls_head.0.weight"] + head["cls_head.0.bias"])
        wanted = wanted @ head["cls_head.3.weight"] + head["cls_head.3.bias"]
        torch.testing.assert_close(model.classifier(hidden), wanted)


# --- ALBERT-ACT -------------------------------------------------------------------------------------------------------


def act_folder(folder: Path, **told: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(ACT["config"] | {"architectures": ["AlbertActModel"]} | told))
    torch.save(prefixed("act", "main.weights."), folder / "pytorch_model.bin")
    return folder


def test_albert_act(tmp_path: Path) -> None:
    """What comes out loads with its method and says the published numbers."""
    source = act_folder(tmp_path / "in")
    main(["convert", str(source), str(tmp_path / "out"), "--preset", "tiny"])
    model = skim.from_pretrained(tmp_path / "out")
    inputs, wanted = prefixed("act", "inputs."), prefixed("act", "main.outputs.")
    with torch.no_grad():
        found = model(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[real], wanted["last_hidden_state"][real], atol=1e-5, rtol=0)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_refusals(tmp_path: Path) -> None:
    funnel, act = funnel_folder(tmp_path / "funnel", "pytorch"), act_folder(tmp_path / "act")
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    for source, preset, words in (
        (funnel, "tiny", "for ALBERT-ACT"),
        (act, None, "--preset"),
        (act, "small", "12 updates"),
        (empty, None, "no checkpoint"),
    ):
        with pytest.raises(SkimError, match=words):
            convert(source, out, preset)
    with pytest.raises(SkimError, match="not empty"):
        convert(funnel, act)
    (funnel / "net_config.pytorch.json").write_text(json.dumps(NET | {"block_size": "2_2_4"}))
    with pytest.raises(SkimError, match="missing"):
        convert(funnel, out)
    (funnel / "net_config.pytorch.json").write_text(json.dumps(NET | {"block_size": "2_2"}))
    with pytest.raises(SkimError, match="not known"):
        convert(funnel, out)
    (funnel / "net_config.pytorch.json").write_text(json.dumps(NET | {"d_embed": 16}))
    with pytest.raises(SkimError, match="another width"):
        convert(funnel, out)
    (funnel / "model.pt").unlink()
    (funnel / "net_config.pytorch.json").write_text(json.dumps(NET))
    with pytest.raises(SkimError, match="no weights"):
        convert(funnel, out)
    assert not out.exists()
    with pytest.raises(SkimError, match="convert <in> <out>"):
        main(["convert", str(funnel)])


NO_JSON, NO_DICT = "{", "[]"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("net_config.pytorch.json", NO_JSON, "cannot be read as JSON"),
        ("net_config.pytorch.json", NO_DICT, "holds no mapping"),
        ("net_config.pytorch.json", json.dumps({"d_model": 32}), "lacks vocab_size, n_head"),
        ("net_config.pytorch.json", json.dumps(NET | {"n_head": None}), "n_head=None"),
        ("net_config.pytorch.json", json.dumps(NET | {"block_size": "2_x"}), "such as 4_4_4"),
        ("net_config.pytorch.json", json.dumps(NET | {"pooling_type": "sum"}), "pooling_type"),
        ("model.pt", "no weights", "cannot be read"),
        ("config.json", NO_JSON, "cannot be read as JSON"),
        ("config.json", json.dumps({"act_epsilon": None}), "act_epsilon=None"),
        ("config.json", json.dumps({"architectures": [3]}), "is of 3"),
        ("model.safetensors", "no weights", "cannot be read"),
        ("pytorch_model.bin", "no weights", "cannot be read"),
    ],
)
def test_broken_files(file: str, content: str, says: str, tmp_path: Path) -> None:
    act = file in ("config.json", "model.safetensors", "pytorch_model.bin")
    source = act_folder(tmp_path / "in") if act else funnel_folder(tmp_path / "in", "pytorch")
    (source / file).write_text(content)
    with pytest.raises(SkimError, match=says) as caught:
        convert(source, tmp_path / "out", "tiny" if act else None)
    assert len(str(caught.value).splitlines()) <= 3
    assert not (tmp_path / "out").exists()


def test_other_weights_than_a_funnels(tmp_path: Path) -> None:
    source = funnel_folder(tmp_path / "in", "pytorch")
    for state, says in (
        ({"weight": torch.rand(2)}, "does not belong to a published Funnel"),
        ({"attn_layers.0.q_head.weight": torch.rand(())}, "does not belong to a published Funnel"),
        ({"decoder.x": torch.rand(2)}, "does not belong to a published Funnel"),
        ({"model": {"weight": torch.rand(2)}}, "something else than tensors"),
        (torch.rand(2), "something else than tensors"),
    ):
        torch.save(state, source / "model.pt")
        with pytest.raises(SkimError, match=says):
            convert(source, tmp_path / "out")


def test_names_of_folders(tmp_path: Path) -> None:
    source, file = act_folder(tmp_path / "in"), tmp_path / "file"
    file.touch()
    for target in (file, file / "out"):
        with pytest.raises(SkimError, match="file is a file; name a new folder"):
            convert(source, target, "tiny")
    for wrong in (file, tmp_path / "nowhere"):
        with pytest.raises(SkimError, match="is not a folder"):
            convert(wrong, tmp_path / "out", "tiny")


def test_the_usual_names_come_first(tmp_path: Path) -> None:
    """What a trainer left beside the weights is not taken for them; no architecture is the plain model."""
    source = act_folder(tmp_path / "in", architectures=None)
    torch.save({"lr": torch.rand(1)}, source / "optimizer.bin")
    assert "AlbertModel" in convert(source, tmp_path / "out", "tiny")


def test_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setattr(models, "problem_with", lambda *_: "cannot be reached")
    with pytest.raises(SkimError, match="Model asi/albert-act-tiny was found nowhere") as caught:
        main(["convert", "asi/albert-act-tiny", str(tmp_path / "out"), "--preset", "tiny"])
    assert "hub fetch" not in str(caught.value)  # which fills the mirror with what can be trained at once
    (tmp_path / "mirror/models/asi").mkdir(parents=True)
    act_folder(tmp_path / "mirror/models/asi/albert-act-tiny")
    main(["convert", "asi/albert-act-tiny", str(tmp_path / "out"), "--preset", "tiny"])
    assert skim.from_pretrained(tmp_path / "out").method.preset == "tiny"


def test_no_pickle_runs(tmp_path: Path) -> None:
    source = funnel_folder(tmp_path / "in", "pytorch")
    torch.save({"x": Path("/")}, source / "model.pt")
    with pytest.raises(SkimError, match="more than tensors"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("damage", ["data", "magic", "cut"])
def test_broken_tensorflow_checkpoints(damage: str, tmp_path: Path) -> None:
    prefix = tmp_path / "model.ckpt"
    write_tensorflow(prefix, {"model/a": torch.rand(3, 2), "model/b": torch.rand(())})
    shapes = {name: tuple(x.shape) for name, x in tensorflow.read(prefix).items()}
    assert shapes == {"model/a": (3, 2), "model/b": (), "global_step": ()}
    data, index = Path(f"{prefix}.data-00000-of-00001"), Path(f"{prefix}.index")
    if damage == "data":
        data.unlink()
    elif damage == "magic":
        index.write_bytes(index.read_bytes()[:-1] + b"!")
    else:
        data.write_bytes(data.read_bytes()[:9])
    with pytest.raises(SkimError, match="not whole" if damage == "data" else "broken"):
        tensorflow.read(prefix)
