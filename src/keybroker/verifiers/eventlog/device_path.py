"""UEFI device paths as text, one string a node.

Nodes that are not known here, or not in the form of their type, are written as
``Path(type,subtype,hex)``.

Specification: UEFI 2.11, section 10.3 (nodes) and 10.6.1 (text).
"""

import ipaddress
from collections.abc import Callable, Mapping
from struct import Struct
from uuid import UUID

#: Most nodes of one path. Real paths have about ten.
MAX_NODES = 256

_NODE_HEAD = Struct("<BBH")
_ACPI = Struct("<II")
_BBS = Struct("<HH")
_HARD_DRIVE = Struct("<IQQ16sBB")
_IPV4 = Struct("<4s4sHHHB")

_BOOT_DEVICES = {
    0x01: "FLOPPY",
    0x02: "HARD_DRIVE",
    0x03: "CDROM",
    0x04: "PCMCIA",
    0x05: "USB",
    0x06: "EMBEDDED_NETWORK",
    0x80: "DEV",
    0xFF: "UNKNOWN",
}
_PROTOCOLS = {6: "TCP", 17: "UDP"}
_ADDRESS_ORIGINS = {0: "DHCP", 1: "Static"}
_MBR, _GPT = 1, 2


class UnreadablePathError(Exception):
    """The bytes are not a device path."""


def format_device_path(path: bytes) -> list[str]:
    """Write every node of a path, without its end node.

    Raises:
        UnreadablePathError: a node's length lies, or there are more than :data:`MAX_NODES`.
    """
    nodes: list[str] = []
    position = 0
    while position < len(path):
        if len(nodes) == MAX_NODES or len(path) - position < _NODE_HEAD.size:
            raise UnreadablePathError
        kind, subtype, length = _NODE_HEAD.unpack_from(path, position)
        if length < _NODE_HEAD.size or position + length > len(path):
            raise UnreadablePathError
        nodes.append(_format_node(kind, subtype, path[position + _NODE_HEAD.size :][: length - 4]))
        position += length
    return nodes


def _format_node(kind: int, subtype: int, data: bytes) -> str:
    formatter = _FORMATTERS.get((kind, subtype))
    text = formatter(data) if formatter is not None else None
    return text if text is not None else f"Path({kind},{subtype},{data.hex()})"


def _pci(data: bytes) -> str | None:
    return f"Pci({data[0]},{data[1]})" if len(data) >= 2 else None


def _acpi(data: bytes) -> str | None:
    if len(data) < _ACPI.size:
        return None
    hid, uid = _ACPI.unpack_from(data)
    # three letters of five bits each, "A" is 1
    vendor = "".join(chr((hid >> shift & 0x1F) + ord("@")) for shift in (10, 5, 0))
    return f"ACPI({vendor}{hid >> 16:04X},{uid})"


def _usb(data: bytes) -> str | None:
    return f"USB({data[0]},{data[1]})" if len(data) >= 2 else None


def _mac(data: bytes) -> str | None:
    if len(data) != 33:
        return None
    # an address is padded to 32 bytes; its length is not stored
    address = data[:31].hex().rstrip("0").upper()
    return f"Mac({address},0x{data[32]:02x})"


def _ipv4(data: bytes) -> str | None:
    if len(data) < _IPV4.size + 8:
        return None
    local, remote, _, _, protocol, origin = _IPV4.unpack_from(data)
    gateway, mask = data[_IPV4.size : _IPV4.size + 4], data[_IPV4.size + 4 : _IPV4.size + 8]
    route = f",{ipaddress.IPv4Address(gateway)},{ipaddress.IPv4Address(mask)}"
    return (
        f"IPv4({ipaddress.IPv4Address(remote)},{_PROTOCOLS.get(protocol, '')},"
        f"{_ADDRESS_ORIGINS.get(origin, '')},{ipaddress.IPv4Address(local)}"
        f"{route if any(gateway + mask) else ''})"
    )


def _fibre_channel_ex(data: bytes) -> str | None:
    if len(data) < 16:
        return None
    return f"FibreEx(0x{data[:8].hex()},0x{data[8:16].hex()})"


def _hard_drive(data: bytes) -> str | None:
    if len(data) < _HARD_DRIVE.size:
        return None
    number, start, size, signature, partitioning, _ = _HARD_DRIVE.unpack_from(data)
    if partitioning == _MBR:
        name = f"MBR,0x{int.from_bytes(signature[:4], 'little'):08x}"
    elif partitioning == _GPT:
        name = f"GPT,{_guid(signature)}"
    else:
        return None
    extent = f",0x{start:x},0x{size:x}" if number else ""
    return f"HD({number},{name}{extent})"


def _vendor_media(data: bytes) -> str | None:
    if len(data) < 16:
        return None
    return f"VenMedia({_guid(data[:16])},{data[16:].hex()})"


def _file_path(data: bytes) -> str | None:
    if not data or len(data) % 2:
        return None
    return f"File({data[:-2].decode('utf-16-le', 'replace')})"


def _bios_boot(data: bytes) -> str | None:
    if len(data) < _BBS.size:
        return None
    device, status = _BBS.unpack_from(data)
    text, _, _ = data[_BBS.size :].partition(b"\0")
    try:
        description = text.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return f"BBS({_BOOT_DEVICES.get(device, str(device))},{description},{status})"


def _guid(data: bytes) -> str:
    return str(UUID(bytes_le=data)).upper()


_FORMATTERS: Mapping[tuple[int, int], Callable[[bytes], str | None]] = {
    (0x01, 0x01): _pci,
    (0x02, 0x01): _acpi,
    (0x03, 0x05): _usb,
    (0x03, 0x0B): _mac,
    (0x03, 0x0C): _ipv4,
    (0x03, 0x15): _fibre_channel_ex,
    (0x04, 0x01): _hard_drive,
    (0x04, 0x03): _vendor_media,
    (0x04, 0x04): _file_path,
    (0x05, 0x01): _bios_boot,
}
