"""Damage with a plan: `mutated(data, rng)` gives bytes with something wrong, the `…_rebuilt` a container with something
wrong inside that its checksums do not show. All from a generator of random numbers, so that a seed gives it again.
"""

import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
import zlib

NUMBERS = [0, 1, 2, 127, 128, 255, 256, *(n for bits in (16, 31, 32, 40, 63, 64) for n in ((1 << bits) - 1, 1 << bits))]
NUMBERS += [-1, -2, -(1 << 31), -(1 << 63)]
VALUES = [None, True, -1, 0, 1.5, float("nan"), float("inf"), 1 << 62, 10**30, "", "x", "ζ\n\x1b[31m", "a" * 5000]
VALUES += [[], {}, [[]], [-1], [1 << 40, 1 << 40], [0], ["3"], {"a": {"b": []}}]
KINDS = ("flip", "flip", "byte", "cut", "number", "delete", "double", "insert", "splice", "fill", "text")
NAMES = ("", "/", "../a.npy", "a" * 60_000, "ζ\n.npy", "x/data.pkl", "features.0.weight.NPY", "data.npy.npy")
CHUNKS = (b"zTXt", b"iTXt", b"tEXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"acTL", b"fdAT", b"abcd")


def mutated(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """One to four kinds of damage."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        size = len(data)
        at = rng.randrange(min(size, rng.choice((40, 400, 1 << 30)))) if size else 0  # most goes wrong in the header
        kind = rng.choice(KINDS)
        if kind == "flip" and size:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == "byte" and size:
            data[at] = rng.choice((0, 255, rng.randrange(256)))
        elif kind == "cut":
            del data[rng.randrange(size + 1) :]
        elif kind == "number":
            form, number = rng.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")), rng.choice(NUMBERS)
            length = struct.calcsize(form)
            data[at : at + length] = struct.pack(form, number % (1 << 8 * length))
        elif kind == "delete":
            del data[at : at + rng.choice((1, 4, 64, 1000))]
        elif kind == "double":
            piece = data[at : at + rng.choice((1, 8, 100, 1000))]
            data[at:at] = piece * rng.choice((1, 2, 30))
        elif kind == "insert":
            data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))
        elif kind == "splice" and other:
            start = rng.randrange(len(other))
            data[at : at + rng.choice((4, 40, 4000))] = other[start : start + rng.choice((4, 40, 4000))]
        elif kind == "fill":
            length = rng.choice((4, 40, 400))
            data[at : at + length] = bytes([rng.choice((0, 255, 40, 91))]) * length
        elif kind == "text":  # a number in a text becomes another, of any length
            digits = [i for i in range(at, min(size, at + 200)) if chr(data[i]).isdecimal()]
            if digits:
                data[digits[0] : digits[0] + 1] = str(rng.choice(NUMBERS)).encode()
    return bytes(data)


def zip_rebuilt(data: bytes, rng: random.Random) -> bytes:
    """The archive with one member damaged, renamed, missing or there twice, and right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    # mostly what describes the rest, not the values
    which = rng.choice([i for i, (name, _) in enumerate(members) if not name.startswith("archive/data/")])
    name, content = members[which]
    kind = rng.choice(("damage",) * 6 + ("name", "gone", "twice", "swap"))
    if kind == "damage":
        members[which] = name, mutated(content, rng)
    elif kind == "name":
        members[which] = rng.choice(NAMES), content
    elif kind == "gone":
        del members[which]
    elif kind == "twice":
        members.append((name, mutated(content, rng)))
    else:
        other = rng.randrange(len(members))
        members[which], members[other] = (name, members[other][1]), (members[other][0], content)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as new:
        for name, content in members:
            new.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def json_damaged(value, rng: random.Random):
    """The structure with one thing in it replaced, renamed or gone."""
    places = [(value, key) for key in (value if isinstance(value, dict) else range(len(value)))]
    for holder, key in places:  # which grows
        inner = holder[key]
        if isinstance(inner, (dict, list)) and len(places) < 3000:
            places += [(inner, k) for k in (inner if isinstance(inner, dict) else range(len(inner)))]
    holder, key = rng.choice(places) if places else ({}, "a")
    if isinstance(holder, dict) and rng.random() < 0.2:
        inner = holder.pop(key, None)
        if rng.random() < 0.5:
            holder[rng.choice(("", "a.b", "ζ", "\n", "x" * 300))] = inner
    else:
        holder[key] = rng.choice(VALUES)
    return value


def safetensors_rebuilt(data: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    text = json.dumps(json_damaged(json.loads(data[8 : 8 + size]), rng)).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def png_rebuilt(data: bytes, rng: random.Random) -> bytes:
    """The picture with a chunk's content damaged, and the right checksum; or with chunks in another order."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    which = rng.randrange(len(chunks))
    kind, content = chunks[which]
    if rng.random() < 0.7:
        chunks[which] = kind, mutated(content, rng)
    elif rng.random() < 0.5:
        chunks[which] = rng.choice(CHUNKS), content
    else:
        rng.shuffle(chunks)
    parts = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    return data[:8] + b"".join(parts)


def gzip_rebuilt(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    return gzip.compress(mutated(gzip.decompress(data), rng, other), 1)


def tarball(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()
