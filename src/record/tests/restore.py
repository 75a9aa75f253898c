#!/usr/bin/env python3
"""restore.py HOLOLIB CATALOG SPACE: restores a catalog as rcc does, and refuses what rcc refuses.

Written from the description of the format alone, and shares no code with what it checks.
"""
import gzip, hashlib, json, os, stat, struct, sys

MASK = (1 << 64) - 1


def siphash128(data, key=b"Very_Random-Seed"):
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d ^ 0xee, k0 ^ 0x6c7967656e657261, k1 ^ 0x7465646279746573]

    def rounds(n):
        a, b, c, d = v
        for _ in range(n):
            a = (a + b) & MASK; b = ((b << 13) | (b >> 51)) & MASK; b ^= a; a = ((a << 32) | (a >> 32)) & MASK
            c = (c + d) & MASK; d = ((d << 16) | (d >> 48)) & MASK; d ^= c
            a = (a + d) & MASK; d = ((d << 21) | (d >> 43)) & MASK; d ^= a
            c = (c + b) & MASK; b = ((b << 17) | (b >> 47)) & MASK; b ^= c; c = ((c << 32) | (c >> 32)) & MASK
        v[:] = a, b, c, d

    whole = len(data) // 8 * 8
    tail = data[whole:].ljust(7, b"\0") + bytes([len(data) & 255])
    for (m,) in struct.iter_unpack("<Q", data[:whole] + tail):
        v[3] ^= m
        rounds(2)
        v[0] ^= m
    v[2] ^= 0xee
    rounds(4)
    low = v[0] ^ v[1] ^ v[2] ^ v[3]
    v[1] ^= 0xdd
    rounds(4)
    return struct.pack("<QQ", low, v[0] ^ v[1] ^ v[2] ^ v[3]).hex()


def blob_path(library, digest):
    return os.path.join(library, digest[0:2], digest[2:4], digest[4:6], digest)


def digests(tree):
    for entry in tree["files"].values():
        yield entry["digest"]
    for entry in tree["subdirs"].values():
        yield from digests(entry)


def permissions(mode):
    assert not mode & ~(0o777 | 1 << 31 | 1 << 23 | 1 << 22 | 1 << 20), oct(mode)
    return mode & 0o777 | (mode >> 23 & 1) << 11 | (mode >> 22 & 1) << 10 | (mode >> 20 & 1) << 9


def content(library, raw, digest):
    data = open(blob_path(library, digest), "rb").read()
    if raw:
        got = siphash128(data)
    else:
        assert data[:10] == bytes.fromhex("1f8b08000000000004ff"), data[:10].hex()
        data = gzip.decompress(data)
        got = hashlib.sha256(data).hexdigest()
    assert got == digest, f"Corrupted hololib, expected {digest}, actual {got}"
    return data


def restore(library, raw, name, tree, path):
    assert list(tree["subdirs"]) == sorted(tree["subdirs"], key=os.fsencode)
    assert list(tree["files"]) == sorted(tree["files"], key=os.fsencode)
    for base, entry in tree["subdirs"].items():
        assert entry["name"] == base and entry["mode"] >> 31 == 1, base
        if "symlink" in entry:
            os.symlink(entry["symlink"], os.path.join(path, base))
            continue
        os.mkdir(os.path.join(path, base), 0o750)
        restore(library, raw, name, entry, os.path.join(path, base))
    for base, entry in tree["files"].items():
        full = os.path.join(path, base)
        assert entry["name"] == base, base
        if "symlink" in entry:
            os.symlink(entry["symlink"], full)
            continue
        data = bytearray(content(library, raw, entry["digest"]))
        assert len(data) == entry["size"], base
        for offset in entry["rewrite"]:
            assert 0 <= offset <= len(data) - len(name), (base, offset)
            data[offset:offset + len(name)] = name
        with open(full + ".part#1", "xb") as out:
            out.write(data)
        os.rename(full + ".part#1", full)
        os.chmod(full, permissions(entry["mode"]))
        os.utime(full, (1610000000, 1610000000))


def main():
    hololib, catalog_name, space = sys.argv[1:]
    library, catalogs = os.path.join(hololib, "library"), os.path.join(hololib, "catalog")
    packed = open(os.path.join(catalogs, catalog_name), "rb").read()
    assert packed[:10] == bytes.fromhex("1f8b08000000000004ff"), packed[:10].hex()
    text = gzip.decompress(packed)
    assert text.endswith(b"}"), "a newline at the end"
    catalog = json.loads(text)
    assert list(catalog) == "rcc identity path controller space platform blueprint lifted tree".split()
    info = json.load(open(os.path.join(catalogs, catalog_name + ".info")))
    assert list(info.items()) == list(catalog.items())[:7], info
    assert catalog_name == f"{catalog['blueprint']}v12.{catalog['platform']}", catalog_name
    # The existence check that real rcc makes before it uses a catalog.
    for digest in digests(catalog["tree"]):
        assert os.path.isfile(blob_path(library, digest)), f"no blob {digest}"
    base, name = os.path.split(space)
    assert os.path.dirname(catalog["path"]) == base, "Base directory mismatch"
    assert len(name) == len(catalog["identity"]) == 24, "Base name length mismatch"
    raw = os.path.exists(os.path.join(catalogs, "compress.no"))
    os.mkdir(space, 0o750)
    restore(library, raw, name.encode(), catalog["tree"], space)


main()
