"""Which HTTP requests may use the pack's routes: those of pages that this ComfyUI has served itself.

ComfyUI's own check compares the headers Host and Origin. A page whose name was made to resolve to this computer (DNS
rebinding) passes it, because both headers carry that name; here the name itself is checked too.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from aiohttp import web
from comfy.cli_args import args


def origin_problem(request: web.Request) -> str | None:
    """Why the request is refused; None when it is not.

    Nothing is refused when ComfyUI was started with --enable-cors-header, which admits pages of other origins. Names
    are checked on connections to a loopback address only: the names of a server on a network are not known here.
    """
    if args.enable_cors_header:
        return None
    host, origin = request.headers.get("Host"), request.headers.get("Origin")
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        return "this request comes from another site's page"
    if host is None or not is_loopback(_own_address(request)):
        return None
    if not _is_local_name(_hostname(host)):
        return (
            f"the address `{host}` is not this computer's; open ComfyUI as http://127.0.0.1 or http://localhost, or "
            "start it with --enable-cors-header behind a proxy"
        )
    if origin is not None and _netloc(origin) != host.lower():
        return f"this request comes from a page of `{origin}`"
    return None


def _own_address(request: web.Request) -> str:
    """The address of this computer that the request was sent to; empty when it is not known."""
    name = request.transport.get_extra_info("sockname") if request.transport else None
    return name[0] if isinstance(name, tuple) else ""


def _netloc(origin: str) -> str:
    """Name and port in an Origin header; empty when there are none, as in `null`."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _hostname(host: str) -> str:
    """The name in a Host header, without its port; empty when there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_local_name(name: str) -> bool:
    """Whether a browser resolves the name to this computer without asking a DNS server that others control."""
    own = socket.gethostname().lower()
    return name in ("localhost", own, f"{own}.local") or name.endswith(".localhost") or is_loopback(name)


def is_loopback(address: str) -> bool:
    """Whether the IP address means this computer; False for a name."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
