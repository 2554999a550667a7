# SPDX-License-Identifier: Apache-2.0
"""What the second verifier needs beside FORMAT.md: Ed25519 as RFC 8032 writes it down, and C2SP
notes, cosignatures and policies.

Shares no code with `leased`, and is in no hurry.
"""

from __future__ import annotations

import base64
import hashlib


class Broken(Exception):
    """Something does not hold."""


def need(condition: bool, why: str) -> None:
    if not condition:
        raise Broken(why)


# ---- Ed25519, RFC 8032 section 5.1 ----

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def point_add(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    one, two = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    three, four = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = two - one, four - three, four + three, two + one
    return e * f % P, g * h % P, f * g % P, e * h % P


def point_times(scalar: int, point: tuple[int, ...]) -> tuple[int, ...]:
    found: tuple[int, ...] = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            found = point_add(found, point)
        point = point_add(point, point)
        scalar >>= 1
    return found


def point_from(raw: bytes) -> tuple[int, ...] | None:
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


BASE = point_from((4 * pow(5, P - 2, P) % P).to_bytes(32, "little")) or ()


def signature_holds(key: bytes, message: bytes, signature: bytes) -> bool:
    a, r = point_from(key), point_from(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if a is None or r is None or len(signature) != 64 or scalar >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % L
    left, right = point_times(scalar, BASE), point_add(r, point_times(k, a))
    return not (
        (left[0] * right[2] - right[0] * left[2]) % P
        or (left[1] * right[2] - right[1] * left[2]) % P
    )


# ---- C2SP notes ----


def key_id(name: str, kind: int, key: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + key).digest()[:4]


def note_holds(note: str, name: str, key: bytes, kind: int = 1) -> tuple[str, int, bytes]:
    """(origin, size, root) of a checkpoint that carries a signature (kind 1) or a cosignature/v1
    (kind 4) by a key. Raises Broken."""
    text, _, lines = note.rpartition("\n\n")
    origin, size, root, *_ = (text + "\n").split("\n")
    need(size == str(int(size)), "a size in decimal")
    for line in lines.splitlines():
        dash, by, encoded = line.split(" ")
        raw = base64.b64decode(encoded, validate=True)
        if (dash, by, raw[:4]) != ("\u2014", name, key_id(name, kind, key)):
            continue
        message = text.encode() + b"\n"
        if kind == 4:
            seconds = int.from_bytes(raw[4:12], "big")
            message = b"cosignature/v1\ntime %d\n" % seconds + message
        need(signature_holds(key, message, raw[12 if kind == 4 else 4 :]), "a signature of a note")
        return origin, int(size), base64.b64decode(root, validate=True)
    raise Broken("no signature by the key")


# ---- C2SP tlog-policy ----

Witnesses = dict[str, tuple[str, bytes]]
Policy = tuple[Witnesses, dict[str, tuple[int, list[str]]], str, list[tuple[bytes, bytes]]]
"""Witnesses (key name, key) and groups (k, members) by their names, the quorum, and the logs that
are meant (origin, key)."""


def read_key(text: str, kind: int) -> tuple[str, bytes]:
    """Name and key of a `name+keyid+base64` of this type."""
    need(text.count("+") >= 2, "policy: a key")
    name, said, encoded = text.split("+", 2)
    try:
        raw = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise Broken("policy: a key in base64") from None
    need(len(raw) == 33 and raw[0] == kind, f"policy: a key of type {kind:02x}")
    need(base64.b64encode(raw).decode() == encoded, "policy: the one base64 form")
    need(bool(name) and not any(one.isspace() for one in name), "policy: the name of a key")
    need(said == key_id(name, kind, raw[1:]).hex(), "policy: a key id")
    return name, raw[1:]


def least_of(k: str, members: int) -> int:
    """How many of a group, 0 for what says none."""
    named = {"all": members, "any": 1}
    if k in named:
        return named[k]
    return int(k) if k.isascii() and k.isdigit() and k[0] != "0" and len(k) <= 4 else 0


def read_policy(raw: bytes) -> Policy:
    """The file of a C2SP tlog-policy. Raises Broken."""
    witnesses: Witnesses = {}
    groups: dict[str, tuple[int, list[str]]] = {}
    logs, quorums, listed, deep = [], [], set(), {}
    need(not any(one < 32 and one not in b"\t\n" or one == 127 for one in raw), "policy: control")
    for line in raw.decode("latin-1").split("\n"):
        what, *words = [one for one in line.replace("\t", " ").split(" ") if one] or ["#"]
        if what == "witness":
            need(len(words) in (2, 3), "policy: a witness")
            need(words[0] not in deep and words[0] != "none", "policy: a name twice")
            found = read_key(words[1], 4)
            need(found[1] not in [key for _, key in witnesses.values()], "policy: a key twice")
            witnesses[words[0]], deep[words[0]] = found, 0
        elif what == "group":
            need(len(words) >= 3, "policy: a group")
            named, k, *members = words
            need(all(one in deep and one not in listed for one in members), "policy: members")
            need(len(members) == len(set(members)), "policy: a member twice")
            need(1 <= least_of(k, len(members)) <= len(members), "policy: how many of a group")
            need(named not in deep and named != "none", "policy: a name twice")
            deep[named] = 1 + max(deep[one] for one in members)
            need(deep[named] <= 64, "policy: groups in groups")
            listed |= set(members)
            groups[named] = least_of(k, len(members)), members
        elif what == "log":
            need(len(words) in (1, 2), "policy: a log")
            name, key = read_key(words[0], 1)
            need(key not in [one for _, one in logs], "policy: a key twice")
            logs.append((name.encode(), key))
        elif what == "quorum":
            need(len(words) == 1 and (words[0] in deep or words[0] == "none"), "policy: a quorum")
            quorums += words
        else:
            need(what.startswith("#"), "policy: a line of another kind")
    need(len(quorums) == 1, "policy: one quorum")
    return witnesses, groups, quorums[0], logs


def quorum_size(policy: Policy, sizes: dict[str, int], name: str) -> int:
    if name not in policy[1]:
        return sizes.get(name, 0)
    least, members = policy[1][name]
    return sorted((quorum_size(policy, sizes, one) for one in members), reverse=True)[least - 1]
