"""Hostile input: small valid files, thousands of ways to break them, and who tries them out.

A case is a number: with the seed, it says which file or option is broken and how. A long-lived
worker process carries cases out one after the other, because importing TensorFlow takes seconds; it
has a limit of memory and of time, and is replaced when it dies.
"""

import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

SECONDS = 60
ADDRESSES = 4 * 2**30
"""Bytes that a worker may map beside those of its libraries; more is a MemoryError."""

RESIDENT = 2**30
"""Bytes of memory that a case may take, its files being of a few megabytes at the most."""

CASES_EACH = 400
"""Cases after which a worker is replaced: Keras and TensorFlow keep some of each model."""

CODES = {0, 1, 2, 3, 130}

GOOD, TRACEBACK, UNCLEAR, HANG, MEMORY, CRASH = (
    "good",
    "traceback",
    "unclear",
    "hang",
    "memory",
    "crash",
)
BAD = (TRACEBACK, UNCLEAR, HANG, MEMORY, CRASH)


@dataclass(frozen=True)
class Result:
    """What came of a case."""

    number: int
    kind: str
    told: str
    outcome: str
    text: str
    seconds: float


# --- seeds -------------------------------------------------------------------------------------


def make_seeds(folder: Path) -> None:
    """Writes small valid files of all kinds."""
    import keras
    import numpy as np
    from keras import layers

    import exporter
    from exporter.training.checkpoint import Checkpoint, save_checkpoint

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    stack = [
        keras.Input((8, 8, 1), name="image"),
        layers.Conv2D(4, 3, strides=2, activation="relu", name="conv"),
        layers.Flatten(name="flatten"),
        layers.Dense(6, activation="relu", name="dense"),
        layers.Dense(3, activation="softmax", name="out"),
    ]
    model = keras.Sequential(stack, name="tiny")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(folder / "model.h5")
    x = rng.random((24, 8, 8, 1), np.float32)
    y = (np.arange(24) % 3).astype(np.int64)
    arrays = {"x_train": x, "y_train": y, "x_test": x[:12], "y_test": y[:12]}
    np.savez(folder / "data.npz", **arrays)
    np.savez_compressed(folder / "packed.npz", **arrays)
    np.save(folder / "data.npy", x)
    for number, suffix in enumerate(("png", "jpeg", "bmp") * 3):
        file = folder / "images" / f"class{number % 3}" / f"{number}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (10, 12, 3), np.uint8)
        keras.utils.save_img(file, pixels, file_format=suffix, scale=False)
    (folder / "labels.txt").write_text("one\ntwo\nthree\n")
    progress = {"epoch": 1, "step": 0, "total_steps": 2, "loss": 0.5, "samples": 24, "best": 0}
    progress |= {"epochs": [], "seconds": 1.0, "ending": None}
    state = [np.ones((2, 3), np.float32), np.zeros(3, np.float32)]
    save_checkpoint(Checkpoint(state, state, state, progress), folder / "checkpoint.npz")
    plan = {
        "cut": exporter.Recipe().to_dict()["cut"],
        "layers": [{"kind": "Conv2D", "rank": None}, {"kind": "Dense", "rank": 1}],
        "shapes": [[3, 3, 1, 4], [4]],
    }
    (folder / "compressed.plan.json").write_text(json.dumps(plan))
    (folder / "costs.json").write_text(json.dumps({"a" * 32: 1.5, "b" * 32: 2.5}))
    (folder / "recipe.json").write_text(exporter.Recipe().to_json())
    recipe = exporter.Recipe(
        rank=1,
        formats=("all",),
        quantize=("none", "int8"),
        output=str(folder / "run"),
        allow_poor_baseline=True,
    )
    dataset = exporter.load_dataset(str(folder / "data.npz"))
    exporter.run(recipe, model=model, dataset=dataset)


# --- ways to break files -----------------------------------------------------------------------

HUGE = "9" * 5000
DEEP = "[" * 100_000
WORDS: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.0, 1e308, 1e20, 10**8),
    *(float("inf"), float("nan"), "", " ", "x", "\0", "\ud800", "../../etc/passwd", "/dev/zero"),
    *("é" * 300, "a\nb", "9" * 400, [], [[]], {}, {"": None}, [None], {"a": [1, {"b": 2}]}),
)


def broken_bytes(content: bytes, rng: random.Random) -> bytes:
    """Truncates, flips bits, splices, writes runs of zeros or extreme numbers."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data)) if data else 0
        if rng.random() < 0.3:  # Headers are at either end.
            at = min(len(data), rng.choice((rng.randrange(64), max(0, len(data) - 64))))
        size = rng.choice((1, 4, 8, 64, 1000))
        way = rng.randrange(9)
        if way == 0:
            del data[at:]
        elif way == 1 and data:
            at = min(at, len(data) - 1)
            data[at] ^= 1 << rng.randrange(8)
        elif way == 2:
            data[at : at + size] = bytes(min(size, max(0, len(data) - at)))
        elif way == 3:
            data[at:at] = rng.randbytes(size)
        elif way == 4:
            other = rng.randrange(len(data)) if data else 0
            data[at : at + size] = data[other : other + size]
        elif way == 5:
            extreme = rng.choice((0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x10000000, 0))
            data[at : at + 4] = struct.pack("<I", extreme)
        elif way == 6:
            del data[at : at + size]
        elif way == 7:
            data[at : at + size] = rng.randbytes(min(size, max(0, len(data) - at)))
        else:
            data = bytearray() if rng.random() < 0.1 else data + data[at:]
    return bytes(data)


def broken_json(value: Any, rng: random.Random) -> Any:
    """Replaces, removes, renames or repeats a part of a JSON value at any depth."""
    while isinstance(value, (dict, list)) and value:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if not isinstance(value[key], (dict, list)) or not value[key] or rng.random() < 0.25:
            break
        copied = value.copy()
        copied[key] = broken_json(value[key], rng)
        return copied
    else:
        return rng.choice(WORDS)
    copied = value.copy()
    way = rng.randrange(6)
    if way == 0:
        del copied[key]
    elif way == 1 and isinstance(copied, dict):
        copied[str(rng.choice(WORDS))] = copied.pop(key)
    elif way == 2 and isinstance(copied, list):
        copied.extend(copied * rng.choice((1, 50)))
    elif way == 3:
        copied[key] = [copied[key]]
    else:
        copied[key] = rng.choice(WORDS)
    return copied


def broken_text(text: str, rng: random.Random) -> bytes:
    """Breaks JSON by its structure, or by its bytes."""
    way = rng.randrange(12)
    if way == 0:
        return DEEP.encode()
    if way == 1:
        return broken_bytes(text.encode(), rng)
    if way == 2:
        return rng.choice((b"", b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16"), b"\0" * 99))
    if way == 3:
        return text.replace(rng.choice("0123456789"), HUGE, 1).encode()
    if way == 4:
        return (f'{{"a": {DEEP}' + "]" * len(DEEP) + "}").encode()
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 3))):
        value = broken_json(value, rng)
    return json.dumps(value).encode("utf-8", "surrogatepass")


ODD_SHAPES = (
    *("(1000000000000,)", "(-1,)", "(24, -8)", "()", "(0,)", "(24, 8, 8, 1", "(1.5,)", "('a',)"),
    *("(99999999999999999999999999,)", "(2, 4611686018427387904)", f"({'1,' * 99})", "(24,8,8,1)"),
)
ODD_TYPES = (
    *("'<f4'", "'<f8'", "'|O'", "'<M8[s]'", "'<U5'", "'|S3'", "'<c16'", "[('a', '<f4')]", "'|V8'"),
    *("'>f4'", "'<f2'", "'?'", "'<f16'", "'nonsense'", "('<f4', (1000000,))", "None"),
)


def broken_header(content: bytes, rng: random.Random) -> bytes:
    """Writes another header before the numbers of a ``.npy``."""
    text = (
        f"{{'descr': {rng.choice(ODD_TYPES)}, 'shape': {rng.choice(ODD_SHAPES)}, "
        f"'fortran_order': {rng.choice(('False', 'True', '7'))}, }}\n"
    )
    version = rng.choice((1, 2, 3, 9))
    count = rng.choice((len(text), len(text), len(text), 2, 60000))
    size = struct.pack("<H" if version == 1 else "<I", count if rng.random() < 0.9 else 65535)
    end = content.find(b"\n") + 1
    return b"\x93NUMPY" + bytes((version, 0)) + size + text.encode() + content[end:]


def broken_values(content: bytes, rng: random.Random) -> bytes:
    """Puts numbers into an array of floats that no data have."""
    value = rng.choice((1e20, -1e30, 3e38, float("inf"), float("nan"), -float("inf")))
    end, at = content.find(b"\n") + 1, 0
    at = end + 4 * rng.randrange(max(1, (len(content) - end) // 4))
    size = 4 * rng.choice((1, 8, 10_000))
    return content[:at] + struct.pack("<f", value) * (min(size, len(content) - at) // 4)


def broken_npy(content: bytes, rng: random.Random) -> bytes:
    way = rng.choice((broken_bytes, broken_header, broken_header, broken_values))
    return way(content, rng)


Breaker = Callable[[bytes, random.Random], bytes]


def broken_zip(file: Path, rng: random.Random, breakers: dict[str, Breaker]) -> None:
    """Breaks a member by what it holds, or the archive's list of members."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    way = rng.randrange(14)
    extra: list[tuple[str, bytes]] = []
    if way == 0:
        del members[name]
    elif way == 1:
        extra = [(rng.choice(("../evil.npy", "/etc/evil", "readme.txt", "a\0b", "x.npy")), b"hi")]
    elif way == 2:
        extra = [(name, broken_bytes(members[name], rng))]
    elif way == 3:
        members[name] = b""
    else:
        breaker = next((b for end, b in breakers.items() if name.endswith(end)), broken_bytes)
        members[name] = breaker(members[name], rng)
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")  # Of names that are there twice.
        for each, content in [*members.items(), *extra]:
            archive.writestr(each, content)
    if way == 4:  # Encrypted, or so it says.
        content = file.read_bytes()
        file.write_bytes(content.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"))
    if way == 5:
        file.write_bytes(broken_bytes(file.read_bytes(), rng))


def bomb(
    seeds: Path, name: str, head: bytes, fill: bytes = b"\0", *, gigabytes: float = 1.5
) -> Path:
    """Returns an archive with a member of a thousand times its size; it is made once."""
    label = sha256(f"{name}{head!r}{fill!r}{gigabytes}".encode()).hexdigest()[:16]
    file = seeds / f"bomb-{label}.zip"
    if not file.exists():
        block = fill * 2**20
        made = seeds / f"bomb-{label}-{os.getpid()}"
        with (
            zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open(name, "w", force_zip64=True) as member,
        ):
            member.write(head)
            for _ in range(int(gigabytes * 2**10)):
                member.write(block)
        made.replace(file)
    return file


def broken_h5(file: Path, rng: random.Random) -> None:
    """Breaks an HDF5 file by its structure."""
    import h5py
    import numpy as np

    names: list[str] = []
    with h5py.File(file, "r+") as opened:
        opened.visit(names.append)
        name = rng.choice(names) if names else "a"
        way = rng.randrange(10)
        if way in (0, 1, 2, 3, 4):
            if name in opened:
                del opened[name]
            shape: Any = rng.choice(((), (0,), (3, 3), (2**40,), (2**15, 2**15), (3, 3, 1, 4)))
            if way == 0:
                opened[name] = h5py.ExternalLink("/etc/passwd", "/a")
            elif way == 1:
                opened[name] = h5py.SoftLink(rng.choice((f"/{name}", "/", "/nothing")))
            elif way == 2:
                kind = rng.choice(("f4", "i8", h5py.string_dtype(), "S4", "c16", "f2"))
                opened.create_dataset(name, shape, kind, chunks=True if shape else None)
            elif way == 3:
                opened.create_dataset(name, (4,), "f4", external=[("/etc/passwd", 0, 16)])
        elif "model_config" in opened.attrs and way in (5, 6, 7, 8):
            key = rng.choice(("model_config", "model_config", "training_config", "keras_version"))
            text = str(opened.attrs.get(key, "{}"))
            with_json = key != "keras_version"
            content = broken_text(text, rng) if with_json else rng.choice((b"2.11.0", b"", b"x"))
            opened.attrs[key] = np.bytes_(content[:60000])
        else:
            where = opened[name] if names else opened
            for key in list(where.attrs):
                where.attrs[key] = rng.choice((7, "x", np.zeros(3), np.array([b"a", b"b"])))


def broken_weights(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return broken_bytes(content, rng)
    file = Path("inner.h5")
    file.write_bytes(content)
    broken_h5(file, rng)
    content = file.read_bytes()
    file.unlink()
    return content


def as_text(content: bytes, rng: random.Random) -> bytes:
    return broken_text(content.decode(), rng)


KERAS_BREAKERS: dict[str, Breaker] = {".json": as_text, ".h5": broken_weights}


# --- cases -------------------------------------------------------------------------------------

Act = list[str] | Callable[[], Any]


@dataclass(frozen=True)
class Maker:
    """Where a case is made: its random numbers, the seeds; files are written to this folder."""

    rng: random.Random
    seeds: Path

    def copy(self, name: str) -> Path:
        source, target = self.seeds / name, Path(Path(name).name)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
        return target

    def seed(self, name: str) -> str:
        return str(self.seeds / name)

    def rewrite(self, file: Path, breaker: Breaker) -> None:
        file.write_bytes(breaker(file.read_bytes(), self.rng))

    def odd(self, *suffixes: str) -> str:
        """Returns a path that is not what it is taken for."""
        suffix = self.rng.choice((*suffixes, ""))
        way = self.rng.randrange(20)
        name = f"odd{self.rng.randrange(10**9)}{suffix}"
        simple = {
            0: "/dev/zero",
            1: "/dev/null",
            2: "a\0b" + suffix,
            3: "",
            4: "x" * 300 + suffix,
            5: "d/" * 2500 + name,
            6: "/",
            7: ".",
            8: "\udcff" + suffix,
            9: "\ud800" + suffix,
            10: "/proc/self/mem",
            11: self.seed("model.keras") + "/x" + suffix,
            12: "..",
            13: "a\nb" + suffix,
        }
        if way in simple:
            return simple[way]
        if way == 14:
            os.mkfifo(name)
        elif way == 15:
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(name)
        elif way == 16:
            Path(name).symlink_to(name)
        elif way == 17:
            Path(name).symlink_to("/dev/zero")
        elif way == 18:
            Path(name).mkdir()
        else:
            Path("\udcff" + suffix).write_bytes(b"\0" * 100)
            return "\udcff" + suffix
        return name


def options_case(make: Maker) -> Act:
    from exporter.arguments import VERBS

    rng = make.rng
    verb = rng.choice(("run", "compress", "export", "inspect", "verify"))
    options = [o for group in VERBS[verb].options.values() for o in group]
    arguments = [verb, *(["missing.tflite"] if verb == "verify" else []), "missing.keras"]
    for option in rng.sample(options, rng.choice((1, 1, 2))):
        if "action" in option.value.parser and "type" not in option.value.parser:
            arguments.append(option.flag)
            continue
        arguments.append(f"{option.flag}={odd_value(rng)}")
    if rng.random() < 0.1:
        arguments.insert(rng.randrange(len(arguments)), str(rng.choice(WORDS)))
    return arguments


def odd_value(rng: random.Random) -> str:
    numbers = (
        "1e400",
        "1e999",
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1e300GB",
        "1e308%",
        HUGE,
        "٣",
        "½",
    )
    numbers += ("1e-400", "0x10", "1_000", "1e300", "9" * 400, "-0", "+1", "1e5", ".", "1e", "1,1")
    texts = (
        "",
        " ",
        "\0",
        "a\0b",
        "\udcff",
        "\ud800",
        "none",
        "auto",
        "a=1",
        "=1",
        "a=",
        "a=1,a=2",
    )
    texts += (
        "a=1e999",
        f"a={HUGE}",
        "1/2,3",
        "nan,nan",
        "1e999,1",
        "0,0",
        "1,0",
        ",",
        ";",
        "=;=",
        "%",
    )
    texts += (
        "x" * 100_000,
        "a\nb",
        "-",
        "--",
        "image=8,8",
        f"{HUGE},1",
        "digits",
        "\N{MATHEMATICAL DOUBLE-STRUCK DIGIT ONE}",
        "1" + "0" * 308,
    )
    texts += (
        "50us",
        "1e400us",
        "100%",
        "1e-300%",
        "all",
        "tflite,",
        ",tflite",
        "tflite,all",
        "int8",
    )
    return rng.choice((*numbers, *texts))


def real_options_case(make: Maker) -> Act:
    rng = make.rng
    flag = rng.choice(
        (
            "--rank",
            "--energy",
            "--max-params",
            "--max-macs",
            "--size",
            "--seed",
            "--scale",
            "--rank",
        )
    )
    options = ["--data=none", "--output=out", f"{flag}={odd_value(rng)}"]
    return ["compress", make.seed("model.keras"), *options]


def recipe_case(make: Maker) -> Act:
    from exporter import Recipe
    from exporter.recipe import GROUP_OF

    rng = make.rng
    if rng.random() < 0.4:
        text = broken_text((make.seeds / "recipe.json").read_text(), rng)
        return lambda: Recipe.from_json(text.decode("utf-8", "surrogateescape"))
    values = (*WORDS, odd_value(rng), 10**400, b"x", object(), {1: 2}, {"a": 10**400})
    given = {name: rng.choice(values) for name in rng.sample(list(GROUP_OF), rng.choice((1, 2)))}
    return lambda: Recipe(**given).to_json()


def paths_case(make: Maker) -> Act:
    rng, model, data = make.rng, make.seed("model.keras"), make.seed("data.npz")
    run = make.seed("run")
    models, arrays = (".keras", ".h5"), (".npz", ".npy")
    artifacts = (".tflite", ".onnx", ".ort", ".c")
    return rng.choice(
        (
            lambda: ["inspect", make.odd(*models), "--data=none"],
            lambda: ["inspect", model, f"--data={make.odd(*arrays)}"],
            lambda: ["export", model, f"--labels={make.odd('.txt')}", "--output=out"],
            lambda: ["inspect", model, "--data=none", f"--import={make.odd('.py')}"],
            lambda: ["export", "missing.keras", f"--output={make.odd()}"],
            lambda: ["run", make.odd(*models), f"--output={make.odd()}", f"--data={data}"],
            lambda: ["verify", make.odd(*artifacts)],
            lambda: ["verify", make.odd(*artifacts), model],
            lambda: ["verify", f"{run}/model.tflite", make.odd(*models)],
            lambda: ["verify", make.odd(*artifacts), f"--against={run}/manifest.json"],
            lambda: ["verify", f"{run}/model.tflite", f"--against={make.odd('.json')}"],
            lambda: ["verify", f"{run}/model.tflite", model, f"--data={make.odd(*arrays)}"],
        )
    )()


def keras_case(make: Maker) -> Act:
    rng, file = make.rng, make.copy("model.keras")
    chance = rng.random()
    if chance < 0.015:
        which = rng.choice(
            (
                lambda: bomb(make.seeds, "config.json", b'{"a": "', b"a"),
                lambda: bomb(make.seeds, "config.json", b"[", b"[],"),
                lambda: bomb(make.seeds, "model.weights.h5", b"\x89HDF\r\n\x1a\n"),
            )
        )
        shutil.copyfile(which(), file)
        with (
            zipfile.ZipFile(make.seeds / "model.keras") as source,
            zipfile.ZipFile(file, "a") as to,
        ):
            for name in set(source.namelist()) - set(to.namelist()):
                to.writestr(name, source.read(name))
    elif chance < 0.2:
        make.rewrite(file, broken_bytes)
    else:
        broken_zip(file, rng, KERAS_BREAKERS)
    return ["inspect", str(file), "--data=none"]


def old_keras_case(make: Maker) -> Act:
    """A file that claims to be of Keras 2 is translated, which reads its configuration itself."""
    file = make.copy(make.rng.choice(("model.keras", "model.h5")))
    if file.suffix == ".h5":
        import h5py

        with h5py.File(file, "r+") as opened:
            opened.attrs["keras_version"] = "2.12.0"
        broken_h5(file, make.rng)
    else:
        broken_zip(file, make.rng, {**KERAS_BREAKERS, "metadata.json": _as_old})
    return ["inspect", str(file), "--data=none"]


def _as_old(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(
        {**json.loads(content), "keras_version": rng.choice(("2.12.0", 2, [], "1."))}
    ).encode()


def h5_case(make: Maker) -> Act:
    file = make.copy("model.h5")
    if make.rng.random() < 0.4:
        make.rewrite(file, broken_bytes)
    else:
        broken_h5(file, make.rng)
    return ["inspect", str(file), "--data=none"]


def data_case(make: Maker) -> Act:
    rng = make.rng
    file = make.copy(rng.choice(("data.npz", "packed.npz", "data.npy")))
    chance = rng.random()
    if file.suffix == ".npy":
        make.rewrite(file, broken_npy)
    elif chance < 0.01:
        header = (
            b"\x93NUMPY\1\0\x76\0{'descr': '<f4', 'fortran_order': False, 'shape': (402653184,), }"
        )
        shutil.copyfile(bomb(make.seeds, "x.npy", header.ljust(127) + b"\n"), file)
    elif chance < 0.02:
        shutil.copyfile(bomb(make.seeds, "x.npy", b"\x93NUMPY\2\0\xf0\xff\xff\x3f"), file)
    elif chance < 0.2:
        make.rewrite(file, broken_bytes)
    elif chance < 0.3:
        import numpy as np

        odd = (np.array([{}, 1], object), np.array(["a"]), np.zeros(3, "M8[s]"), np.zeros(3, "c8"))
        odd += (np.zeros(2, [("a", "f4")]), np.zeros((0, 3)), np.float32(1), np.zeros((3, 0)))
        with np.load(file) as loaded:
            arrays = {**loaded, rng.choice((*loaded.files, "x", "z_train")): rng.choice(odd)}
        np.savez(file, **arrays)
    else:
        broken_zip(file, rng, {".npy": broken_npy})
    return data_act(make, str(file))


def data_act(make: Maker, path: str) -> Act:
    if make.rng.random() < 0.3:
        return ["inspect", make.seed("model.keras"), f"--data={path}"]

    def act() -> None:
        import exporter

        dataset = exporter.load_dataset(path)
        for part in (dataset.train, dataset.test):
            if part is not None:
                part.read()

    return act


def images_case(make: Maker) -> Act:
    rng, folder = make.rng, make.copy("images")
    files = sorted(folder.glob("*/*"))
    for file in rng.sample(files, rng.choice((1, 1, len(files)))):
        way = rng.randrange(10)
        if way == 0:
            file.write_bytes(b"")
        elif way == 1:
            width = struct.pack(">II", 60000, 60000)  # A header that tells of a huge image.
            file.with_suffix(".png").write_bytes(
                b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width + b"\x08\2\0\0\0" + file.read_bytes()[29:]
            )
        elif way == 2:
            file.unlink()
            odd = make.odd()
            if "\0" not in odd and odd not in ("", "\ud800") and len(odd) < 200:
                file.symlink_to(odd)
        elif way == 3:
            file.rename(file.with_suffix(rng.choice((".gif", ".png", ".jpg", ".txt"))))
        elif way == 4:
            file.rename(file.with_name(rng.choice(("\udcff.png", "a\nb.png", ".png"))))
        elif way == 5:
            file.unlink()
            os.mkfifo(file)
        else:
            make.rewrite(file, broken_bytes)
    return ["inspect", make.seed("model.keras"), f"--data={folder}", "--allow-poor-baseline"]


def labels_case(make: Maker) -> Act:
    file = make.copy("labels.txt")
    make.rewrite(file, broken_bytes)
    from exporter.formats.cards import read_labels

    return lambda: read_labels(str(file))


def _rehashed(run: Path) -> None:
    """Puts the hashes of what is there into a manifest, so that it is looked at."""
    file = run / "manifest.json"
    manifest = json.loads(file.read_text())
    from exporter.formats.base import measure

    for entry in manifest["files"]:
        if (run / entry["path"]).exists():
            entry["sha256"] = measure(run / entry["path"])[1]
    for entry in manifest["artifacts"]:
        if entry["file"] and (run / entry["file"]["path"]).exists():
            entry["file"]["sha256"] = measure(run / entry["file"]["path"])[1]
    file.write_text(json.dumps(manifest))


def _small_run(make: Maker, artifact: str = "model.tflite") -> Path:
    """Copies what proves one artifact of the run."""
    run = Path("run")
    run.mkdir()
    for name in ("manifest.json", "reference.npz", artifact):
        shutil.move(make.copy(f"run/{name}"), run / name)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["artifacts"] = [
        each for each in manifest["artifacts"] if (each["file"] or {}).get("path") == artifact
    ]
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


def manifest_case(make: Maker) -> Act:
    run = _small_run(make)
    make.rewrite(run / "manifest.json", as_text)
    against = ["--against=run/manifest.json"]
    verify = ["verify", *(["run/model.tflite", *against] if make.rng.random() < 0.5 else ["run"])]
    return make.rng.choice(
        (verify, verify, verify, ["export", "missing.keras", "--output=run", "--force"])
    )


def reference_case(make: Maker) -> Act:
    import numpy as np

    run, rng = _small_run(make), make.rng
    file = run / "reference.npz"
    chance = rng.random()
    if chance < 0.5:
        with np.load(file) as loaded:
            arrays = dict(loaded)
        text = broken_text(arrays["description"].tobytes().decode(), rng)
        np.savez(file, **{**arrays, "description": np.frombuffer(text, np.uint8)})
    elif chance < 0.65:
        make.rewrite(file, broken_bytes)
    elif chance < 0.66:
        shutil.copyfile(bomb(make.seeds, "0.npy", b"\x93NUMPY\2\0\xf0\xff\xff\x3f"), file)
    elif chance < 0.8:
        with np.load(file) as loaded:
            arrays = dict(loaded)
        name = rng.choice(list(arrays))
        odd = (np.zeros(0), np.zeros((3, 3)), np.array("x"), np.full(arrays[name].shape, np.nan))
        arrays[name] = rng.choice((*odd, arrays[name][:1], arrays[name].astype("c16")))
        np.savez(file, **arrays)
    else:
        broken_zip(file, rng, {".npy": broken_npy})
    if rng.random() < 0.9:
        _rehashed(run)
    return ["verify", "run"]


def artifact_case(make: Maker) -> Act:
    rng = make.rng
    names = ("model.tflite", "model-int8.tflite", "model.onnx", "model.ort", "c", "saved_model")
    name = rng.choice([n for n in (*names[:4], *names) if (make.seeds / "run" / n).exists()])
    run = _small_run(make, name)
    path = run / name
    inner = (
        path if path.is_file() else rng.choice([p for p in sorted(path.rglob("*")) if p.is_file()])
    )
    if path.is_file() and rng.random() < 0.03:
        inner.write_bytes(b"")
    else:
        make.rewrite(inner, broken_bytes)
    if rng.random() < 0.4:
        return ["verify", str(path), make.seed("run/compressed.keras"), "--data=none"]
    if rng.random() < 0.5:
        return ["verify", str(path), "--against=run/manifest.json"]
    _rehashed(run)
    return ["verify", "run"]


def checkpoint_case(make: Maker) -> Act:
    from exporter.progress import Silent
    from exporter.training.checkpoint import load_checkpoint

    file = make.copy("checkpoint.npz")
    breaker = make.rng.choice((broken_bytes, None))
    if breaker:
        make.rewrite(file, breaker)
    else:
        broken_zip(file, make.rng, {".npy": broken_npy})
    return lambda: load_checkpoint(file, lambda found: found, Silent())


def resumed_case(make: Maker) -> Act:
    """Trains for an epoch, breaks the checkpoint, and goes on from it."""
    import numpy as np

    arguments = [
        "compress",
        make.seed("model.keras"),
        f"--data={make.seed('data.npz')}",
        "--rank=1",
    ]
    arguments += ["--output=out", "--force", "--finetune=1", "--allow-poor-baseline"]
    kept = make.seeds / "trained"
    if not kept.exists():
        _made_checkpoints(arguments, kept)
    shutil.copytree(kept, "artifacts")
    for file in Path("artifacts").rglob("*.npz"):
        if make.rng.random() < 0.3:
            make.rewrite(file, broken_bytes)
        elif make.rng.random() < 0.4:
            broken_zip(file, make.rng, {".npy": broken_npy})
        else:
            with np.load(file) as loaded:
                arrays = dict(loaded)
            broken = broken_text(bytes(arrays["progress"]).decode(), make.rng)
            np.savez(file, **{**arrays, "progress": np.frombuffer(broken, np.uint8)})
    return [*arguments, "--resume"]


def _made_checkpoints(arguments: list[str], kept: Path) -> None:
    """Keeps the checkpoints of a training that ends before it removes them."""
    from exporter.cli import main
    from exporter.training import checkpoint, loop

    save = checkpoint.save_checkpoint

    def save_and_keep(state: Any, file: Path) -> None:
        save(state, file)
        (kept / file.relative_to("artifacts")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, kept / file.relative_to("artifacts"))

    loop.save_checkpoint = save_and_keep
    try:
        main([*arguments, "--quiet"])
    finally:
        loop.save_checkpoint = save
        shutil.rmtree("out", ignore_errors=True)
        shutil.rmtree("artifacts", ignore_errors=True)


def costs_case(make: Maker) -> Act:
    from exporter.targets.layers import read_costs, write_costs

    file = make.copy("costs.json")
    make.rewrite(file, as_text)

    def act() -> None:
        read_costs(file)
        write_costs({"c": 1.0}, file)

    return act


def plan_case(make: Maker) -> Act:
    from exporter import restore

    make.rewrite(make.copy("compressed.plan.json"), as_text)
    Path("compressed.weights.h5").write_bytes(b"x")

    def act() -> None:
        import keras

        restore(keras.saving.load_model(make.seed("model.keras"), compile=False), ".")

    return act


def baseline_case(make: Maker) -> Act:
    """Breaks the cached reference MLP, which is then trained anew."""
    from exporter import Recipe
    from exporter.commands.prepare import load
    from exporter.progress import Silent
    from exporter.training.reference import train_reference

    def act() -> None:
        network, dataset, _ = load(Recipe(data=make.seed("data.npz")), None, None)
        cache = Path("artifacts/cache")
        train_reference(network.model, dataset, seed=0, cache=cache, progress=Silent())

    kept = make.seeds / "baseline"
    if not kept.exists():
        act()
        shutil.move("artifacts", kept)
    shutil.copytree(kept, "artifacts")
    way = make.rng.random()
    for file in Path("artifacts/cache").iterdir():
        if file.suffix == ".json" and way < 0.6:
            make.rewrite(file, as_text)
        elif file.suffix == ".keras" and way > 0.4:
            broken_zip(file, make.rng, KERAS_BREAKERS)
    return act


KINDS: dict[str, tuple[Callable[[Maker], Act], int]] = {
    "options": (options_case, 200),
    "options of a model": (real_options_case, 20),
    "recipe": (recipe_case, 130),
    "paths": (paths_case, 120),
    ".keras": (keras_case, 120),
    ".keras and .h5 of Keras 2": (old_keras_case, 40),
    ".h5": (h5_case, 60),
    ".npz and .npy": (data_case, 120),
    "images": (images_case, 25),
    "labels": (labels_case, 20),
    "manifest": (manifest_case, 40),
    "reference": (reference_case, 40),
    "artifacts": (artifact_case, 60),
    "checkpoint": (checkpoint_case, 30),
    "resumed training": (resumed_case, 6),
    "costs": (costs_case, 20),
    "plan": (plan_case, 15),
    "cached baseline": (baseline_case, 3),
}


def made(seed: int, number: int, seeds: Path, only: str = "") -> tuple[str, Act]:
    """Writes the files of a case to the current folder; returns its kind, and what is to be run."""
    rng = random.Random(f"{seed}-{number}")
    weights = [weight for _, weight in KINDS.values()]
    kind = only or rng.choices(list(KINDS), weights)[0]
    return kind, KINDS[kind][0](Maker(rng, seeds))


# --- the worker --------------------------------------------------------------------------------


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def work(seed: int, seeds: Path, only: str) -> None:
    """Carries out the cases whose numbers come in on standard input, a line each."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    numbers = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    scratch = Path(tempfile.mkdtemp(prefix="hostile-"))
    printed = [scratch / "stdout", scratch / "stderr"]
    for number, file in enumerate(printed, 1):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    import keras
    import onnxruntime  # noqa: F401
    import tensorflow  # noqa: F401

    keras.saving.load_model(seeds / "model.keras")
    limit = _status("VmSize") + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    replies.write("ready\n")
    for line in numbers:
        number, folder = int(line), scratch / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.chdir(folder)
        kind, act = made(seed, number, seeds, only)
        told = repr(act) if callable(act) else " ".join(map(ascii, (a[:200] for a in act)))
        replies.write(json.dumps({"kind": kind, "told": told}) + "\n")
        for fd in (1, 2):
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
        with Path("/proc/self/clear_refs").open("w") as refs:
            refs.write("5")
        before, start = _status("VmRSS"), time.perf_counter()
        code, trace = carried_out(act)
        seconds, grown = time.perf_counter() - start, _status("VmHWM") - before
        sys.stdout.flush()
        sys.stderr.flush()
        text = printed[1].read_text(errors="replace")
        outcome = judged(code, text, trace, grown, quiet=not callable(act))
        if outcome == MEMORY:
            text = f"{grown / 2**20:.0f} MB. {text}"
        replies.write(
            json.dumps({"outcome": outcome, "text": trace or text, "seconds": seconds}) + "\n"
        )
        keras.backend.clear_session(free_memory=False)
    shutil.rmtree(scratch, ignore_errors=True)


def carried_out(act: Act) -> tuple[Any, str]:
    """Returns the exit code, and the traceback of an error that a user would see as one."""
    from exporter.cli import main
    from exporter.errors import ExporterError

    try:
        if not callable(act):
            return main([*act, "--quiet"]), ""
        act()
        return 0, ""
    except ExporterError as error:
        print(f"exporter: error: {error}", file=sys.stderr)
        return error.exit_code, ""
    except SystemExit as end:
        return end.code, ""
    except BaseException:
        return None, traceback.format_exc()


def judged(code: Any, text: str, trace: str, grown: int, *, quiet: bool) -> str:
    """Tells the outcome of a case by its exit code and what it printed to standard error."""
    if grown > RESIDENT or any(
        word in text + trace
        for word in ("MemoryError", "Unable to allocate", "bad_alloc", "OOM when")
    ):
        return MEMORY
    if trace or "Traceback" in text:
        return TRACEBACK
    if code not in CODES:
        return UNCLEAR
    lines = text.splitlines()
    if code in {2, 3}:
        # A clear error is one line, and a sentence.
        clear = len(lines) == 1 and lines[0].startswith("exporter") and ": error: " in lines[0]
        return GOOD if clear else UNCLEAR
    return GOOD if not (quiet and lines) else UNCLEAR


# --- who asks the worker -----------------------------------------------------------------------


@dataclass
class Worker:
    """A process that carries cases out."""

    seed: int
    seeds: Path
    only: str = ""
    done: int = 0
    process: Any = field(default=None, init=False)
    unread: bytes = field(default=b"", init=False)

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}
        code = [sys.executable, "-P", __file__, str(self.seed), str(self.seeds), self.only]
        self.process = subprocess.Popen(
            code,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
            start_new_session=True,
        )
        self.done, self.unread = 0, b""
        if self._line(300) != "ready":
            raise RuntimeError("The worker did not start.")

    def run(self, number: int) -> Result:
        """Carries out a case; a worker that dies of it, or stands still, is replaced."""
        if self.process is None or self.done >= CASES_EACH:
            self.end()
            self.start()
        self.done += 1
        self.process.stdin.write(f"{number}\n".encode())
        start = time.perf_counter()
        first = self._line(300)  # A bomb takes a while to be made.
        case = json.loads(first) if first else {"kind": "?", "told": "was not made"}
        answer = self._line(SECONDS) if first else ""
        if answer:
            return Result(number, **case, **json.loads(answer))
        hung = self.process.poll() is None
        self.end()
        seconds = time.perf_counter() - start
        return Result(number, **case, outcome=HANG if hung else CRASH, text="", seconds=seconds)

    def _line(self, seconds: float) -> str:
        until = time.monotonic() + seconds
        while b"\n" not in self.unread:
            left = max(0, until - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                return ""
            part = self.process.stdout.read(65536)
            if not part:
                self.process.wait()
                return ""
            self.unread += part
        line, _, self.unread = self.unread.partition(b"\n")
        return line.decode()

    def end(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            with self.process:
                pass
            self.process = None


def results(seed: int, numbers: Iterable[int], seeds: Path, only: str = "") -> Iterator[Result]:
    """Carries out cases, one after the other."""
    worker = Worker(seed, seeds, only)
    try:
        for number in numbers:
            yield worker.run(number)
    finally:
        worker.end()


def table(found: Iterable[Result]) -> str:
    """Returns a Markdown table of the outcomes by kind."""
    counts = Counter((result.kind, result.outcome) for result in found)
    rows = [f"| input | cases | {' | '.join(BAD)} |", f"|---|{'---:|' * (1 + len(BAD))}"]
    for kind in [*KINDS, "?"]:
        total = sum(count for (name, _), count in counts.items() if name == kind)
        if total:
            rows.append(f"| {kind} | {total} | {' | '.join(str(counts[kind, o]) for o in BAD)} |")
    total = sum(counts.values())
    every = (str(sum(n for (_, o), n in counts.items() if o == bad)) for bad in BAD)
    return "\n".join([*rows, f"| all | {total} | {' | '.join(every)} |"])


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
