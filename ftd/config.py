"""
The configuration: a strict INI file, or JSON for pairs created at run time, into frozen attrs values.

Strict means that whatever is not understood is an error that names its section and key; nothing is skipped.  A reader
does not stop at the first error, so that ``--check`` shows all of them.

The keys themselves are declared in :mod:`ftd.config_keys`, whose names are to be imported from here.
"""

from __future__ import annotations

import difflib
import os.path
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from ftd.config_endpoints import (
    DIALLED_EXAMPLE,
    LISTENING_EXAMPLE,
    Listener,
    TcpAddress,
    UnixAddress,
    collisions,
    dialled,
    listening,
)
from ftd.config_ini import read_sections, read_text
from ftd.config_keys import (
    API_KEYS,
    FTD_KEYS,
    NAME,
    PAIR_KEYS,
    Ack,
    ApiConfig,
    ByteOrder,
    Config,
    PairConfig,
    Peer,
    Role,
    Sink,
    Source,
)
from ftd.config_link import missing_for_tls
from ftd.config_tls import tls_problems
from ftd.config_values import BadValue, Key, printable
from ftd.config_vm import (
    MOST_NETS,
    NET_ID_PATTERN,
    Dirty,
    Encoding,
    NetConfig,
    NetText,
    PathText,
    SecondaryLoss,
)
from ftd.errors import ConfigError

__all__ = [
    "API_KEYS",
    "FTD_KEYS",
    "PAIR_KEYS",
    "Ack",
    "ApiConfig",
    "ByteOrder",
    "Config",
    "Dirty",
    "Encoding",
    "NetConfig",
    "PairConfig",
    "Peer",
    "Role",
    "SecondaryLoss",
    "Sink",
    "Source",
    "check_listening",
    "load",
    "pair_from_ini",
    "pair_from_mapping",
    "pair_schema",
    "pair_to_ini",
    "problems",
]

_ENDPOINT_KEY = re.compile(r"endpoint(?:-([2-9]|[1-9][0-9]{1,3}))?")
_PAIR_TITLE = re.compile(r"pair ([^ ].*)")

# Keys whose values depend on each other: the first has to be at most the second, or less where the third says so.
# Only a primary cuts frames, so a secondary may leave frame-size alone whatever its other limits are.
_RELATIONS = (
    ("frame-size", "max-payload", False, Role.PRIMARY),
    ("frame-size", "buffer-limit", False, Role.PRIMARY),
    ("heartbeat", "dead-time", True, None),
)


def load(path: str) -> Config:
    """
    Read and check a configuration file.

    :raises ConfigError: the first of the :func:`problems`.
    """
    config, found = _read(Path(os.path.abspath(path)))
    if config is None:
        raise found[0]
    return config


def problems(path: str) -> list[ConfigError]:
    """Everything that is wrong with a configuration file; empty where :func:`load` would succeed."""
    _config, found = _read(Path(os.path.abspath(path)))
    return found


def pair_from_mapping(section: str, values: Mapping[str, object], base: Path | None = None) -> PairConfig:
    """
    A pair from the keys of its section.

    :param section: the name in the section's title and in URLs.
    :param values: by key; each as in an INI file, or as JSON.
    :param base: the directory that relative paths start from; they are an error where this is ``None``, and so are
        keys that only a file may have.
    :raises ConfigError: the first thing that is wrong, with its key, which is ``pair`` for the section's name.
    """
    found: list[ConfigError] = []
    config = _read_pair(section, values, base, found, [])
    if config is None:
        first = found[0]
        # Wrong with the section as a whole is its name, which a mapping has under this key.
        raise first if first.key else ConfigError(first.detail, first.section, "pair")
    return config


def pair_to_ini(config: PairConfig) -> str:
    """The pair as a section of a configuration file: the keys that have to be there, and those not at their default."""
    bare = PairConfig(section=config.section, role=config.role, link=config.link)
    lines = [f"[pair {config.section}]"]
    for key in PAIR_KEYS.values():
        value = getattr(config, key.attribute)
        if key.family:
            lines += (f"{key.family}{member.id} = {key.kind.show(member)}" for member in value)
        elif key.required or (key.only in ("", config.role) and value != getattr(bare, key.attribute)):
            lines.append(f"{key.name} = {key.kind.show(value)}")
    return "\n".join(lines) + "\n"


def pair_from_ini(text: str) -> PairConfig:
    """
    The pair in a text that :func:`pair_to_ini` made.

    :raises ConfigError: the first thing that is wrong with it.
    """
    found: list[ConfigError] = []
    sections = read_sections(text, found)
    match = _PAIR_TITLE.fullmatch(next(iter(sections))) if len(sections) == 1 else None
    if found or match is None:
        raise found[0] if found else ConfigError("is not one [pair NAME] section")
    return pair_from_mapping(match[1], sections[match[0]])


def pair_schema() -> dict[str, Any]:
    """
    The JSON Schema of a pair that is created at run time: its keys, and ``pair`` for what would be the section's name.

    Either of ``pair`` and ``name`` does for both.
    """
    properties: dict[str, Any] = {"pair": {**NAME.schema(), "description": "The name of the pair in URLs."}}
    families = {}
    for key in PAIR_KEYS.values():
        if key.in_file:
            continue
        default = {"default": key.kind.plain(key.default)} if key.has_plain_default else {}
        described = {**key.kind.schema(), "description": key.description, **default}
        if key.family:
            families[f"^{key.family}{NET_ID_PATTERN}$"] = described
        else:
            properties[key.name] = described
    return {
        "type": "object",
        "properties": properties,
        "patternProperties": families,
        "required": [key.name for key in PAIR_KEYS.values() if key.required],
        "anyOf": [{"required": ["pair"]}, {"required": ["name"]}],
        "additionalProperties": False,
    }


def check_listening(pairs: Iterable[PairConfig], api_endpoints: Iterable[str]) -> None:
    """
    Check that no two secondaries, and no secondary and the API, listen on one address, and that no two VMs share what
    only one can have: a QMP socket, the socket of a NIC, a tap device.

    :raises ConfigError: at the later of the two, telling where the earlier one is.
    """
    keys = (f"endpoint-{number}" if number > 1 else "endpoint" for number in range(1, 10_000))
    api = [Listener("api", key, listening(text, None).address) for key, text in zip(keys, api_endpoints, strict=False)]
    claimed: list[Listener] = []
    for pair in pairs:
        where = f"pair {pair.section}"
        if pair.role is Role.SECONDARY:
            claimed.append(Listener(where, "link", listening(pair.link, None).address))
        claimed += _claims_of_vm(where, pair.qemu_qmp, pair.qemu_nets)
    for error in _collisions([*api, *claimed]):
        raise error


def _claims_of_vm(where: str, qmp: str, nets: Iterable[NetConfig]) -> list[Listener]:
    """What of a VM no other pair can have."""
    claims = [Listener(where, "qemu-qmp", UnixAddress(qmp), dials=True)] if qmp else []
    for net in nets:
        claims += net.claims(where)
    return claims


def _collisions(listeners: Iterable[Listener]) -> Iterator[ConfigError]:
    for later, earlier in collisions(listeners):
        both_pairs = later.section.startswith("pair ") and earlier.section.startswith("pair ")
        are_two = both_pairs and later.section != earlier.section
        what = "port" if isinstance(later.address, TcpAddress) else str(later.address).rpartition(" ")[0]
        does = "uses it" if earlier.dials else "listens there"
        yield ConfigError(
            f"{later.address} is taken: [{earlier.section}] {earlier.key} {does} already"
            + (f" (two pairs on one {what})" if are_two else ""),
            later.section,
            later.key,
        )


def _read(path: Path) -> tuple[Config | None, list[ConfigError]]:
    """A file and all that is wrong with it; a configuration only where nothing is."""
    found: list[ConfigError] = []
    try:
        sections = dict(read_sections(read_text(path), found))
    except ConfigError as error:
        return None, [error]
    base = path.parent
    values = _convert(FTD_KEYS, "ftd", sections.pop("ftd", {}), found)
    if "state_dir" in values:
        values["state_dir"] = Path(os.path.abspath(base / values["state_dir"]))
    listeners: list[Listener] = []
    api = _read_api(sections.pop("api", {}), base, found, listeners)
    pairs: dict[str, PairConfig] = {}
    for title, given in sections.items():
        match = _PAIR_TITLE.fullmatch(title)
        if match is None:
            found.append(ConfigError(_unknown("section", title, ("ftd", "api", "pair NAME")), printable(title)))
            continue
        pair = _read_pair(match[1], given, base, found, listeners)
        if pair is not None:
            pairs[pair.section] = pair
            found += tls_problems(pair)
    found += _collisions(listeners)
    config = Config(path=path, api=api, pairs=pairs, **values)
    if len(pairs) > config.pairs_limit:
        found.append(ConfigError(f"the file has {len(pairs)} pairs, more than that", "ftd", "pairs-limit"))
    return (None if found else config), found


def _read_api(given: Mapping[str, str], base: Path, found: list[ConfigError], listeners: list[Listener]) -> ApiConfig:
    """
    The ``[api]`` section.

    :param found: gets what is wrong with it; that is then left out.
    :param listeners: gets where it listens.
    """
    numbered = sorted((int(match[1] or 1), key) for key in given if (match := _ENDPOINT_KEY.fullmatch(key)))
    addresses = {key: given[key] for _number, key in numbered}
    values = _convert(API_KEYS, "api", {key: value for key, value in given.items() if key not in addresses}, found)
    declared = API_KEYS["endpoint"]
    texts = []
    for key, text in (addresses or {declared.name: declared.default[0]}).items():
        try:
            endpoint = listening(declared.kind.parse(text), base)
            if not endpoint.address.is_local():
                raise BadValue("has to be a unix socket or a loopback address, as this version has no access control")
        except BadValue as bad:
            found.append(ConfigError(f"{bad}; for example {key} = {declared.example}", "api", key))
        else:
            texts.append(endpoint.text)
            listeners.append(Listener("api", key, endpoint.address))
    return ApiConfig(endpoints=tuple(texts), **values)


def _read_pair(
    section: str,
    given: Mapping[str, object],
    base: Path | None,
    found: list[ConfigError],
    listeners: list[Listener],
) -> PairConfig | None:
    """
    A ``[pair …]`` section, unless there is something wrong with it.

    :param found: gets what is wrong with it.
    :param listeners: gets where it listens, if it does, whatever else may be wrong.
    """
    before = len(found)
    where = f"pair {printable(section)}"
    try:
        NAME.parse(section)
    except BadValue as bad:
        found.append(ConfigError(str(bad), where))
    families, single = _families(given)
    values = _convert(PAIR_KEYS, where, single, found, base)
    values |= {key.attribute: _read_nets(key, where, members, found, base) for key, members in families}
    found += (
        ConfigError(f"is missing; for example {key.name} = {key.example}", where, key.name)
        for key in PAIR_KEYS.values()
        if key.required and key.name not in given
    )
    role: Role | None = values.get("role")
    if role is not None:
        found += _out_of_place(where, role, given, values)
        if "link" in values:
            dials = role is Role.PRIMARY
            try:
                link = (dialled if dials else listening)(values["link"], base)
            except BadValue as bad:
                example = DIALLED_EXAMPLE if dials else LISTENING_EXAMPLE
                found.append(ConfigError(f"{bad}; for example link = {example}", where, "link"))
            else:
                values["link"] = link.text
                found += missing_for_tls(where, given, isinstance(link.address, TcpAddress) if dials else None)
                if not dials:
                    listeners.append(Listener(where, "link", link.address))
    listeners += _claims_of_vm(where, values.get("qemu_qmp", ""), values.get("qemu_nets", ()))
    if base is None:
        found += (
            ConfigError("can stand in the configuration file only: it names a program to run", where, key.name)
            for key in PAIR_KEYS.values()
            if key.in_file and key.name in given
        )
    found += _relations(where, role, given, values)
    return PairConfig(section=section, **values) if len(found) == before else None


def _families(given: Mapping[str, object]) -> tuple[list[tuple[Key, dict[str, object]]], dict[str, object]]:
    """The keys that are told by how they begin, by what they belong to; and all others."""
    single = dict(given)
    families = []
    for key in PAIR_KEYS.values():
        members = {name: single.pop(name) for name in given if key.family and name.startswith(key.family)}
        if members:
            families.append((key, members))
    return families, single


def _read_nets(
    key: Key, where: str, given: Mapping[str, object], found: list[ConfigError], base: Path | None
) -> tuple[NetConfig, ...]:
    """The NICs that the keys of a section have, by their IDs; what is wrong with any goes to ``found``."""
    nets = []
    for name, raw in given.items():
        id = name.removeprefix(key.family)
        if not re.fullmatch(NET_ID_PATTERN, id):
            detail = f"{key.name} has an ID of 1 to 32 letters, digits, '_', '.' and '-', a letter or a digit first"
            found.append(ConfigError(detail, where, printable(name)))
            continue
        try:
            net: NetConfig = _value(key, raw, base)
        except BadValue as bad:
            found.append(ConfigError(f"{bad}; for example {name} = {key.example}", where, name))
        else:
            nets.append(attrs.evolve(net, id=id))
    if len(nets) > MOST_NETS:
        found.append(ConfigError(f"there are {len(nets)} of them, {MOST_NETS} can be", where, key.name))
    return tuple(sorted(nets, key=lambda net: net.id))


def _out_of_place(
    where: str, role: Role, given: Mapping[str, object], values: Mapping[str, Any]
) -> Iterator[ConfigError]:
    """Keys that this pair cannot have, or that one with a VM has to have."""
    origin = PAIR_KEYS["source" if role is Role.PRIMARY else "sink"]
    # One that was found wrong before may have been meant to be qemu.
    is_known = origin.name not in given or origin.attribute in values
    chosen = values.get(origin.attribute, origin.default)
    has_vm = chosen in (Source.QEMU, Sink.QEMU)
    for key in PAIR_KEYS.values():
        names = [name for name in given if name == key.name or (key.family and name.startswith(key.family))]
        for name in names:
            if key.only not in ("", role):
                yield ConfigError(f"is for a {key.only}, and this pair is a {role}", where, printable(name))
            elif key.vm and is_known and not has_vm:
                detail = f"is for a VM: the pair would have to have {origin.name} = qemu, and it has {chosen}"
                yield ConfigError(detail, where, printable(name))
    if has_vm and "qemu-qmp" not in given:
        detail = (
            f"is missing, and {origin.name} = qemu needs it; for example qemu-qmp = {PAIR_KEYS['qemu-qmp'].example}"
        )
        yield ConfigError(detail, where, "qemu-qmp")
    if has_vm and values.get("peer") is Peer.KEMARI:
        yield ConfigError(
            f"has to be ftd where {origin.name} = qemu: Kemari does not know its checkpoints", where, "peer"
        )


def _relations(
    where: str, role: Role | None, given: Mapping[str, object], values: Mapping[str, Any]
) -> Iterator[ConfigError]:
    """Values that are right by themselves and wrong together; what is only in ``given`` was found wrong before."""
    for lesser, greater, strictly, only in _RELATIONS:
        low, high = PAIR_KEYS[lesser], PAIR_KEYS[greater]
        if only not in (None, role) or any(k.name in given and k.attribute not in values for k in (low, high)):
            continue
        least, most = values.get(low.attribute, low.default), values.get(high.attribute, high.default)
        if least > most or (strictly and least == most):
            relation = "less than" if strictly else "at most"
            amounts = f"{lesser} ({low.kind.show(least)}) has to be {relation} {greater} ({high.kind.show(most)})"
            yield ConfigError(amounts, where, lesser if lesser in given else greater)


def _convert(
    keys: Mapping[str, Key],
    section: str,
    given: Mapping[str, object],
    found: list[ConfigError],
    base: Path | None = None,
) -> dict[str, Any]:
    """
    The values of a section by attribute; what is wrong goes to ``found`` and is left out.

    :param base: the directory that relative paths start from.
    """
    values = {}
    for name, raw in given.items():
        key = keys.get(name)
        if key is None:
            found.append(ConfigError(_unknown("key", name, keys), section, printable(name)))
            continue
        try:
            values[key.attribute] = _value(key, raw, base)
        except BadValue as bad:
            found.append(ConfigError(f"{bad}; for example {name} = {key.example}", section, name))
    return values


def _value(key: Key, raw: object, base: Path | None) -> Any:
    """
    What a key has, with absolute paths.

    :raises BadValue: if it cannot have that.
    """
    value = key.kind.parse(raw)
    return key.kind.rebased(value, base) if isinstance(key.kind, PathText | NetText) else value


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Says that there is no such section or key, and which one may have been meant."""
    close = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1)
    return f"there is no such {what}" + (f"; is {close[0]} meant?" if close else "")
